"""
When each frame of a video is shown, and which frames make a clip.

A video's packets tell how many frames there are and when each is shown, whatever its header says. Reading them decodes
nothing. In docstrings P is the number of packets, F of frames, T of sampled frames.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .video_losses_swinbert import find_lost_frames
from .video_sources_swinbert import VideoDecodeError, as_seconds

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]
if TYPE_CHECKING:
    import torch
    from transformers.video_utils import VideoMetadata as _VideoMetadata
else:
    try:
        from transformers.video_utils import VideoMetadata as _VideoMetadata
    except ImportError:  # in a process that only decodes, see `swinbert.captioning.reading_process`

        @dataclass
        class _VideoMetadata:
            total_num_frames: int
            fps: float | None = None
            width: int | None = None
            height: int | None = None
            duration: float | None = None
            video_backend: str | None = None
            frames_indices: list[int] | None = None


SAMPLINGS = ("uniform", "round", "random")

# What is recorded of each packet. A film has 180,000 of them, so records are packed into arrays while they are read.
PACKET = np.dtype(
    [
        ("pts", np.int64),  # presentation time stamp
        ("dts", np.int64),  # decoding time stamp
        ("duration", np.int64),
        ("size", np.int64),  # bytes
        ("pos", np.int64),  # byte of the file, -1 where it is unknown
        ("is_key", bool),  # decoding can begin here
        ("is_disposable", bool),  # no other frame needs this one
        ("is_hidden", bool),  # decoded for other frames, but not shown (cut off by an edit list)
        ("is_corrupt", bool),
        ("slice_header", np.uint16),  # H.264 and HEVC: see `_slice_header`
    ]
)
_NO_TIME = -(1 << 63)  # as FFmpeg's AV_NOPTS_VALUE
_RECORDS_AT_ONCE = 4096
# Containers without a header that holds for the whole file: files can be joined by writing one behind the other.
_JOINABLE = ("mpegts", "mpeg", "flv")
_RESYNCHRONISING = ("matroska,webm",)  # see `video_losses_swinbert.py`
_DECODING_TIMES = ("avi", "mxf")  # containers whose packets have decoding times alone
_LARGEST_DISORDER = 0.1  # seconds by which decoding times may go back without a new beginning, as in FFmpeg


@dataclass
class VideoMetadata(_VideoMetadata):
    """
    transformers' metadata of a video (`total_num_frames`, `fps`, `width`, `height`, `duration`, `video_backend`,
    `frames_indices`) with exact times and the number of damaged frames. Width and height are those of the upright
    picture.

    Args:
        frame_times (`list[float]`, *optional*): (T,) seconds from the first frame of the video at which each sampled
            frame is shown; exact also where the frame rate varies.
        missing_frames (`int`): sampled frames that could not be decoded and were replaced by their nearest neighbour.
    """

    frame_times: list[float] | None = None
    missing_frames: int = 0

    @property
    def timestamps(self) -> list[float]:
        """Seconds at which each sampled frame is shown."""
        return self.frame_times if self.frame_times is not None else super().timestamps


def _or_no_time(time_stamp: int | None) -> int:
    return _NO_TIME if time_stamp is None else time_stamp


# --- Packets ----------------------------------------------------------------------------------------------------------


def _slice_header(packet: Any, is_hevc: bool, length_size: int) -> int:
    """
    The first two bytes of the first slice in a packet of H.264 or HEVC (ITU-T H.264 and H.265, 7.3.1), as a big-endian
    integer; 0, which no slice begins with, where there is none. NAL units are found by the `length_size` bytes of
    length before each (mp4, mkv) or, if that is 0, by their start codes (ts).
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
            return 0
        if (data[start] >> 1 & 63) < 32 if is_hevc else 1 <= data[start] & 31 <= 5:
            return data[start] << 8 | data[start + 1]
        start += size


def _is_unreferenced(codec: str, headers: np.ndarray) -> np.ndarray:
    """
    Which packets no other frame needs, (P,), by their `headers` (P,), see `_slice_header`: in H.264 those with a
    `nal_ref_idc` of 0; in HEVC those of the highest temporal layer that are no reference within it (even types below
    16).
    """
    if codec == "h264":
        return (headers != 0) & (headers >> 13 & 3 == 0)
    unit_type, layer = headers >> 9 & 63, headers & 7
    return (headers != 0) & (unit_type < 16) & (unit_type % 2 == 0) & (layer == layer.max(initial=0))


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream that hold something, from the container's present position on."""
    while True:
        try:
            yield from (packet for packet in container.demux(stream) if packet.size)
            return
        except av.error.BlockingIOError:
            pass  # in a transport stream, damage of more than 64 kB: what comes behind it is still to be read
        except IndexError:
            return  # PyAV raises it at the end of a file in which streams appeared that its header did not announce


def _read_packets(container: Any, stream: Any, max_kept_bytes: int) -> tuple[np.ndarray, list[Any] | None, str | None]:
    """
    Records of a stream's packets, (P,) of `PACKET`; the packets themselves if their size is at most `max_kept_bytes`
    in all; and why reading stopped before the end, if it did.
    """
    codec, header = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
    # The header of mp4 and mkv says at this place how many bytes the length of a NAL unit takes.
    length_at = {"h264": 4, "hevc": 21}.get(codec, 0)
    length_size = (header[length_at] & 3) + 1 if 0 < length_at < len(header) and header[0] == 1 else 0
    arrays: list[np.ndarray] = []
    records: list[tuple] = []
    kept: list[Any] | None = []
    num_bytes, problem = 0, None
    try:
        for packet in demux(container, stream):
            num_bytes += (size := packet.size)
            records.append(
                (
                    _NO_TIME if (pts := packet.pts) is None else pts,
                    _NO_TIME if (dts := packet.dts) is None else dts,
                    packet.duration or 0,
                    size,
                    -1 if (pos := packet.pos) is None else pos,
                    packet.is_keyframe,
                    packet.is_disposable,
                    packet.is_discard,
                    packet.is_corrupt,
                    _slice_header(packet, codec == "hevc", length_size) if length_at else 0,
                )
            )
            if len(records) == _RECORDS_AT_ONCE:
                arrays.append(np.array(records, PACKET))
                records.clear()
            if num_bytes > max_kept_bytes:
                kept = None
            elif kept is not None:
                kept.append(packet)
    except av.error.FFmpegError as error:
        problem = error.strerror
    packets = np.concatenate([*arrays, np.array(records, PACKET)])
    packets["is_disposable"] |= _is_unreferenced(codec, packets["slice_header"])
    return packets, kept, problem


# --- Frames -----------------------------------------------------------------------------------------------------------


@dataclass
class VideoTimeline:
    """
    A video's frames and packets. Frames are numbered in the order in which they are shown, packets in the order in
    which they are stored and decoded. Time stamps count in units of `time_base` seconds.

    Args:
        packets (`np.ndarray`): (P,) records of `PACKET`.
        pts (`np.ndarray`): (F,) ascending time stamps.
        packet_of_frame (`np.ndarray`): (F,) number of the packet that holds each frame; of a lost frame, that of the
            frame before it.
        is_lost (`np.ndarray`): (F,) which frames the file has lost, see `video_losses_swinbert.py`.
        time_base (`Fraction`): seconds.
        end_pts (`int`): time stamp at which the last frame ends.
        has_time_stamps (`bool`): whether the packets say when frames are shown. If not, frames are numbered as the
            decoder returns them, and times follow from the frame rate.
        truncated_frame (`int`, *optional*): the frame in which the file ends, if it was cut off.
        header_num_frames (`int`): number of frames according to the header; 0 where it says nothing.
        container (`str`): FFmpeg's name of the container.
        shifts (`np.ndarray`, *optional*): (P,) what has been added to the time stamps that are stored, in a file in
            which they begin again.
        problems (`list[str]`): sentences on what is wrong with the file as a whole.
    """

    packets: np.ndarray
    pts: np.ndarray
    packet_of_frame: np.ndarray
    is_lost: np.ndarray
    time_base: Fraction
    end_pts: int
    has_time_stamps: bool
    truncated_frame: int | None
    header_num_frames: int
    container: str
    shifts: np.ndarray | None = None
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def seconds(self) -> np.ndarray:
        """(F,) seconds from the first frame."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def time_of(self, frame: int) -> float:
        """Seconds from the first frame to a frame or, for the number of frames, to the end of the last one."""
        pts = self.end_pts if frame == len(self) else int(self.pts[frame])
        return float((pts - int(self.pts[0])) * self.time_base)  # exact until it is rounded

    @cached_property
    def key_packets(self) -> np.ndarray:
        """Ascending numbers of the packets at which decoding can begin."""
        return np.flatnonzero(self.packets["is_key"])

    @cached_property
    def packet_ends(self) -> np.ndarray:
        """(P,) bytes of the stream up to the end of each packet."""
        return np.cumsum(self.packets["size"])

    @property
    def tolerance(self) -> float:
        """Half the shortest distance between two frames, in seconds: so close to a frame, a moment means that frame."""
        distance = np.diff(self.pts).min() if len(self) > 1 else self.end_pts - self.pts[0]
        return 0.5 * float(distance) * float(self.time_base)

    @property
    def can_seek(self) -> bool:
        """Whether a stored time stamp leads to one place in the file."""
        return self.has_time_stamps and self.shifts is None

    @property
    def has_own_times(self) -> bool:
        """Whether the stored time stamps, by which other decoders go, are not those of this timeline."""
        is_gapped = not self.has_time_stamps and bool((np.diff(self.pts) > 1).any())
        return self.shifts is not None or is_gapped or (self.container == "mxf" and not self.has_time_stamps)

    def restore_time(self, packet: Any, number: int) -> None:
        """Sets the time stamps of packet `number`, as it was read from the file, to those of this timeline."""
        if self.shifts is not None:
            shift = int(self.shifts[number])
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift

    def find_packet(self, pts: int | None, dts: int | None, size: int) -> int | None:
        """Number of the one packet that has these time stamps and this size; `None` if there is none or are several."""
        packets = self.packets
        matches = np.flatnonzero(
            (packets["pts"] == _or_no_time(pts)) & (packets["dts"] == _or_no_time(dts)) & (packets["size"] == size)
        )
        return int(matches[0]) if len(matches) == 1 else None

    def metadata(self, first: int, last: int) -> VideoMetadata:
        """Number of frames, rate and duration of the frames from `first` up to, not including, `last`."""
        end = self.pts[last] if last < len(self) else self.end_pts
        duration = float(end - self.pts[first]) * float(self.time_base)
        return VideoMetadata(
            total_num_frames=last - first, fps=(last - first) / duration if duration > 0 else None, duration=duration
        )


def _has_time_stamps(container: Any, stream: Any, packets: np.ndarray) -> bool:
    """
    Whether packets say when their frames are shown. AVI says when they are decoded, which is another time with
    B-frames, and FFmpeg tells no more of H.264 in MXF.
    """
    pts = packets["pts"]
    if (pts == _NO_TIME).any():
        return False
    return not (
        container.format.name in _DECODING_TIMES and stream.codec_context.has_b_frames and (np.diff(pts) >= 0).all()
    )


def _find_shifts(container: str, packets: np.ndarray, time_base: Fraction) -> np.ndarray | None:
    """
    What to add to the time stamps of each packet, (P,), so that time goes on where decoding times jump back, as they do
    where files have been joined; `None` if they do not.
    """
    if container not in _JOINABLE or not len(packets):
        return None
    dts = packets["dts"].copy()
    for position in np.flatnonzero(dts == _NO_TIME):
        dts[position] = dts[position - 1] if position else packets["pts"][position]
    steps = np.diff(dts)
    begins_again = (steps < 0) & (packets["is_key"][1:] | (steps < -_LARGEST_DISORDER / time_base))
    if not begins_again.any():
        return None
    shifts = np.zeros(len(packets), np.int64)
    bounds = [0, *(np.flatnonzero(begins_again) + 1), len(packets)]
    end: int | None = None
    for first, last in itertools.pairwise(bounds):
        part = packets[first:last]
        part = part[part["pts"] != _NO_TIME]
        if not len(part):
            continue
        if end is not None:
            shifts[first:last] = end - part["pts"].min()
        latest = part[part["pts"].argmax()]
        distance = (latest["pts"] - part["pts"].min()) // max(len(part) - 1, 1)
        end = int(latest["pts"] + (latest["duration"] or distance) + shifts[first])
    return shifts


def _times_of_places(packets: np.ndarray, delay: int) -> np.ndarray:
    """
    Time stamps (P,) of frames in the order in which they are shown, in an AVI file with B-frames. Its packets have
    places, `dts`, of which some can be empty (dropped frames); the decoder returns a frame `delay` packets later.
    """
    places = packets["dts"]
    if (places == _NO_TIME).any() or (np.diff(places) < 1).any():
        return np.arange(len(places))
    delay = min(delay, len(places) - 1)
    return np.append(places[delay:], places[-1] + 1 + np.arange(delay)) - delay - places[0]


def _time_frames(
    container: Any, stream: Any, packets: np.ndarray, rate: Fraction
) -> tuple[np.ndarray, Fraction, bool, np.ndarray | None]:
    """
    Numbers of the packets that hold the frames, (F,); the unit of their time stamps; whether packets have time stamps;
    and `VideoTimeline.shifts`. Sets the time stamps in `packets` to those of the timeline.
    """
    if not _has_time_stamps(container, stream, packets):
        has_places = container.format.name in _DECODING_TIMES
        # PyAV 14 does not tell the depth; most streams with B-frames have one of 1 or 2.
        depth = getattr(stream.codec_context, "reorder_depth", 1)
        packets["pts"] = _times_of_places(packets, depth) if has_places else np.arange(len(packets))
        packets["duration"] = 1
        return np.arange(len(packets)), Fraction(stream.time_base) if has_places else 1 / rate, False, None
    time_base = Fraction(stream.time_base)
    shifts = _find_shifts(container.format.name, packets, time_base)
    if shifts is not None:
        packets["pts"] += shifts
        packets["dts"] += shifts * (packets["dts"] != _NO_TIME)
    shown = np.flatnonzero(~packets["is_hidden"])
    return shown[np.unique(packets["pts"][shown], return_index=True)[1]], time_base, True, shifts


def _truncated_frame(packets: np.ndarray, packet_of_frame: np.ndarray, is_lost: np.ndarray) -> int | None:
    """The frame of the last packet, if the end of the file cuts through it. Other corrupt packets are damage."""
    if not packets["is_corrupt"][-1] or packets["is_hidden"][-1]:
        return None
    frames = np.flatnonzero(
        (packet_of_frame == len(packets) - 1) & ~is_lost
    )  # none, if another packet has its time stamp
    return int(frames[0]) if len(frames) else None


def _add_lost_frames(
    media: str | BinaryIO, container: Any, stream: Any, packets: np.ndarray, packet_of_frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """
    (F,) time stamps, packets and `is_lost` of the frames that have a packet, `packet_of_frame`, and of those that the
    file has lost; and sentences on the latter.
    """
    pts = packets["pts"][packet_of_frame]
    lost, cut_end = find_lost_frames(media, container, stream, packets, packet_of_frame)
    places = np.searchsorted(pts, lost)
    pts = np.insert(pts, places, lost)
    is_lost = np.insert(np.zeros(len(packet_of_frame), bool), places, True)
    packet_of_frame = np.insert(packet_of_frame, places, packet_of_frame[np.maximum(places - 1, 0)])
    time_base = float(Fraction(stream.time_base))
    seconds = (pts - pts[0]) * time_base
    problems = []
    if len(lost):
        first, last = seconds[is_lost][[0, -1]]
        frames = f"{len(lost)} frames from {first:.2f} s to {last:.2f} s are" if len(lost) > 1 else "1 frame is"
        problems.append(f"the file is damaged: {frames} lost.")
    if cut_end is not None:
        end = (cut_end - pts[0]) * time_base
        problems.append(f"the file ends after {seconds[-1]:.2f} of the {end:.2f} s that its header announces.")
    return pts, packet_of_frame, is_lost, problems


def read_timeline(
    name: str, media: str | BinaryIO, container: Any, stream: Any, max_kept_bytes: int = 0
) -> tuple[VideoTimeline, list[Any] | None]:
    """
    Reads every packet of a stream and decodes none.

    Args:
        name (`str`): the clip, for messages.
        media: absolute path or seekable binary stream.
        container, stream: as PyAV opened them, at their beginning. Afterwards the container is at its end.
        max_kept_bytes (`int`): packets of a stream up to this size are returned too, so that they need not be read
            again in order to decode them.

    Returns:
        the timeline, and the packets in their order, or `None` if there are too many bytes of them.

    Raises:
        VideoDecodeError: of kind `"undecodable"`, if no packet holds a frame.
    """
    packets, kept, problem = _read_packets(container, stream, max_kept_bytes)
    if packets["is_hidden"].all():
        raise VideoDecodeError(
            name, "undecodable", f"expected frames, found none; the header announces {stream.frames}."
        )
    problems = [f"reading stopped after {len(packets)} packets ({problem})."] if problem else []
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    packet_of_frame, time_base, has_time_stamps, shifts = _time_frames(container, stream, packets, rate)
    if container.format.name in _RESYNCHRONISING and has_time_stamps:
        pts, packet_of_frame, is_lost, losses = _add_lost_frames(media, container, stream, packets, packet_of_frame)
        problems += losses
    else:
        pts, is_lost = packets["pts"][packet_of_frame], np.zeros(len(packet_of_frame), bool)
    last_duration = packets["duration"][packet_of_frame[-1]] or (
        (pts[-1] - pts[0]) / (len(pts) - 1) if len(pts) > 1 else 1 / (rate * time_base)
    )
    truncated_frame = _truncated_frame(packets, packet_of_frame, is_lost)
    if truncated_frame is not None and stream.frames > len(packets):
        problems.append(f"the file ends after {len(packets)} of the {stream.frames} frames that its header announces.")
    timeline = VideoTimeline(
        packets=packets,
        pts=pts,
        packet_of_frame=packet_of_frame,
        is_lost=is_lost,
        time_base=time_base,
        end_pts=int(pts[-1] + last_duration),
        has_time_stamps=has_time_stamps,
        truncated_frame=truncated_frame,
        header_num_frames=stream.frames,
        container=container.format.name,
        shifts=shifts,
        problems=problems,
    )
    for number, packet in enumerate(kept or ()) if shifts is not None else ():
        timeline.restore_time(packet, number)
    return timeline, kept


# --- Which frames make a clip -----------------------------------------------------------------------------------------


def frame_range(
    source: Any, times: np.ndarray, start: float | None, end: float | None, time_base: float = 1e-6
) -> tuple[int, int]:
    """
    The frames between two moments, by the original SwinBERT's rule: from the first frame not before `start` to one
    frame after the last that is not after `end`.

    Args:
        source: the clip, for messages.
        times (`np.ndarray`): (F,) ascending seconds from the first frame.
        start, end (`float`, *optional*): seconds.
        time_base (`float`): unit of the video's time stamps in seconds; `start` and `end` are rounded down to it.

    Returns:
        number of the first frame and of the one after the last.

    Raises:
        VideoDecodeError: of kind `"bad_range"`.
    """
    start, end = as_seconds(source, "start", start), as_seconds(source, "end", end)
    if start is not None and end is not None and start >= end:
        raise VideoDecodeError(source, "bad_range", f"expected `start` before `end`, found {start} and {end}.")

    def time_stamp(seconds: float) -> float:
        return np.floor(seconds / time_base + 1e-3)  # 2 / 1e-6 is 1999999.9999999998, which means 2000000

    time_stamps = np.rint(times / time_base)
    first = 0 if start is None else int(np.searchsorted(time_stamps, time_stamp(start), "left"))
    last = len(times) if end is None else int(np.searchsorted(time_stamps, time_stamp(end), "right")) + 1
    if first >= len(times):
        raise VideoDecodeError(
            source,
            "bad_range",
            f"expected `start` within the clip, whose last frame is at {times[-1]:.3f} s, found {start}.",
        )
    return first, min(max(last, first + 1), len(times))


def check_num_frames(source: Any, num_frames: Any) -> None:
    """Raises a `VideoDecodeError` of kind `"bad_sampling"` unless `num_frames` is `None` or an integer from 1 on."""
    is_integer = isinstance(num_frames, (int, np.integer)) and not isinstance(num_frames, bool)
    if num_frames is not None and not (is_integer and num_frames >= 1):
        raise VideoDecodeError(
            source, "bad_sampling", f"expected an integer `num_frames` of at least 1, found {num_frames!r}."
        )


def sample_indices(
    num_available: int,
    num_frames: int,
    sampling: str = "uniform",
    generator: "int | torch.Generator | None" = None,
) -> np.ndarray:
    """
    Which of `num_available` frames make a clip of `num_frames`. Where there are fewer, frames are repeated.

    Args:
        num_available (`int`): frames to choose from, at least 1.
        num_frames (`int`): frames to choose, at least 1.
        sampling (`str`): `"uniform"`, evenly spaced and truncated, as SwinBERT does on video files; `"round"`, evenly
            spaced and rounded half to even, as it does on frames extracted beforehand; `"random"`, one at random from
            each of `num_frames` equal segments, for training.
        generator (`int` or `torch.Generator`, *optional*): seed or generator of `"random"`; torch's default generator
            without it.

    Returns:
        `np.ndarray` of int64, (T,) with T = `num_frames`, ascending.

    Raises:
        ValueError: a number is not an integer of at least 1, or there is no such `sampling`.
    """
    for name, value in (("num_available", num_available), ("num_frames", num_frames)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    steps = np.arange(num_frames)
    if sampling == "uniform":
        # In float32 and from both ends towards the middle, as torch.linspace does: the original truncates its result.
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
        import torch

        if isinstance(generator, (int, np.integer)):
            generator = torch.Generator().manual_seed(int(generator))
        offsets = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy()
        positions = (steps + offsets) * num_available / num_frames
    else:
        raise ValueError(f"`sampling` must be {' or '.join(SAMPLINGS)}, got {sampling!r}.")
    return np.clip(positions, 0, num_available - 1).astype(np.int64)


__all__ = [
    "SAMPLINGS",
    "VideoMetadata",
    "VideoTimeline",
    "check_num_frames",
    "demux",
    "frame_range",
    "read_timeline",
    "sample_indices",
]
