"""Opening clips: a path, a URL, bytes or a file object becomes what a decoder can read."""

import contextlib
import http.client
import inspect
import io
import ipaddress
import math
import numbers
import os
import re
import shutil
import socket
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urljoin, urlsplit

# Suffixes by which folders are searched for videos. Whether a file can be decoded depends on its content alone.
VIDEO_SUFFIXES = {
    *(".3gp", ".apng", ".avi", ".dv", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}
MAX_DOWNLOAD_BYTES = 2 << 30
MAX_DOWNLOAD_SECONDS = 300.0
_CONNECT_SECONDS = 20.0
_MAX_REDIRECTS = 5
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:(//)?")  # at least two letters: one is a drive
_BASE64 = re.compile(r"(?!/)[A-Za-z0-9+/_-]{200,}={0,2}")  # the name of a file would have a dot
_MAX_NAME_CHARACTERS = 60  # of a name that is content
_MAX_PATH_CHARACTERS = 4096


class VideoDecodeError(ValueError):
    """
    A clip that cannot be turned into frames. The message names the clip, what was expected and what was found.

    Args:
        source: the clip as the caller passed it; `.source` is its name, see `describe_source`.
        kind (`str`): `"not_found"`, `"not_readable"`, `"empty"`, `"not_video"` (another kind of file),
            `"no_video_stream"` (sound only, or a cover picture), `"undecodable"`, `"too_large"`, `"bad_range"`
            (`start`, `end`, `indices`), `"bad_sampling"` (`num_frames`, `fps`), `"bad_source"` (wrong type),
            `"bad_array"` (dtype, layout, values), `"refused_url"`, `"download_failed"` or `"backend"` (this decoder
            cannot read it, another may); of decoding in another process also `"timeout"` and `"crashed"`.
        message (`str`): what is wrong and what to do, without the clip's name.
    """

    def __init__(self, source: Any, kind: str, message: str):
        self.source = describe_source(source)
        self.kind = kind
        self.message = message
        super().__init__(f"{self.source}: {message}")

    def __reduce__(self):
        # Data loader workers pickle errors: these are rebuilt from the three arguments, not from the text.
        return type(self), (self.source, self.kind, self.message)


def describe_source(source: Any) -> str:
    """A short name of a clip for messages: its path or URL, or its type and size."""
    source = _as_record(source)
    if _is_record(source):
        source = source.get("path") or source["bytes"]
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
        if len(name) > _MAX_NAME_CHARACTERS and (is_content(name) or len(name) > _MAX_PATH_CHARACTERS):
            return name[: _MAX_NAME_CHARACTERS - 3] + "..."
        return name
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if hasattr(source, "read") or is_segment(source):
        name = getattr(source, "name", None)
        return name if isinstance(name, str) else f"<{type(source).__name__}>"
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return f"<{type(source).__name__} of shape {tuple(source.shape)}, {source.dtype}>"
    return f"<{type(source).__name__}>"


def is_encoded_source(source: Any) -> bool:
    """Whether `source` is a video file (path, URL, bytes, file object), or a part of one, and not decoded frames."""
    return (
        isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))
        or hasattr(source, "read")
        or is_segment(source)
        or _is_record(_as_record(source))
    )


def is_segment(source: Any) -> bool:
    """Whether `source` is a part of a video that is open already, such as a [`VideoSegment`]."""
    return hasattr(source, "read_frames")


def is_frame_decoder(source: Any) -> bool:
    """Whether `source` is an open decoder of one clip, such as torchcodec's `VideoDecoder`."""
    return hasattr(source, "get_frames_at") and hasattr(source, "metadata")


def _is_record(source: Any) -> bool:
    """Whether `source` is a row of a `datasets` column `Video(decode=False)`."""
    return isinstance(source, dict) and (source.get("path") is not None or source.get("bytes") is not None)


def _as_record(source: Any) -> Any:
    """The record of the file that `datasets` leaves on a decoder which it opened, if we can read the file; `source`."""
    record: Any = getattr(source, "_hf_encoded", None)
    if _is_record(record) and (record.get("bytes") is not None or _can_be_opened(record["path"])):
        return record
    return source


def _can_be_opened(path: Any) -> bool:
    # Not the paths of streamed data sets, "zip://a.mp4::hf://datasets/...", which only `datasets` opens.
    return isinstance(path, os.PathLike) or not is_url(path) or path.startswith(("http://", "https://"))


def is_content(name: str) -> bool:
    """Whether a string is a video rather than the name of one: a `data:` URI, or base64."""
    return name[:5].lower() == "data:" or bool(_BASE64.fullmatch(name)) and not os.path.exists(name)


def as_seconds(source: Any, name: str, value: Any) -> float | None:
    """
    `start` or `end` of a clip as a number, whatever numbers a table has: of Python, numpy, or a tensor without axes.

    Args:
        source: the clip, for messages.
        name (`str`): `"start"` or `"end"`.
        value: seconds; `None`, NaN or pandas' `NA` where there is no limit.

    Returns:
        A number from 0 on, or `None`; `None` too for an infinite `end`, as for each that is past the end of the clip.

    Raises:
        VideoDecodeError: of kind `"bad_range"`: it is another type, or negative, or an infinite `start`.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        seconds = float(value)
        if math.isnan(seconds) or name == "end" and seconds == math.inf:
            return None
        if 0 <= seconds < math.inf:
            return seconds
    raise VideoDecodeError(source, "bad_range", f"expected `{name}` in seconds from 0, found {value!r}.")


@contextlib.contextmanager
def open_source(source: Any, allow_private_urls: bool = False) -> Iterator[str | BinaryIO]:
    """
    Opens a clip for a decoder. A download is deleted afterwards.

    Args:
        source: path (`str` or `os.PathLike`), http(s) URL, `bytes`, binary file object, or a `datasets` record of one
            of them, `{"path": ..., "bytes": ...}`. Pipes, such as `/dev/stdin`, and file objects that cannot seek are
            read into memory.
        allow_private_urls (`bool`): whether a URL may lead to a private, loopback or link-local address.

    Yields:
        the absolute path of a regular, non-empty file, or a seekable binary stream.

    Raises:
        VideoDecodeError: the clip does not exist, is empty, is no file, or its URL is refused or cannot be downloaded.
            Errors of a file object, also while the clip is decoded, become one of kind `"not_readable"`.
    """
    source = _as_record(source)
    if _is_record(source):
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise VideoDecodeError(source, "empty", "expected a video file, found no bytes.")
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        yield _seekable(source)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        _refuse_content(path)
        if is_url(source):
            folder = tempfile.mkdtemp(prefix="swinbert-")
            try:
                download = os.path.join(folder, "download")
                _download(path, download, allow_private_urls)
                yield _regular_file(path, download)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        elif _is_pipe(path):
            yield _pipe_content(path)
        else:
            yield _regular_file(path, path)
    else:
        raise VideoDecodeError(
            source,
            "bad_source",
            "expected a path, an http(s) URL, bytes or a binary file object. Decoded frames go to the video processor.",
        )


def is_url(source: Any) -> bool:
    """Whether `source` is a URL, and not the name of an existing file that looks like one."""
    return isinstance(source, str) and bool(_URL.match(source)) and not os.path.exists(source)


def _refuse_content(name: str) -> None:
    if is_content(name):
        what, kind = ("a data: URI", "refused_url") if name[:5].lower() == "data:" else ("base64 text", "bad_source")
        raise VideoDecodeError(
            name,
            kind,
            f"expected a path or an http(s) URL, found {what}. Write it to a file, or pass its decoded bytes.",
        )


def _regular_file(name: str, path: str) -> str:
    # FFmpeg takes a relative path such as "concat:a.mp4" or "pipe:0" for a protocol, an absolute path never.
    path = os.path.abspath(os.path.expanduser(path))
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or socket"
            raise VideoDecodeError(name, "not_readable", f"expected a video file, found {found}.")
        if not status.st_size:
            raise VideoDecodeError(name, "empty", "expected a video file, found 0 bytes.")
        with open(path, "rb"):
            return path
    except (FileNotFoundError, NotADirectoryError):
        raise VideoDecodeError(name, "not_found", "there is no such file.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, VideoDecodeError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise VideoDecodeError(name, "not_readable", f"the file cannot be opened: {reason}.") from error


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(os.path.expanduser(path)).st_mode)
    except (OSError, ValueError):
        return False


def _pipe_content(path: str) -> BinaryIO:
    """What comes through a pipe, such as `/dev/stdin` or the `/dev/fd/63` of a shell's `<(...)`."""
    try:
        with open(os.path.expanduser(path), "rb") as pipe:
            content = _in_memory(path, pipe)
    except OSError as error:
        raise VideoDecodeError(path, "not_readable", f"the pipe cannot be read: {error.strerror}.") from error
    if not content.getbuffer().nbytes:
        raise VideoDecodeError(path, "empty", "expected a video file, found 0 bytes.")
    return content


class _GuardedStream:
    """
    Reading access to a file object. What the object raises, at any time, becomes a `VideoDecodeError`. Its `mode` is
    hidden: decoders would take one that was opened for writing too for their output.
    """

    def __init__(self, stream: Any):
        self._stream, self._source = stream, describe_source(stream)
        if isinstance(name := getattr(stream, "name", None), str):
            self.name = name  # its suffix tells containers apart

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with _errors_named(self._source):
            chunk = self._stream.read(size)
        return bytes(chunk) if isinstance(chunk, (bytearray, memoryview)) else chunk

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _errors_named(self._source):
            self._stream.seek(offset, whence)
            return self._stream.tell()

    def tell(self) -> int:
        with _errors_named(self._source):
            return self._stream.tell()


@contextlib.contextmanager
def _errors_named(source: Any) -> Iterator[None]:
    """Turns whatever a file object raises (its class may be of any library) into a `VideoDecodeError`."""
    try:
        yield
    except VideoDecodeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VideoDecodeError(source, "not_readable", f"the file object cannot be read: {reason}.") from error


def _seekable(stream: Any) -> BinaryIO:
    with _errors_named(stream):
        can_seek = False
        # A member of a tar that is read as a stream raises AttributeError.
        with contextlib.suppress(AttributeError, NotImplementedError):
            can_seek = stream.seekable()
        if inspect.isawaitable(can_seek) or inspect.iscoroutinefunction(stream.read):
            raise VideoDecodeError(
                stream,
                "bad_source",
                "expected a file object, found an asynchronous one: give its `file`, or its bytes.",
            )
        media = cast(BinaryIO, _GuardedStream(stream)) if can_seek else _in_memory(stream, stream)
        size = media.seek(0, os.SEEK_END)
        media.seek(0)
        start = media.read(1)
        media.seek(0)
    if not isinstance(start, bytes):
        raise VideoDecodeError(stream, "bad_source", 'expected a binary file object, found text: open it with "rb".')
    if not size:
        raise VideoDecodeError(stream, "empty", "expected a video file, found 0 bytes.")
    return media


def _in_memory(source: Any, stream: Any) -> io.BytesIO:
    content = bytearray()
    while chunk := stream.read(1 << 20):
        content += chunk
        if len(content) > MAX_DOWNLOAD_BYTES:
            raise VideoDecodeError(source, "too_large", f"expected at most {MAX_DOWNLOAD_BYTES} bytes, found more.")
    return io.BytesIO(content)


def _ascii_url(url: str) -> str:
    """A URL as a request has it: spaces and letters beyond ASCII percent-encoded, those of the host in IDNA."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host.isascii():
        port = "" if parts.port is None else f":{parts.port}"
        parts = parts._replace(netloc=host.encode("idna").decode() + port)
    encoded = {
        name: re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(getattr(parts, name), safe="%/?:@!$&'()*+,;=~[]"))
        for name in ("path", "query")
    }
    return parts._replace(**encoded).geturl()


def _redirect(url: str, location: str) -> str:
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode()  # http.client takes headers for Latin-1; servers send UTF-8
    return _ascii_url(urljoin(url, location))


def _download(url: str, path: str, allow_private: bool) -> None:
    """Saves the content of `url` to `path`, within limits of size and time. Each redirect is checked like the URL."""
    deadline = time.monotonic() + MAX_DOWNLOAD_SECONDS
    try:
        target = _ascii_url(url)
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(target)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise VideoDecodeError(
                    url,
                    "refused_url",
                    f"expected an http or https URL, found {describe_source(target)!r}. Give a local file by its path.",
                )
            port = parts.port or (443 if parts.scheme == "https" else 80)
            address = _public_address(url, parts.hostname, port, allow_private)
            secure = parts.scheme == "https"
            with _PinnedConnection(parts.hostname, port, address, secure, deadline) as connection:
                resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", resource, headers={"User-Agent": "swinbert", "Accept": "*/*"})
                response = connection.getresponse()
                if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                    target = _redirect(target, str(response.getheader("Location")))
                    continue
                if response.status != 200:
                    raise VideoDecodeError(
                        url, "download_failed", f"the server answered {response.status} {response.reason}."
                    )
                _save(url, response, path)
                if time.monotonic() >= deadline:
                    raise TimeoutError  # the timer closed the connection, which reads like the end of the file
                return
        raise VideoDecodeError(url, "download_failed", f"more than {_MAX_REDIRECTS} redirects.")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, VideoDecodeError):
            raise
        reason = f"not finished after {MAX_DOWNLOAD_SECONDS:g} s" if time.monotonic() >= deadline else error
        raise VideoDecodeError(url, "download_failed", f"the download failed: {reason}.") from error


def _save(url: str, response: http.client.HTTPResponse, path: str) -> None:
    announced, size = response.length, 0
    with open(path, "wb") as file:
        # `read1` returns after each network packet, so that a server which sends byte by byte cannot outlast the
        # deadline.
        while (
            (announced or 0) <= MAX_DOWNLOAD_BYTES and size <= MAX_DOWNLOAD_BYTES and (chunk := response.read1(1 << 16))
        ):
            size += file.write(chunk)
    if max(announced or 0, size) > MAX_DOWNLOAD_BYTES:
        raise VideoDecodeError(url, "too_large", f"expected at most {MAX_DOWNLOAD_BYTES} bytes, found more.")
    if announced is not None and size < announced:
        raise VideoDecodeError(url, "download_failed", f"the connection ended after {size} of {announced} bytes.")


def _public_address(url: str, host: str, port: int, allow_private: bool) -> str:
    """The address to connect to. It is looked up once: a second look-up could return another, unchecked address."""
    addresses = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not allow_private and not _is_public(str(address)):
            raise VideoDecodeError(
                url,
                "refused_url",
                f"expected a public address, found {address} for {host}. Download the file and name it instead.",
            )
    return str(addresses[0])


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv6 addresses can contain IPv4 ones (mapped, 6to4, NAT64), which reach the same machines.
        nat64 = ip in ipaddress.ip_network("64:ff9b::/96")
        ip = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if nat64 else ip)
    return ip.is_global and not ip.is_multicast


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to a given address, closed at a deadline whatever it is waiting for."""

    def __init__(self, host: str, port: int, address: str, secure: bool, deadline: float):
        super().__init__(host, port, timeout=_CONNECT_SECONDS)
        self.default_port = 443 if secure else 80  # the Host header names other ports
        self._address, self._secure, self._deadline = address, secure, deadline

    def connect(self) -> None:
        remaining = max(0.0, self._deadline - time.monotonic())
        connection = socket.create_connection((self._address, self.port), min(_CONNECT_SECONDS, remaining or 1e-3))
        self._handle = connection.dup()
        self._timer = threading.Timer(remaining, self._close_socket)
        self._timer.daemon = True
        self._timer.start()
        context = ssl.create_default_context() if self._secure else None
        self.sock = context.wrap_socket(connection, server_hostname=self.host) if context else connection

    def _close_socket(self) -> None:
        with contextlib.suppress(OSError):
            self._handle.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "_PinnedConnection":
        return self

    def __exit__(self, *exception: Any) -> None:
        # Not in `close`, which http.client calls as soon as it has the headers of the response.
        self.close()
        if hasattr(self, "_timer"):
            self._timer.cancel()
            self._handle.close()


__all__ = [
    "VIDEO_SUFFIXES",
    "VideoDecodeError",
    "as_seconds",
    "describe_source",
    "is_content",
    "is_encoded_source",
    "is_frame_decoder",
    "is_segment",
    "is_url",
    "open_source",
]
