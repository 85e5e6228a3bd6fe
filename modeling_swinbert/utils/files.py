"""Atomic writes, and locks that keep other processes away from a file."""

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_atomically(file: Path, content: str | bytes) -> None:
    """
    Writes a file under a temporary name beside `file` and renames it: at no time is there a partial `file`.

    Args:
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the file cannot be written; what was at `file` before is still there.
    """
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def write_json(file: Path, value: Any, indent: int = 2) -> None:
    """Writes a JSON file atomically."""
    write_atomically(file, json.dumps(value, indent=indent) + "\n")


@contextlib.contextmanager
def file_lock(file: Path) -> Iterator[bool]:
    """
    Holds an exclusive lock on a file, which is created if needed. While the lock is held, the file names its process.

    The operating system releases the lock when the process ends, however it ends.

    Yields:
        Whether files can be locked here. On Windows and some network file systems they cannot, and other processes are
        not kept out.

    Raises:
        BlockingIOError: another process holds the lock; `strerror` names it.
    """
    with file.open("a+", encoding="utf-8") as opened:
        try:
            is_locked = _lock(opened)
        except BlockingIOError as error:
            opened.seek(0)
            raise BlockingIOError(error.errno, opened.read().strip() or "a process that just started") from None
        opened.truncate(0)
        opened.write(f"process {os.getpid()} on {socket.gethostname()}")
        opened.flush()
        try:
            yield is_locked
        finally:
            opened.truncate(0)


def _lock(opened: Any) -> bool:
    if fcntl is None:
        return False
    try:
        # Not `flock`: forked workers would inherit that lock and hold it for seconds after their parent was killed.
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what some systems raise for a file that is locked
        raise BlockingIOError(error.errno, error.strerror) from error
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True
