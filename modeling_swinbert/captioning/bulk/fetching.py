"""Fetching the videos that a worker captions, ahead of the model: into a scratch file or memory, with retries."""

import contextlib
import os
import re
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import fsspec

from swinbert.captioning.bulk.identity import is_remote, local_path
from swinbert.captioning.bulk.supervision import Request
from swinbert.processing.video_sources_swinbert import MAX_DOWNLOAD_BYTES, VideoDecodeError, open_source
from swinbert.utils.text import one_line

_ATTEMPTS = 3
_SECONDS_BEFORE_RETRY = 1.0  # then three times as many
_NUM_THREADS = 8
_CHUNK_BYTES = 1 << 20
# What the server says of the request itself: another attempt would be answered alike.
_REFUSED = re.compile(r"answered 4(?!08|29)\d\d")


@dataclass(frozen=True)
class Fetched:
    """
    Args:
        video: what a `Clip` takes: a path, or bytes.
        error, error_kind: why there is no video.
        scratch: the file that the path leads to; closing it removes it.
    """

    video: Any = None
    error: str | None = None
    error_kind: str | None = None
    scratch: IO[bytes] | None = None

    def discard(self) -> None:
        if self.scratch is not None:
            self.scratch.close()


class Fetcher:
    """Fetches in threads, beside the model."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetch")

    def submit(self, request: Request) -> "Future[Fetched]":
        if request.problem is None and request.offset is None and not is_remote(request.uri):
            local: Future[Fetched] = Future()
            local.set_result(Fetched(local_path(request.uri)))
            return local
        return self._pool.submit(self._fetch, request)

    def _fetch(self, request: Request) -> Fetched:
        if request.problem is not None:
            return Fetched(error=request.problem, error_kind="bad_row")
        for attempt in range(_ATTEMPTS):
            try:
                if request.offset is not None:
                    return Fetched(_member(request))
                return _download(request)
            except Exception as error:
                if attempt + 1 == _ATTEMPTS or not _is_worth_a_retry(error):
                    return Fetched(error=one_line(error), error_kind=_kind(error))
                time.sleep(_SECONDS_BEFORE_RETRY * 3**attempt)
        raise AssertionError("the last attempt returns")


def _is_worth_a_retry(error: Exception) -> bool:
    if isinstance(error, VideoDecodeError):
        return error.kind == "download_failed" and not _REFUSED.search(error.message)
    return not isinstance(error, (FileNotFoundError, PermissionError, ImportError, ValueError))


def _kind(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not_found"
    return getattr(error, "kind", None) or "download_failed"


def _member(request: Request) -> bytes:
    """The bytes of a file in a tar shard."""
    assert request.offset is not None and request.size is not None
    _check_size(request, request.size)
    if not request.size:
        raise VideoDecodeError(request.path, "empty", "expected a video file, found 0 bytes.")
    with fsspec.open(request.uri.partition("::")[2], "rb") as shard:
        shard.seek(request.offset)
        content = shard.read(request.size)
    if len(content) < request.size:
        raise OSError(f"the shard ends after {len(content)} of the clip's {request.size} bytes")
    return content


def _download(request: Request) -> Fetched:
    # Where the system has open files by number, this one has no name: it is gone with the process, however that ends.
    if os.path.isdir("/proc/self/fd"):
        scratch: IO[bytes] = tempfile.TemporaryFile()
        path = f"/proc/self/fd/{scratch.fileno()}"
    else:
        scratch = tempfile.NamedTemporaryFile()
        path = scratch.name
    is_web = request.uri.startswith(("http://", "https://"))
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(open_source(request.uri) if is_web else fsspec.open(request.uri, "rb"))
            _copy(request, stack.enter_context(open(source, "rb")) if is_web else source, scratch)
        scratch.flush()
    except BaseException:
        scratch.close()
        raise
    return Fetched(path, scratch=scratch)


def _copy(request: Request, source: IO[bytes], target: IO[bytes]) -> None:
    size = 0
    while chunk := source.read(_CHUNK_BYTES):
        size += target.write(chunk)
        _check_size(request, size)


def _check_size(request: Request, size: int) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise VideoDecodeError(request.path, "too_large", f"expected at most {MAX_DOWNLOAD_BYTES} bytes, found more.")


__all__ = ["Fetched", "Fetcher"]
