"""Runs `swinbert` commands in parallel, each on a core of its own, and keeps the results of finished ones."""

import contextlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from swinbert.utils.files import write_json

# One thread for each run: with small models, synchronising threads costs more time than the second thread saves.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
_TERMINATION_SECONDS = 60
_PACKAGES = ("swinbert", "torch", "transformers", "numpy", "av")


@dataclass(frozen=True)
class Job:
    """
    A `swinbert` command.

    Args:
        name: unique among the jobs.
        run, seed: the run of a study and its seed; the seed is `None` for a dataset.
        argv: arguments of the command; paths are relative to the folder of all jobs.
        needs: names of the jobs that must have finished before.
        output: the folder that the command writes.
        seconds: estimated time on one core.
        epochs: epochs of training; 0 for other commands.
        resumable: the command resumes by itself from a partial `output`; otherwise a partial `output` is deleted.
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
    """The command as one types it in a shell."""
    return shlex.join(["swinbert", *job.argv])


def read_results(jobs: Sequence[Job], folder: Path) -> dict[str, dict[str, Any]]:
    """
    Job -> its result, for the jobs that have finished.

    A result has `run`, `seed`, `command`, `seconds` and `versions`; for training also `metrics` (of the last
    evaluation) and `history` (everything that was logged).

    Raises:
        ValueError: a result belongs to a command with other arguments.
    """
    results = {}
    for job in jobs:
        file = folder / "results" / f"{job.name}.json"
        if file.exists():
            results[job.name] = json.loads(file.read_text(encoding="utf-8"))
            if results[job.name]["command"] != shell_line(job):
                raise ValueError(
                    f"{file} is the result of another command than the current one:\n "
                    f" {results[job.name]['command']}\n  {shell_line(job)}\nGive the former arguments, or another"
                    " --output_dir."
                )
    return results


def run_jobs(jobs: Sequence[Job], folder: Path, cores: Sequence[int]) -> dict[str, str]:
    """
    Runs the jobs that have not finished yet, each as soon as the jobs that it needs have finished and a core is free.

    Returns:
        Job -> the end of its log if it failed, or the reason why it could not start.

    Raises:
        ValueError: as `read_results`.
        KeyboardInterrupt: on Ctrl-C, SIGTERM and SIGHUP, after the current jobs have saved a checkpoint and ended.
    """
    finished = set(read_results(jobs, folder))
    waiting = [job for job in jobs if job.name not in finished]
    failed: dict[str, str] = {}
    running: list[_RunningJob] = []
    progress = _Progress(jobs, finished, len(cores))
    for name in ("logs", "results"):
        (folder / name).mkdir(exist_ok=True)
    with _single_threaded(), _interrupt_on_signals():
        context = _process_context()
        try:
            while waiting or running:
                for job in [job for job in waiting if any(name in failed for name in job.needs)]:
                    failed[job.name] = "not started: a job that it needs has failed"
                    waiting.remove(job)
                free = [core for core in cores if core not in [each.core for each in running]]
                ready = [job for job in waiting if finished.issuperset(job.needs)]
                for core, job in zip(free, ready, strict=False):
                    running.append(_RunningJob(job, folder, core, context))
                    waiting.remove(job)
                progress.show(running)
                multiprocessing.connection.wait([each.process.sentinel for each in running], timeout=1)
                for each in [each for each in running if not each.process.is_alive()]:
                    running.remove(each)
                    if each.process.exitcode == 0:
                        each.save_result()
                        finished.add(each.job.name)
                    else:
                        failed[each.job.name] = each.log_end()
                    progress.job_ended(each, running)
        finally:
            for each in running:
                each.process.terminate()
            for each in running:
                each.process.join(_TERMINATION_SECONDS)
                each.process.kill()
            progress.close()
    return failed


class _RunningJob:
    """A job that runs in a process of its own."""

    def __init__(self, job: Job, folder: Path, core: int, context: Any):
        self.job, self.folder, self.core, self.start = job, folder, core, time.monotonic()
        self.log = folder / "logs" / f"{job.name}.log"
        if not job.resumable:
            shutil.rmtree(folder / job.output, ignore_errors=True)
        self.process = context.Process(target=_run_command, args=(job.argv, folder.resolve(), self.log.resolve(), core))
        self.process.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def progress(self) -> float:
        """The share of the job that is done, in [0, 1]: by the epoch in the log if it trains, else by the time."""
        if not self.job.epochs:
            return min(0.9, self.seconds / self.job.seconds)
        found = re.findall(r"'epoch': '?([\d.]+)", self.log_end())
        return min(1.0, float(found[-1]) / self.job.epochs) if found else 0.0

    def log_end(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:] if self.log.exists() else ""

    def save_result(self) -> None:
        output = self.folder / self.job.output
        result: dict[str, Any] = {
            "run": self.job.run,
            "seed": self.job.seed,
            "command": shell_line(self.job),
            "seconds": round(self.seconds, 1),  # since the job was last started or resumed
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        if self.job.epochs:
            history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
            result["metrics"] = [row for row in history if "eval_loss" in row][-1]
            result["history"] = history
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        write_json(self.folder / "results" / f"{self.job.name}.json", result)


def _process_context() -> Any:
    """Where the system has a fork server, processes start with the libraries imported."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["swinbert.training.train"])
    return context


def _run_command(argv: Sequence[str], folder: Path, log: Path, core: int) -> None:
    """Runs a command in this process, in `folder`; its output is appended to `log`."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which terminates all jobs
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.chdir(folder)
    with log.open("a", encoding="utf-8") as file:
        print(shlex.join(["swinbert", *argv]), file=file, flush=True)
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    threading.Thread(target=_terminate_with_parent, daemon=True).start()
    sys.argv = ["swinbert", *argv]
    runpy.run_module("swinbert", run_name="__main__", alter_sys=True)


def _terminate_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Sets the environment that the jobs inherit."""
    former = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise `KeyboardInterrupt`, as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    former = {}
    with contextlib.suppress(ValueError):  # only the main thread may install handlers
        former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Progress:
    """Prints a line for each job that ends and, on a terminal, a status line with the remaining time."""

    def __init__(self, jobs: Sequence[Job], finished: set[str], num_cores: int):
        self.estimates = {job.name: job.seconds for job in jobs}
        self.done_before = sum(self.estimates[name] for name in finished)
        self.done, self.num_finished = self.done_before, len(finished)
        self.num_cores, self.start = num_cores, time.monotonic()
        self.console = Console(stderr=True, highlight=False)
        self.status = self.console.status("") if self.console.is_terminal else None
        if self.status:
            self.status.start()
        self.console.print(
            f"{self.num_finished} of {len(jobs)} jobs have finished, the others take {self._remaining_time(self.done)}"
        )

    def _remaining_time(self, done: float) -> str:
        """From the estimates and the speed so far; `done` is the sum of the estimates of what is done."""
        rest, done_here = max(0.0, sum(self.estimates.values()) - done), done - self.done_before
        seconds = time.monotonic() - self.start
        left = rest * seconds / done_here if done_here > 0 and seconds > 60 else rest / self.num_cores
        return f"about {int(left // 3600)}:{int(left // 60) % 60:02d} h"

    def show(self, running: Sequence[_RunningJob]) -> None:
        if self.status:
            shares = {each.job.name: each.progress() for each in running}
            done = self.done + sum(share * self.estimates[name] for name, share in shares.items())
            current = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            self.status.update(
                f"{self.num_finished}/{len(self.estimates)}  {current}  {self._remaining_time(done)} left"
            )

    def job_ended(self, run: _RunningJob, running: Sequence[_RunningJob]) -> None:
        job, success = run.job, run.process.exitcode == 0
        self.done += self.estimates[job.name]
        self.num_finished += success
        current = self.done + sum(each.progress() * self.estimates[each.job.name] for each in running)
        self.console.print(
            f"{self.num_finished}/{len(self.estimates)}  {job.name}  {'' if success else 'FAILED, '}{run.seconds:.0f} s"
            f"  {self._remaining_time(current)} left",
            soft_wrap=True,
        )

    def close(self) -> None:
        if self.status:
            self.status.stop()
