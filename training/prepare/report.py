"""What a data set lacks and has too much of, for each split."""

from collections import defaultdict
from dataclasses import dataclass, field

from swinbert.training.prepare.annotations import SPLITS
from swinbert.utils.text import first_names

# Of these, a clip is left out ...
LEFT_OUT = {
    "missing": "no such video",
    "empty": "files of 0 bytes",
    "unreadable": "unreadable videos",
    "bad range": "start and end that are no part of the video",
    "without captions": "clips without a caption",
    "ambiguous id": "ids of clips that differ",
}
# ... of these, it is not.
KEPT = {
    "annotated twice": "annotated more than once",
    "several files": "several files of one name, the first taken",
    "same content": "files with equal content",
    "short": "fewer decoded frames than most",
    "empty captions": "empty captions, removed",
    "long captions": "captions longer than SwinBERT reads",
    "repeated captions": "captions that repeat one of the same clip",
    "in two splits": "clips of this split in another",
    "source in two splits": "other parts of the same videos in another split",
}


@dataclass
class SplitReport:
    """
    One split.

    Args:
        annotated, written: number of clips in the annotations, and in the data set.
        captions: number of captions in the data set.
        problems: kind, one of `LEFT_OUT` or `KEPT`, -> the clips, each with what is wrong where that is not plain.
    """

    annotated: int = 0
    written: int = 0
    captions: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def left_out(self) -> dict[str, list[str]]:
        return {kind: clips for kind, clips in self.problems.items() if kind in LEFT_OUT}


@dataclass
class Report:
    """All splits, in their order; `str` is for people."""

    splits: dict[str, SplitReport]
    notes: list[str]

    @property
    def num_left_out(self) -> int:
        return sum(len(clips) for split in self.splits.values() for clips in split.left_out.values())

    def __str__(self) -> str:
        lines = []
        for name, split in sorted(self.splits.items(), key=lambda item: SPLITS.index(item[0])):
            lines.append(f"{name}: {split.written} of {split.annotated} clips, {split.captions} captions")
            for kind, text in {**LEFT_OUT, **KEPT}.items():
                if clips := split.problems.get(kind):
                    lines.append(
                        f"  {'left out, ' if kind in LEFT_OUT else ''}{text}, {len(clips)}: {first_names(clips)}"
                    )
        return "\n".join([*lines, *self.notes])


class IncompleteDataset(ValueError):
    """Clips would have to be left out. `report` has all of it, the message the first names of each kind and split."""

    def __init__(self, report: Report):
        self.report = report
        lines = [
            f"  {name}: {LEFT_OUT[kind]}, {len(clips)} of {split.annotated} clips: {first_names(clips)}"
            for name, split in report.splits.items()
            for kind, clips in split.left_out.items()
        ]
        super().__init__(
            f"{report.num_left_out} clips cannot be part of the data set, which was not written:\n"
            + "\n".join(lines)
            + "\nComplete the videos, or allow clips to be left out (allow_missing)."
        )
