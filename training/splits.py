"""Names of splits, and parts of videos that belong to several of them."""

import math
import re

# Words in file names, and values of the fields `split` and `subset`, that name a split.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def splits_in_name(name: str) -> list[str]:
    """The splits that the words of a name stand for, in their order: `tvc_val_release` gives `["validation"]`."""
    return [SPLIT_WORDS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLIT_WORDS]


def spans_overlap(start: float | None, end: float | None, other_start: float | None, other_end: float | None) -> bool:
    """Whether two spans in seconds share more than an end point; `None` stands for the video's own start or end."""
    first_end = min(math.inf if each is None else each for each in (end, other_end))
    return max(start or 0, other_start or 0) < first_end
