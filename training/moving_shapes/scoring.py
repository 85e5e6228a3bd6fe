"""Scores captions of moving shapes by their content instead of their words."""

import warnings
from collections.abc import Mapping, Sequence

from swinbert.training.moving_shapes.contents import content

# Name of a score -> the Hub's type of the metric, and its name on a model card.
CARD_METRICS = {"exact_content": ("accuracy", "Exactly right content")}


def exact_content(captions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """
    Whether each caption has the same `content` as its reference. A malformed sentence has none, and is wrong.

    Raises:
        ValueError: a reference is not a sentence of moving shapes.
    """
    expected = [content(reference) for reference in references]
    if None in expected:
        malformed = references[expected.index(None)]
        raise ValueError(f"Expected captions of moving shapes (`swinbert make-shapes`), found {malformed!r}.")
    return [content(caption) == wanted for caption, wanted in zip(captions, expected, strict=True)]


def exact_content_scores(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """
    Number and share of the clips whose caption has exactly the content of their first reference.

    Args:
        captions: clip -> its caption.
        references: clip -> its references.

    Returns:
        `exact` and `exact_content`; nothing if the references are not of moving shapes, with a warning if some are.
    """
    first = [references[name][0] for name in captions]
    if malformed := [reference for reference in first if not content(reference)]:
        if len(malformed) < len(first):
            warnings.warn(
                f"No exact content: {len(malformed)} of {len(first)} references are not sentences of moving shapes,"
                f" such as {malformed[0]!r}.",
                stacklevel=2,
            )
        return {}
    matches = exact_content(list(captions.values()), first)
    return {"exact": sum(matches), "exact_content": sum(matches) / len(matches)}
