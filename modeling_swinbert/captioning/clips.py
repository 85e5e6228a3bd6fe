"""What people name on a command line (files, folders, globs, URLs, a list on stdin) -> clips."""

import glob
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from swinbert.captioning.caption import Clip
from swinbert.processing.video_sources_swinbert import VIDEO_SUFFIXES, is_url


def find_clips(names: Iterable[str], start: float | None = None, end: float | None = None) -> Iterator[Clip]:
    """
    The clips that `names` stand for, in their order; those of folders and globs are sorted.

    Args:
        names: files, folders (searched recursively for the suffixes of video files, without hidden files), globs,
            URLs, and `-` for a list of such names on stdin, one a line.
        start, end: seconds; the part of each clip.

    Returns:
        Clips; a name that stands for nothing is a clip with an `error`.
    """
    for name in names:
        if name == "-":
            names_on_stdin = (line.strip() for line in sys.stdin if line.strip())
            found = [each for listed in names_on_stdin for each in _find(listed)]
        else:
            found = list(_find(name))
        yield from (Clip(clip, start, end, error=error) for clip, error in found)


def _find(name: str) -> Iterator[tuple[str, str | None]]:
    """(file or URL, `None`), or (name, why there is nothing to caption)."""
    path = Path(name)
    if is_url(name) or path.is_file():
        yield name, None
    elif path.is_dir():
        videos = [str(file) for file in sorted(path.rglob("*")) if _is_video(file)]
        yield from ((video, None) for video in videos)
        if not videos:
            yield name, f"no video in this folder; looked for {' '.join(sorted(VIDEO_SUFFIXES))}"
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        for match in matches:
            yield from _find(match)
        if not matches:
            yield name, "no file matches this pattern"
    else:
        yield name, "there is no such file"


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


__all__ = ["find_clips"]
