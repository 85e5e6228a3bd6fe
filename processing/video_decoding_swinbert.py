"""
From a video file to the frames that are wanted: decode -> sample.

Three steps, the first two without decoding anything: guard (is this a video, of a size that one can afford?), read the
packets' time stamps (which say how many frames there are, whatever the header says), decode the wanted frames. PyAV
does the first two for every backend, so that no other decoder is shown a file that it would hang or die on.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers.utils import logging
from transformers.video_utils import VideoMetadata as _VideoMetadata

from .video_sources_swinbert import VideoDecodeError, describe_source, open_source

try:
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

BACKENDS = ("pyav", "decord", "torchcodec")
SAMPLINGS = ("uniform", "round", "random")
MAX_FRAME_PIXELS = 8192 * 4320
MAX_CLIP_BYTES = 8 << 30
# Containers that hold their media themselves. Playlists (hls, dash, concat) open other files and are no part of it, nor
# are pictures; sound is, so that a song can be told from a text file.
_CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,asf,ogg,ivf,h264,hevc,mp3,aac,flac,wav"  # FFmpeg's names
)
_PICTURE_BRANDS = ("avif", "heic", "heix", "mif1")  # pictures in the container of mp4
# Reading on is cheaper than seeking over a short gap.
_SEEK_BYTES = 4 << 20
# Packets of a file up to this size are kept from counting them, and decoded without opening the file again.
_KEPT_BYTES = 16 << 20
# PyAV 17 and later would start as many threads as there are cores for each frame, to turn it into RGB.
_ONE_SCALER: dict[str, int] = {"threads": 1} if av is not None and int(av.__version__.split(".")[0]) >= 17 else {}
# FFmpeg's threads cost some 20 ms to start and to wait for; below this many pixels to decode, one is faster.
_THREADED_PIXELS = 16 << 20


@dataclass
class VideoMetadata(_VideoMetadata):
    """
    transformers' metadata of a video (`total_num_frames`, `fps`, `width`, `height`, `duration`, `video_backend`,
    `frames_indices`) and what a list of indices cannot say. Sizes are those of the upright picture.

    Args:
        frame_times (`list[float]`, *optional*): seconds from the first frame at which each sampled frame is shown;
            exact, also where the frame rate varies.
        missing_frames (`int`): sampled frames that could not be decoded and were replaced by their nearest neighbour.
    """

    frame_times: list[float] | None = None
    missing_frames: int = 0

    @property
    def timestamps(self) -> list[float]:
        """Seconds at which each sampled frame is shown."""
        return self.frame_times if self.frame_times is not None else super().timestamps


def sample_indices(
    num_available: int,
    num_frames: int,
    sampling: str = "uniform",
    generator: int | torch.Generator | None = None,
) -> np.ndarray:
    """
    Which of `num_available` frames make a clip of `num_frames`. Where there are fewer, frames are repeated.

    Args:
        num_available (`int`): frames to choose from, at least 1.
        num_frames (`int`): frames to choose, at least 1.
        sampling (`str`): `"uniform"`, evenly spaced and truncated, what SwinBERT does on video files; `"round"`, evenly
            spaced and rounded half to even, what it does on frames extracted beforehand; `"random"`, one at random from
            each of `num_frames` equal segments, for training.
        generator (`int` or `torch.Generator`, *optional*): seed or generator of `"random"`; torch's default generator
            without it.

    Returns:
        `np.ndarray` of int64, (num_frames,), ascending.

    Raises:
        ValueError: a number is below 1 or no integer, or there is no such `sampling`.
    """
    for name, value in (("num_available", num_available), ("num_frames", num_frames)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    steps = np.arange(num_frames)
    if sampling == "uniform":
        # float32 on purpose, from both ends towards the middle, as torch.linspace rounds: the original truncates its
        # result.
        last = np.float32(num_available - 1)
        step = last / np.float32(max(num_frames - 1, 1))
        from_start = step * steps.astype(np.float32)
        from_end = last - step * (num_frames - 1 - steps).astype(np.float32)
        positions = np.where(steps < num_frames // 2, from_start, from_end) if num_frames > 1 else from_start
    elif sampling == "round":
        positions = np.rint(
            steps * (num_available - 1) / (num_frames - 1) if num_frames > 1 else np.array([(num_available - 1) / 2])
        )
    elif sampling == "random":
        if isinstance(generator, (int, np.integer)):
            generator = torch.Generator().manual_seed(int(generator))
        offsets = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy()
        positions = (steps + offsets) * num_available / num_frames
    else:
        raise ValueError(f"`sampling` must be {' or '.join(SAMPLINGS)}, got {sampling!r}.")
    return np.clip(positions, 0, num_available - 1).astype(np.int64)


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
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decodes the wanted frames of a video, and no more than it takes to get them.

    Args:
        source: path (`str` or `os.PathLike`), http(s) URL, `bytes` or binary file object.
        indices (`Sequence[int]` or callable, *optional*): wanted frames, in any order, repeats allowed, counted from
            the first frame of the range. A callable gets the range's `VideoMetadata` (`total_num_frames`, `fps`,
            `duration`) and returns them.
        num_frames (`int`, *optional*): without `indices`, that many frames, evenly spaced as `sample_indices` says.
            Without either, every frame.
        start, end (`float`, *optional*): seconds from the first frame. The range begins with the first frame not before
            `start` and ends one frame after the last that is not after `end`, as in SwinBERT; an `end` past the end of
            the video means the end.
        backend (`str`): `"pyav"`, `"decord"`, `"torchcodec"`; `"auto"` is PyAV. They give the same moments.
        strict (`bool`): whether to refuse a clip of which a wanted frame cannot be decoded. Otherwise the nearest frame
            that can be decoded takes its place, with a warning that counts them.
        allow_private_urls (`bool`): whether a URL may lead to a private, loopback or link-local address.
        transform (callable, *optional*): done to each frame, (H, W, C), as soon as it is decoded: what makes frames
            smaller keeps the clip from lying in memory at full size. It must not keep the array that it gets.

    Returns:
        frames `np.ndarray` of uint8, (T, H, W, C), RGB, upright, and their `VideoMetadata`: `total_num_frames` of the
        whole video, `frames_indices` counted from its first frame, `height` and `width` before any `transform`.

    Raises:
        VideoDecodeError: with `.source` and `.kind`; see there.
        ImportError: the backend is not installed.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"`backend` must be auto, {' or '.join(BACKENDS)}, got {backend!r}.")
    backend = "pyav" if backend == "auto" else backend
    if av is None:
        raise ImportError("Decoding video needs PyAV: pip install av")
    if num_frames is not None and (isinstance(num_frames, bool) or not isinstance(num_frames, (int, np.integer))):
        raise VideoDecodeError(source, "bad_sampling", f"expected an integer `num_frames`, found {num_frames!r}.")
    if num_frames is not None and num_frames < 1:
        raise VideoDecodeError(source, "bad_sampling", f"expected `num_frames` of at least 1, found {num_frames}.")
    name = describe_source(source)
    missing = 0
    with open_source(source, allow_private_urls) as media, _open_stream(name, media) as (container, stream):
        timeline = _read_timeline(name, container, stream)
        width, height = stream.codec_context.width, stream.codec_context.height
        first, last = frame_range(name, timeline.seconds, start, end, float(timeline.time_base))
        metadata = timeline.metadata(first, last)
        if indices is None:
            indices = np.arange(last - first) if num_frames is None else sample_indices(last - first, num_frames)
        wanted: np.ndarray = first + _checked_indices(
            name, indices(metadata) if callable(indices) else indices, metadata.total_num_frames
        )
        unique, inverse = np.unique(wanted, return_inverse=True)
        if len(wanted) * width * height * 3 > MAX_CLIP_BYTES:
            raise VideoDecodeError(
                name,
                "too_large",
                f"{len(wanted)} frames of {width} x {height} take more than {MAX_CLIP_BYTES >> 30} GiB: ask for fewer"
                " (`num_frames`) or for a part (`start`, `end`).",
            )
        clip = _Clip(len(unique), transform)
        if backend == "pyav":
            missing = _decode_pyav(name, media, stream, timeline, unique, clip)
        elif backend == "decord":
            clip.put_all(_decode_decord(name, media, timeline, unique))
        else:
            clip.put_all(_decode_torchcodec(name, media, timeline, unique, stream.index))
    if missing:
        text = f"{missing} of {len(unique)} wanted frames could not be decoded"
        if strict:
            raise VideoDecodeError(name, "undecodable", f"{text}; without `strict`, their neighbours replace them.")
        warnings.warn(f"{name}: {text} and were replaced by their nearest neighbours.", stacklevel=2)
    metadata = timeline.metadata(0, len(timeline))
    metadata.height, metadata.width = clip.height, clip.width
    metadata.video_backend = backend
    metadata.frames_indices = wanted.tolist()
    metadata.frame_times = [float(time) for time in timeline.seconds[wanted]]
    metadata.missing_frames = missing
    as_wanted = len(unique) == len(wanted) and (unique == wanted).all()
    return (clip.frames if as_wanted else clip.frames[inverse]), metadata


class _Clip:
    """Frames (T, H, W, C) that arrive one by one; memory for all is taken at the first."""

    def __init__(self, num_frames: int, transform: Callable[[np.ndarray], np.ndarray] | None):
        self._num_frames, self._transform = num_frames, transform

    def put(self, position: int, frame: np.ndarray) -> None:
        self.height, self.width = frame.shape[:2]
        if self._transform is not None:
            frame = self._transform(frame)
        if not hasattr(self, "frames"):
            self.frames = np.empty((self._num_frames, *frame.shape), frame.dtype)
        self.frames[position] = frame

    def put_all(self, frames: np.ndarray) -> None:
        for position, frame in enumerate(frames):
            self.put(position, frame)


# --- Guard: is it a video, and can one afford it? ---------------------------------------------------------------------


@contextlib.contextmanager
def _open_stream(name: str, media: str | BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The container and its best video stream, none of it decoded yet."""
    if not isinstance(media, str):
        media.seek(0)
    try:
        container = av.open(
            media,
            options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            metadata_errors="ignore",  # titles in old encodings are no reason to refuse a clip
        )
    except av.error.FFmpegError as error:
        raise VideoDecodeError(
            name, "not_video", f"expected a video file, found something else or a damaged header ({error.strerror})."
        ) from error
    with contextlib.closing(container):
        if container.metadata.get("major_brand") in _PICTURE_BRANDS:
            raise VideoDecodeError(name, "not_video", "expected a video file, found a picture: open it with PIL.")
        pictures = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            covers = " (its cover picture is none)" if container.streams.video else ""
            raise VideoDecodeError(
                name, "no_video_stream", f"expected a video stream, found none in this {container.format.name}{covers}."
            )
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise VideoDecodeError(name, "undecodable", "this FFmpeg has no decoder for its video stream.")
        if context.width * context.height > MAX_FRAME_PIXELS:
            raise VideoDecodeError(
                name,
                "too_large",
                f"expected frames of at most {MAX_FRAME_PIXELS} pixels, found {context.width} x {context.height}.",
            )
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # sizes that change in the middle of the stream
        yield container, stream


# --- Time stamps: how many frames there are, and when each is shown ---------------------------------------------------


@dataclass
class _Timeline:
    """
    What the packets of a stream say. Frames are numbered in the order in which they are shown, packets in the order in
    which they are stored and decoded.
    """

    pts: np.ndarray  # (frames,) ascending time stamps
    packet_of_frame: np.ndarray  # (frames,)
    packet_pts: np.ndarray  # (packets,)
    is_key: np.ndarray  # (packets,) decoding can begin here
    is_disposable: np.ndarray  # (packets,) no other frame needs this one
    packet_id: list[tuple]  # (packets,) recognises a packet after a seek
    kept: list[Any] | None  # the packets themselves, of a file that is not too large
    packet_end: np.ndarray  # (packets,) bytes up to its end
    time_base: Fraction
    end_pts: int
    counted: bool  # the stream has no time stamps: frames are numbered as they come
    container: str  # FFmpeg's name
    promised: int  # frames that the header promises, 0 where it says nothing
    cut: set[int]  # the frame that the end of the file cuts through, if any

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def seconds(self) -> np.ndarray:
        """(frames,) seconds from the first frame."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    @property
    def tolerance(self) -> float:
        """Seconds within which a moment can belong to one frame only."""
        return 0.5 * float(min(np.diff(self.pts), default=self.end_pts - self.pts[0])) * float(self.time_base)

    def metadata(self, first: int, last: int) -> VideoMetadata:
        """Of the frames from `first` up to, not including, `last`."""
        end = self.pts[last] if last < len(self) else self.end_pts
        duration = float(end - self.pts[first]) * float(self.time_base)
        return VideoMetadata(
            total_num_frames=last - first, fps=(last - first) / duration if duration > 0 else None, duration=duration
        )


def _read_timeline(name: str, container: Any, stream: Any) -> _Timeline:
    """Reads every packet of the stream, decoding none."""
    context = stream.codec_context
    # H.264 and HEVC begin slices alike; containers say in the header how many bytes the length of a unit takes.
    length_at = {"h264": 4, "hevc": 21}.get(context.name, 0)
    header = bytes(context.extradata or b"")
    has_lengths = 0 < length_at < len(header) and header[0] == 1
    length_size = (header[length_at] & 3) + 1 if has_lengths else 0
    pts, keys, disposable, hidden, ids, sizes, durations, corrupt = [], [], [], [], [], [], [], []
    slices, kept, num_bytes = [], [], 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            pts.append(packet.pts)
            keys.append(packet.is_keyframe)
            disposable.append(packet.is_disposable)
            slices.append(_first_slice(packet, context.name == "hevc", length_size) if length_at else None)
            hidden.append(packet.is_discard)
            ids.append((packet.pts, packet.dts, packet.size))
            sizes.append(packet.size)
            durations.append(packet.duration or 0)
            corrupt.append(packet.is_corrupt)
            num_bytes += packet.size
            if num_bytes <= _KEPT_BYTES:
                kept.append(packet)
            else:
                kept.clear()
    except av.error.FFmpegError as error:
        logger.warning(f"{name}: reading stopped after {len(pts)} packets ({error.strerror}).")
    if all(hidden):
        raise VideoDecodeError(
            name, "undecodable", f"expected frames, found a header that promises {stream.frames} and none in the file."
        )
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    # AVI knows when a frame is decoded, not when it is shown, which differs where there are B-frames.
    decode_times = container.format.name == "avi" and context.has_b_frames and None not in pts and pts == sorted(pts)
    if counted := decode_times or None in pts:
        time_base, packet_of_frame = 1 / Fraction(rate), np.arange(len(pts))
        pts, durations = list(range(len(pts))), [1] * len(pts)
    else:
        time_base = Fraction(stream.time_base)
        shown = np.flatnonzero(~np.asarray(hidden, dtype=bool))
        _, order = np.unique(np.asarray(pts, dtype=np.int64)[shown], return_index=True)
        packet_of_frame = shown[order]
    packet_pts = np.asarray(pts, dtype=np.int64)
    frame_pts = packet_pts[packet_of_frame]
    last_duration = durations[packet_of_frame[-1]] or (
        (frame_pts[-1] - frame_pts[0]) / (len(frame_pts) - 1) if len(frame_pts) > 1 else 1 / (rate * time_base)
    )
    # A file that was cut short ends inside a packet: that frame is gone with the rest, and is no damage within the
    # clip.
    cut = {int(np.flatnonzero(packet_of_frame == len(pts) - 1)[0])} if corrupt[-1] and not hidden[-1] else set()
    if cut and stream.frames > len(pts):
        logger.warning(
            f"{name}: the file ends after {len(pts)} of the {stream.frames} frames that its header promises."
        )
    return _Timeline(
        pts=frame_pts,
        packet_of_frame=packet_of_frame,
        packet_pts=packet_pts,
        is_key=np.asarray(keys, dtype=bool),
        is_disposable=np.asarray(disposable, dtype=bool) | _without_readers(context.name, slices),
        packet_id=ids,
        kept=kept or None,
        packet_end=np.cumsum(sizes),
        time_base=time_base,
        end_pts=int(frame_pts[-1] + last_duration),
        counted=counted,
        container=container.format.name,
        promised=stream.frames,
        cut=cut,
    )


def _first_slice(packet: Any, is_hevc: bool, length_size: int) -> tuple[int, int] | None:
    """
    The first two bytes of the first slice in a packet of H.264 or HEVC (ITU-T H.264 and H.265, 7.3.1), found behind NAL
    unit lengths of `length_size` bytes (mp4, mkv) or, for 0, behind start codes (ts). `None` where there is none.
    """
    data: Any = memoryview(packet) if length_size else bytes(packet)
    start, size = 0, 1
    while True:
        if length_size:
            size, start = int.from_bytes(data[start : start + length_size], "big"), start + length_size
        else:
            code = data.find(b"\x00\x00\x01", start)
            start = code + 3 if code >= 0 else len(data)
        if start + 1 >= len(data):
            return None
        if (data[start] >> 1 & 63) < 32 if is_hevc else 1 <= data[start] & 31 <= 5:
            return data[start], data[start + 1]
        start += size


def _without_readers(codec: str, slices: list[tuple[int, int] | None]) -> np.ndarray:
    """
    Which packets no other frame needs, (packets,): in H.264 those with a `nal_ref_idc` of 0; in HEVC those of the
    highest temporal layer that are no reference within it (even types below 16).
    """
    if codec == "h264":
        return np.array([first is not None and not first[0] >> 5 & 3 for first in slices], dtype=bool)
    top = max((first[1] & 7 for first in slices if first), default=0)
    return np.array(
        [first is not None and first[0] >> 1 & 63 in range(0, 16, 2) and first[1] & 7 == top for first in slices],
        dtype=bool,
    )


def frame_range(
    source: Any, times: np.ndarray, start: float | None, end: float | None, tick: float = 1e-6
) -> tuple[int, int]:
    """
    The part of a clip between two moments, as the original cuts it: from the first frame not before `start` to one
    frame after the last that is not after `end`.

    Args:
        source: the clip, for messages.
        times (`np.ndarray`): ascending, (frames,), in seconds from the first frame.
        start, end (`float`, *optional*): seconds.
        tick (`float`): seconds between two time stamps: both moments are truncated to one.

    Returns:
        number of the first frame and of the one after the last.

    Raises:
        VideoDecodeError: of kind `"bad_range"`.
    """
    for key, value in (("start", start), ("end", end)):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise VideoDecodeError(source, "bad_range", f"expected `{key}` in seconds from 0, found {value!r}.")
    if start is not None and end is not None and start >= end:
        raise VideoDecodeError(source, "bad_range", f"expected `start` before `end`, found {start} and {end}.")
    # 2 / 1e-6 is 1999999.9999999998, which means 2000000
    ticks = {
        key: math.floor(value / tick + 1e-3) for key, value in (("start", start), ("end", end)) if value is not None
    }
    stamps = np.rint(times / tick)
    first = 0 if start is None else int(np.searchsorted(stamps, ticks["start"], "left"))
    last = len(times) if end is None else int(np.searchsorted(stamps, ticks["end"], "right")) + 1
    if first >= len(times):
        raise VideoDecodeError(
            source,
            "bad_range",
            f"expected `start` within the clip, whose last frame is at {times[-1]:.3f} s, found {start}.",
        )
    return first, min(max(last, first + 1), len(times))


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


# --- PyAV -------------------------------------------------------------------------------------------------------------


def _decode_pyav(
    name: str, media: str | BinaryIO, stream: Any, timeline: _Timeline, wanted: np.ndarray, clip: _Clip
) -> int:
    """Puts the frames `wanted`, ascending without repeats, into `clip`; returns how many of them are stand-ins."""
    skip = timeline.is_disposable.copy()
    skip[timeline.packet_of_frame[wanted]] = False
    if timeline.counted:
        skip[:] = False
    spans = _spans(timeline, wanted)
    position_of = {int(number): position for position, number in enumerate(wanted)}
    size = stream.codec_context.width * stream.codec_context.height
    num_packets = sum(int(np.count_nonzero(~skip[first : last + 1])) for first, last in spans)
    threads = 0 if num_packets * size > _THREADED_PIXELS else 1
    with _Decoder(name, media, timeline, threads, stream) as decoder:
        for first, last in spans:
            for number, frame in decoder.frames(first, last, skip):
                if number in position_of:
                    clip.put(position_of.pop(number), decoder.picture(frame))
                if not position_of:
                    return 0
    repaired, num_stand_ins = _repair(name, media, timeline, sorted(position_of))
    for number, picture in repaired.items():
        clip.put(position_of[number], picture)
    return num_stand_ins


def _repair(
    name: str, media: str | BinaryIO, timeline: _Timeline, lost: list[int]
) -> tuple[dict[int, np.ndarray], int]:
    """
    The `lost` frames, each from the nearest frame that can be decoded, and for how many of them that is another frame.

    One thread, every packet: after an error FFmpeg's frame threads drop good frames too.
    """
    everything = [(0, len(timeline.packet_pts) - 1)]
    for spans in (_spans(timeline, np.asarray(lost), whole_groups=True), everything):
        distance: np.ndarray = np.full(len(lost), np.iinfo(np.int64).max)
        nearest: np.ndarray = np.full(len(lost), None, dtype=object)
        with _Decoder(name, media, timeline) as decoder:
            for first, last in spans:
                for number, frame in decoder.frames(first, last):
                    away = np.abs(timeline.pts[lost] - timeline.pts[number])
                    nearest[away < distance] = frame
                    distance = np.minimum(distance, away)
            if None not in nearest:
                pictures = [decoder.picture(frame) for frame in nearest]
                stand_ins = {number for number, away in zip(lost, distance, strict=True) if away} - timeline.cut
                return dict(zip(lost, pictures, strict=True)), len(stand_ins)
    raise VideoDecodeError(
        name, "undecodable", f"expected frames, found {len(timeline.packet_pts)} packets of which none can be decoded."
    )


def _spans(timeline: _Timeline, wanted: np.ndarray, whole_groups: bool = False) -> list[tuple[int, int]]:
    """
    Runs of packets, first and last, ascending and disjoint, that contain the `wanted` frames and begin where decoding
    can: at the last key frame that is both stored and shown before the frame. (In an open group of pictures some frames
    are stored after a key frame and shown before it: they need the group before.) With `whole_groups`, up to the next
    key frame.
    """
    keys = np.flatnonzero(timeline.is_key)
    spans: list[tuple[int, int]] = []
    for frame in wanted:
        last = int(timeline.packet_of_frame[frame])
        after = int(np.searchsorted(keys, last, "right"))
        before = after - 1
        while before >= 0 and timeline.packet_pts[keys[before]] > timeline.pts[frame]:
            before -= 1
        if whole_groups:
            last = int(keys[after]) if after < len(keys) else len(timeline.packet_pts) - 1
        spans.append((int(keys[before]) if before >= 0 else 0, last))
    if timeline.counted:
        spans = [(0, len(timeline.packet_pts) - 1)]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


class _Decoder:
    """Decodes runs of packets of one stream, in ascending order; its pictures are of one size and upright."""

    def __init__(self, name: str, media: str | BinaryIO, timeline: _Timeline, threads: int = 1, stream: Any = None):
        self._name, self._media, self._timeline, self._threads = name, media, timeline, threads  # 0: FFmpeg's number
        self._stream = stream  # the one that was read for the timeline: its packets were kept, its decoder is unused
        self._reformatter = VideoReformatter()
        self._stack = contextlib.ExitStack()
        self._frame_of_pts = {int(stamp): number for number, stamp in enumerate(timeline.pts)}
        self._packet_of_id = {key: position for position, key in enumerate(timeline.packet_id)}
        self._quarter_turns: int | None = None
        self._count = 0

    def __enter__(self) -> "_Decoder":
        if self._stream is None or self._timeline.kept is None:
            self._open()
        else:
            self._prepare()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def frames(self, first: int, last: int, skip: np.ndarray | None = None) -> Iterator[tuple[int, Any]]:
        """Number and frame of all that packets `first` to `last` give, but for those to `skip` and damaged ones."""
        for position, packet in self._packets(first, last):
            if skip is None or not skip[position] or position == first:
                yield from self._numbered(packet)
        yield from self._numbered(None)  # what the decoder still holds back
        self._stream.codec_context.flush_buffers()

    def _numbered(self, packet: Any) -> Iterator[tuple[int, Any]]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            return
        for frame in frames:
            number = self._count if self._timeline.counted else self._frame_of_pts.get(frame.pts)
            self._count += 1
            if number is not None and number < len(self._timeline):
                yield number, frame

    def picture(self, frame: Any) -> np.ndarray:
        """(H, W, 3) RGB. A stream may change its resolution: the size that its header gives holds for all pictures."""
        if self._quarter_turns is None:
            self._quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as in numpy
        width, height = self._size
        picture = self._reformatter.reformat(
            frame, format="rgb24", width=width or frame.width, height=height or frame.height, **_ONE_SCALER
        ).to_ndarray()
        if not self._quarter_turns:
            return picture
        channels = [np.rot90(picture[..., channel], self._quarter_turns) for channel in range(3)]
        turned = np.empty((*channels[0].shape, 3), np.uint8)
        for channel, values in enumerate(channels):  # one by one is three times as fast
            turned[..., channel] = values
        return turned

    def _open(self) -> None:
        self._stack.close()
        self._container, self._stream = self._stack.enter_context(_open_stream(self._name, self._media))
        self._demuxer, self._next = self._container.demux(self._stream), 0
        self._prepare()

    def _prepare(self) -> None:
        context = self._stream.codec_context
        # Some decoders (dav1d, of AV1) have threads of their own, whatever the type.
        context.thread_type, context.thread_count = "AUTO", self._threads
        self._size = context.width, context.height

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Position and packet, from `first` to `last`."""
        if self._timeline.kept is not None:
            yield from enumerate(self._timeline.kept[first : last + 1], start=first)
            return
        if packet := self._seek(first):
            yield first, packet
        while self._next <= last:
            try:
                packet = next(self._demuxer)
            except (StopIteration, av.error.FFmpegError):
                return
            if packet.size:
                self._next += 1
                if self._next > first:
                    yield self._next - 1, packet

    def _seek(self, target: int) -> Any:
        """
        Jumps to the packet `target` and returns it, where that saves reading. Containers differ in what they seek by,
        so it is checked where one landed; who landed too late begins anew.
        """
        ends, unique = self._timeline.packet_end, len(self._packet_of_id) == len(self._timeline.packet_id)
        skipped = int(ends[target - 1] if target else 0) - int(ends[self._next - 1] if self._next else 0)
        if skipped < _SEEK_BYTES or not unique or self._timeline.counted:
            return None
        try:
            self._container.seek(int(self._timeline.packet_pts[target]), stream=self._stream)
            for packet in self._container.demux(self._stream):
                position = self._packet_of_id.get((packet.pts, packet.dts, packet.size))
                if position is None or position > target:
                    break
                if position == target:
                    self._demuxer, self._next = self._container.demux(self._stream), target + 1
                    return packet
        except av.error.FFmpegError:
            pass
        self._open()
        return None


# --- Other decoders: PyAV has found out which moments are wanted, they are asked for these ----------------------------


def _decode_decord(name: str, media: str | BinaryIO, timeline: _Timeline, wanted: np.ndarray) -> np.ndarray:
    try:
        import decord
    except ImportError as error:
        raise ImportError('The "decord" backend needs decord: pip install decord') from error
    if timeline.promised > len(timeline.packet_pts) or timeline.container == "mpegts":
        # It allocates what a header promises, loses what comes before the second key frame of a transport stream.
        raise VideoDecodeError(name, "backend", 'decord cannot read this file in full; "pyav" can.')
    if not isinstance(media, str):
        media.seek(0)
    try:
        reader = decord.VideoReader(media, ctx=decord.cpu(0))
        shown_at = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        shown_at -= shown_at[0]
        seconds = timeline.seconds[wanted]
        numbers = np.searchsorted(shown_at, seconds - timeline.tolerance).clip(max=len(shown_at) - 1)
        _check_moments(name, "decord", timeline, shown_at[numbers], seconds)
        # After a seek it numbers frames from the key frame's place in the file: right where nothing is shown out of it.
        keys = np.flatnonzero(timeline.is_key)
        if np.array_equal(timeline.packet_pts[keys], timeline.pts[keys[keys < len(timeline)]]):
            return reader.get_batch(numbers).asnumpy()
        keep = set(numbers.tolist())
        frames = (reader.next() for _ in range(max(keep) + 1))
        return np.stack([frame.asnumpy() for number, frame in enumerate(frames) if number in keep])
    except VideoDecodeError:
        raise
    except Exception as error:
        raise VideoDecodeError(name, "backend", f'decord cannot decode it ({error}); "pyav" may.') from error


def _decode_torchcodec(
    name: str, media: str | BinaryIO, timeline: _Timeline, wanted: np.ndarray, stream_index: int
) -> np.ndarray:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise ImportError('The "torchcodec" backend needs torchcodec: pip install torchcodec') from error
    if not isinstance(media, str):
        media.seek(0)
    seconds = timeline.pts * float(timeline.time_base)
    try:
        decoder = VideoDecoder(media, stream_index=stream_index, dimension_order="NHWC", seek_mode="exact")
        if decoder.metadata.num_frames == len(timeline):
            batch = decoder.get_frames_at(indices=wanted.tolist())
        else:
            batch = decoder.get_frames_played_at(seconds=(seconds[wanted] + timeline.tolerance).tolist())
    except Exception as error:
        if "Could not load libtorchcodec" in str(error):  # said only at its first use
            raise ImportError('The "torchcodec" backend needs the shared libraries of FFmpeg 4 to 8.') from error
        raise VideoDecodeError(name, "backend", f'torchcodec cannot decode it ({error}); "pyav" may.') from error
    _check_moments(name, "torchcodec", timeline, batch.pts_seconds.numpy(), seconds[wanted])
    return batch.data.numpy()


def _check_moments(name: str, backend: str, timeline: _Timeline, found: np.ndarray, wanted: np.ndarray) -> None:
    """Refuses frames of another moment (a seek landed too late, say), which would pass for the wanted ones."""
    off = np.abs(found - wanted).max()
    if off > timeline.tolerance:
        raise VideoDecodeError(name, "backend", f'{backend} is {off:.3f} s off the wanted moment; "pyav" is not.')


__all__ = ["BACKENDS", "VideoDecodeError", "VideoMetadata", "decode_video", "frame_range", "sample_indices"]
