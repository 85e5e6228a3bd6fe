"""What makes a clip the one it is: where it comes from, which part of it, and which version of the file."""

import hashlib
import json
import os
from typing import Any

# Of files on this machine, before an absolute path as it is.
_FILE_SCHEME = "file://"


def clip_id(uri: str, start: float | None, end: float | None, version: Any = None) -> str:
    """
    The identity of a clip, 32 hexadecimal digits: two files of one name have two, however they are named.

    Args:
        uri: where the video is, see `uri_of`.
        start, end: seconds; `None` for the beginning and the end of the video.
        version: what tells a file from one that was at the same place before: the storage's etag, or the size in bytes;
            `None` if it is unknown.
    """
    key = json.dumps([uri, start, end, None if version is None else str(version)])
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def uri_of(path: str) -> str:
    """A URL as it is, a path as `file:///absolute/path`."""
    return path if is_remote(path) else _FILE_SCHEME + os.path.abspath(os.path.expanduser(local_path(path)))


def local_path(uri: str) -> str:
    """The path in a `file://` URI; anything else as it is."""
    return uri.removeprefix(_FILE_SCHEME)


def is_remote(name: str) -> bool:
    """Whether a path or URI is a URL that is not of this machine's own files."""
    return "://" in name and not name.startswith(_FILE_SCHEME) and not os.path.exists(name)


def local_version(uri: str) -> int | None:
    """Bytes of a file; `None` if there is none, or it is on another machine."""
    try:
        return os.stat(local_path(uri)).st_size
    except (OSError, ValueError):
        return None


__all__ = ["clip_id", "is_remote", "local_path", "local_version", "uri_of"]
