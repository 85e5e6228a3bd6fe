"""Object storage by fsspec (`s3://`, `gs://`, `az://`, `hf://`...): listing, versions, and errors in one line."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import fsspec

from swinbert.utils.text import one_line

# Requests for the versions of files that are under way at once.
_NUM_REQUESTS = 32


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns whatever keeps a storage from answering into a `ValueError` of one line that says what to do."""
    try:
        yield
    except ImportError as error:  # fsspec names the package
        raise ValueError(f"{url}: {one_line(error)} on every machine that fetches clips.") from error
    except FileNotFoundError as error:
        raise ValueError(f"{url}: there is no such bucket, folder or file.") from error
    except Exception as error:
        if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {error}".lower():
            remedy = "check the credentials and what they allow"
        elif isinstance(error, ValueError):
            remedy = "check the URL"
        else:
            remedy = "check the network, the endpoint and the name"
        raise ValueError(f"{url} cannot be read ({type(error).__name__}: {one_line(error)}): {remedy}.") from error


def list_files(url: str) -> list[tuple[str, Any]]:
    """
    The files that a URL stands for, sorted, with their versions: a glob, a folder (with those below), or a file.

    Raises:
        ValueError: they cannot be listed, or there are none.
    """
    with explained(url):
        system, path = fsspec.core.url_to_fs(url)
        if any(character in path for character in "*?["):
            found = system.glob(path, detail=True)
        elif system.isdir(path):
            found = system.find(path, detail=True)
        else:
            found = {path: system.info(path)}
        files = [
            (system.unstrip_protocol(name), version_in(info))
            for name, info in sorted(found.items())
            if info.get("type") != "directory"
        ]
    if not files:
        raise ValueError(f"{url}: there is no such file.")
    return files


def version_in(info: dict[str, Any]) -> Any:
    """The etag, or else the size, in what a storage says of a file."""
    return next((info[name] for name in ("ETag", "etag", "md5Hash", "content_md5", "size") if info.get(name)), None)


def versions(urls: Sequence[str]) -> list[Any]:
    """
    The versions of files, asked for one by one and many at a time; `None` for those that do not exist.

    Raises:
        ValueError: the storage does not answer.
    """

    def version(url: str) -> Any:
        # Servers of http often do not say, and a request more for each clip is much.
        if urlsplit(url).scheme in ("http", "https"):
            return None
        with explained(url):
            system, path = fsspec.core.url_to_fs(url)
            try:
                return version_in(system.info(path))
            except FileNotFoundError:
                return None

    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        return list(pool.map(version, urls))


__all__ = ["explained", "list_files", "version_in", "versions"]
