"""
The decoders: PyAV, decord and torchcodec.

PyAV opens every file, within limits on what it may be, and reads its timeline, also where another decoder goes on: that
one is asked for the moments that PyAV found, and does not get most of the files on which it would hang or crash. decord
can still end the process on a damaged file. In docstrings P is the number of packets, T of wanted frames.
"""

import bisect
import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from .video_containers_swinbert import open_limits, other_container
from .video_pictures_swinbert import BlankFrames, PictureConverter, deinterlace_frames
from .video_sources_swinbert import VideoDecodeError
from .video_timeline_swinbert import VideoTimeline, demux, read_timeline

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

BACKENDS = ("pyav", "decord", "torchcodec")
MAX_FRAME_PIXELS = 8192 * 4320
_PICTURE_BRANDS = ("avif", "heic", "heix", "mif1")  # pictures in the container of mp4
_PYAV_VERSION = int(av.__version__.split(".")[0]) if av is not None else 0
# A title in an old encoding is no reason to refuse a clip; from PyAV 19 on it is none, and the argument is gone.
_OPEN_ARGUMENTS: dict[str, Any] = {"metadata_errors": "ignore"} if _PYAV_VERSION < 19 else {}
# Over a gap of fewer bytes, reading on is cheaper than seeking.
_SEEK_BYTES = 4 << 20
# The packets of a stream up to this size stay in memory from reading the timeline until they are decoded.
_KEPT_BYTES = 16 << 20
# FFmpeg's threads take some 20 ms to start and to stop; for fewer pixels to decode, one thread is faster.
_THREADED_PIXELS = 16 << 20
_MAX_THREADS = 16  # FFmpeg's own limit: a thread holds a frame
# More packets than any decoder takes in before it returns the frame of the first: 16 to reorder, one for each thread.
_MAX_DELAY = 64


def available_cores() -> list[int]:
    """Numbers of the CPU cores that this process may use, which a container or `taskset` can limit."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# --- Opening a file ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_stream(name: str, media: str | BinaryIO) -> Iterator[tuple[Any, Any]]:
    """
    Opens a video file and chooses its best video stream; decodes nothing.

    Args:
        name (`str`): the clip, for messages.
        media: absolute path or seekable binary stream, see `open_source`.

    Yields:
        PyAV's container and stream.

    Raises:
        VideoDecodeError: it is no video file, or larger than `MAX_FRAME_PIXELS`.
    """
    if not isinstance(media, str):
        media.seek(0)
    try:
        # Not `options`, which are the streams' too: PyAV before 16 crashes if the header announces no streams (flv).
        container = av.open(media, container_options=open_limits(), **_OPEN_ARGUMENTS)
    except av.error.FFmpegError as error:
        other = other_container(media)
        found = f"this container is not supported: {other}" if other else "found something else or a damaged header"
        raise VideoDecodeError(name, "not_video", f"expected a video file, {found} ({error.strerror}).") from error
    with contextlib.closing(container):
        yield container, choose_stream(name, container)


def choose_stream(name: str, container: Any) -> Any:
    """
    The best video stream of a container that PyAV opened.

    Raises:
        VideoDecodeError: there is none, or its pictures are larger than `MAX_FRAME_PIXELS`.
    """
    if container.metadata.get("major_brand") in _PICTURE_BRANDS:
        raise VideoDecodeError(name, "not_video", "expected a video file, found a picture: open it with PIL.")
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        only = " but a cover picture" if container.streams.video else ""
        raise VideoDecodeError(
            name, "no_video_stream", f"expected a video stream, found none{only} in this {container.format.name}."
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
    context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # holds for sizes that change within the stream too
    return stream


# --- Decoding with PyAV -----------------------------------------------------------------------------------------------


def _spans(timeline: VideoTimeline, wanted: np.ndarray, whole_groups: bool = False) -> list[tuple[int, int]]:
    """
    Runs of packets, (first, last), ascending and disjoint, that contain the frames `wanted`, (T,), and begin where
    decoding can: at the last key frame that is both stored and shown before the frame. (In an open group of pictures,
    some frames are stored after a key frame and shown before it: they need the group before.) With `whole_groups`, up
    to the next key frame.
    """
    keys, packet_pts, num_packets = timeline.key_packets, timeline.packets["pts"], len(timeline.packets)
    if not timeline.has_time_stamps:
        return [(0, num_packets - 1)]
    spans: list[tuple[int, int]] = []
    for frame in wanted:
        last = int(timeline.packet_of_frame[frame])
        after = int(np.searchsorted(keys, last, "right"))
        before = after - 1
        while before >= 0 and packet_pts[keys[before]] > timeline.pts[frame]:
            before -= 1
        if whole_groups:
            last = int(keys[after]) if after < len(keys) else num_packets - 1
        spans.append((int(keys[before]) if before >= 0 else 0, last))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def _surroundings(timeline: VideoTimeline, part: range) -> list[tuple[int, int]]:
    """Runs of packets, as of `_spans`, for the frames `part` with a group of pictures before them."""
    if len(part) == len(timeline):
        return [(0, len(timeline.packets) - 1)]
    (first, last), *more = _spans(timeline, np.asarray(part), whole_groups=True)
    before = timeline.key_packets[timeline.key_packets < first]
    return [(int(before[-1]) if len(before) else 0, last), *more]


def _transparent_codec(stream: Any) -> Any:
    """A decoder of VP8 or VP9 that returns transparency too, which FFmpeg's own drops; `None` where there is none."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    try:
        codec = av.CodecContext.create(name, "r")
    except ValueError:
        logger.warning(f"This FFmpeg has no {name}: what is transparent is shown in the colours below.")
        return None
    codec.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return codec


class _DamagedInThreads(Exception):
    """From here on, what FFmpeg's frame threads return differs from run to run."""


class StreamDecoder:
    """
    Decodes frames of a video's best stream. The file stays open, and the decoder keeps its state from one call to the
    next, so that frames in ascending order are decoded in one pass.

    Args:
        name (`str`): the clip, for messages.
        media: absolute path or seekable binary stream, see `open_source`.
        deinterlace (`bool`): whether to deinterlace frames that are marked as interlaced.
        tone_map (`bool`): see [`PictureConverter`].

    Attributes:
        timeline ([`VideoTimeline`]): read when the file is opened.
        stream: PyAV's.
        size (`tuple[int, int]`): width and height of the frames according to the header; 0 where it says nothing.
        pictures ([`PictureConverter`]): turns frames into pictures.
    """

    def __init__(self, name: str, media: str | BinaryIO, deinterlace: bool = True, tone_map: bool = True):
        self._name, self._media = name, media
        self._deinterlace, self._is_interlaced = deinterlace, False
        self._file = contextlib.ExitStack()
        self._num_pixels = 0  # decoded so far
        self._has_blank_frames = False
        self._output: deque[tuple[int, Any]] = deque()  # decoded frames that nobody has taken yet, with their numbers
        self._open()
        try:
            self.pictures = PictureConverter(name, self.stream, MAX_FRAME_PIXELS, tone_map)
            self.timeline, self._kept_packets = read_timeline(name, media, self._container, self.stream, _KEPT_BYTES)
        except BaseException:
            self.close()
            raise
        self._time_stamps = self.timeline.pts.data  # a memory view, of which single items are read faster
        self._next_packet = len(self.timeline.packets)  # what the demuxer gives next
        self._is_continuous = False  # whether the decoder can go on where it stopped
        self._is_fed: np.ndarray = np.zeros(len(self.timeline.packets), bool)  # packets that it got since `_begin`

    def close(self) -> None:
        self._file.close()

    def needs_pyav(self, wanted: np.ndarray) -> bool:
        """
        Whether other decoders do not show the stream as this class does. The first frame tells that comes out on the
        way to the frames `wanted`, (T,).
        """
        if self.timeline.has_own_times or self.timeline.is_lost[wanted].any():
            return True
        frame = next((frame for _, frame in self._frames(wanted[:1], to_be_continued=False)), None)
        if frame is None:
            return False
        return (frame.interlaced_frame and self._deinterlace) or self.pictures.needs_pyav(frame)

    def frames(self, wanted: np.ndarray, to_be_continued: bool) -> Iterator[tuple[int, Any]]:
        """
        Numbers and frames that the decoder returns on the way to the frames `wanted`, (T,) ascending without repeats.
        Damaged frames are missing. If `to_be_continued`, the last group of pictures is left in a state in which a call
        for later frames of the group goes on; it takes decoding a few packets more.
        """
        if not self._is_interlaced:
            for number, frame in self._frames(wanted, to_be_continued):
                if frame.interlaced_frame and self._deinterlace and number in wanted:
                    self._is_interlaced = True
                    wanted = wanted[wanted >= number]
                    break
                yield number, frame
            else:
                return
        # Each frame is deinterlaced with its neighbours, so that it does not depend on which others are wanted.
        needed = np.unique(np.clip([wanted - 1, wanted, wanted + 1], 0, len(self.timeline) - 1))
        is_needed = set(needed.tolist())
        frames = self._frames(needed, to_be_continued)
        yield from deinterlace_frames((number, frame) for number, frame in frames if number in is_needed)

    def _frames(self, wanted: np.ndarray, to_be_continued: bool) -> Iterator[tuple[int, Any]]:
        """As `frames`, without deinterlacing."""
        packet_of_wanted = self.timeline.packet_of_frame[wanted]
        spans, skip = self.plan(wanted)
        self._choose_threads(sum(int(np.count_nonzero(~skip[first : last + 1])) for first, last in spans))
        goes_on = False
        for (first, last), (next_first, _) in itertools.zip_longest(spans, spans[1:], fillvalue=(-1, -1)):
            wanted_here = wanted[(first <= packet_of_wanted) & (packet_of_wanted <= last)]
            if goes_on:
                wanted_here = wanted_here[wanted_here > self._latest]  # without those that the span before returned
            if not len(wanted_here):
                continue
            if not self._can_continue(first, wanted_here):
                self._restart(first)
            # The last span leaves its state to the next call; a call before may have gone as far as the next span.
            goes_on = to_be_continued and next_first < self._position
            until = int(wanted_here[-1]) if goes_on else None
            try:
                yield from self._decode_packets(last, skip, until)
            except _DamagedInThreads:
                returned = self._latest
                self._open()
                self._restart(first)
                yield from (each for each in self._decode_packets(last, skip, until) if each[0] > returned)

    def plan(self, wanted: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
        """
        What is decoded for the frames `wanted`, (T,): runs of packets, see `_spans`, and which packets no wanted frame
        needs, (P,).
        """
        skip = self.timeline.packets["is_disposable"] & self.timeline.has_time_stamps
        skip[self.timeline.packet_of_frame[wanted]] = False
        return _spans(self.timeline, wanted), skip

    def replacements(self, lost: list[int], part: range) -> tuple[dict[int, np.ndarray], int]:
        """
        Pictures for frames that `frames` did not return, each of the nearest frame of `part` that can be decoded, and
        how many of them are of another frame than the lost one. Where all frames are grey, those that FFmpeg does not
        mark are better than none; then all of the lost ones count.

        Decodes every packet, in one thread: after an error, FFmpeg's frame threads drop good frames too.
        """
        timeline = self.timeline
        skip_none: np.ndarray = np.zeros(len(timeline.packets), bool)
        everything = _surroundings(timeline, part)
        group = _spans(timeline, np.asarray(lost), whole_groups=True)
        for spans, only_marked in ((group, False), (everything, False), (everything, True)):
            distance: np.ndarray = np.full(len(lost), np.iinfo(np.int64).max)
            nearest: list[np.ndarray | None] = [None] * len(lost)
            self._open()
            for first, last in spans:
                self._restart(first, only_marked)
                for number, frame in self._decode_packets(last, skip_none):
                    if number not in part:
                        continue
                    away = np.abs(timeline.pts[lost] - timeline.pts[number])
                    nearer = np.flatnonzero(away < distance)
                    if len(nearer) and (picture := self._picture_by_itself(frame)) is not None:
                        distance[nearer] = away[nearer]
                        for position in nearer:
                            nearest[position] = picture
            pictures = {number: picture for number, picture in zip(lost, nearest, strict=True) if picture is not None}
            # A group whose key frame is damaged has blank frames, unless the group before it is decoded too.
            if len(pictures) == len(lost) and (spans is everything or not self._has_blank_frames):
                replaced = {number for number, away in zip(lost, distance, strict=True) if away or only_marked}
                return pictures, len(replaced - {timeline.truncated_frame})
        num_packets = sum(last - first + 1 for first, last in everything)
        raise VideoDecodeError(
            self._name, "undecodable", f"expected frames, found {num_packets} packets of which none can be decoded."
        )

    def picture(self, frame: Any) -> np.ndarray | None:
        """See [`PictureConverter`]; `None` for a frame whose damaged header says what cannot be."""
        try:
            return self.pictures.convert(frame)
        except (av.error.FFmpegError, ValueError):
            return None

    def preview(self, frame: Any, width: int) -> np.ndarray | None:
        """As `picture`, in little time: see [`PictureConverter`]."""
        try:
            return self.pictures.preview(frame, width)
        except (av.error.FFmpegError, ValueError):
            return None

    def _picture_by_itself(self, frame: Any) -> np.ndarray | None:
        """Deinterlaced without its neighbours, which may be damaged."""
        if self._deinterlace and frame.interlaced_frame:
            ((_, frame),) = deinterlace_frames([(0, frame)])
        return self.picture(frame)

    def _open(self, num_threads: int = 1) -> None:
        """Opens the file at its beginning, anew if it is open."""
        self._file.close()
        self._container, self.stream = self._file.enter_context(open_stream(self._name, self._media))
        self.size = self.stream.codec_context.width, self.stream.codec_context.height
        self._codec = _transparent_codec(self.stream) or self.stream.codec_context
        self._demuxer, self._next_packet = demux(self._container, self.stream), 0
        self._set_threads(num_threads)

    def _set_threads(self, num_threads: int) -> None:
        # Some decoders (dav1d, of AV1) have threads of their own, whatever the type.
        self._num_threads = num_threads
        self._codec.thread_type, self._codec.thread_count = "AUTO", num_threads

    def _choose_threads(self, num_packets: int) -> None:
        """
        Several threads from the call on at which enough pixels to pay for them will have been decoded: one for each
        core but that on which the frames become pictures.
        """
        self._num_pixels += num_packets * self.size[0] * self.size[1]
        num_threads = 1
        if self._num_pixels > _THREADED_PIXELS:
            num_threads = min(max(len(available_cores()) - 1, 1), _MAX_THREADS)
        if not self._codec.is_open:
            self._set_threads(num_threads)
        elif num_threads != self._num_threads:
            self._open(num_threads)  # the number is fixed once a packet has been decoded
            self._is_continuous = False

    def _can_continue(self, first: int, wanted: np.ndarray) -> bool:
        """Whether the decoder has what it needs from packet `first` on, and has yet to return all frames `wanted`."""
        packets = self.timeline.packet_of_frame[wanted]
        return (
            self._is_continuous
            and self._begin <= first < self._position
            and int(wanted[0]) > self._latest
            and bool((self._is_fed[packets] | (packets >= self._position)).all())
        )

    def _restart(self, first: int, only_marked: bool = False) -> None:
        """Clears the decoder, to begin at packet `first`."""
        self._codec.flush_buffers()
        self._output.clear()
        self._is_fed[:] = False
        self._begin = self._position = first  # the packets that the decoder gets first and next
        self._latest = -1  # frame that was returned last
        self._num_output = 0
        self._blank = BlankFrames(only_marked)
        self._is_continuous = True

    def _decode_packets(self, last: int, skip: np.ndarray, until: int | None = None) -> Iterator[tuple[int, Any]]:
        """
        Numbers and frames from the present position up to packet `last`, without the packets `skip`, (P,). Then the
        decoder is drained or, with `until`, goes on without skipping until the frame of that number comes out.
        """
        yield from self._take_output()
        for position, packet in self._packets(self._position, last if until is None else last + _MAX_DELAY):
            self._position = position + 1
            if position > last or not skip[position] or position == self._begin:
                self._is_fed[position] = True
                self._decode(packet)
                if self._output:
                    yield from self._take_output()
            if until is not None and self._latest >= until:
                return  # frames come out in the order in which they are shown: if `until` has not, it is damaged
        self._decode(None)
        self._is_continuous &= self._position == len(self._is_fed)
        yield from self._take_output()

    def _decode(self, packet: Any) -> None:
        has_failed = False
        try:
            frames = self._codec.decode(packet)
        except av.error.FFmpegError:
            self._is_continuous = False
            self._blank.is_damaged = has_failed = True
            frames = []
        if self._num_threads != 1 and (has_failed or any(frame.is_corrupt for frame in frames)):
            raise _DamagedInThreads
        for frame in frames:
            number = self._number(frame)
            if self._blank.is_blank(frame):
                self._has_blank_frames = True
            elif number is not None:
                self._output.append((number, frame))

    def _number(self, frame: Any) -> int | None:
        time_stamps, pts = self._time_stamps, frame.pts
        if not self.timeline.has_time_stamps:
            self._num_output += 1
            return self._num_output - 1 if self._num_output <= len(time_stamps) else None
        if pts is None:
            return None
        number = bisect.bisect_left(time_stamps, pts)
        return number if number < len(time_stamps) and time_stamps[number] == pts else None

    def _take_output(self) -> Iterator[tuple[int, Any]]:
        while self._output:
            number, frame = self._output.popleft()
            self._latest = max(self._latest, number)
            yield number, frame

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Position and packet, from `first` to `last` or to the end."""
        if self._kept_packets is not None:
            yield from enumerate(self._kept_packets[first : last + 1], start=first)
            return
        if packet := self._seek(first):
            yield first, packet  # the timeline's time stamps are the stored ones
        while self._next_packet <= last:
            try:
                packet = next(self._demuxer)
            except (StopIteration, av.error.FFmpegError):
                return
            self._next_packet += 1
            if self._next_packet > first:
                self.timeline.restore_time(packet, self._next_packet - 1)
                yield self._next_packet - 1, packet

    def _seek(self, target: int) -> Any:
        """
        Moves the demuxer to packet `target` and returns it, or `None` where reading on leads there. Containers differ
        in what they seek by, so the packets at which a seek lands are compared with the timeline's; if it landed too
        late or at an unknown packet, the file is opened anew.
        """
        timeline = self.timeline
        here, there = (int(timeline.packet_ends[packet - 1]) if packet else 0 for packet in (self._next_packet, target))
        is_far = there - here >= _SEEK_BYTES and timeline.can_seek
        if here == there or (here < there and not is_far):
            return None
        if timeline.can_seek:
            with contextlib.suppress(av.error.FFmpegError):
                self._container.seek(int(timeline.packets["pts"][target]), stream=self.stream)
                demuxer = demux(self._container, self.stream)
                for packet in demuxer:
                    position = timeline.find_packet(packet.pts, packet.dts, packet.size)
                    if position is None or position > target:
                        break
                    if position == target:
                        self._demuxer, self._next_packet = demuxer, target + 1
                        return packet
        self._open(self._num_threads)
        return None


# --- Other decoders ---------------------------------------------------------------------------------------------------


def _check_moments(name: str, backend: str, timeline: VideoTimeline, found: np.ndarray, wanted: np.ndarray) -> None:
    """Refuses frames of another moment than the wanted one, as after a seek that landed too late; (T,) seconds."""
    difference = np.abs(found - wanted).max()
    if difference > timeline.tolerance:
        raise VideoDecodeError(
            name, "backend", f'{backend} is {difference:.3f} s off the wanted moment; use the "pyav" backend.'
        )


def decode_with_decord(name: str, media: str | BinaryIO, timeline: VideoTimeline, wanted: np.ndarray) -> np.ndarray:
    """
    Args:
        name (`str`): the clip, for messages.
        media: path or seekable binary stream.
        timeline ([`VideoTimeline`]): the clip's own.
        wanted (`np.ndarray`): (T,) ascending frame numbers.

    Returns:
        frames `np.ndarray` of uint8, (T, H, W, 3), RGB.

    Raises:
        VideoDecodeError: of kind `"backend"`: decord cannot decode them.
        ImportError: decord is not installed.
    """
    try:
        import decord
    except ImportError as error:
        raise ImportError('The "decord" backend needs decord: pip install decord') from error
    if timeline.header_num_frames > len(timeline.packets) or timeline.container == "mpegts":
        # It allocates memory for as many frames as the header says, and loses what precedes the second key frame of a
        # transport stream.
        raise VideoDecodeError(name, "backend", 'decord cannot read this file in full; use the "pyav" backend.')
    if not isinstance(media, str):
        media.seek(0)
    try:
        reader = decord.VideoReader(media, ctx=decord.cpu(0))
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        times -= times[0]
        seconds = timeline.seconds[wanted]
        numbers = np.searchsorted(times, seconds - timeline.tolerance).clip(max=len(times) - 1)
        _check_moments(name, "decord", timeline, times[numbers], seconds)
        # After a seek it numbers frames from the key frame's place in the file, which is right only where key frames
        # are shown in the order in which they are stored.
        keys = timeline.key_packets
        if np.array_equal(timeline.packets["pts"][keys], timeline.pts[keys[keys < len(timeline)]]):
            return reader.get_batch(numbers).asnumpy()
        keep = set(numbers.tolist())
        frames = (reader.next() for _ in range(max(keep) + 1))
        return np.stack([frame.asnumpy() for number, frame in enumerate(frames) if number in keep])
    except VideoDecodeError:
        raise
    except Exception as error:
        raise VideoDecodeError(
            name, "backend", f'decord cannot decode it ({error}); try the "pyav" backend.'
        ) from error


def decode_with_torchcodec(
    name: str, media: str | BinaryIO, timeline: VideoTimeline, wanted: np.ndarray, stream_index: int
) -> np.ndarray:
    """As `decode_with_decord`, by torchcodec, of the stream with number `stream_index`."""
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
        if "Could not load libtorchcodec" in str(error):  # raised at the first use, not at the import
            raise ImportError('The "torchcodec" backend needs the shared libraries of FFmpeg 4 to 8.') from error
        raise VideoDecodeError(
            name, "backend", f'torchcodec cannot decode it ({error}); try the "pyav" backend.'
        ) from error
    _check_moments(name, "torchcodec", timeline, batch.pts_seconds.numpy(), seconds[wanted])
    return batch.data.numpy()


__all__ = [
    "BACKENDS",
    "MAX_FRAME_PIXELS",
    "StreamDecoder",
    "available_cores",
    "choose_stream",
    "decode_with_decord",
    "decode_with_torchcodec",
    "open_stream",
]
