"""Targets: damaged videos through each kind of source and each decoder."""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

from swinbert.endurance.cases import IN_PART, READ, REFUSED, Case, Finding
from swinbert.endurance.hostile_server import BEHAVIOURS, HostileServer
from swinbert.endurance.mutation import draw_bytes, mutate
from swinbert.endurance.samples import GIVEN
from swinbert.processing.video_decoding_swinbert import VideoDecodeError, VideoReader, decode_video

_KINDS = frozenset(
    "not_found not_readable empty not_video no_video_stream undecodable too_large bad_range bad_sampling bad_source"
    " bad_array refused_url download_failed backend".split()
)
_SHARE_OF_GIVEN = 0.1  # they take much longer
_SMALL = 64  # pixels of a side of the frames that are compared
# Middle grey in RGB, as decoders leave blocks that they have no data for; of full and of limited range.
_GREY, _GREY_TOLERANCE, _GREY_SHARE = 130, 4, 0.9


def _reduce(frame: np.ndarray) -> np.ndarray:
    """A lying header can ask for frames of 100 MB: a few pixels of each are enough to compare."""
    return frame[:: -(-frame.shape[0] // _SMALL), :: -(-frame.shape[1] // _SMALL)].copy()


def is_grey(frame: np.ndarray) -> bool:
    """Whether nothing is to be seen in a frame, (H, W, 3), but middle grey."""
    is_middle = (np.abs(frame.astype(np.int16) - _GREY) <= _GREY_TOLERANCE).all(-1)
    return bool(is_middle.mean() > _GREY_SHARE)


class _Unseekable(io.RawIOBase):
    """A stream that cannot seek, as of a pipe or of a member of a tar."""

    def __init__(self, content: bytes):
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


_SOURCES: dict[str, Callable[[Path, bytes], Any]] = {
    "path": lambda path, content: str(path),
    "path object": lambda path, content: path,
    "bytes": lambda path, content: content,
    "memory view": lambda path, content: memoryview(content),
    "file object": lambda path, content: io.BytesIO(content),
    "pipe": lambda path, content: _Unseekable(content),
    "record": lambda path, content: {"path": str(path), "bytes": content},
}


def _settings(random: Random) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_frames": random.choice((None, 1, 2, 4, 8, 8))}
    if random.random() < 0.15:
        settings |= {"start": random.choice((0.0, 0.3, 0.6, 5.0)), "end": random.choice((0.4, 0.9, 1e6))}
    if random.random() < 0.1:
        settings |= {"strict": True}
    return settings


def has_unmarked_grey(content: bytes) -> bool:
    """Whether FFmpeg decodes frames of a video to grey where it noticed no damage since a good key frame."""
    is_good = False
    with (
        contextlib.suppress(av.error.FFmpegError),
        av.open(io.BytesIO(content), "r", metadata_errors="replace") as container,
    ):
        codec = container.streams.video[0].codec_context
        codec.thread_count = 1
        for packet in container.demux(video=0):
            try:
                frames = codec.decode(packet)
            except av.error.FFmpegError:
                is_good, frames = False, []
            for frame in frames:
                is_good = not frame.is_corrupt and (is_good or frame.key_frame)
                if is_good and is_grey(_reduce(frame.to_ndarray(format="rgb24"))):
                    return True
    return False


def checked_decode(source: Any, content: bytes, **settings: Any) -> tuple[str, str]:
    """
    Decodes a source, and checks the result or the error.

    Args:
        content: of the file that the source is.

    Returns:
        status, and a digest of the frames or the kind of the error.

    Raises:
        Finding: the result is not what it should be.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            frames, metadata = decode_video(source, transform=_reduce, **settings)
        except VideoDecodeError as error:
            if error.kind not in _KINDS or not error.message or error.source not in str(error):
                raise Finding("undocumented kind", error.kind, str(error)) from error
            return REFUSED, error.kind
    wanted, times = settings.get("num_frames"), metadata.frame_times or []
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != (wanted or len(frames)):
        raise Finding("wrong shape", str(wanted), f"{frames.dtype} {frames.shape} of {settings}")
    if len(times) != len(frames) or not np.isfinite(times).all() or (np.diff(times) < 0).any() or times[0] < 0:
        raise Finding("wrong times", "", f"{times} of {settings}")
    if not all(0 <= number < (metadata.total_num_frames or 0) for number in metadata.frames_indices or []):
        raise Finding("wrong indices", "", f"{metadata.frames_indices} of {metadata.total_num_frames}")
    is_warned = any("could not be decoded" in str(each.message) for each in said)
    if is_warned != bool(metadata.missing_frames) or settings.get("strict") and is_warned:
        raise Finding("uncounted frames", "", f"missing_frames is {metadata.missing_frames}, warnings {len(said)}")
    grey = [number for number, frame in enumerate(frames) if is_grey(frame)]
    # Where nothing but grey is left, each frame is counted once, but for the last one of a file that is cut off.
    num_different = len({*(metadata.frames_indices or [])})
    if grey and metadata.missing_frames < num_different - (num_different > 2):
        about = f"frames {grey} of {len(frames)} are grey, missing_frames is {metadata.missing_frames}"
        raise Finding("unmarked grey" if has_unmarked_grey(content) else "grey", "", about)
    about = f"{metadata.missing_frames} {metadata.frames_indices} {np.round(times, 6).tolist()} "
    digest = hashlib.blake2b(about.encode() + frames.tobytes(), digest_size=8).hexdigest()
    return (IN_PART if metadata.missing_frames else READ), digest


# Where FFmpeg does not notice damage in HEVC, its threads race: pixels differ from one run to the next. If it decodes
# damaged frames of VP8 or VP9 to grey and does not say so, nobody can tell them from grey pictures.
_KNOWN = frozenset(("depends on threads", "unmarked grey"))
# decord looks for no damage: it ends the process, returns grey or other frames. So it is documented.
_KNOWN_OF_DECORD = _KNOWN | {"crash", "hang", "memory", "grey", "depends on source"}
_REPEATS = 20


def _compare(name: str, found: tuple[str, str], other: tuple[str, str], repeat: Callable[[], tuple[str, str]]) -> None:
    """Raises `Finding` if a file is read in another way through another source; `repeat` reads it as for `found`."""
    if other != found:
        differs = any(repeat() != found for _ in range(_REPEATS))
        raise Finding(f"depends on {'threads' if differs else 'source'}", name, f"{found}, {name}: {other}")


class VideoTarget:
    """
    Args:
        folder: of the clips.
        work: of the files that are written.
        backend: a decoder; `"auto"` also compares kinds of sources.
    """

    def __init__(self, folder: Path, work: Path, backend: str = "auto"):
        self.name = "video" if backend == "auto" else f"video by {backend}"
        self.known = _KNOWN_OF_DECORD if backend == "decord" else _KNOWN
        self.is_of_videos = True
        self._folder, self._work, self._backend = folder, work, backend
        clips = sorted(file.name for file in folder.iterdir())
        self._given = [name for name in clips if name.startswith(GIVEN)]
        self._small = [name for name in clips if not name.startswith(GIVEN)]
        self._read = cache(lambda name: (folder / name).read_bytes())

    def draw(self, random: Random) -> Case:
        clip = random.choice(self._given if self._given and random.random() < _SHARE_OF_GIVEN else self._small)
        settings = _settings(random) | {"source": random.choice(list(_SOURCES))}
        return Case(self.name, clip, draw_bytes(random, self._read(clip)), settings)

    def content(self, case: Case) -> bytes:
        return mutate(self._read(case.sample), case.operations)

    def run(self, case: Case) -> str:
        content, settings = self.content(case), {**case.settings, "backend": self._backend}
        kind = settings.pop("source")
        path = self._work / f"clip{Path(case.sample).suffix}"
        path.write_bytes(content)
        found = checked_decode(str(path), content, **settings)
        if kind != "path":
            other = checked_decode(_SOURCES[kind](path, content), content, **settings)
            _compare(kind, found, other, lambda: checked_decode(str(path), content, **settings))
        if self._backend == "auto" and found[0] != REFUSED:
            _read_in_parts(str(path))
        return found[0]


def _read_in_parts(path: str) -> None:
    """A reader of several ranges and of previews keeps to the rule too."""
    try:
        with warnings.catch_warnings(), VideoReader(path) as reader:
            warnings.simplefilter("ignore")
            middle = (reader.metadata.duration or 0) / 2
            reader.read(num_frames=2, end=middle or None, transform=_reduce)
            reader.read(num_frames=2, start=middle, transform=_reduce)
    except VideoDecodeError:
        pass


class UrlTarget:
    """A clip from a hostile server: what it sends faithfully is read as from a file, what it cuts off is refused."""

    name = "url"
    known = _KNOWN
    is_of_videos = True

    def __init__(self, folder: Path):
        self._clips = sorted(file.name for file in folder.iterdir() if file.stat().st_size < 1 << 20)
        self._read = cache(lambda name: (folder / name).read_bytes())
        self._server = cache(HostileServer)

    def draw(self, random: Random) -> Case:
        clip = random.choice(self._clips)
        operations = draw_bytes(random, self._read(clip)) if random.random() < 0.5 else []
        settings = _settings(random) | {"behaviour": random.choice(list(BEHAVIOURS)), "seed": random.getrandbits(32)}
        return Case(self.name, clip, operations, settings)

    def content(self, case: Case) -> bytes:
        return mutate(self._read(case.sample), case.operations)

    def run(self, case: Case) -> str:
        content, settings = self.content(case), dict(case.settings)
        behaviour, seed = settings.pop("behaviour"), settings.pop("seed")
        url = self._server().serve(content, behaviour, seed)
        status, digest = checked_decode(url, content, allow_private_urls=True, **settings)
        rule = BEHAVIOURS[behaviour].rule
        if rule == "faithful" and content:
            expected = checked_decode(content, content, **settings)
            _compare(behaviour, expected, (status, digest), lambda: checked_decode(content, content, **settings))
        if rule == "refused" and (status != REFUSED or digest not in ("download_failed", "refused_url", "too_large")):
            raise Finding("read what was cut off", behaviour, f"{status}, {digest}")
        return status


def video_targets(folder: Path, work: Path) -> list[Any]:
    backends = ("auto", *(name for name in ("decord", "torchcodec") if find_spec(name) is not None))
    return [*(VideoTarget(folder, work, backend) for backend in backends), UrlTarget(folder)]
