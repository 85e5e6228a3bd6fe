"""Finding videos by id in a folder, checking them without decoding, and writing decoded frames as videos."""

import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import av
from PIL import Image

from swinbert.processing import VIDEO_SUFFIXES
from swinbert.utils.progress import progress


def stem(name: str) -> str:
    """The last part of a path, without the suffix if it is that of a video."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


class VideoFolder:
    """
    An index of the videos in a folder and its subfolders, by name.

    Args:
        folder: an existing folder.
        wanted: all names that `find` will be called with.
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
        Finds the files with this name and any suffix of a video, relative to the folder. Of several, those are returned
        whose parent folders agree best with those in `name`. Case is ignored, except that a file which matches another
        wanted name exactly is not taken: YouTube ids may differ in case alone.
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
    """Yields the files in a folder and its subfolders in sorted order, following links but entering no folder twice."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in sorted(files):
            if Path(place, file).is_file():  # not a broken link
                yield PurePosixPath(Path(place, file).relative_to(folder).as_posix())


@dataclass
class VideoCheck:
    """Why a video cannot be used (empty if it can), and its duration if the header gives it."""

    error: str = ""
    seconds: float | None = None


def check_videos(files: list[Path]) -> dict[Path, VideoCheck]:
    """Opens each file, several in parallel, and looks for a video stream; decodes nothing."""
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


def write_frames(path: Path, frames: list[bytes]) -> None:
    """
    Writes JPEG files of one size as a Matroska video, without encoding them again: decoding gives the pixels of the
    JPEGs. Their times are unknown, so each gets one second.
    """
    with Image.open(io.BytesIO(frames[0])) as picture:
        width, height = picture.size
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=1)
        # Required by PyAV; decoders take the pixel format from each JPEG.
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for number, frame in enumerate(frames):
            packet = av.Packet(frame)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1), True
            packet.pts = packet.dts = number
            packet.duration = 1
            container.mux(packet)
