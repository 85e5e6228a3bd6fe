"""
Decoding in processes of its own: a video on which FFmpeg hangs, or which ends the process, costs itself alone.

No check of a file foresees all that FFmpeg does with it, and a thread that hangs cannot be stopped. The processes
(`reading_process.py`) decode, sample and resize, within limits of time, memory and output. One that dies is replaced.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from swinbert.captioning.reading_process import receive, receive_into, send
from swinbert.processing.video_backends_swinbert import MAX_FRAME_PIXELS
from swinbert.processing.video_decoding_swinbert import MAX_CLIP_BYTES
from swinbert.processing.video_pictures_swinbert import FrameResizer
from swinbert.processing.video_sources_swinbert import (
    MAX_DOWNLOAD_BYTES,
    VideoDecodeError,
    as_seconds,
    describe_source,
    is_encoded_source,
    is_segment,
    open_source,
)
from swinbert.processing.video_timeline_swinbert import PACKET, VideoMetadata, VideoTimeline

# Seconds for reading one clip, opening one film, or reading one segment of it.
SECONDS = 300.0
_SECONDS_TO_START = 120.0


class ReaderDied(VideoDecodeError):
    """A process died, or was ended, while it read this video: of kind `"crashed"` or `"timeout"`."""


class IsolatedReader:
    """
    Reads video files in processes of its own, one for each thread that reads at the same time.

    ```python
    with IsolatedReader() as isolation:
        for caption in captions(clips, captioner, isolation=isolation):
            print(caption.clip, caption.text, caption.error)
    ```

    A process that hangs, crashes or answers what it should not is ended, and the video gets an error of kind
    `"timeout"` or `"crashed"`; the next one is read in a new process. On Linux, processes are limited in memory too. A
    URL is downloaded in this process, and then read in another. Frames that are decoded already are used as they are.

    Args:
        seconds: within which a clip, or a segment of a film, is read.
        module: what the processes run.

    Raises:
        RuntimeError: when a video is read, the processes cannot be started.
    """

    def __init__(self, seconds: float = SECONDS, module: str = "swinbert.captioning.reading_process"):
        self._seconds, self._module = seconds, module
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._is_closed = False

    def __enter__(self) -> "IsolatedReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, also those that are reading."""
        with self._lock:
            self._is_closed = True
            processes = [*self._idle, *self._busy]
        for process in processes:
            process.end()

    def start(self) -> None:
        """
        Starts a process now, and not when the first video is read.

        Raises:
            RuntimeError: it cannot be started.
        """
        with self._process() as process:
            process.start()

    def video(self, source: Any, decoding: dict[str, Any]) -> Any:
        """
        A video to be read like a [`VideoSegment`], in a process; `source` itself if it is decoded or open already.

        Args:
            decoding: arguments of `VideoReader`, see `CaptionerFamily.decoding`.
        """
        if not is_encoded_source(source) or is_segment(source):
            return source
        return _IsolatedVideo(self, source, decoding)

    @contextlib.contextmanager
    def open(self, source: Any, decoding: dict[str, Any]) -> "Iterator[IsolatedFilm]":
        """
        Opens a film, in the place of `VideoReader`.

        Raises:
            VideoDecodeError: it cannot be opened.
        """
        name = describe_source(source)
        with _sent(source) as (request, content), self._process() as process:
            timeline = process.call(
                name,
                {**request, "do": "open", "decoding": decoding},
                content,
                shape_of=lambda answer: (int(answer["frames"]),),
                dtype=np.int64,
                accept=_timeline,
            )
            del content
            try:
                yield IsolatedFilm(name, timeline, process)
            finally:
                if process.is_sound:
                    with contextlib.suppress(ReaderDied):  # what was wanted of the film has been read
                        process.call(name, {"do": "close"})

    def header_duration(self, source: Any) -> float | None:
        """As the function of this name in `video_decoding_swinbert`."""
        with _sent(source) as (request, content):
            return self._call(
                describe_source(source),
                {**request, "do": "duration"},
                content,
                accept=lambda answer, _: None if answer is None else float(answer),
            )

    def _call(self, name: str, request: dict[str, Any], content: Any = b"", **options: Any) -> Any:
        """
        What a process answers. The memory of a process that has read other videos may be damaged by them: if it dies,
        a new one reads the video again.
        """
        with self._process() as process:
            is_new = process.num_calls == 0
            try:
                return process.call(name, request, content, **options)
            except ReaderDied as error:
                if is_new or error.kind != "crashed" or self._is_closed:
                    raise
        with self._process(is_new=True) as process:
            return process.call(name, request, content, **options)

    @contextlib.contextmanager
    def _process(self, is_new: bool = False) -> "Iterator[_Process]":
        with self._lock:
            if self._is_closed:
                raise ValueError("The reader is closed.")
            process = None if is_new else self._idle_one()
            process = process or _Process(self._module, self._seconds)
            self._busy.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._busy.discard(process)
                is_kept = process.is_sound and not self._is_closed
                if is_kept:
                    self._idle.append(process)
            if not is_kept:
                process.end()

    def _idle_one(self) -> "_Process | None":
        """A process that waits for work; one that was ended meanwhile, from outside, is dropped."""
        while self._idle:
            process = self._idle.pop()
            if process.is_running:
                return process
            process.end()
        return None


class _Process:
    """
    A process of `reading_process`, which answers one call at a time.

    Attributes:
        is_sound: whether it can be called.
        num_calls: so far.
    """

    def __init__(self, module: str, seconds: float):
        self.is_sound, self.num_calls = True, 0
        self._seconds, self._is_ready = seconds, False
        self._video = ""  # what it calls the video that it reads
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # Of environments, such as Ray's, that need not be on the path of a new process.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._child = subprocess.Popen(
            # `-P`: no module of the working directory, which may be a folder of strange files.
            [sys.executable, "-P", "-m", module, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._requests, self._answers = self._child.stdin, self._child.stdout

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def end(self) -> None:
        self.is_sound = False
        self._child.kill()
        self._child.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def call(
        self,
        name: str,
        request: dict[str, Any],
        content: Any = b"",
        *,
        sample: Callable[[VideoMetadata], np.ndarray] | None = None,
        shape_of: Callable[[Any], tuple[int, ...]] = lambda answer: (0,),
        dtype: Any = np.uint8,
        accept: Callable[[Any, np.ndarray], Any] = lambda answer, array: answer,
    ) -> Any:
        """
        Args:
            name: of the video, for messages.
            content: bytes of a video that is no file.
            sample: says which frames to take.
            shape_of, dtype: of the array that belongs to an answer.
            accept: what an answer and its array mean.

        Returns:
            What `accept` returns.

        Raises:
            VideoDecodeError: the video cannot be read.
            RuntimeError: the process cannot be started.
        """
        self.start()
        self.num_calls += 1
        if "path" in request:
            self._video = request["path"] or request["name"] or f"<{len(content)} bytes>"
        with self._watched(name):
            send(self._requests, request, content)
            answer, num_bytes = receive(self._answers)
            failure = None
            while "sample" in answer and sample is not None:
                metadata = _metadata(answer["sample"])
                try:
                    indices = sample(metadata)
                except Exception as error:  # of this side
                    failure = error
                    break
                send(self._requests, {"indices": indices.tolist()})
                answer, num_bytes = receive(self._answers)
            said = [(logger, str(text).replace(self._video, name, 1)) for logger, text in answer.get("said", ())]
            problem = _problem(name, answer["error"]) if "error" in answer else failure
            result = None
            if problem is None:
                array = self._array(num_bytes, shape_of(answer["done"]), dtype)
                result = accept(answer["done"], array)
        self.is_sound = failure is None
        _repeat(said)
        if problem is not None:
            raise problem
        return result

    def previews(
        self, name: str, request: dict[str, Any]
    ) -> Iterator[tuple[int, np.ndarray, Callable[[], np.ndarray | None]]]:
        """What the request "previews" answers: see `VideoReader.preview_frames`."""

        def ask(message: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
            with self._watched(name):
                send(self._requests, message)
                answer, num_bytes = receive(self._answers)
                picture = None
                if answer.get("shape") is not None:
                    picture = self._array(num_bytes, _picture_shape(answer["shape"]), np.uint8)
            self.is_sound = "done" in answer or "error" in answer  # or else it waits in the middle of its answer
            return answer, picture

        answer, preview = ask(request)
        while preview is not None:
            yield int(answer["number"]), preview, lambda: ask({"then": "picture"})[1]
            answer, preview = ask({"then": "next"})
        if "error" in answer:
            raise _problem(name, answer["error"])

    def start(self) -> None:
        """
        Waits until the process can be called.

        Raises:
            RuntimeError: it cannot be started.
        """
        if self._is_ready:
            return
        timer = threading.Timer(_SECONDS_TO_START, self._child.kill)
        timer.start()
        try:
            self._is_ready = receive(self._answers)[0] == {"ready": True}
        except (EOFError, ValueError):
            pass
        finally:
            timer.cancel()
        if not self._is_ready:
            self.end()
            raise RuntimeError(f"The process that decodes videos cannot be started: {_ending(self._child.wait())}.")

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Ends the process if it takes too long; whatever is wrong with it or its answer becomes a `ReaderDied`."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._child.kill()

        timer = threading.Timer(self._seconds, end)
        timer.daemon = True
        timer.start()
        self.is_sound = False
        try:
            yield
            self.is_sound = True
        except MemoryError:  # of this process
            raise
        except Exception as error:
            if is_late.is_set():
                message = f"it was not read within {self._seconds:g} s."
                raise ReaderDied(name, "timeout", message) from error
            if isinstance(error, (EOFError, OSError)):
                message = f"the process that decoded it ended ({_ending(self._child.wait())})."
                raise ReaderDied(name, "crashed", message) from error
            self._child.kill()
            message = "the process that decoded it answered what it should not, and was ended."
            raise ReaderDied(name, "crashed", message) from error
        finally:
            timer.cancel()

    def _array(self, num_bytes: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        if num_bytes != expected or expected > MAX_CLIP_BYTES:
            raise ValueError(f"expected {expected} bytes, found {num_bytes}")
        array: np.ndarray = np.empty(shape, dtype)
        receive_into(self._answers, array.reshape(-1).view(np.uint8).data)
        return array


def _ending(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _problem(name: str, error: dict[str, Any]) -> Exception:
    """What was raised in the process."""
    if error["kind"] in ("ImportError", "ModuleNotFoundError"):
        return ImportError(error["message"])
    return VideoDecodeError(name, str(error["kind"]), str(error["message"]))


def _repeat(said: list[tuple[str | None, str]]) -> None:
    """Says what the decoders said in the process."""
    for logger, text in said:
        if logger is None:
            warnings.warn(text, stacklevel=2)
        else:
            logging.getLogger(logger).warning(text)


def _metadata(about: dict[str, Any]) -> VideoMetadata:
    return VideoMetadata(**about)


def _picture_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    height, width, channels = map(int, shape)
    if channels != 3 or min(height, width) < 1 or height * width > MAX_FRAME_PIXELS:
        raise ValueError(f"a picture of shape {shape}")
    return height, width, channels


# --- Videos -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sent(source: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """
    How a process gets a video: `path`, or bytes, with the `name` of the file object that they come from.

    Raises:
        VideoDecodeError: as of `open_source`; or a file object is too large for memory.
    """
    with contextlib.ExitStack() as stack:
        media = stack.enter_context(open_source(source))
        if isinstance(media, str) and media.startswith(("/dev/", "/proc/self/")):  # another file in another process
            file = stack.enter_context(open(media, "rb"))
            own = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            media = own if os.path.exists(own) else file
        if isinstance(media, str):
            yield {"path": media, "name": None}, b""
            return
        size = media.seek(0, os.SEEK_END)
        if size > MAX_DOWNLOAD_BYTES:
            raise VideoDecodeError(
                source,
                "too_large",
                f"expected a file object of at most {MAX_DOWNLOAD_BYTES} bytes, found {size}: name the file.",
            )
        media.seek(0)
        name = getattr(media, "name", None)
        yield {"path": None, "name": name if isinstance(name, str) else None}, media.read()


def _frames(
    call: Callable[..., Any],
    name: str,
    request: dict[str, Any],
    content: Any = b"",
    *,
    indices: Any = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    strict: bool = False,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Frames and metadata that a process answers; arguments and errors as of `decode_video`. A `transform` of another
    class than [`FrameResizer`] is applied here.
    """
    counts: list[int] = []
    resizer = transform if isinstance(transform, FrameResizer) else None

    def sample(metadata: VideoMetadata) -> np.ndarray:
        chosen = np.asarray(indices(metadata))
        counts.append(len(chosen))  # the first are those of this call, others those of overlapping segments
        return chosen

    def shape_of(answer: dict[str, Any]) -> tuple[int, ...]:
        height, width, channels = _picture_shape((answer["height"], answer["width"], 3))
        size = (height, width) if resizer is None else resizer.size(height, width)
        return (counts[0] if counts else len(answer["frames_indices"]), *size, channels)

    wanted = {
        "indices": "ask" if callable(indices) else None if indices is None else np.asarray(indices).tolist(),
        "num_frames": None if num_frames is None else int(num_frames),
        "start": as_seconds(name, "start", start),
        "end": as_seconds(name, "end", end),
        "strict": bool(strict),
        "transform": None if resizer is None else dataclasses.asdict(resizer),
    }
    frames, metadata = call(
        name,
        {**request, "wanted": wanted},
        content,
        sample=sample,
        shape_of=shape_of,
        accept=lambda answer, array: (array, _metadata(answer)),
    )
    if transform is not None and resizer is None:
        frames = np.stack([transform(frame) for frame in frames])
    return frames, metadata


class _IsolatedVideo:
    """A video file, to be read whole like a [`VideoSegment`]."""

    def __init__(self, isolation: IsolatedReader, source: Any, decoding: dict[str, Any]):
        self._isolation, self._source, self._decoding = isolation, source, decoding
        self.name = describe_source(source)

    def read_frames(self, **wanted: Any) -> tuple[np.ndarray, VideoMetadata]:
        """Arguments, result and errors as of `decode_video`."""
        with _sent(self._source) as (request, content):
            request |= {"do": "read", "decoding": self._decoding}
            return _frames(self._isolation._call, self.name, request, content, **wanted)


class IsolatedFilm:
    """
    A film that is open in a process, in the place of `VideoReader`.

    Attributes:
        name, timeline, metadata: see there. The timeline has no packets.
    """

    def __init__(self, name: str, timeline: VideoTimeline, process: _Process):
        self.name, self.timeline, self._process = name, timeline, process
        self.metadata = timeline.metadata(0, len(timeline))

    def segment(self, part: range, overlapping: Sequence[range] = ()) -> "_IsolatedSegment":
        """See `VideoReader.segment`."""
        return _IsolatedSegment(self.name, self._process, part, overlapping)

    def preview_frames(
        self, part: range, width: int, transform: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[tuple[int, np.ndarray, Callable[[], np.ndarray | None]]]:
        """See `VideoReader.preview_frames`."""
        resizer = transform if isinstance(transform, FrameResizer) else None
        request = {"do": "previews", "part": [part.start, part.stop], "width": width}
        request["transform"] = None if resizer is None else dataclasses.asdict(resizer)
        for number, preview, picture in self._process.previews(self.name, request):
            if transform is None or resizer is not None:
                yield number, preview, picture
            else:
                yield number, preview, functools.partial(_transformed, picture, transform)


class _IsolatedSegment:
    """A part of a film, see [`VideoSegment`]."""

    def __init__(self, name: str, process: _Process, part: range, overlapping: Sequence[range]):
        self.name, self._process = name, process
        self._request = {
            "do": "segment",
            "part": [part.start, part.stop],
            "overlapping": [[each.start, each.stop] for each in overlapping],
        }

    def read_frames(self, **wanted: Any) -> tuple[np.ndarray, VideoMetadata]:
        """Arguments, result and errors as of `decode_video`."""
        return _frames(self._process.call, self.name, self._request, **wanted)


def _transformed(
    picture: Callable[[], np.ndarray | None], transform: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    found = picture()
    return None if found is None else transform(found)


def _timeline(answer: dict[str, Any], pts: np.ndarray) -> VideoTimeline:
    """When the frames of a film are shown; its packets stay in the process."""
    numerator, denominator = map(int, answer["time_base"])
    timeline = VideoTimeline(
        packets=np.empty(0, PACKET),
        pts=pts,
        packet_of_frame=np.zeros(len(pts), np.int64),
        is_lost=np.zeros(len(pts), bool),
        time_base=Fraction(numerator, denominator),
        end_pts=int(answer["end_pts"]),
        has_time_stamps=True,
        truncated_frame=None,
        header_num_frames=0,
        container="",
    )
    if not len(pts) or (np.diff(pts) <= 0).any() or timeline.time_base <= 0 or timeline.end_pts < pts[-1]:
        raise ValueError("time stamps that do not ascend")
    return timeline


__all__ = ["IsolatedFilm", "IsolatedReader", "ReaderDied"]
