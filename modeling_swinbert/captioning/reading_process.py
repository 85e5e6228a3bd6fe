"""
The process that decodes for an `IsolatedReader`: `python -m swinbert.captioning.reading_process SECONDS`.

A message, on stdin or on stdout, is a JSON object and, for files and pictures, bytes. Nothing else is understood, so
that a decoder which a file has taken over cannot make the other side run anything. The process says `{"ready": true}`,
and then answers each request, `{"do": ...}`, with `{"done": ...}` or `{"error": ...}`. Two kinds of requests ask back:
reading asks which frames to take (`{"sample": metadata}`, answered by `{"indices": [...]}`); previews ask after each
frame what to do then (`{"then": "picture"}` or `{"then": "next"}`).

Of the package, only the modules of videos are imported, without torch and transformers: it starts in a quarter of a
second and takes 60 MB.
"""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import queue
import signal
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

_LENGTHS = struct.Struct("!IQ")  # of the JSON, and of the bytes behind it
_LARGEST_JSON = 64 << 20
# Beyond what the process has when it begins, unless that is more than half of the machine's: the largest clip, which
# is `MAX_CLIP_BYTES`, and what FFmpeg takes for frames of `MAX_FRAME_PIXELS`.
MEMORY_BYTES = 12 << 30
# After the time limit the other side ends the process; so many seconds later the process does, if nobody else is left.
_SECONDS_ALONE = 10


def send(stream: IO[bytes], message: dict[str, Any], *content: Any) -> None:
    """Writes a message and the bytes that belong to it."""
    text = json.dumps(message).encode()
    stream.write(_LENGTHS.pack(len(text), sum(memoryview(part).nbytes for part in content)))
    stream.write(text)
    for part in content:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """
    Reads a message; returns it and the number of bytes that follow.

    Raises:
        EOFError: the stream has ended.
        ValueError: this is no message.
    """
    length, num_bytes = _LENGTHS.unpack(receive_into(stream, bytearray(_LENGTHS.size)))
    if length > _LARGEST_JSON:
        raise ValueError(f"a message of {length} bytes")
    message = json.loads(receive_into(stream, bytearray(length)))
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message, num_bytes


def receive_into(stream: IO[bytes], content: Any) -> Any:
    """
    Fills a buffer of bytes, and returns it.

    Raises:
        EOFError: the stream has ended.
    """
    rest = memoryview(content)
    while len(rest):
        if not (number := stream.readinto(rest)):  # type: ignore[attr-defined]
            raise EOFError
        rest = rest[number:]
    return content


class _Channel:
    """The pipes to the other side. While nothing is asked, the process waits for ever; otherwise for `seconds`."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], seconds: float):
        self._inbox: queue.SimpleQueue[tuple[dict[str, Any], bytearray]] = queue.SimpleQueue()
        self._answers, self._seconds = answers, math.ceil(seconds) + _SECONDS_ALONE
        threading.Thread(target=self._listen, args=(requests,), daemon=True).start()

    def _listen(self, requests: IO[bytes]) -> None:
        """Ends the process as soon as the one that it serves is gone, whatever it is doing."""
        try:
            while True:
                message, num_bytes = receive(requests)
                self._inbox.put((message, receive_into(requests, bytearray(num_bytes))))
        finally:
            os._exit(0)

    def hear(self) -> tuple[dict[str, Any], bytearray]:
        if not hasattr(signal, "alarm"):  # Windows
            return self._inbox.get()
        signal.alarm(0)
        heard = self._inbox.get()
        signal.alarm(self._seconds)  # ends the process even where a library never lets another thread run
        return heard

    def say(self, message: dict[str, Any], *content: Any) -> None:
        send(self._answers, message, *content)


class _NamedBytes(io.BytesIO):
    """The content of a file object, whose name tells containers apart."""

    def __init__(self, content: bytearray, name: str):
        super().__init__(content)
        self.name = name


class _Reading:
    """Answers requests, one at a time."""

    def __init__(self, channel: _Channel, decoding: ModuleType):
        self._channel, self._decoding = channel, decoding
        self._reader: Any = None  # of the film that is open
        self._said: list[tuple[str | None, str]] = []
        self._listen()

    def _listen(self) -> None:
        """Notes what the decoders warn of, which the other side repeats: pairs of a logger, or `None`, and a text."""

        class Listener(logging.Handler):
            def emit(listener, record: logging.LogRecord) -> None:
                self._said.append((record.name, record.getMessage()))

        logger = logging.getLogger("swinbert")
        logger.addHandler(Listener())
        logger.propagate = False
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: self._said.append((None, str(message)))

    def serve(self) -> None:
        while True:
            self._answer(*self._channel.hear())

    def _answer(self, request: dict[str, Any], content: bytearray) -> None:
        self._said.clear()
        try:
            done, frames = getattr(self, f"_{request['do']}")(request, content)
            self._channel.say({"done": done, "said": self._said}, *frames)
            return
        except self._decoding.VideoDecodeError as error:
            problem = {"kind": error.kind, "message": error.message}
        except MemoryError:
            message = f"reading it takes more than {MEMORY_BYTES / 2**30:.3g} GiB, or half, of the memory."
            problem = {"kind": "too_large", "message": message}
        except Exception as error:
            problem = {"kind": type(error).__name__, "message": str(error)}
        self._channel.say({"error": problem, "said": self._said})

    def _source(self, request: dict[str, Any], content: bytearray) -> Any:
        if request["path"] is not None:
            return request["path"]
        return content if request["name"] is None else _NamedBytes(content, request["name"])

    def _duration(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        return self._decoding.header_duration(self._source(request, content)), ()

    def _read(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        source = self._source(request, content)
        frames, metadata = self._decoding.decode_video(source, **request["decoding"], **self._wanted(request))
        return dataclasses.asdict(metadata), (frames.data,)

    def _wanted(self, request: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `decode_video`, from what came as JSON."""
        wanted = {**request["wanted"], "transform": self._transform(request["wanted"]["transform"])}
        return {**wanted, "indices": self._ask if wanted["indices"] == "ask" else wanted["indices"]}

    def _transform(self, resizer: dict[str, Any] | None) -> Callable[[Any], Any] | None:
        from swinbert.processing.video_pictures_swinbert import FrameResizer

        return None if resizer is None else FrameResizer(**resizer)

    def _ask(self, metadata: Any) -> list[int]:
        self._channel.say({"sample": dataclasses.asdict(metadata)})
        return self._channel.hear()[0]["indices"]

    def _open(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        self._reader = self._decoding.VideoReader(self._source(request, content), **request["decoding"])
        timeline = self._reader.timeline
        time_base = timeline.time_base.numerator, timeline.time_base.denominator
        return {"time_base": time_base, "end_pts": timeline.end_pts, "frames": len(timeline)}, (timeline.pts.data,)

    def _segment(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        later = [range(*part) for part in request["overlapping"]]
        segment = self._reader.segment(range(*request["part"]), later)
        frames, metadata = segment.read_frames(**self._wanted(request))
        return dataclasses.asdict(metadata), (frames.data,)

    def _previews(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        arguments = range(*request["part"]), request["width"], self._transform(request["transform"])
        for number, preview, picture in self._reader.preview_frames(*arguments):
            self._channel.say({"number": number, "shape": preview.shape}, preview.tobytes())
            while self._channel.hear()[0]["then"] == "picture":
                if (found := picture()) is None:
                    self._channel.say({"shape": None})
                else:
                    self._channel.say({"shape": found.shape}, found.tobytes())
        return None, ()

    def _close(self, request: dict[str, Any], content: bytearray) -> tuple[Any, tuple[Any, ...]]:
        self._reader.close()
        self._reader = None
        return None, ()


def import_decoding() -> ModuleType:
    """`video_decoding_swinbert`, which does without torch and transformers where they cannot be imported."""
    heavy = [name for name in ("torch", "transformers") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(heavy, None))  # type: ignore[arg-type]
    from swinbert.processing import video_decoding_swinbert

    for name in heavy:
        del sys.modules[name]  # the decoder torchcodec needs torch
    return video_decoding_swinbert


def limit_memory(num_bytes: int) -> None:
    """
    Lets the process have so many bytes more than now, or half of the machine's memory. Only on Linux: elsewhere there
    is no limit. Nor does a crash leave a file behind, and of all processes, the kernel ends this one first.
    """
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Private memory that can be written: what a process can fill, without reserved addresses and libraries.
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    total = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    limit = used + min(num_bytes, total // 2)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    channel = _Channel(sys.stdin.buffer, answers, float(sys.argv[1]))
    decoding = import_decoding()
    limit_memory(MEMORY_BYTES)
    channel.say({"ready": True})
    _Reading(channel, decoding).serve()


if __name__ == "__main__":
    main()
