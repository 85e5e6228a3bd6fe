"""Cores for the workers of a machine: each has its own, on which its decoder and its model take turns."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from swinbert.processing.clip_reading_swinbert import available_cores
from swinbert.utils.files import file_lock


@contextlib.contextmanager
def own_cores(number: int) -> Iterator[list[int]]:
    """
    Keeps the calling thread, and those that it starts, to cores that no other worker on this machine has.

    Workers reserve cores by locks on files, which the operating system releases when a process ends.

    Yields:
        The cores: all that the process may use, where so many are wanted, fewer are free, or none can be reserved.
    """
    cores = available_cores()
    with contextlib.ExitStack() as stack:
        own: list[int] = []
        if hasattr(os, "sched_setaffinity") and 0 < number < len(cores):  # Linux
            folder = Path(tempfile.gettempdir(), f"swinbert-cores-{os.getuid()}")
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                for core in cores:
                    with contextlib.suppress(BlockingIOError):
                        if stack.enter_context(file_lock(folder / str(core))):
                            own.append(core)
                    if len(own) == number:
                        break
        if len(own) != number:
            stack.close()
            yield cores
            return
        os.sched_setaffinity(0, own)
        try:
            yield own
        finally:
            os.sched_setaffinity(0, cores)


__all__ = ["own_cores"]
