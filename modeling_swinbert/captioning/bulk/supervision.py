"""
Watching over the process that captions: a clip that hangs or that ends the process costs itself alone.

The model runs in a child process (`child.py`), which is fed with clips and answers with rows. The decoders run in
processes of their own below it (`isolation.py`), or, with `isolate=False`, in the same. Threads
cannot be stopped, and a crash of FFmpeg or CUDA takes all of a process with it; a process can be killed and started
again. Of the clips that were under way when it died, each is then captioned alone: the one that ends the process again
is the culprit.
"""

import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from enum import StrEnum
from typing import Any

# A worker whose first so many clips all end the process blames the machine and not the clips.
_CRASHES_OF_A_BROKEN_WORKER = 3


class SharedFailure(RuntimeError):
    """A failure that every clip of the job would share (no model, no memory, no network): the job stops."""


@dataclass(frozen=True)
class CaptionerSpec:
    """
    How to load a captioner and how it captions; what a worker gets in the place of a model.

    Args:
        loading: arguments of `load_captioner`.
        captioning: arguments of `captions`.
        cores: of the processor, for each worker.
        timeout: seconds within which a clip has its caption.
        isolate: whether to decode in processes of their own, see `IsolatedReader`.
    """

    loading: dict[str, Any] = field(default_factory=dict)
    captioning: dict[str, Any] = field(default_factory=dict)
    cores: int = 1
    timeout: float = 300.0
    isolate: bool = True

    @classmethod
    def of(
        cls, loading: Mapping[str, Any], captioning: Mapping[str, Any], timeout: float, isolate: bool = True
    ) -> "CaptionerSpec":
        """
        A spec in values that a process on another machine reads without importing torch: paths are absolute,
        segmentations are dictionaries, enumerations are text, and what is `None` is left out.
        """
        return cls(_plain(loading), _plain(captioning), timeout=timeout, isolate=isolate)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in arguments.items() if value is not None}
    for name, value in plain.items():
        if isinstance(value, StrEnum):
            plain[name] = str(value)
        elif name == "model" and os.path.isdir(value):
            plain[name] = os.path.abspath(value)
        elif is_dataclass(value) and not isinstance(value, type):
            plain[name] = asdict(value)
    return plain


@dataclass(frozen=True)
class Request:
    """A clip on its way to the process; see `sources` for the columns that these are."""

    path: str
    uri: str
    start: float | None = None
    end: float | None = None
    offset: int | None = None
    size: int | None = None
    problem: str | None = None


@dataclass
class _Entry:
    """A clip that waits for its rows. `is_started`: the process has begun with it."""

    request: Request
    rows: "Future[list[dict[str, Any]]]" = field(default_factory=Future)
    is_started: bool = False

    def fail(self, kind: str, error: str) -> None:
        request = self.request
        row = {"start": request.start, "end": request.end, "error": error, "error_kind": kind}
        self.rows.set_result([row])


class _Process:
    """The child process. What it says is put into `events` as (this process, message), at the end `("ended", code)`."""

    def __init__(self, spec: CaptionerSpec, module: str, events: queue.SimpleQueue):
        self.is_ready = False
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(spec.cores),
            "TOKENIZERS_PARALLELISM": "false",
            # Of Ray's environments, which need not be on the path of a new process.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.send(("load", spec))
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def send(self, message: Any) -> None:
        assert self._child.stdin is not None
        try:
            pickle.dump(message, self._child.stdin)
            self._child.stdin.flush()
        except OSError:  # it died, which `_listen` reports
            pass

    def _listen(self, events: queue.SimpleQueue) -> None:
        assert self._child.stdout is not None
        try:
            while True:
                events.put((self, pickle.load(self._child.stdout)))
        except (EOFError, pickle.UnpicklingError):
            code = self._child.wait()
            events.put((self, ("ended", code)))

    def kill(self) -> None:
        self._child.kill()


class Supervisor:
    """
    Captions clips in a process of its own. `caption` may be called from several threads: their clips share batches.

    Args:
        module: what the process runs.
    """

    def __init__(self, spec: CaptionerSpec, module: str = "swinbert.captioning.bulk.child"):
        self._spec, self._module = spec, module
        self._settings: Future[str] = Future()
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._numbers = itertools.count()
        # Clips that the process has; that were under way when one died; that wait until those are through.
        self._sent: dict[int, _Entry] = {}
        self._suspects: list[_Entry] = []
        self._waiting: list[_Entry] = []
        self._is_alone = False
        self._num_captioned = self._num_crashes = 0
        self._failure: SharedFailure | None = None
        self._last_sign = time.monotonic()
        # `None` if it died, until there is something to do again.
        self._process: _Process | None = _Process(spec, module, self._events)
        threading.Thread(target=self._supervise, daemon=True, name="supervise").start()

    def caption(self, requests: Sequence[Request]) -> list[list[dict[str, Any]]]:
        """
        The rows of each clip: one, or with segments one for each.

        Raises:
            SharedFailure: the model cannot be loaded, or whatever else keeps every clip from having a caption.
        """
        entries = [_Entry(request) for request in requests]
        self._events.put((None, entries))
        return [entry.rows.result() for entry in entries]

    def settings(self) -> str:
        """All that decides a caption (`caption_settings`), as JSON. Waits until the model is loaded."""
        return self._settings.result()

    def _supervise(self) -> None:
        while True:
            try:
                source, message = self._events.get(timeout=self._patience())
            except queue.Empty:
                if self._process is not None and self._patience() == 0:
                    self._process.kill()
                    self._died("timeout", f"no caption after {self._spec.timeout:g} s")
                continue
            if source is None:
                self._waiting += message
                self._send_more()
            elif self._process is not None and source is self._process:
                self._handle(self._process, *message)

    def _patience(self) -> float | None:
        """Seconds until the process has been silent for too long; loading may last, and idling too."""
        if not self._sent or self._process is None or not self._process.is_ready:
            return None
        return max(0.0, self._last_sign + self._spec.timeout - time.monotonic())

    def _handle(self, process: _Process, what: str, value: Any) -> None:
        self._last_sign = time.monotonic()
        if what == "ready":
            process.is_ready = True
            if not self._settings.done():
                self._settings.set_result(value)
        elif what == "started":
            self._sent[value].is_started = True
        elif what == "rows":
            number, rows = value
            self._num_captioned += any(row.get("caption") is not None for row in rows)
            self._sent.pop(number).rows.set_result(rows)
            self._send_more()
        elif what == "failure":
            self._fail(SharedFailure(value))
        elif what == "ended":
            self._died("crashed", f"the process that captioned it ended ({_describe(value)})")

    def _send_more(self) -> None:
        """Sends what waits; suspects one by one, and nothing else meanwhile."""
        if self._failure is not None:
            for entry in self._waiting:
                entry.rows.set_exception(self._failure)
            self._waiting = []
        elif self._suspects:
            if not self._sent:
                self._is_alone = True
                self._send([self._suspects.pop(0)])
        elif not (self._is_alone and self._sent):
            self._is_alone = False
            self._send(self._waiting)
            self._waiting = []

    def _send(self, entries: Sequence[_Entry]) -> None:
        if entries and self._process is None:
            self._process = _Process(self._spec, self._module, self._events)
        if not self._sent:
            self._last_sign = time.monotonic()
        for entry in entries:
            assert self._process is not None
            entry.is_started = False
            number = next(self._numbers)
            self._sent[number] = entry
            self._process.send(("clip", number, entry.request))

    def _died(self, kind: str, error: str) -> None:
        """The process is dead, or was killed since it hung: judges the clips that it had, and starts another."""
        assert self._process is not None
        entries, was_ready = list(self._sent.values()), self._process.is_ready
        self._sent, self._process = {}, None
        if not was_ready:
            self._waiting = entries + self._waiting
            self._fail(SharedFailure(f"The model could not be loaded: {error}."))
            return
        if self._is_alone and entries:
            entries.pop().fail(kind, error)
            self._num_crashes += 1
            if not self._num_captioned and self._num_crashes >= _CRASHES_OF_A_BROKEN_WORKER:
                self._fail(SharedFailure(f"The first {self._num_crashes} clips of a worker all failed: {error}."))
                return
        elif entries:
            suspects = [entry for entry in entries if entry.is_started] or entries[:1]
            self._waiting = [entry for entry in entries if entry not in suspects] + self._waiting
            self._suspects += suspects
            if kind == "timeout" and len(suspects) > 1:  # perhaps so many clips are more than there is time for
                captioning = {**self._spec.captioning, "batch_size": max(1, len(suspects) // 2)}
                self._spec = replace(self._spec, captioning=captioning)
        self._send_more()

    def _fail(self, failure: SharedFailure) -> None:
        self._failure = failure
        if not self._settings.done():
            self._settings.set_exception(failure)
        for entry in (*self._sent.values(), *self._suspects):
            entry.rows.set_exception(failure)
        self._sent, self._suspects = {}, []
        self._send_more()


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


__all__ = ["CaptionerSpec", "Request", "SharedFailure", "Supervisor"]
