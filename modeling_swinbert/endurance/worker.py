"""
The process in which cases are tried. It may crash or hang: `Watched` in the watching process notices, and starts it
anew.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from swinbert.endurance.cases import Case, Finding, Outcome, Target, foreign

# Of one case. A process that computes is stopped by its own time, whatever else the machine does; one that only waits,
# by the clock.
CPU_SECONDS = 30
WALL_SECONDS = 60.0
MEMORY_BYTES = 8 << 30
# More than any case should take: the largest frame that is read has 106 MB.
_GROWTH_BYTES = 3 << 29
_MESSAGES = "messages.txt"
# Nothing is downloaded, and one thread is enough for a clip.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@contextmanager
def _environment() -> Iterator[None]:
    """For processes that are started inside of the block."""
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve(
    connection: Connection, make_targets: Callable[[Path], Sequence[Target]], folder: Path, cpu_seconds: int
) -> None:
    """Tries what arrives until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the watching process
    os.setsid()  # `Watched.stop` ends the processes that commands start, too
    with (folder / _MESSAGES).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGXCPU, chain=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    targets = {target.name: target for target in make_targets(folder)}
    connection.send("ready")
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send(_tried(targets[case.target], case, cpu_seconds))


def _tried(target: Target, case: Case, cpu_seconds: int) -> Outcome:
    limit = int(time.process_time()) + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    before = _peak()
    try:
        outcome = Outcome(target.run(case))
    except Finding as finding:
        outcome = finding.outcome
    except BaseException as error:
        outcome = foreign(error)
    if (growth := _peak() - before) > _GROWTH_BYTES and not outcome.is_finding:
        return Outcome("memory", "", f"{growth >> 20} MiB")
    return outcome


def _is_waiting(pid: int) -> bool:
    """Whether no thread of a process has anything to compute now. Where there is no /proc, nobody knows."""
    time.sleep(0.2)
    try:
        tasks = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return True
    return all(task.rpartition(")")[2].split()[0] == "S" for task in tasks)


class Watched:
    """
    A process that tries cases, one after the other.

    Args:
        make_targets: called in the process, with `folder`; a function of a module.
        folder: of the samples.
        cpu_seconds: processor time that a case may take.
        preload: modules to import once: each process is there in milliseconds then.
    """

    def __init__(
        self,
        make_targets: Callable[[Path], Sequence[Target]],
        folder: Path,
        cpu_seconds: int = CPU_SECONDS,
        preload: Sequence[str] = (),
    ):
        self._make_targets, self._folder, self._cpu_seconds = make_targets, folder, cpu_seconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload, make_targets.__module__])
        self._process: Any = None
        self._connection: Any = None

    def start(self) -> None:
        self._connection, other = self._context.Pipe()
        arguments = other, self._make_targets, self._folder, self._cpu_seconds
        # Not a daemon: commands start processes of their own.
        self._process = self._context.Process(target=_serve, args=arguments, daemon=False)
        with _environment():
            self._process.start()
        other.close()
        try:
            if not self._connection.poll(10 * WALL_SECONDS):
                raise TimeoutError("it takes too long")
            self._connection.recv()
        except (EOFError, TimeoutError) as error:
            raise OSError(f"The process that tries cases does not start: {error or 'it ended'}.") from error

    def run(self, case: Case) -> Outcome:
        if self._process is None:
            self.start()
        try:
            self._connection.send(case)
            if self._answers():
                outcome = self._connection.recv()
                if outcome.status == "memory":
                    self.stop()  # its peak hides those of later cases
                return outcome
            outcome = Outcome("hang", "", f"it waits, and has not answered for {WALL_SECONDS:g} s")
        except (EOFError, OSError):
            self._process.join()
            outcome = self._died(self._process.exitcode)
        self.stop()
        return outcome

    def _answers(self) -> bool:
        while not self._connection.poll(WALL_SECONDS):
            if all(_is_waiting(self._process.pid) for _ in range(5)):
                return False
        return True

    def _died(self, code: int) -> Outcome:
        last = (self._folder / _MESSAGES).read_text(errors="replace")[-3000:]
        if code == -signal.SIGXCPU:
            return Outcome("hang", "", f"{self._cpu_seconds} s of processor time\n{last}")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome("crash", name, last)

    def stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # if it has not yet a group of its own
            self._process.join()
            self._process = None
