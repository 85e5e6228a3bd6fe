"""
Frames of a video file: a reader of several ranges, and a function for one.

The order of work is open -> timeline -> decode: see `video_backends_swinbert.py` for the first and the last, and
`video_timeline_swinbert.py`. In docstrings T is the number of wanted frames.
"""

import contextlib
import functools
import logging
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .video_backends_swinbert import (
    BACKENDS,
    StreamDecoder,
    decode_with_decord,
    decode_with_torchcodec,
    open_stream,
)
from .video_sources_swinbert import VideoDecodeError, describe_source, is_segment, open_source
from .video_timeline_swinbert import (
    VideoMetadata,
    check_num_frames,
    frame_range,
    sample_indices,
)

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MAX_CLIP_BYTES = 8 << 30
# Of frames that one segment leaves to the next ones, which overlap it; frames beyond are decoded again.
_SHARED_BYTES = 128 << 20
# Of fewer pixels, frames become pictures in less time than it takes to start a thread beside.
_PARALLEL_PIXELS = 8 << 20
_FRAMES_AHEAD = 3  # that are decoded while one becomes a picture


def header_duration(source: Any, allow_private_urls: bool = False) -> float | None:
    """
    Checks that `source` is a video file with a video stream, and returns its duration in seconds according to the
    header, `None` where it says nothing. Reads no packets, so that damage behind the header goes unnoticed.

    Raises:
        VideoDecodeError: it is none.
    """
    with (
        open_source(source, allow_private_urls) as media,
        open_stream(describe_source(source), media) as (container, _),
    ):
        return container.duration / av.time_base if container.duration else None


class _FrameBuffer:
    """Frames (T, H, W, C) that arrive one by one; memory for all is allocated when the first one tells their size."""

    def __init__(self, num_frames: int):
        self._num_frames = num_frames
        self._frames: np.ndarray | None = None

    def put(self, position: int, frame: np.ndarray) -> None:
        if self._frames is None:
            self._frames = np.empty((self._num_frames, *frame.shape), frame.dtype)
        self._frames[position] = frame

    @property
    def frames(self) -> np.ndarray:
        assert self._frames is not None  # every clip has a frame
        return self._frames


def _checked_indices(name: str, indices: Any, num_available: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
        raise VideoDecodeError(
            name, "bad_range", f"expected a list of frame numbers, found shape {indices.shape}, dtype {indices.dtype}."
        )
    if indices.min() < 0 or indices.max() >= num_available:
        raise VideoDecodeError(
            name,
            "bad_range",
            f"expected frame numbers from 0 to {num_available - 1}, found {indices.min()} to {indices.max()}.",
        )
    return indices.astype(np.int64)


def wanted_frames(
    name: str,
    times: np.ndarray,
    metadata: Callable[[int, int], VideoMetadata],
    indices: Any,
    num_frames: int | None,
    start: float | None,
    end: float | None,
    **unit: float,
) -> np.ndarray:
    """
    (T,) numbers of the frames that a call of `decode_video` asks for.

    Args:
        name (`str`): the clip, for messages.
        times (`np.ndarray`): (F,) ascending seconds from its first frame.
        metadata: of its frames from one number up to, not including, another.
        indices, num_frames, start, end: as of [`decode_video`].
        unit: `time_base` of [`frame_range`].
    """
    check_num_frames(name, num_frames)
    first, last = frame_range(name, times, start, end, **unit)
    if callable(indices):
        indices = indices(metadata(first, last))
    elif indices is None:
        indices = np.arange(last - first) if num_frames is None else sample_indices(last - first, num_frames)
    return first + _checked_indices(name, indices, last - first)


def _in_thread(items: Iterator[Any], num_ahead: int) -> Generator[Any, None, None]:
    """The items of an iterator, none of which is `None`; it runs in a thread, up to `num_ahead` items ahead."""
    thread = ThreadPoolExecutor(1, "decode-frames")
    try:
        coming = deque(thread.submit(next, items, None) for _ in range(num_ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


class _SharedFrames:
    """Frames that one segment of a video leaves to the next ones, up to `_SHARED_BYTES`."""

    def __init__(self) -> None:
        self._frames: dict[int, np.ndarray] = {}
        self._num_bytes = 0

    def keep_from(self, first: int) -> None:
        """Drops what comes before frame `first`."""
        self._frames = {number: frame for number, frame in self._frames.items() if number >= first}
        self._num_bytes = sum(frame.nbytes for frame in self._frames.values())

    def put(self, number: int, frame: np.ndarray) -> None:
        if self._num_bytes + frame.nbytes <= _SHARED_BYTES:
            self._frames[number] = frame
            self._num_bytes += frame.nbytes

    def __contains__(self, number: int) -> bool:
        return number in self._frames

    def __getitem__(self, number: int) -> np.ndarray:
        return self._frames[number]


class VideoReader:
    """
    A video that stays open while several ranges of it are read.

    ```python
    with VideoReader("film.mkv") as reader:
        for start in range(0, int(reader.metadata.duration), 10):
            frames, metadata = reader.read(start=start, end=start + 10, num_frames=32)
    ```

    The file is opened and its packets are read once. Ranges in ascending order are decoded in one forward pass: a range
    goes on where the one before ended, also within a group of pictures. Ranges that overlap, or come in another order,
    decode again what they share. Between reads, no frames are kept but the few that the decoder holds. A reader serves
    one thread at a time.

    Args:
        source, backend, allow_private_urls, deinterlace, tone_map: as of [`decode_video`]. decord and torchcodec open
            the file themselves, for each range.

    Attributes:
        name (`str`): of the video, for messages.
        timeline ([`VideoTimeline`]): when each frame is shown.
        metadata ([`VideoMetadata`]): number of frames, rate and duration of the whole video.

    Raises:
        VideoDecodeError: the video cannot be opened, or has no frames.
        ImportError: PyAV is not installed.
    """

    def __init__(
        self,
        source: Any,
        *,
        backend: str = "auto",
        allow_private_urls: bool = False,
        deinterlace: bool = True,
        tone_map: bool = True,
    ):
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"`backend` must be auto, {' or '.join(BACKENDS)}, got {backend!r}.")
        if av is None:
            raise ImportError("Decoding video needs PyAV: pip install av")
        self.name = describe_source(source)
        self._backend = "pyav" if backend == "auto" else backend
        with contextlib.ExitStack() as stack:
            self._media = stack.enter_context(open_source(source, allow_private_urls))
            self._decoder = StreamDecoder(self.name, self._media, deinterlace, tone_map)
            stack.callback(self._decoder.close)
            self._resources = stack.pop_all()
        self.timeline = self._decoder.timeline
        self.metadata = self.timeline.metadata(0, len(self.timeline))
        self._is_open = True
        self._shared = _SharedFrames()
        self._picture_size = 0, 0  # height and width of the latest, before any transform
        for problem in self.timeline.problems:
            logger.warning(f"{self.name}: {problem}")

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, and deletes it if it was downloaded."""
        self._is_open = False
        self._resources.close()

    def read(
        self,
        *,
        indices: Sequence[int] | np.ndarray | Callable[[VideoMetadata], Sequence[int] | np.ndarray] | None = None,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        strict: bool = False,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """Frames of one range and their metadata: arguments, result and errors as of [`decode_video`]."""
        wanted = self._wanted_frames(indices, num_frames, start, end, self._whole)
        return self._read(wanted, strict, transform, True, self._whole)

    def segment(self, part: range, overlapping: Sequence[range] = ()) -> "VideoSegment":
        """The frames `part` as a [`VideoSegment`]; arguments as there."""
        return VideoSegment(self, part, overlapping)

    @property
    def _whole(self) -> range:
        return range(len(self.timeline))

    def _wanted_frames(
        self, indices: Any, num_frames: int | None, start: float | None, end: float | None, part: range
    ) -> np.ndarray:
        """(T,) numbers of frames, counted from the first of the video; the other arguments count from `part`'s."""
        if not self._is_open:
            raise ValueError(f"{self.name}: the reader is closed.")
        times = self.timeline.seconds[part.start : part.stop]
        unit = float(self.timeline.time_base)

        def metadata(first: int, last: int) -> VideoMetadata:
            return self.timeline.metadata(part.start + first, part.start + last)

        return part.start + wanted_frames(
            self.name, times - times[0], metadata, indices, num_frames, start, end, time_base=unit
        )

    def preview_frames(
        self, part: range, width: int, transform: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[tuple[int, np.ndarray, Callable[[], np.ndarray | None]]]:
        """
        Decodes a part of the video.

        Args:
            part: numbers of the frames.
            width: of the previews; narrower frames keep their own.
            transform: applied to the pictures.

        Yields:
            Of each frame that can be decoded its number; a preview, (H, W, 3) uint8, BGR, as it is stored; and a
            function that returns the picture as `read` does, or `None` if it cannot, until the next frame is asked for.
        """
        if not self._is_open:
            raise ValueError(f"{self.name}: the reader is closed.")
        decoder = self._decoder

        def picture(frame: Any) -> np.ndarray | None:
            converted = decoder.picture(frame)
            return converted if converted is None or transform is None else transform(converted)

        for number, frame in decoder.frames(np.asarray(part), to_be_continued=True):
            if number in part and (preview := decoder.preview(frame, width)) is not None:
                yield number, preview, functools.partial(picture, frame)

    def _read(
        self,
        wanted: np.ndarray,
        strict: bool,
        transform: Callable[[np.ndarray], np.ndarray] | None,
        to_be_continued: bool,
        part: range,
        shared: Collection[int] = (),
    ) -> tuple[np.ndarray, VideoMetadata]:
        """
        The frames `wanted`, (T,) numbers in any order, repeats allowed. Called by a public function's own frame.

        Args:
            part: where replacements of damaged frames may come from.
            shared: frames that are kept for later calls.
        """
        width, height = self._decoder.pictures.size
        if len(wanted) * width * height * 3 > MAX_CLIP_BYTES:
            raise VideoDecodeError(
                self.name,
                "too_large",
                f"{len(wanted)} frames of {width} x {height} take more than {MAX_CLIP_BYTES >> 30} GiB: ask for fewer"
                " (`num_frames`) or for a part (`start`, `end`).",
            )
        unique, inverse = np.unique(wanted, return_inverse=True)
        buffer = _FrameBuffer(len(unique))
        missing = self._decode(unique, buffer, transform, to_be_continued, part, shared)
        if missing:
            text = f"{missing} of {len(unique)} wanted frames could not be decoded"
            if strict:
                raise VideoDecodeError(
                    self.name, "undecodable", f"{text}; without `strict`, their neighbours replace them."
                )
            # Reported at the line that called `read` or `decode_video`.
            warnings.warn(f"{self.name}: {text} and were replaced by their nearest neighbours.", stacklevel=3)
        metadata = self.timeline.metadata(0, len(self.timeline))
        metadata.height, metadata.width = self._picture_size
        metadata.video_backend = self._backend
        metadata.frames_indices = wanted.tolist()
        metadata.frame_times = self.timeline.seconds[wanted].tolist()
        metadata.missing_frames = missing
        return (buffer.frames if np.array_equal(unique, wanted) else buffer.frames[inverse]), metadata

    def _decode(
        self,
        wanted: np.ndarray,
        buffer: _FrameBuffer,
        transform: Callable[[np.ndarray], np.ndarray] | None,
        to_be_continued: bool,
        part: range,
        shared: Collection[int],
    ) -> int:
        """
        Puts the frames `wanted`, (T,) ascending without repeats, into `buffer`; returns how many of them had to be
        replaced by others.
        """

        def transformed(picture: np.ndarray) -> np.ndarray:
            self._picture_size = picture.shape[:2]
            return picture if transform is None else transform(picture)

        if self._backend != "pyav" and self._decoder.needs_pyav(wanted):
            logger.warning(
                f"{self.name}: {self._backend} does not show its frames as they are meant to be seen; PyAV decodes it."
            )
            self._backend = "pyav"
        if self._backend != "pyav":
            arguments = self.name, self._media, self.timeline, wanted
            by_decord = self._backend == "decord"
            for position, picture in enumerate(
                decode_with_decord(*arguments)
                if by_decord
                else decode_with_torchcodec(*arguments, self._decoder.stream.index)
            ):
                buffer.put(position, transformed(self._decoder.pictures.reshape(picture)))
            return 0
        position_of = {int(number): position for position, number in enumerate(wanted)}
        for number in [number for number in position_of if number in self._shared]:
            buffer.put(position_of.pop(number), self._shared[number])
        to_share = {number for number in shared if number not in self._shared}
        needed = np.array(sorted(to_share.union(position_of)), np.int64)
        if not position_of:
            return 0
        with contextlib.closing(self._frames(needed, to_be_continued)) as frames:
            for number, frame in frames:
                if (picture := self._decoder.picture(frame)) is not None:
                    picture = transformed(picture)
                    if number in to_share:
                        self._shared.put(number, picture)
                    if number in position_of:
                        buffer.put(position_of.pop(number), picture)
        if not position_of:
            return 0
        pictures, num_replaced = self._decoder.replacements(sorted(position_of), part)
        for number, picture in pictures.items():
            buffer.put(position_of[number], transformed(picture))
        return num_replaced

    def _frames(self, wanted: np.ndarray, to_be_continued: bool) -> Generator[tuple[int, Any], None, None]:
        """
        Numbers and frames of those `wanted`, (T,) ascending without repeats, that can be decoded. Where it pays, they
        are decoded in a thread, while the caller makes pictures of the ones before.
        """
        remaining = set(wanted.tolist())

        def decode() -> Generator[tuple[int, Any], None, None]:
            for number, frame in self._decoder.frames(wanted, to_be_continued):
                if number in remaining:
                    remaining.discard(number)
                    yield number, frame
                    if not remaining:
                        return

        width, height = self._decoder.size
        is_large = len(wanted) * width * height > _PARALLEL_PIXELS
        return _in_thread(decode(), _FRAMES_AHEAD) if is_large else decode()


class VideoSegment:
    """
    A part of an open video, to be read like a file of its own: its first frame has the number 0 and the time 0.

    ```python
    with VideoReader("film.mkv") as reader:
        inputs = processor(videos=VideoSegment(reader, range(250, 500)), return_tensors="pt")
    ```

    Segments of one reader are read one at a time, in ascending order.

    Args:
        reader ([`VideoReader`]): of the video.
        part (`range`): numbers of the frames.
        overlapping (`Sequence[range]`): later segments that begin within this one. What they want of it, if they are
            read with the same arguments, is decoded with it and kept for them.
    """

    def __init__(self, reader: VideoReader, part: range, overlapping: Sequence[range] = ()):
        self.reader, self.part, self.overlapping = reader, part, overlapping
        self.name = reader.name

    def read_frames(
        self,
        *,
        indices: Sequence[int] | np.ndarray | Callable[[VideoMetadata], Sequence[int] | np.ndarray] | None = None,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        strict: bool = False,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """Frames and metadata: arguments, result and errors as of [`decode_video`]."""
        reader = self.reader
        wanted = reader._wanted_frames(indices, num_frames, start, end, self.part)
        reader._shared.keep_from(self.part.start)
        later = [reader._wanted_frames(indices, num_frames, start, end, each) for each in self.overlapping]
        shared = {number for numbers in later for number in numbers.tolist() if number in self.part}
        frames, metadata = reader._read(wanted, strict, transform, True, self.part, shared)
        first, timeline = self.part.start, reader.timeline
        own = timeline.metadata(first, self.part.stop)
        metadata.total_num_frames, metadata.fps, metadata.duration = own.total_num_frames, own.fps, own.duration
        metadata.frames_indices = (wanted - first).tolist()
        metadata.frame_times = (timeline.seconds[wanted] - timeline.seconds[first]).tolist()
        return frames, metadata


def decode_video(
    source: Any,
    *,
    indices: Sequence[int] | np.ndarray | Callable[[VideoMetadata], Sequence[int] | np.ndarray] | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    strict: bool = False,
    allow_private_urls: bool = False,
    deinterlace: bool = True,
    tone_map: bool = True,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decodes the wanted frames of a video, and as few others as possible. For several ranges, see [`VideoReader`].

    Args:
        source: path (`str` or `os.PathLike`), http(s) URL, `bytes` or binary file object; or a [`VideoSegment`], whose
            reader has been told how to decode.
        indices (`Sequence[int]` or callable, *optional*): wanted frames, in any order, repeats allowed, counted from
            the first frame of the range. A callable gets the range's `VideoMetadata` (`total_num_frames`, `fps`,
            `duration`) and returns them.
        num_frames (`int`, *optional*): without `indices`, that many frames, evenly spaced as by `sample_indices`.
            Without either, every frame.
        start, end (`float`, *optional*): seconds from the first frame. The range begins with the first frame not before
            `start` and ends one frame after the last that is not after `end`, as in SwinBERT; an `end` past the end of
            the video means the end.
        backend (`str`): `"pyav"`, `"decord"`, `"torchcodec"`; `"auto"` is PyAV. They give frames of the same moments.
            Where the others do not show frames as they are meant to be seen (mirrored, interlaced, transparent, of
            high dynamic range), PyAV decodes them, and the metadata say so. decord looks for no damage: it can end the
            process or return wrong frames. Damage that FFmpeg does not notice may, in HEVC, differ from call to call.
        strict (`bool`): whether to refuse a clip if a wanted frame cannot be decoded. Otherwise the nearest frame that
            can be decoded replaces it, with a warning that counts such frames.
        allow_private_urls (`bool`): whether a URL may lead to a private, loopback or link-local address.
        deinterlace (`bool`): whether to deinterlace frames marked as interlaced (FFmpeg's `bwdif`), a picture each.
        tone_map (`bool`): whether frames of high dynamic range (PQ, HLG) become pictures of BT.709, by the tone curve
            of BT.2390, see `video_colors_swinbert.py`. If not, a warning says that their colours are wrong.
        transform (callable, *optional*): applied to each frame, (H, W, C), as soon as it is decoded; one that makes
            frames smaller saves the memory of a clip at full size. It must not keep the array that it gets.

    Returns:
        frames `np.ndarray` of uint8, (T, H, W, C), RGB, as they are meant to be seen: upright, with square pixels, and
        what is transparent over white; and `VideoMetadata`: `total_num_frames` of the whole video, `frames_indices`
        counted from its first frame, `height` and `width` before any `transform`.

    Raises:
        VideoDecodeError: with `.source` and `.kind`, see there.
        ImportError: the backend is not installed.
    """
    check_num_frames(source, num_frames)
    if is_segment(source):
        return source.read_frames(
            indices=indices, num_frames=num_frames, start=start, end=end, strict=strict, transform=transform
        )
    with VideoReader(
        source, backend=backend, allow_private_urls=allow_private_urls, deinterlace=deinterlace, tone_map=tone_map
    ) as reader:
        wanted = reader._wanted_frames(indices, num_frames, start, end, reader._whole)
        return reader._read(wanted, strict, transform, False, reader._whole)


__all__ = [
    "BACKENDS",
    "VideoDecodeError",
    "VideoMetadata",
    "VideoReader",
    "VideoSegment",
    "decode_video",
    "frame_range",
    "header_duration",
    "sample_indices",
    "wanted_frames",
]
