"""Paths, bytes, file objects and URLs: what can be opened, and what must not be."""

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from encoded_clips import Unseekable, error_kind, read_numbers
from loopback import QuietHandler, serving

from swinbert.processing import VideoDecodeError, decode_video
from swinbert.processing import video_sources_swinbert as sources


def test_every_kind_of_source(numbered_clip, tmp_path):
    content = numbered_clip.read_bytes()
    with open(numbered_clip, "rb") as handle:
        for source in (
            str(numbered_clip),
            numbered_clip,
            content,
            bytearray(content),
            io.BytesIO(content),
            handle,
            io.BufferedReader(Unseekable(content)),
            {"path": str(numbered_clip), "bytes": None},
            {"path": None, "bytes": content},
        ):
            assert read_numbers(decode_video(source, indices=[40, 1])[0]) == [40, 1]


def test_names_that_look_like_protocols(numbered_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "-i", "pipe:0", "name with space and ü.mp4"):
        Path(name).write_bytes(numbered_clip.read_bytes())
        assert decode_video(name, num_frames=1)[1].total_num_frames == 60


def test_what_cannot_be_opened(tmp_path, numbered_clip):
    assert error_kind(tmp_path / "absent.mp4") == "not_found"
    assert error_kind(str(numbered_clip) + "/below.mp4") == "not_found"
    assert error_kind(tmp_path) == "not_readable"
    assert error_kind("/dev/zero") == "not_readable"
    assert error_kind("a\0b.mp4") == "not_readable"
    assert error_kind(b"") == "empty"
    assert error_kind(io.BytesIO()) == "empty"
    assert error_kind(io.StringIO("text")) == "bad_source"
    assert error_kind(io.BufferedReader(Unseekable(b""))) == "empty"
    assert error_kind(3) == error_kind(None) == error_kind(np.zeros((4, 8, 8, 3), np.uint8)) == "bad_source"
    closed = io.BytesIO(b"abc")
    closed.close()
    assert error_kind(closed) == "not_readable"


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(VideoDecodeError("clip.mp4", "empty", "nothing.")))
    assert (error.source, error.kind, str(error)) == ("clip.mp4", "empty", "clip.mp4: nothing.")
    assert isinstance(error, ValueError)


@pytest.fixture(scope="module")
def server(numbered_clip):
    """An HTTP server on a loopback address: the clip, redirects, slow and broken answers."""
    content = numbered_clip.read_bytes()

    class Handler(QuietHandler):
        def do_GET(self):
            redirects = {
                "/found": "/clip.mp4",
                "/loop": "/loop",
                "/to-file": f"file://{numbered_clip}",
                "/to-metadata": "http://169.254.169.254/latest/meta-data/",
            }
            if self.path in redirects:
                self.send_response(302)
                self.send_header("Location", redirects[self.path])
                self.end_headers()
            elif self.path == "/drip":
                self.send_response(200)
                self.end_headers()
                for byte in content[:100]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            elif self.path == "/silent":
                time.sleep(2)
            elif self.path in ("/clip.mp4", "/short.mp4"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if self.path == "/clip.mp4" else content[:-100])
            else:
                self.send_error(404)

    with serving(Handler) as address:
        yield address


def test_urls(server, monkeypatch):
    for name in ("/clip.mp4", "/found"):
        frames, _ = decode_video(server + name, indices=[7], allow_private_urls=True)
        assert read_numbers(frames) == [7]
    for name in ("/absent", "/loop", "/short.mp4"):
        assert error_kind(server + name, allow_private_urls=True) == "download_failed"
    assert error_kind(server + "/to-file", allow_private_urls=True) == "refused_url"
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 1000)
    assert error_kind(server + "/clip.mp4", allow_private_urls=True) == "too_large"


@pytest.mark.parametrize("name", ["/drip", "/silent"])
def test_a_slow_download_is_given_up(server, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_SECONDS", 0.3)
    began = time.monotonic()
    assert error_kind(server + name, allow_private_urls=True) == "download_failed"
    assert time.monotonic() - began < 1.5


def test_a_redirect_into_the_private_network_is_refused(server, monkeypatch):
    public = sources._is_public
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1" or public(address))
    assert decode_video(server + "/clip.mp4", num_frames=1)[1].total_num_frames == 60
    assert error_kind(server + "/to-metadata") == "refused_url"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.mp4", "http://localhost:8000/a.mp4", "http://[::1]/a.mp4", "http://10.1.2.3/a.mp4"]
    + ["http://169.254.169.254/latest", "http://[::ffff:192.168.0.1]/a.mp4", "http://0x7f.1/a.mp4", "http://0/a.mp4"]
    + [
        "file:///etc/passwd",
        "file:clip.mp4",
        "ftp://example.org/a.mp4",
        "rtsp://127.0.0.1/a",
        "data:video/mp4;base64,AA",
    ],
)
def test_private_addresses_and_other_schemes_are_refused(url):
    assert error_kind(url) == "refused_url"


def test_public_addresses():
    assert sources._is_public("93.184.216.34") and sources._is_public("2606:2800:220:1::1")
    for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "224.0.0.1", "100.64.0.1", "fc00::1"):
        assert not sources._is_public(address)
