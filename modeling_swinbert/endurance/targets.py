"""All targets."""

from pathlib import Path
from typing import Any

from swinbert.endurance.commands import CommandTarget
from swinbert.endurance.documents import document_targets
from swinbert.endurance.models import ModelTarget
from swinbert.endurance.samples import write_clips
from swinbert.endurance.videos import video_targets


def write_samples(folder: Path, clips: Path | None) -> None:
    """Writes the files that are mutated into a new folder."""
    write_clips(folder / "clips", clips)
    (folder / "work").mkdir()


def all_targets(folder: Path) -> list[Any]:
    """The targets, on the samples that `write_samples` wrote into `folder`."""
    clips, work = folder / "clips", folder / "work"
    small = clips / "sample.mp4"
    return [
        *video_targets(clips, work),
        *document_targets(small, work),
        ModelTarget(small, work),
        CommandTarget(small, work),
    ]
