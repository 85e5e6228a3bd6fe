"""
Ends what Ray leaves behind on this machine when the process that started it is killed: `python -m
swinbert.captioning.bulk.reaper`.

The raylet dies with its parent. Its agents (and who knows which workers) look for it, and then try for a minute to
report its death to a server that is dead too. This process waits until its stdin is closed, on which stands the number
of the raylet, and kills what was started by that one.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends after the others of its group
        signal.signal(number, signal.SIG_IGN)
    mark = f"RAY_RAYLET_PID={sys.stdin.read().strip()}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            if mark in (process / "environ").read_bytes() + b"\0":
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    main()
