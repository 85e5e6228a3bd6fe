"""Videos: found by id in a folder, checked without decoding them, and made of decoded frames."""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TypeVar

import av
from PIL import Image
from rich.console import Console
from rich.progress import track

from swinbert.processing import VIDEO_SUFFIXES

T = TypeVar("T")


def progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """Shown on stderr, where that is a terminal."""
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, disable=not console.is_terminal)


def stem(name: str) -> str:
    """The last part of a path, without the suffix of a video."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


class VideoFolder:
    """
    The videos of a folder and of the folders in it, by their names.

    Args:
        folder: must be there.
        wanted: the names that will be looked for.
    """

    def __init__(self, folder: Path, wanted: Iterable[str]):
        self.folder = folder
        self._wanted = {stem(name) for name in wanted}
        self._files: dict[str, list[PurePosixPath]] = defaultdict(list)
        for file in _walk(folder):
            if file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith("."):
                self._files[stem(file.name).lower()].append(file)

    def find(self, name: str) -> list[PurePosixPath]:
        """
        The files with this name and any suffix, relative to the folder; of several, those in folders that are named as
        in `name`. Upper and lower case are one, unless a file in the other case is wanted by its own name: ids of
        YouTube may differ in case alone.
        """
        wanted = stem(name)
        files = self._files.get(wanted.lower(), [])
        exact = [file for file in files if stem(file.name) == wanted]
        if not exact:
            exact = [file for file in files if stem(file.name) not in self._wanted]
            if len({stem(file.name) for file in exact}) > 1:
                return []
        folders = PurePosixPath(name.lower()).parent.parts[::-1]

        def agreement(file: PurePosixPath) -> int:
            pairs = zip(folders, [part.lower() for part in file.parent.parts[::-1]], strict=False)
            return next((number for number, (one, other) in enumerate(pairs) if one != other), len(folders))

        best = max(map(agreement, exact), default=0)
        return [file for file in exact if agreement(file) == best]


def _walk(folder: Path) -> Iterator[PurePosixPath]:
    """Files in a folder and, also behind links, in the folders in it; sorted."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in sorted(files):
            if Path(place, file).is_file():  # not a link to nothing
                yield PurePosixPath(Path(place, file).relative_to(folder).as_posix())


@dataclass
class VideoCheck:
    """What is wrong with a file, if anything is, and how long it is, if its header says so."""

    wrong: str = ""
    seconds: float | None = None


def check_videos(files: list[Path]) -> dict[Path, VideoCheck]:
    """Opens each and looks for a video stream, several at a time; decodes nothing."""
    pool = ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))
    try:
        return dict(zip(files, progress(pool.map(_check, files), "Checking videos", len(files)), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _check(file: Path) -> VideoCheck:
    from swinbert.processing.video_decoding_swinbert import VideoDecodeError, header_duration

    try:
        return VideoCheck(seconds=header_duration(file))
    except VideoDecodeError as error:
        return VideoCheck(error.message)
    except OSError as error:
        return VideoCheck(str(error))


def same_content(files: Iterable[Path]) -> dict[Path, Path]:
    """Each file that repeats an earlier one byte for byte -> that one."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    first: dict[bytes, Path] = {}
    repeats = {}
    for alike in by_size.values():
        for file in alike if len(alike) > 1 else ():
            earlier = first.setdefault(_digest(file), file)
            if earlier is not file:
                repeats[file] = earlier
    return repeats


def _digest(file: Path) -> bytes:
    digest = hashlib.blake2b()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def write_frames(path: Path, frames: list[bytes]) -> None:
    """
    Puts JPEG files of one size into a Matroska file as they are: what a decoder reads is what the JPEG files show. When
    they were shown is not known; they get one second each.
    """
    with Image.open(io.BytesIO(frames[0])) as picture:
        width, height = picture.size
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=1)
        # The format of the pixels is in each JPEG; this one is only asked for.
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for number, frame in enumerate(frames):
            packet = av.Packet(frame)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1), True
            packet.pts = packet.dts = number
            packet.duration = 1
            container.mux(packet)
