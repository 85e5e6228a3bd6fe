"""What is wrong with a dataset, for each split."""

from collections import defaultdict
from dataclasses import dataclass, field

from swinbert.training.prepare.annotations import SPLITS
from swinbert.utils.text import first_names

# Kinds of problems and how the report names them. With these, a clip is left out of the dataset:
LEFT_OUT = {
    "missing": "no such video",  # no file is named like the clip or the video that it is cut from
    "empty": "files of 0 bytes",
    "unreadable": "unreadable videos",  # no video stream, or a decoded frame that is not a whole JPEG
    "bad range": "start and end outside the video",
    "without captions": "clips without a caption",  # or with empty ones alone
    "ambiguous id": "ids of several different clips",  # same id and split, another part of a video; the first is kept
}
# With these, it is not:
KEPT = {
    "annotated twice": "annotated more than once, captions merged",
    "several files": "several files of one name, the first taken",
    "same content": "files with equal content",  # byte for byte, in any split; checked unless `check` is off
    "short": "fewer decoded frames than most",  # clips of the same split
    "empty captions": "empty captions, removed",
    "long captions": "captions longer than SwinBERT reads",  # more than `dataset.MAX_CAPTION_WORDS` words
    "repeated captions": "captions that repeat one of the same clip",  # kept: annotators may agree
    "in two splits": "clips of this split in another",  # by id or content, where the parts of the video overlap
    "source in two splits": "other parts of the same videos in another split",
}


@dataclass
class SplitReport:
    """
    The numbers and problems of a split.

    Args:
        annotated: the number of clips in the annotation files, repeated ones included.
        written: the number of clips in the dataset.
        captions: the number of captions in the dataset.
        problems: kind of problem, a key of `LEFT_OUT` or `KEPT` -> the ids of the clips, with details in brackets.
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
    """
    The report on a dataset. `str()` lists, for each split, `written of annotated clips, captions`, then a line for each
    kind of problem with the number of clips and the first ids, and at the end the notes.

    Args:
        splits: split -> its report.
        notes: remarks on the dataset as a whole.
    """

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
    """Clips have to be left out. `report` is the full report; the message names the first clips of each kind."""

    def __init__(self, report: Report):
        self.report = report
        lines = [
            f"  {name}: {LEFT_OUT[kind]}, {len(clips)} of {split.annotated} clips: {first_names(clips)}"
            for name, split in report.splits.items()
            for kind, clips in split.left_out.items()
        ]
        super().__init__(
            f"{report.num_left_out} clips have to be left out, so the dataset was not written:\n"
            + "\n".join(lines)
            + "\nAdd what is missing, or allow clips to be left out (allow_missing)."
        )
