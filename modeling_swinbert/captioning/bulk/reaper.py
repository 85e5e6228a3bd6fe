"""
Ends what Ray leaves behind on this machine when the process that started it is killed: `python -m
swinbert.captioning.bulk.reaper`.

The raylet dies with its parent. Its agents look for it, and then try for a minute to report its death to a server that
is dead too. This process reads the number of the raylet from stdin, keeps its children in mind until stdin is closed,
and then kills those that are left.
"""

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends after the others of its group
        signal.signal(number, signal.SIG_IGN)
    raylet = int(sys.stdin.readline())
    children = _children(raylet)
    while not select.select([sys.stdin], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
        children = _children(raylet) or children
    for process, start in children.items():
        if _start(process) == start:  # and not another one with its number
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


def _children(parent: int) -> dict[int, str]:
    """Number -> time of the start of the children of a process."""
    with contextlib.suppress(OSError):
        files = Path(f"/proc/{parent}/task").glob("*/children")
        return {int(each): _start(int(each)) for file in files for each in file.read_text().split()}
    return {}


def _start(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # it is gone
        return ""


if __name__ == "__main__":
    main()
