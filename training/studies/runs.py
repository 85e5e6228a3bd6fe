"""Works off a list of `swinbert` commands: some at a time, each on a core of its own; what is finished stays so."""

import contextlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from swinbert.utils.files import write_json

# Across cores, the wake-ups of two threads can cost more than the second one gains: one thread for each run.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
_SECONDS_TO_SAVE = 60
_PACKAGES = ("swinbert", "torch", "transformers", "numpy", "av")


@dataclass(frozen=True)
class Job:
    """
    One `swinbert` command.

    Args:
        name: no other job's.
        run, seed: what is run and with which seed; `None` for what has none.
        argv: of the command; paths are relative to the folder of all jobs.
        needs: names of the jobs that must have ended before.
        output: the folder that it writes.
        seconds: about how many it takes on one core; for the remaining time.
        epochs: of training, 0 of other commands.
        resumable: it goes on by itself in the `output` of a former try; otherwise that is deleted.
    """

    name: str
    run: str
    seed: int | None
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    output: str = ""
    seconds: float = 1.0
    epochs: float = 0.0
    resumable: bool = False


def shell_line(job: Job) -> str:
    return shlex.join(["swinbert", *job.argv])


def read_results(jobs: Sequence[Job], folder: Path) -> dict[str, dict[str, Any]]:
    """
    The results of those jobs that are finished, by name: `run`, `seed`, `command`, `seconds`, `versions`, and of
    training `metrics` (of the last evaluation) and `history` (all that was logged).

    Raises:
        ValueError: a result is of other arguments.
    """
    results = {}
    for job in jobs:
        file = folder / "results" / f"{job.name}.json"
        if file.exists():
            results[job.name] = json.loads(file.read_text(encoding="utf-8"))
            if results[job.name]["command"] != shell_line(job):
                raise ValueError(
                    f"{file} is the result of another command than now:\n  {results[job.name]['command']}\n "
                    f" {shell_line(job)}\nGive the former arguments, or another --output_dir."
                )
    return results


def work_off(jobs: Sequence[Job], folder: Path, cores: Sequence[int]) -> dict[str, str]:
    """
    Runs all jobs that are not finished, as soon as those that they need are and a core is free.

    Returns:
        The jobs that failed, with the ends of their logs, and those that could not begin because of them.

    Raises:
        ValueError: as `read_results`.
        KeyboardInterrupt: on Ctrl-C, SIGTERM and SIGHUP, when the jobs under way have ended, with a checkpoint.
    """
    finished = set(read_results(jobs, folder))
    waiting = [job for job in jobs if job.name not in finished]
    failed: dict[str, str] = {}
    running: list[_Running] = []
    progress = _Progress(jobs, finished, len(cores))
    for name in ("logs", "results"):
        (folder / name).mkdir(exist_ok=True)
    with _environment(), _signals_interrupt():
        context = _processes()
        try:
            while waiting or running:
                for job in [job for job in waiting if any(name in failed for name in job.needs)]:
                    failed[job.name] = "not begun: what it needs has failed"
                    waiting.remove(job)
                free = [core for core in cores if core not in [each.core for each in running]]
                ready = [job for job in waiting if finished.issuperset(job.needs)]
                for core, job in zip(free, ready, strict=False):
                    running.append(_Running(job, folder, core, context))
                    waiting.remove(job)
                progress.show(running)
                multiprocessing.connection.wait([each.process.sentinel for each in running], timeout=1)
                for each in [each for each in running if not each.process.is_alive()]:
                    running.remove(each)
                    if each.process.exitcode == 0:
                        each.keep_result()
                        finished.add(each.job.name)
                    else:
                        failed[each.job.name] = each.log_end()
                    progress.ended(each, running)
        finally:
            for each in running:
                each.process.terminate()
            for each in running:
                each.process.join(_SECONDS_TO_SAVE)
                each.process.kill()
            progress.close()
    return failed


class _Running:
    """A job under way in a process of its own."""

    def __init__(self, job: Job, folder: Path, core: int, context: Any):
        self.job, self.folder, self.core, self.began = job, folder, core, time.monotonic()
        self.log = folder / "logs" / f"{job.name}.log"
        if not job.resumable:
            shutil.rmtree(folder / job.output, ignore_errors=True)
        self.process = context.Process(target=_work, args=(job.argv, folder.resolve(), self.log.resolve(), core))
        self.process.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def share_done(self) -> float:
        """As the log tells; of commands that tell nothing, as the time does."""
        if not self.job.epochs:
            return min(0.9, self.seconds / self.job.seconds)
        found = re.findall(r"'epoch': '?([\d.]+)", self.log_end())
        return min(1.0, float(found[-1]) / self.job.epochs) if found else 0.0

    def log_end(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:] if self.log.exists() else ""

    def keep_result(self) -> None:
        output = self.folder / self.job.output
        result: dict[str, Any] = {
            "run": self.job.run,
            "seed": self.job.seed,
            "command": shell_line(self.job),
            "seconds": round(self.seconds, 1),  # since it last began
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        if self.job.epochs:
            history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
            result["metrics"] = [row for row in history if "eval_loss" in row][-1]
            result["history"] = history
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        write_json(self.folder / "results" / f"{self.job.name}.json", result)


def _processes() -> Any:
    """Processes that begin with all that is imported already, where the system has such."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["swinbert.cli", "swinbert.training.train"])
    return context


def _work(argv: Sequence[str], folder: Path, log: Path, core: int) -> None:
    """What a process does: the command, in `folder`, its output into `log`."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the parent alone, which then says it to all
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.chdir(folder)
    with log.open("a", encoding="utf-8") as file:
        print(shlex.join(["swinbert", *argv]), file=file, flush=True)
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from swinbert.cli import app

    app(list(argv), prog_name="swinbert")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    former = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    former = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Progress:
    """How far it is: a line for each job that ends, and on a terminal one that changes."""

    def __init__(self, jobs: Sequence[Job], finished: set[str], num_cores: int):
        self.all = {job.name: job.seconds for job in jobs}
        self.at_start = sum(self.all[name] for name in finished)
        self.done, self.number = self.at_start, len(finished)
        self.num_cores, self.began = num_cores, time.monotonic()
        self.console = Console(stderr=True, highlight=False)
        self.status = self.console.status("") if self.console.is_terminal else None
        if self.status:
            self.status.start()
        self.console.print(f"{self.number} of {len(jobs)} runs are finished, the rest takes {self._left(self.done)}")

    def _left(self, done: float) -> str:
        """Of the estimated work, at the speed so far."""
        rest, here = max(0.0, sum(self.all.values()) - done), done - self.at_start
        seconds = time.monotonic() - self.began
        left = rest * seconds / here if here > 0 and seconds > 60 else rest / self.num_cores
        return f"about {int(left // 3600)}:{int(left // 60) % 60:02d} h"

    def show(self, running: Sequence["_Running"]) -> None:
        if self.status:
            shares = {each.job.name: each.share_done() for each in running}
            done = self.done + sum(share * self.all[name] for name, share in shares.items())
            under_way = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            self.status.update(f"{self.number}/{len(self.all)}  {under_way}  {self._left(done)} left")

    def ended(self, run: "_Running", running: Sequence["_Running"]) -> None:
        job, success = run.job, run.process.exitcode == 0
        self.done += self.all[job.name]
        self.number += success
        under_way = self.done + sum(each.share_done() * self.all[each.job.name] for each in running)
        self.console.print(
            f"{self.number}/{len(self.all)}  {job.name}  {'' if success else 'FAILED, '}{run.seconds:.0f} s"
            f"  {self._left(under_way)} left",
            soft_wrap=True,
        )

    def close(self) -> None:
        if self.status:
            self.status.stop()
