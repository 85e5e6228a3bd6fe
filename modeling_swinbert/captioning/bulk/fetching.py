"""Fetching the videos that a worker captions, ahead of the model: into a scratch file or memory, with retries."""

import contextlib
import re
import secrets
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
        scratch: the file to remove when the clip has its caption.
    """

    video: Any = None
    error: str | None = None
    error_kind: str | None = None
    scratch: Path | None = None

    def discard(self) -> None:
        if self.scratch is not None:
            self.scratch.unlink(missing_ok=True)


class Fetcher:
    """
    Fetches in threads, beside the model.

    Args:
        folder: for scratch files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
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
                scratch = self._folder / f"{secrets.token_hex(8)}{Path(request.uri).suffix[:8]}"
                return Fetched(_download(request, scratch), scratch=scratch)
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


def _download(request: Request, scratch: Path) -> str:
    try:
        if request.uri.startswith(("http://", "https://")):
            with open_source(request.uri) as file:  # which is removed at the end of the block
                shutil.move(str(file), scratch)
        else:
            with fsspec.open(request.uri, "rb") as source, scratch.open("wb") as target:
                _copy(request, source, target)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    return str(scratch)


def _copy(request: Request, source: BinaryIO, target: BinaryIO) -> None:
    size = 0
    while chunk := source.read(_CHUNK_BYTES):
        size += target.write(chunk)
        _check_size(request, size)


def _check_size(request: Request, size: int) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise VideoDecodeError(request.path, "too_large", f"expected at most {MAX_DOWNLOAD_BYTES} bytes, found more.")


__all__ = ["Fetched", "Fetcher"]
