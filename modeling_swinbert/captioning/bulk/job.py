"""A job: the clips that a folder has no results of, captioned by workers, written into parts by this process alone."""

import contextlib
import hashlib
import json
import os
import queue
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from swinbert.captioning.bulk.clusters import Workers, choose_workers, import_ray, ray_started
from swinbert.captioning.bulk.parts import Parts, errors_by_kind, source_ids
from swinbert.captioning.bulk.pipeline import captioned, dataset_of, rows_of_block
from swinbert.captioning.bulk.sources import read_source
from swinbert.captioning.bulk.supervision import CaptionerSpec, SharedFailure
from swinbert.captioning.bulk.worker import Captioner

if TYPE_CHECKING:
    import ray.data

_ROWS_OF_A_PART = 10_000
# A part is written when its first row has waited for this share of the time since the start, within these limits: a
# driver that dies loses a hundredth of its work at most, and a long job has no more files than it needs.
_SHARE_AT_RISK = 0.01
_SECONDS_AT_RISK = (2.0, 300.0)
# If all of the first so many clips fail for one of these reasons, it is not the clips.
_CLIPS_TO_JUDGE_BY = 100
_REASONS_OF_MACHINES = ("not_found", "not_readable", "download_failed")
# In the text of an exception of Ray, which has lost what caused it.
_SHARED_FAILURE = re.compile(r"\bSharedFailure: (.+?)(?:\n\n|\n\x1b|\Z)", re.DOTALL)
_MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")


@dataclass
class Progress:
    """
    Where a job stands.

    Args:
        num_clips: of the source.
        num_before: of them, done by earlier runs.
        num_done: of them, done by this one.
        num_rows: written by this run, of which there are several for a clip with segments.
        errors: rows of this run, by kind.
    """

    num_clips: int
    num_before: int
    num_done: int = 0
    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _start: float = field(default_factory=time.monotonic)
    # When the first results came, and how many: loading the models is not part of the speed.
    _first: tuple[float, int] | None = None

    def count(self, table: pa.Table, num_clips: int) -> None:
        self.num_done += num_clips
        self.num_rows += len(table)
        self.errors += errors_by_kind(table)
        self._first = self._first or (time.monotonic(), self.num_done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def clips_per_second(self) -> float | None:
        """Since the first results; `None` before the second."""
        if self._first is None or self.num_done == self._first[1]:
            return None
        return (self.num_done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-6)

    def __str__(self) -> str:
        done, speed = self.num_before + self.num_done, self.clips_per_second
        parts = [f"{done:,} of {self.num_clips:,} clips ({done / max(1, self.num_clips):.0%})"]
        if speed is not None:
            parts += [f"{speed:.3g} clips/s", f"{_duration((self.num_clips - done) / speed)} left"]
        elif not self.num_done:
            parts.append(f"workers load the model for {_duration(self.seconds)}")
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in self.errors.most_common())
        return ", ".join(parts) + (f", errors: {kinds}" if kinds else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Job:
    """
    Captions a source into a folder.

    Args:
        source: see `read_source`.
        output: folder for parts, see `Parts`; a path, or a URL of fsspec.
        spec: how to caption; its `cores` are chosen by the job.
        file_format: parquet or jsonl.
        workers, gpus_per_worker: see `choose_workers`.
        address: see `start_ray`.
        retry_failed: caption again what an earlier run left with an error.
        worker_class: of the actors; see [`Captioner`].
        say: called with messages for the user.
        show: called about once a second with the progress.
    """

    def __init__(
        self,
        source: str,
        output: str,
        spec: CaptionerSpec,
        *,
        file_format: str = "parquet",
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        retry_failed: bool = False,
        worker_class: type[Any] = Captioner,
        say: Callable[[str], None] = print,
        show: Callable[[Progress], None] = lambda progress: None,
    ):
        self._source, self._spec, self._address = source, spec, address
        self._workers, self._gpus_per_worker, self._retry_failed = workers, gpus_per_worker, retry_failed
        self._worker_class, self._say, self._show = worker_class, say, show
        self._parts = Parts(output, file_format)
        # After an interruption, the thread that reads results would start Ray again.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        import_ray()

    def run(self) -> dict[str, Any]:
        """
        Returns:
            What `report.json` has.

        Raises:
            ValueError, FileNotFoundError: source, folder or cluster cannot be used, or the folder belongs to a run with
                other settings.
            SharedFailure: what every clip would share.
            BlockingIOError, OSError: the folder is in use; a part cannot be written. What is done is kept.
        """
        with self._parts:
            if self._retry_failed:
                self._parts.remove_failed()
            clips = read_source(self._source)
            done, num_rows, errors = self._parts.done()
            pending = clips.filter(pa.array([each not in done for each in clips["clip_id"].to_pylist()], pa.bool_()))
            progress = Progress(len(clips), len(clips) - len(pending))
            del clips  # a table of a million clips is large
            if progress.num_before:
                self._say(
                    f"{progress.num_before:,} of {progress.num_clips:,} clips are in {self._parts.folder} already."
                )
            before_ray = signal.getsignal(signal.SIGTERM)
            with ray_started(self._address), _stopped_by_sigterm(before_ray), explained():
                workers = choose_workers(self._workers, self._gpus_per_worker)
                self._spec = replace(self._spec, cores=workers.cores)
                if len(pending):
                    rows = rows_of_block(len(pending), workers.number)
                    blocks = dataset_of(pending, rows)
                    del pending
                    self._write_all(captioned(blocks, self._spec, workers, rows, self._worker_class), done, progress)
                else:
                    self._check_settings(self._settings_of_a_worker(workers))
            report = self._report(progress, workers, num_rows, errors)
            self._parts.write_report(report)
        return report

    def _report(self, progress: Progress, workers: Workers, num_rows: int, errors: Counter[str]) -> dict[str, Any]:
        errors = errors + progress.errors
        speed = progress.clips_per_second
        return {
            "clips": progress.num_clips,
            "clips_before": progress.num_before,
            "rows": num_rows + progress.num_rows,
            "captioned": num_rows + progress.num_rows - errors.total(),
            "errors": dict(errors.most_common()),
            "seconds": round(progress.seconds, 1),
            "clips_per_second": None if speed is None else round(speed, 3),
            "workers": {"number": workers.number, "cores": workers.cores, "gpus": workers.gpus},
        }

    def _settings_of_a_worker(self, workers: Workers) -> str:
        import ray

        remote = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(self._worker_class.settings)
        return ray.get(remote.remote(self._spec))

    # --- Captioning ---------------------------------------------------------------------------------------------------

    def _write_all(self, results: "ray.data.Dataset", done: set[str], progress: Progress) -> None:
        waiting: list[pa.Table] = []
        written = digest = ""
        oldest = time.monotonic()
        try:
            for table in _with_pauses(results):
                if table is not None and len(table):
                    # Each worker says how it captions; the folder has captions of one kind.
                    (settings,) = table["settings"].unique().to_pylist()
                    if settings != written:
                        digest = self._check_settings(settings)
                        written = settings
                    table = self._new_rows(table.drop_columns("settings"), done, progress)
                    oldest = oldest if waiting else time.monotonic()
                    waiting.append(table)
                self._show(progress)
                at_risk = min(max(_SHARE_AT_RISK * progress.seconds, _SECONDS_AT_RISK[0]), _SECONDS_AT_RISK[1])
                if waiting and (sum(map(len, waiting)) >= _ROWS_OF_A_PART or time.monotonic() - oldest >= at_risk):
                    self._write(waiting, digest)
        finally:
            self._write(waiting, digest)

    def _new_rows(self, table: pa.Table, done: set[str], progress: Progress) -> pa.Table:
        """The rows of clips that have none yet: a block that Ray would hand over twice is written once."""
        ids = source_ids(table)
        table = table.filter(pa.array([each not in done for each in ids], pa.bool_()))
        new = set(ids) - done
        done |= new
        progress.count(table, len(new))
        kinds = progress.errors.most_common(1)
        if progress.num_done >= _CLIPS_TO_JUDGE_BY and kinds and progress.errors.total() == progress.num_rows:
            kind, number = kinds[0]
            if number == progress.num_rows and kind in _REASONS_OF_MACHINES:
                raise SharedFailure(
                    f"All of the first {progress.num_done} clips failed alike ({kind}), the last one"
                    f" ({table['path'][-1]}) with: {table['error'][-1]}"
                )
        return table

    def _write(self, waiting: list[pa.Table], digest: str) -> None:
        tables = [table for table in waiting if len(table)]
        waiting.clear()
        if tables:
            self._parts.write(pa.concat_tables(tables, promote_options="permissive"), digest)

    def _check_settings(self, settings: str) -> str:
        """
        Compares what a worker captions with to what the folder has, or writes it there.

        Returns:
            A digest of the settings.
        """
        now, before = json.loads(settings), self._parts.settings()
        if before is None:
            self._parts.write_settings(now)
        elif before != now:
            from swinbert.captioning.journal import differences

            if differing := differences(before, now):
                raise ValueError(
                    f"{self._parts.folder} holds captions made with other settings: {'; '.join(differing)}. Name"
                    " another --output; workers of one job need the same packages and kind of device."
                )
        return hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _stopped_by_sigterm(handler: Any) -> Iterator[None]:
    """
    SIGTERM, by which clusters end a process, stops the job by `handler`, or as Ctrl-C does if that is none; Ray's own
    would abort.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, handler if callable(handler) else signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _with_pauses(results: "ray.data.Dataset") -> Iterator[pa.Table | None]:
    """Blocks of results as they come, and `None` about once a second while none comes."""
    tables: queue.Queue = queue.Queue(maxsize=64)
    end = object()

    def read() -> None:
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                tables.put(table)
            tables.put(end)
        except BaseException as error:
            tables.put(error)

    threading.Thread(target=read, daemon=True, name="results").start()
    while True:
        try:
            table = tables.get(timeout=1.0)
        except queue.Empty:
            table = None
        if table is end:
            return
        if isinstance(table, BaseException):
            raise table
        yield table


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns what Ray raises for an exception of a worker, with the text of its traceback, into one `SharedFailure`."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        text = str(error)
        if found := _SHARED_FAILURE.search(text):
            raise SharedFailure(" ".join(found[1].split())) from error
        missing = _MISSING_MODULE.search(text)
        reason = f"they have no module {missing[1]}; every machine needs this package" if missing else text
        raise SharedFailure(f"The workers cannot run: {' '.join(reason.split())[-500:]}") from error


__all__ = ["Job", "Progress"]
