"""Whether a text is JSON; short forms of values and of lists of names, for messages."""

import json
from collections.abc import Sequence
from typing import Any


def is_json(text: str) -> bool:
    """Whether a text is a JSON document that Python can read."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def preview(value: Any, length: int = 60) -> str:
    """A value on one line, cut off after `length` characters."""
    if isinstance(value, dict):
        text = "an object with " + (", ".join(map(repr, list(value)[:8])) or "no keys")
    else:
        text = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= length else text[:length] + "..."


def first_names(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list, separated by commas, and how many more there are: `"a, b and 7 more"`."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def one_line(error: BaseException) -> str:
    """The message of an exception on one line; of a `VideoDecodeError`, without the name of the clip in front."""
    return " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
