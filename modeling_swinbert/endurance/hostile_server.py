"""A server on the loopback address that answers as servers should not."""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple


class Behaviour(NamedTuple):
    """
    Args:
        answer: writes the answer to a request, given the connection, the content, a random generator and the path.
        rule: `"faithful"` if all of the content arrives, `"refused"` if the client must notice that it does not,
            `"any"` if it cannot know.
    """

    answer: Callable[[socket.socket, bytes, Random, str], None]
    rule: str


def _head(status: str, **headers: Any) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _honest(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Type="video/mp4", Content_Length=len(content)) + content)


def _without_length(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Connection="close") + content)


def _chunks(content: bytes, random: Random) -> list[bytes]:
    size = random.choice((7, 100, 5000)) + len(content) // 50
    return [content[place : place + size] for place in range(0, len(content), size)]


def _chunked(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Transfer_Encoding="chunked"))
    to.sendall(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _chunks(content, random)) + b"0\r\n\r\n")


def _cut_chunked(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Transfer_Encoding="chunked"))
    parts = _chunks(content, random)
    to.sendall(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts[: random.randrange(len(parts) + 1)]))


def _bad_chunks(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    size = random.choice((b"zz", b"-5", b"", b"ffffffffffffffff", b"5 ;x", b"0x5"))
    to.sendall(_head("200 OK", Transfer_Encoding="chunked") + size + b"\r\n" + content)


def _slow(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Length=len(content)))
    for number in range(8):
        to.sendall(content[number * len(content) // 8 : (number + 1) * len(content) // 8])
        time.sleep(0.002)


def _cut(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Length=len(content) + random.choice((1, 100, 1 << 20))) + content)


def _reset(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Length=len(content) + 1) + content[: random.randrange(len(content) + 1)])
    to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _huge_length(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Length=random.choice((1 << 40, 10**30))) + content)


def _short_length(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("200 OK", Content_Length=random.randrange(len(content) + 1)) + content)


def _odd_length(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    length = random.choice(("-1", "abc", "", "1e3", "٣", f"{len(content)}, {len(content)}"))
    to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + length.encode() + b"\r\n\r\n" + content)


def _part_of_range(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    part = content[: random.randrange(len(content) + 1)]
    lie = random.choice((f"bytes 0-{len(part)}/{len(content)}", "bytes 5-3/1", "bytes */0", "x"))
    to.sendall(_head("206 Partial Content", Content_Range=lie, Content_Length=len(part)) + part)


def _range_of_whole(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    lie = random.choice(("bytes 0-9/10", "bytes 9-1/5", "nonsense"))
    to.sendall(_head("200 OK", Content_Range=lie, Content_Length=len(content)) + content)


def _error(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head(f"{random.choice((204, 300, 304, 401, 404, 416, 500, 503, 999))} X", Content_Length=0))


def _redirected(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    if path.startswith("/again"):
        _honest(to, content, random, path)
        return
    place = random.choice(("/again/clip.mp4", "again", "/again?a=b c", "/again/%zz/ü", "//{host}/again"))
    to.sendall(_head(f"{random.choice((301, 302, 303, 307, 308))} X", Location=place.format(host=_host(to))))


def _host(to: socket.socket) -> str:
    host, port = to.getsockname()[:2]
    return f"{host}:{port}"


def _redirect_loop(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("302 Found", Location=path + "x"))


_ELSEWHERE = (
    *("file:///etc/passwd", "ftp://127.0.0.1/x", "concat:/etc/passwd", "data:,x", "http://", "http://[::1", "//"),
    *("http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http:\\x", "\x01\x02", "http://a b/", "http://xn--/"),
    "http://..../",
)


def _redirect_elsewhere(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(_head("302 Found", Location=random.choice(_ELSEWHERE)))


_STARTS = (
    *(b"", b"\0", b"\xff" * 100, b"HTTP/1.1 ", b"HTTP/9.9\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"),
    *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a" * 70000),
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
)


def _nonsense(to: socket.socket, content: bytes, random: Random, path: str) -> None:
    to.sendall(random.choice(_STARTS))


BEHAVIOURS = {
    "honest": Behaviour(_honest, "faithful"),
    "without length": Behaviour(_without_length, "faithful"),
    "chunked": Behaviour(_chunked, "faithful"),
    "slow": Behaviour(_slow, "faithful"),
    "range of the whole": Behaviour(_range_of_whole, "faithful"),
    "redirected": Behaviour(_redirected, "faithful"),
    "cut": Behaviour(_cut, "refused"),
    "cut chunks": Behaviour(_cut_chunked, "refused"),
    "reset": Behaviour(_reset, "refused"),
    "huge length": Behaviour(_huge_length, "refused"),
    "part of a range": Behaviour(_part_of_range, "refused"),
    "error": Behaviour(_error, "refused"),
    "redirect loop": Behaviour(_redirect_loop, "refused"),
    "redirect elsewhere": Behaviour(_redirect_elsewhere, "refused"),
    "nonsense": Behaviour(_nonsense, "refused"),
    "bad chunks": Behaviour(_bad_chunks, "any"),
    "short length": Behaviour(_short_length, "any"),
    "odd length": Behaviour(_odd_length, "any"),
}


class _Handler(socketserver.BaseRequestHandler):
    server: "HostileServer"

    def handle(self) -> None:
        received = b""
        while b"\r\n\r\n" not in received and (part := self.request.recv(65536)):
            received += part
        path = received.split(b" ")[1].decode("latin-1") if received.count(b" ") > 1 else "/"
        content, behaviour, seed = self.server.answer
        try:
            BEHAVIOURS[behaviour].answer(self.request, content, Random(seed), path)
        except OSError:  # the client went away, as it may
            pass


class HostileServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[bytes, str, int] = (b"", "honest", 0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def serve(self, content: bytes, behaviour: str, seed: int) -> str:
        """The address at which `content` is served from now on, in this way."""
        self.answer = content, behaviour, seed
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/clip.mp4"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass
