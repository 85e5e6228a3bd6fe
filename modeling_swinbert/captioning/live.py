"""Captions of a stream while it goes on: a pipe, a file that grows, an address in the network."""

import contextlib
import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

from swinbert.captioning.kept_frames import KeptFrames, frame_reducer, frame_step
from swinbert.processing.clip_reading_swinbert import CaptionerFamily
from swinbert.processing.video_backends_swinbert import MAX_FRAME_PIXELS, choose_stream
from swinbert.processing.video_containers_swinbert import CONTAINERS, open_limits
from swinbert.processing.video_pictures_swinbert import BlankFrames, PictureConverter, deinterlace_frames
from swinbert.processing.video_sources_swinbert import VideoDecodeError, is_url
from swinbert.utils.text import one_line

# Of the frames of one window; where there are more, every second one is kept. Three windows are in memory at most: one
# is captioned, one waits, one is received.
_WINDOW_BYTES = 64 << 20
# A file that has not grown for so many seconds, or an address that has not answered, has ended.
_IDLE_SECONDS = 10.0
# Time stamps that jump by more, or back, begin anew: the stream goes on as if nothing had happened.
_LARGEST_JUMP = 60.0
# FFmpeg looks at so many seconds of a stream before it returns the first frame, or five without this.
_PROBED_SECONDS = 1.0
# What an address may lead to, without `file`: a playlist must not lead to files of this computer.
_NETWORK_CONTAINERS = f"{CONTAINERS},rtsp,hls"
_NETWORK_PROTOCOLS = "http,https,tls,tcp,udp,rtp,rtsp,crypto,data"


class Window(NamedTuple):
    """
    What has been received of a stream for one caption.

    Args:
        start, end: seconds from the first frame of the stream.
        video: to be read like a file.
        ended_at: when the last frame was received, on the clock of `time.monotonic`.
    """

    start: float
    end: float
    video: Any
    ended_at: float


class LiveStream:
    """
    A stream, to be captioned in windows while it goes on, as a clip of `captions`.

    ```python
    with open("/dev/stdin", "rb", buffering=0) as pipe:
        for caption in captions([LiveStream(pipe)], captioner, segments=5.0):
            print(caption.start, caption.text)
    ```

    A thread receives the stream while the model works. One window waits for the model: if it still waits when the next
    one is complete, its frames are dropped and counted, and its `Caption` has an error. So a caption comes, after the
    end of its window, at most two times later than the model takes for one. A stream that comes faster than it plays,
    such as a file through a pipe, is made to wait instead.

    Args:
        source: a file object, a file that grows, or an address: RTSP, HTTP (FLV, MPEG-TS), HLS.
        allow_network_streams: needed for an address; unlike a download, it may be in the private network, and FFmpeg
            connects to it, and to what a playlist there names.

    Attributes:
        num_frames, num_dropped: frames that were received, and those of them that were dropped.
        lag: the longest time from the end of a window to its caption, in seconds.

    Raises:
        ValueError: `source` is an address, and streams of the network are not allowed.
    """

    def __init__(self, source: str | os.PathLike | BinaryIO, allow_network_streams: bool = False):
        self.source = source
        self.name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "stream")
        self.name = "-" if self.name in (0, "<stdin>") else str(self.name)
        if is_url(source) and not allow_network_streams:
            raise ValueError(f"{source} is an address: FFmpeg connects to it only with --allow-network-streams.")
        self.num_frames = self.num_dropped = 0
        self.lag = 0.0

    def __str__(self) -> str:
        share = f", {self.num_dropped} dropped" if self.num_dropped else ""
        return f"{self.num_frames} frames received{share}; captions came up to {self.lag:.1f} s after their windows."

    def windows(self, family: CaptionerFamily, length: float) -> Iterator[Window]:
        """
        Windows of `length` seconds, each when it is complete; the last one is shorter.

        Raises:
            VideoDecodeError: the stream cannot be opened, or broke off.
        """
        waiting = _WaitingWindow(self)
        receiver = threading.Thread(target=self._receive, args=(family, length, waiting), daemon=True, name="receive")
        receiver.start()
        try:
            while (window := waiting.get()) is not None:
                yield window
                self.lag = max(self.lag, time.monotonic() - window.ended_at)
        finally:
            waiting.close()

    def _receive(self, family: CaptionerFamily, length: float, waiting: "_WaitingWindow") -> None:
        frames: _FramesOfWindow | None = None
        error = None
        try:
            with self._open() as (container, stream):
                pictures = PictureConverter(self.name, stream, MAX_FRAME_PIXELS)
                reduce, step = frame_reducer(family), frame_step(family, float(stream.average_rate or 25))
                for moment, duration, frame in _timed(_decoded(container, stream), stream):
                    number = math.floor(moment / length + 1e-6)
                    if frames is not None and number > frames.number:
                        waiting.put(frames.window(moment), moment)
                        frames = None
                    if waiting.is_closed:
                        return
                    frames = frames or _FramesOfWindow(self.name, number, moment, step)
                    with contextlib.suppress(av.error.FFmpegError, ValueError):  # of a damaged frame
                        frames.add(moment, duration, frame, lambda frame=frame: reduce(pictures.convert(frame)))  # type: ignore[misc]
                        self.num_frames += 1
        except Exception as problem:
            error = VideoDecodeError(self.name, getattr(problem, "kind", "not_readable"), one_line(problem))
        if frames is not None:
            waiting.put(frames.window(None), frames.end)
        elif error is None and not self.num_frames:
            error = VideoDecodeError(self.name, "undecodable", "expected a stream of frames, found none.")
        waiting.finish(error)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        options = open_limits() | {"analyzeduration": str(round(1e6 * _PROBED_SECONDS))}
        with contextlib.ExitStack() as stack:
            source: Any = self.source
            if is_url(source):
                options |= {"format_whitelist": _NETWORK_CONTAINERS, "protocol_whitelist": _NETWORK_PROTOCOLS}
                options["rtsp_transport"] = "tcp"
            elif isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(_GrowingFile(Path(source)))
            try:
                container = stack.enter_context(
                    av.open(source, container_options=options, timeout=_IDLE_SECONDS if is_url(source) else None)
                )
            except av.error.FFmpegError as error:
                raise VideoDecodeError(
                    self.name, "not_video", f"expected a stream of video, found something else ({error.strerror})."
                ) from error
            stream = choose_stream(self.name, container)
            # Threads for several frames would return each so many frames later.
            stream.thread_type = "SLICE"
            yield container, stream


class _WaitingWindow:
    """The window that waits for the model, and those before it that were dropped."""

    def __init__(self, stream: LiveStream):
        self._stream = stream
        self._changed = threading.Condition()
        self._windows: deque[Window] = deque()
        self._started: float | None = None
        self._has_ended = self.is_closed = False
        self._error: Exception | None = None

    def put(self, window: Window, moment: float) -> None:
        """
        Called by the receiver.

        Args:
            moment: seconds of the stream that have been received.
        """
        with self._changed:
            if self._started is None:
                self._started = time.monotonic() - moment
            while self._is_occupied() and moment > time.monotonic() - self._started and not self.is_closed:
                self._changed.wait(0.05)  # the stream comes faster than it plays
            if self._is_occupied():
                late = self._windows.pop()
                num_frames = len(late.video.times)
                self._stream.num_dropped += num_frames
                self._windows.append(late._replace(video=_Dropped(late.video.name, num_frames)))
            self._windows.append(window)
            self._changed.notify_all()

    def _is_occupied(self) -> bool:
        return bool(self._windows) and not isinstance(self._windows[-1].video, _Dropped)

    def finish(self, error: Exception | None) -> None:
        """Called by the receiver at the end."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Window | None:
        """The next window, or `None` at the end. Called by the model's thread."""
        with self._changed:
            while not self._windows:
                if self._has_ended:
                    if self._error is not None:
                        raise self._error
                    return None
                self._changed.wait(0.5)  # not for ever, so that Ctrl-C is noticed
            window = self._windows.popleft()
            self._changed.notify_all()
            return window

    def close(self) -> None:
        """Called by the model's thread when it wants no more."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


class _Dropped:
    """In the place of frames that were dropped."""

    def __init__(self, name: str, num_frames: int):
        self.name, self._num_frames = name, num_frames

    def read_frames(self, **arguments: Any) -> None:
        raise VideoDecodeError(
            self.name, "dropped", f"{self._num_frames} frames were dropped: the model is slower than the stream."
        )


class _FramesOfWindow:
    """The frames of the window that is received, every `step`-th of which is kept."""

    def __init__(self, name: str, number: int, start: float, step: int):
        self.number, self.end = number, start
        self._name, self._start, self._step = name, start, step
        self._times: list[float] = []
        self._frames: list[tuple[int, np.ndarray]] = []

    def add(self, moment: float, duration: float, frame: Any, picture: Callable[[], np.ndarray]) -> None:
        if len(self._times) % self._step == 0:
            self._frames.append((len(self._times), picture()))
        self._times.append(moment - self._start)
        self.end = moment + duration
        if len(self._frames) > 1 and len(self._frames) * self._frames[0][1].nbytes > _WINDOW_BYTES:
            self._frames, self._step = self._frames[::2], 2 * self._step

    def window(self, end: float | None) -> Window:
        end = self.end if end is None else end
        video = KeptFrames(self._name, np.array(self._times), end - self._start, self._frames)
        return Window(self._start, end, video, time.monotonic())


class _GrowingFile:
    """Reads a file as it grows."""

    def __init__(self, path: Path):
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> "_GrowingFile":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        deadline = time.monotonic() + _IDLE_SECONDS
        while not (content := self._file.read(size)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return content


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames, deinterlaced if they are marked as interlaced; damaged ones are left out."""

    blank = BlankFrames()

    def frames() -> Iterator[Any]:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                blank.is_damaged = True
                continue
            yield from (frame for frame in decoded if not blank.is_blank(frame))

    remaining = frames()
    for frame in remaining:
        if frame.interlaced_frame:
            yield from (each for _, each in deinterlace_frames(enumerate(itertools.chain([frame], remaining))))
        else:
            yield frame


def _timed(frames: Iterator[Any], stream: Any) -> Iterator[tuple[float, float, Any]]:
    """(seconds from the first frame, seconds for which it is shown, frame); time goes on where time stamps jump."""
    usual = float(1 / (stream.average_rate or stream.guessed_rate or 25))
    unit = float(stream.time_base)
    shift: float | None = None
    latest = -usual
    for frame in frames:
        moment = latest + usual if frame.pts is None else frame.pts * unit - (shift or 0.0)
        if shift is None or not latest < moment <= latest + _LARGEST_JUMP:
            shift = (shift or 0.0) + moment - (latest + usual)
            moment = latest + usual
        latest = moment
        yield moment, (frame.duration or 0) * unit or usual, frame


__all__ = ["LiveStream", "Window"]
