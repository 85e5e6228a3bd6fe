"""Captions as the COCO caption tools tokenise them: lower case, punctuation gone, clitics apart."""

import re
from collections.abc import Iterable

_TOKEN = re.compile(
    r"\d+(?:[.,:/-]\d+)*|(?:[^\W\d_]\.){2,}|[^\W\d_]+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W\d_]+(?:-[^\W\d_]+)*"
    r"|\?!|[()&$%]"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-"}


def ptb_tokenize(captions: Iterable[str]) -> list[str]:
    """Each caption as its tokens with single spaces between them."""
    return [
        " ".join(_BRACKETS.get(t, t) for t in _TOKEN.findall(caption.lower().replace("’", "'"))) for caption in captions
    ]
