"""What people name on a command line (files, folders, globs, URLs, a list on stdin) -> clips."""

import codecs
import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from swinbert.captioning.caption import Clip
from swinbert.processing.video_sources_swinbert import VIDEO_SUFFIXES, is_content, is_url

# A list of names has no NUL, and a video has one within this many bytes.
_SNIFFED_BYTES = 1 << 16


def find_clips(names: Iterable[str], start: float | None = None, end: float | None = None) -> Iterator[Clip]:
    """
    The clips that `names` stand for, in their order; those of folders and globs are sorted.

    Args:
        names: files, pipes, folders (searched recursively for the suffixes of video files, without hidden files;
            linked folders too, each once), globs, URLs, and `-` for a list of such names on stdin, one a line.
        start, end: seconds; the part of each clip.

    Returns:
        Clips; a name that stands for nothing is a clip with an `error`.
    """
    for name in names:
        found = _listed_on_stdin() if name == "-" else _find(name)
        yield from [Clip(clip, start, end, error=error) for clip, error in found]


def _listed_on_stdin() -> Iterator[tuple[str, str | None]]:
    stream = sys.stdin.buffer
    content = stream.read(_SNIFFED_BYTES)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # of Windows' PowerShell
        text = (content + stream.read()).decode("utf-16", errors="replace")
    elif b"\0" in content:
        yield "-", "expected a list of clips on stdin, one name a line, found a video (binary data): name the file"
        return
    else:
        text = os.fsdecode((content + stream.read()).removeprefix(codecs.BOM_UTF8))
    names = [line.strip() for line in text.split("\n") if line.strip()]
    if not names:
        yield "-", "expected a list of clips on stdin, one name a line, found none"
    for name in names:
        yield from _find(name)


def _find(name: str) -> Iterator[tuple[str, str | None]]:
    """(file or URL, `None`), or (name, why there is nothing to caption)."""
    if not name.strip():
        yield repr(name), "expected the name of a file, folder or URL, found an empty one"
    elif is_url(name) or is_content(name) or os.path.exists(name) and not os.path.isdir(name):
        yield name, None  # content instead of a name is refused by whoever reads it
    elif os.path.isdir(name):
        videos, problems = _videos_in(Path(name))
        yield from ((str(video), None) for video in videos)
        yield from ((str(folder), reason) for folder, reason in problems)
        if not videos and not problems:
            yield name, f"no video in this folder; looked for {' '.join(sorted(VIDEO_SUFFIXES))}"
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        for match in matches:
            yield from _find(match)
        if not matches:
            yield name, "no file matches this pattern"
    elif any(len(os.fsencode(part)) > 255 for part in name.split(os.sep)):
        yield name, "there is no such file: the name is longer than 255 bytes, which no file system allows"
    else:
        yield name, "there is no such file"


def _videos_in(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """
    Videos in a folder and in those below, sorted, and (folder, reason) of those that cannot be read. A folder that is
    reached by several ways, of which some are links, is read once: by a way without links if there is one.
    """
    videos: list[Path] = []
    problems: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    links: list[Path] = []
    while waiting or links:
        current = waiting.pop() if waiting else links.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            problems.append((current, f"the folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            elif _is_video(entry):
                videos.append(Path(entry.path))
    return sorted(videos), problems


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_video(entry: os.DirEntry) -> bool:
    """A link that leads nowhere is one too: whoever opens it says so."""
    return (
        os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES
        and not entry.name.startswith(".")
        and (entry.is_symlink() or entry.is_file())
    )


__all__ = ["find_clips"]
