"""What a process holds: memory, and what is left behind where something is not closed. Linux only."""

import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


def anonymous_memory() -> int:
    """Bytes of this process that no file backs: heaps, stacks and tensors, without libraries and the page cache."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Anonymous:\s+(\d+) kB$", rollup, re.M)[1])


def spread(sizes: list[int]) -> float:
    """By how much the largest of the sizes exceeds the smallest, as a share of that."""
    return max(sizes) / min(sizes) - 1


@dataclass(frozen=True)
class Held:
    """
    What this process holds beside memory.

    Args:
        files: what the open file descriptors refer to, but for files of libraries.
        num_threads: pools of libraries among them.
        num_children: processes that this one started and that are not gone.
        shared: names in /dev/shm, of this process and of processes that are gone.
        temporary: what the folder for temporary files holds.
    """

    files: tuple[str, ...]
    num_threads: int
    num_children: int
    shared: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def now(cls) -> "Held":
        process = psutil.Process()
        return cls(
            tuple(sorted(filter(None, map(_target, os.listdir("/proc/self/fd"))))),
            process.num_threads(),
            len(process.children(recursive=True)),
            frozenset(filter(_is_ours, os.listdir("/dev/shm"))),
            frozenset(map(str, Path(tempfile.gettempdir()).rglob("*"))),
        )

    def more_now(self, seconds: float = 10.0) -> dict[str, object]:
        """What is held now and was not: empty as soon as nothing is. Threads that are about to end have `seconds`."""
        deadline = time.monotonic() + seconds
        while (more := self._more(Held.now())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return more

    def _more(self, now: "Held") -> dict[str, object]:
        more = {
            "files": [name for name in set(now.files) if now.files.count(name) > self.files.count(name)],
            "threads": max(0, now.num_threads - self.num_threads),
            "children": max(0, now.num_children - self.num_children),
            "shared": now.shared - self.shared,
            "temporary": now.temporary - self.temporary,
        }
        return {name: value for name, value in more.items() if value}


def _target(number: str) -> str | None:
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:  # the one that listed the folder
        return None
    return None if "/site-packages/" in target or target.endswith(".ttf") else target  # matplotlib keeps fonts open


def _is_ours(name: str) -> bool:
    owner = re.match(r"torch_(\d+)_", name)
    return owner is not None and (int(owner[1]) == os.getpid() or not psutil.pid_exists(int(owner[1])))
