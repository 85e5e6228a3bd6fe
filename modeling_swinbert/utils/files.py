"""Atomic writes, and locks that keep other processes away from a file."""

import contextlib
import difflib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
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
        OSError: the file cannot be written; what was at `file` before is still there. So is a device, such as
            `/dev/null`, which the administrator could rename a file to.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise OSError(f"Expected a place for a file, found a device or pipe: {file}.")
    if not file.name:
        raise IsADirectoryError(f"Expected a place for a file, found the folder {file}.")
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(file), None  # rather than the temporary one, or none
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
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # systems differ
            raise BlockingIOError(error.errno, error.strerror) from error
        return False  # a file system without locks
    return True


def check_new_folder(folder: Path) -> None:
    """Raises `FileExistsError` if there is a file at `folder`, or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: name a new folder, or empty this one.")


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Creates a folder with its content in one step: `folder` is written completely or not at all.

    Args:
        overwrite: replace `folder` at the end of the block, if it exists.

    Yields:
        A temporary folder beside `folder`. It is renamed to `folder` at the end of the block, or deleted, with any
        parents that were created for it, if the block raises.

    Raises:
        FileExistsError: `folder` exists and is not empty.
    """
    if not (overwrite and folder.is_dir()):
        check_new_folder(folder)
    new_parents = [parent for parent in folder.absolute().parents if not parent.exists()]
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    replaced = folder.with_name(f"{temporary.name}.replaced")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if overwrite and folder.exists():
            folder.rename(replaced)
        elif folder.exists():
            folder.rmdir()
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def no_such_folder(name: str) -> str:
    """The message for a folder that does not exist, with one beside it that has a similar name."""
    near = _similar_folder(name)
    return f"There is no such folder: {name}." + (f" Did you mean {near}?" if near else "")


def refuse_missing_folder(name: str, needs_owner: bool = False) -> None:
    """
    Checks a name that means a folder or something on the Hub, before the Hub is asked.

    Args:
        needs_owner: names on the Hub are OWNER/NAME; otherwise they may also be NAME alone.

    Raises:
        FileNotFoundError: there is no such folder, and `name` cannot be on the Hub, or is nearly that of a folder.
    """
    if Path(name).expanduser().exists():
        return
    if name.count("/") > 1 or name.startswith((".", "~", "/")) or "\\" in name or needs_owner and "/" not in name:
        raise FileNotFoundError(f"{no_such_folder(name)} Nor is this a name on the Hub (OWNER/NAME).")
    if "/" in name and _similar_folder(name):
        raise FileNotFoundError(no_such_folder(name))


def _similar_folder(name: str) -> str | None:
    path = Path(name).expanduser()
    try:
        folders = {each.name: str(each) for each in path.parent.iterdir() if each.is_dir()}
    except OSError:
        return None
    return next((folders[each] for each in difflib.get_close_matches(path.name, folders, 1, 0.8)), None)


def inner_path(name: str) -> str | None:
    """A relative path with forward slashes, or `None` if `name` is empty, absolute or leads out of its folder."""
    path = PureWindowsPath(name)  # understands both kinds of slash, and drive letters
    if path.anchor or ".." in path.parts or "\0" in name or not path.name:
        return None
    return path.as_posix()


def duplicate_files(files: Iterable[Path]) -> dict[Path, Path]:
    """Maps each file that equals an earlier one, byte for byte, to the first such file."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    first: dict[bytes, Path] = {}
    duplicates = {}
    for same_size in by_size.values():
        for file in same_size if len(same_size) > 1 else ():
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "blake2b").digest()
            if (earlier := first.setdefault(digest, file)) is not file:
                duplicates[file] = earlier
    return duplicates
