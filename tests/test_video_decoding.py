"""Files to frames: which frames, what becomes of broken files, and that nothing is read that should not be."""

import contextlib
import http.server
import io
import json
import logging
import pickle
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoded_clips import Unseekable, can_encode, encode, numbered_frame, patch, read_numbers
from PIL import Image

from swinbert.processing import VideoDecodeError, VideoMetadata, decode_video, sample_indices
from swinbert.processing import video_backends_swinbert as backends
from swinbert.processing import video_decoding_swinbert as decoding
from swinbert.processing import video_sources_swinbert as sources

SHARED = Path(__file__).parents[2] / "shared"
SAMPLING = json.loads((Path(__file__).parent / "fixtures" / "frame_sampling.json").read_text())
# 12 frames from key frame to key frame: with three B-frames in a row, or with none.
GROUPS = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}
PLAIN_GROUPS = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0"}
OTHERS = ["decord", "torchcodec"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """60 frames at 30 a second."""
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", range(60), options=GROUPS)


def kind_of(source, **arguments) -> str:
    with pytest.raises(VideoDecodeError) as raised:
        decode_video(source, **arguments)
    assert raised.value.source in str(raised.value)
    return raised.value.kind


# --- Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "round"])
def test_sampling_equals_the_originals(sampling):
    for case, expected in SAMPLING[sampling].items():
        available, wanted = map(int, case.split())
        assert sample_indices(available, wanted, sampling).tolist() == expected, case


def test_uniform_sampling_truncates_in_float32():
    for available, wanted, differences in SAMPLING["float32"]:
        indices = sample_indices(available, wanted)
        for position, expected, by_exact_arithmetic in differences:
            assert indices[position] == expected != by_exact_arithmetic
    for available in range(1, 400, 7):
        for wanted in (1, 2, 31, 32, 64):
            by_torch = torch.linspace(0.0, available - 1, wanted).clamp(0, available - 1).long()
            assert sample_indices(available, wanted).tolist() == by_torch.tolist()


@pytest.mark.parametrize("available,wanted", [(100, 8), (8, 8), (3, 8), (1, 4)])
def test_random_sampling_takes_one_of_each_segment(available, wanted):
    draws = np.stack([sample_indices(available, wanted, "random", seed) for seed in range(300)])
    borders = np.arange(wanted + 1) * available / wanted
    assert (draws >= np.floor(borders[:-1])).all() and (draws < np.ceil(borders[1:])).all()
    assert all(
        set(draws[:, i]) == set(range(int(borders[i]), int(np.ceil(borders[i + 1])))) for i in range(wanted)
    )  # every frame of a segment is taken at some time
    generator = torch.Generator().manual_seed(5)
    assert sample_indices(available, wanted, "random", generator).tolist() == draws[5].tolist()
    assert (draws[0] == sample_indices(available, wanted, "random", 0)).all()


@pytest.mark.parametrize("arguments", [(0, 4), (4, 0), (4, -1), (4, 2.0), (4, True), (4, 2, "nearest")])
def test_sampling_refuses(arguments):
    with pytest.raises(ValueError, match="must be"):
        sample_indices(*arguments)


# --- Which frames a file has, and getting some of them ----------------------------------------------------------------

FILES = {
    "B-frames.mp4": {"options": GROUPS},
    "open-groups.mp4": {"options": {"x264-params": GROUPS["x264-params"] + ":open-gop=1"}},
    "fragmented.mp4": {"options": GROUPS},
    "B-frames.mkv": {"options": GROUPS},
    "B-frames.avi": {"options": GROUPS},  # the container has decoding times only
    "B-frames.ts": {"options": GROUPS},
    "B-frames.flv": {"options": GROUPS},
    "without-times.h264": {"options": GROUPS},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "program-stream.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"g": "12", "bf": "2"}},
    "wmv2.wmv": {"codec": "wmv2", "rate": 25},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}},
    "animation.gif": {"codec": "gif", "rate": 10},
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory) -> Path:
    options = FILES[request.param]
    if not can_encode(options.get("codec", "libx264")):
        pytest.skip(f"this PyAV has no encoder {options['codec']}")
    return encode(tmp_path_factory.mktemp("files") / request.param, range(60), **options)


def test_every_frame_in_order(file):
    frames, metadata = decode_video(file)
    assert frames.dtype == np.uint8 and frames.shape == (60, 32, 96, 3)
    assert read_numbers(frames) == list(range(60)) == metadata.frames_indices
    assert metadata.total_num_frames == 60 and metadata.missing_frames == 0
    assert (metadata.width, metadata.height, metadata.video_backend) == (96, 32, "pyav")


@pytest.mark.parametrize("seek_bytes", [0, 1 << 30], ids=["seek", "read on"])
def test_some_frames_in_any_order(file, seek_bytes, monkeypatch):
    monkeypatch.setattr(backends, "_SEEK_BYTES", seek_bytes)
    monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    for wanted in ([57, 3, 3, 31, 12], [59], [0], [11, 12, 13, 35, 36, 37]):
        frames, metadata = decode_video(file, indices=wanted)
        assert read_numbers(frames) == wanted == metadata.frames_indices


def test_a_seek_that_lands_elsewhere_begins_anew(clip, monkeypatch):
    opened = []
    open_stream = backends.open_stream

    class SeeksTooFar:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def seek(self, offset, stream):
            self._container.seek(10**9, stream=stream)

    @contextlib.contextmanager
    def open_badly(*arguments):
        with open_stream(*arguments) as (container, stream):
            opened.append(container)
            yield SeeksTooFar(container), stream

    monkeypatch.setattr(backends, "_SEEK_BYTES", 0)
    monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    monkeypatch.setattr(backends, "open_stream", open_badly)
    assert read_numbers(decode_video(clip, indices=[3, 30])[0]) == [3, 30]
    assert len(opened) > 2


@pytest.fixture
def decoded_packets(monkeypatch) -> list:
    """The packets that go into PyAV's decoders from now on."""
    packets = []
    decode = backends.StreamDecoder._decode

    def record(self, packet):
        if packet is not None:  # None drains the decoder
            packets.append(packet)
        decode(self, packet)

    monkeypatch.setattr(backends.StreamDecoder, "_decode", record)
    return packets


def test_only_the_needed_packets_are_decoded(clip, decoded_packets):
    decode_video(clip, indices=[24, 48])  # two key frames
    assert len(decoded_packets) == 2
    decoded_packets.clear()
    # The last of its group needs all that are referred to, but not the B-frames that nothing refers to.
    assert read_numbers(decode_video(clip, indices=[11])[0]) == [11]
    assert 4 <= len(decoded_packets) <= 9


@pytest.mark.parametrize("name", ["hevc.mp4", "hevc.ts"])
def test_unreferenced_frames_of_hevc_are_skipped(tmp_path, name, decoded_packets):
    if not can_encode("libx265"):
        pytest.skip("this PyAV has no encoder libx265")
    options = {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:log-level=none"}
    path = encode(tmp_path / name, range(60), codec="libx265", options=options)
    frames, _ = decode_video(path, indices=[20, 58])
    assert read_numbers(frames) == [20, 58]
    assert len(decoded_packets) <= 16  # of the first 9 and 11 of two groups at least, in decoding order


def test_uniform_frames_and_their_moments(clip):
    frames, metadata = decode_video(clip, num_frames=8)
    assert read_numbers(frames) == sample_indices(60, 8).tolist()
    assert metadata.timestamps == pytest.approx([index / 30 for index in metadata.frames_indices])
    assert metadata.fps == pytest.approx(30) and metadata.duration == pytest.approx(2)


def test_a_transform_is_done_to_each_frame_as_it_comes(clip):
    frames, plain = decode_video(clip, indices=[3, 40, 3])
    for backend in ("pyav", "decord"):
        halves, metadata = decode_video(
            clip, indices=[3, 40, 3], transform=lambda frame: frame[::2, ::2], backend=backend
        )
        assert np.array_equal(halves, frames[:, ::2, ::2])
        assert (metadata.height, metadata.width) == (plain.height, plain.width) == (32, 96)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["read again", "kept"])
@pytest.mark.parametrize("pixels", [0, 1 << 40], ids=["threads", "no threads"])
def test_every_way_of_decoding_gives_the_same_frames(file, kept_bytes, pixels, monkeypatch):
    expected = decode_video(file, indices=[0, 5, 13, 36, 59])[0]
    monkeypatch.setattr(backends, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(backends, "_THREADED_PIXELS", pixels)
    assert np.array_equal(decode_video(file, indices=[0, 5, 13, 36, 59])[0], expected)


def test_a_small_clip_is_opened_once(clip, monkeypatch):
    opened = []
    open_stream = backends.open_stream
    monkeypatch.setattr(backends, "open_stream", lambda *arguments: opened.append(arguments) or open_stream(*arguments))
    decode_video(clip, num_frames=8)
    assert len(opened) == 1


def test_indices_may_depend_on_the_number_of_frames(clip):
    seen = []

    def last_three(metadata: VideoMetadata):
        seen.append(metadata)
        return range(metadata.total_num_frames - 3, metadata.total_num_frames)

    frames, metadata = decode_video(clip, indices=last_three, start=0.5, end=1)
    assert read_numbers(frames) == [29, 30, 31] == metadata.frames_indices
    assert seen[0].total_num_frames == 17 and seen[0].fps == pytest.approx(30)
    assert metadata.total_num_frames == 60


def test_one_frame(tmp_path):
    path = encode(tmp_path / "one.mp4", [5])
    assert read_numbers(decode_video(path, num_frames=4)[0]) == [5] * 4


def test_variable_rate_keeps_its_moments(tmp_path):
    pts = [i * 100 for i in range(10)] + [1000 + i * 20 for i in range(50)]
    path = encode(tmp_path / "vfr.mp4", range(60), options=GROUPS, pts=pts, time_base=Fraction(1, 1000))
    frames, metadata = decode_video(path)
    assert read_numbers(frames) == list(range(60))
    assert metadata.timestamps == pytest.approx([stamp / 1000 for stamp in pts], abs=1e-3)
    assert read_numbers(decode_video(path, start=0.85, end=1.03)[0]) == [9, 10, 11, 12]


def test_what_an_edit_list_hides_is_no_frame(tmp_path):
    path = encode(tmp_path / "trimmed.mp4", range(60), options=PLAIN_GROUPS)
    patch(path, b"elst", 12, (7 * 512).to_bytes(4, "big"))  # media time: begin after 7 frames of 512 ticks
    frames, metadata = decode_video(path)
    assert read_numbers(frames) == list(range(7, 60)) and metadata.total_num_frames == 53
    assert read_numbers(decode_video(path, indices=[0, 30])[0]) == [7, 37]


@pytest.mark.parametrize("name", ["change.ts", "change.h264"])
def test_a_resolution_that_changes(tmp_path, name):
    container = name.split(".")[1]
    parts = [
        encode(
            tmp_path / f"{first}.{container}",
            range(first, first + 20),
            options=PLAIN_GROUPS,
            pts=list(range(first, first + 20)),
            time_base=Fraction(1, 30),
            scales=(scale,),
        )
        for first, scale in ((0, 1), (20, 2))
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, _ = decode_video(path)
    assert frames.shape == (40, 32, 96, 3) and read_numbers(frames) == list(range(40))
    assert read_numbers(decode_video(path, indices=[33])[0]) == [33]


def test_two_streams_as_ffmpeg_chooses(tmp_path):
    path = encode(tmp_path / "two.mp4", range(10), scales=(1, 2))
    with av.open(str(path)) as container:
        best = container.streams.best("video")
    frames, _ = decode_video(path)
    assert frames.shape[1:3] == (best.codec_context.height, best.codec_context.width)
    assert read_numbers(frames) == list(range(10))


def turn(path: Path, matrix: tuple[int, ...]) -> Path:
    fixed = [value << (30 if i % 3 == 2 else 16) for i, value in enumerate(matrix)]
    return patch(path, b"tkhd", 40, b"".join(value.to_bytes(4, "big", signed=True) for value in fixed))


@pytest.mark.parametrize("backend", ["pyav", *OTHERS])
@pytest.mark.parametrize(
    "turns,matrix",
    [(1, (0, -1, 0, 1, 0, 0, 0, 96, 1)), (2, (-1, 0, 0, 0, -1, 0, 96, 32, 1)), (3, (0, 1, 0, -1, 0, 0, 32, 0, 1))],
)
def test_rotation_is_honoured(tmp_path, turns, matrix, backend):
    upright = decode_video(encode(tmp_path / "upright.mp4", range(5)))[0]
    path = turn(encode(tmp_path / "turned.mp4", range(5)), matrix)
    frames, metadata = decode_or_skip(path, backend)
    assert np.array_equal(frames, np.rot90(upright, turns, axes=(1, 2)))
    assert (metadata.height, metadata.width) == frames.shape[1:3]


# --- Ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, file in SAMPLING["files"].items() if file["N"] <= 300])
def test_clip_times_equal_the_originals(tmp_path, name):
    file = SAMPLING["files"][name]
    path = encode(
        tmp_path / f"clip.{file['container']}",
        range(file["N"]),
        rate=Fraction(file["rate"]),
        codec=file["codec"],
        options={"bf": str(file["bframes"])},
    )
    assert read_numbers(decode_video(path, num_frames=8)[0]) == sample_indices(file["N"], 8).tolist()
    for start, end, first, last, eight in file["clips"]:
        if start == end or first is None:  # the original gives a frame or two, or none at all
            assert kind_of(path, start=start, end=end) == "bad_range"
            continue
        indices = decode_video(path, start=start, end=end)[1].frames_indices
        assert indices == list(range(first, last + 1))
        assert read_numbers(decode_video(path, start=start, end=end, num_frames=8)[0]) == eight


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.webm"])
def test_clip_times_hold_in_every_container(tmp_path, name):
    """The original takes frame numbers for time stamps in mkv and webm, and fails on ts."""
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    if not can_encode(codec):
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = encode(tmp_path / name, range(60), codec=codec)
    assert read_numbers(decode_video(path, start=0.24, end=0.91)[0]) == list(range(8, 29))
    assert read_numbers(decode_video(path, start=1.9)[0]) == [57, 58, 59]
    assert read_numbers(decode_video(path, end=0.01)[0]) == [0, 1]


@pytest.mark.parametrize(
    "arguments",
    [{"start": 1, "end": 1}, {"start": 1.5, "end": 0.5}, {"start": 2.5}, {"start": -1}, {"end": float("nan")}]
    + [{"start": "1"}, {"indices": [60]}, {"indices": [-1]}, {"indices": []}, {"indices": [0.5]}],
)
def test_ranges_that_are_none(clip, arguments):
    assert kind_of(clip, **arguments) == "bad_range"


@pytest.mark.parametrize("num_frames", [0, -3, 2.5, True])
def test_numbers_of_frames_that_are_none(clip, num_frames):
    assert kind_of(clip, num_frames=num_frames) == "bad_sampling"


# --- Other decoders ---------------------------------------------------------------------------------------------------


def decode_or_skip(source, backend, **arguments):
    try:
        return decode_video(source, backend=backend, **arguments)
    except ImportError as error:
        pytest.skip(str(error))


def assert_same_frames(path, backend, wanted):
    expected, moments = decode_video(path, indices=wanted)
    try:
        frames, metadata = decode_or_skip(path, backend, indices=wanted)
    except VideoDecodeError as error:
        assert error.kind == "backend"
        pytest.skip(f"{backend} cannot read it: {error.message[:100]}")
    assert metadata.frame_times == moments.frame_times and metadata.video_backend == backend
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean(axis=(1, 2, 3)).max() < 1


@pytest.mark.parametrize("backend", OTHERS)
def test_other_decoders_give_the_same_frames(file, backend):
    assert_same_frames(file, backend, [57, 3, 3, 31, 12, 59, 0, 35, 36, 37])


@pytest.mark.parametrize("backend", OTHERS)
def test_other_decoders_are_shown_no_bomb(backend, monkeypatch, clip):
    monkeypatch.setattr(backends, "MAX_FRAME_PIXELS", 96 * 32 - 1)
    assert kind_of(clip, backend=backend) == "too_large"


def test_unknown_backend(clip):
    with pytest.raises(ValueError, match="backend"):
        decode_video(clip, backend="opencv")


# --- Sources ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_source(clip, tmp_path):
    content = clip.read_bytes()
    with open(clip, "rb") as handle:
        for source in (
            str(clip),
            clip,
            content,
            bytearray(content),
            io.BytesIO(content),
            handle,
            io.BufferedReader(Unseekable(content)),
            {"path": str(clip), "bytes": None},
            {"path": None, "bytes": content},
        ):
            assert read_numbers(decode_video(source, indices=[40, 1])[0]) == [40, 1]


@pytest.mark.parametrize("backend", OTHERS)
def test_other_decoders_read_bytes(clip, backend):
    assert read_numbers(decode_or_skip(clip.read_bytes(), backend, indices=[40, 1])[0]) == [40, 1]


def test_names_that_look_like_protocols(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "-i", "pipe:0", "name with space and ü.mp4"):
        Path(name).write_bytes(clip.read_bytes())
        assert decode_video(name, num_frames=1)[1].total_num_frames == 60


def test_sources_that_are_none(tmp_path, clip):
    assert kind_of(tmp_path / "absent.mp4") == "not_found"
    assert kind_of(str(clip) + "/below.mp4") == "not_found"
    assert kind_of(tmp_path) == "not_readable"
    assert kind_of("/dev/zero") == "not_readable"
    assert kind_of("a\0b.mp4") == "not_readable"
    assert kind_of(b"") == "empty"
    assert kind_of(io.BytesIO()) == "empty"
    assert kind_of(io.StringIO("text")) == "bad_source"
    assert kind_of(io.BufferedReader(Unseekable(b""))) == "empty"
    assert kind_of(3) == kind_of(None) == kind_of(np.zeros((4, 8, 8, 3), np.uint8)) == "bad_source"
    closed = io.BytesIO(b"abc")
    closed.close()
    assert kind_of(closed) == "not_readable"


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(VideoDecodeError("clip.mp4", "empty", "nothing.")))
    assert (error.source, error.kind, str(error)) == ("clip.mp4", "empty", "clip.mp4: nothing.")
    assert isinstance(error, ValueError)


@pytest.fixture(scope="module")
def server(clip):
    """The clip, and what servers do to those who fetch it, on a loopback address."""
    content = clip.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            redirects = {
                "/found": "/clip.mp4",
                "/loop": "/loop",
                "/to-file": f"file://{clip}",
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

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls(server, monkeypatch):
    for name in ("/clip.mp4", "/found"):
        frames, _ = decode_video(server + name, indices=[7], allow_private_urls=True)
        assert read_numbers(frames) == [7]
    for name in ("/absent", "/loop", "/short.mp4"):
        assert kind_of(server + name, allow_private_urls=True) == "download_failed"
    assert kind_of(server + "/to-file", allow_private_urls=True) == "refused_url"
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 1000)
    assert kind_of(server + "/clip.mp4", allow_private_urls=True) == "too_large"


@pytest.mark.parametrize("name", ["/drip", "/silent"])
def test_slow_servers_are_left(server, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_SECONDS", 0.3)
    began = time.monotonic()
    assert kind_of(server + name, allow_private_urls=True) == "download_failed"
    assert time.monotonic() - began < 1.5


def test_a_redirect_into_the_private_network_is_refused(server, monkeypatch):
    public = sources._is_public
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1" or public(address))
    assert decode_video(server + "/clip.mp4", num_frames=1)[1].total_num_frames == 60
    assert kind_of(server + "/to-metadata") == "refused_url"


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
def test_addresses_that_are_refused(url):
    assert kind_of(url) in {"refused_url"}


def test_public_addresses():
    assert sources._is_public("93.184.216.34") and sources._is_public("2606:2800:220:1::1")
    for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "224.0.0.1", "100.64.0.1", "fc00::1"):
        assert not sources._is_public(address)


# --- Broken files -----------------------------------------------------------------------------------------------------


def test_what_is_no_video(tmp_path):
    for name, content in {"text.mp4": b"not a video " * 99, "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) == "not_video"
    encode(tmp_path / "clip.mp4", range(5))
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'clip.mp4'\n")
    assert kind_of(tmp_path / "list.ffconcat") == "not_video"
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.avif"):
        if Image.registered_extensions().get(Path(name).suffix) in Image.SAVE:
            Image.fromarray(numbered_frame(1)).save(tmp_path / name)
            assert kind_of(tmp_path / name) == "not_video", name


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def test_sound_without_pictures(tmp_path):
    assert kind_of(sound(tmp_path / "song.mp4")) == "no_video_stream"


def test_frames_that_are_too_large(clip, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_CLIP_BYTES", 59 * 96 * 32 * 3)
    assert kind_of(clip) == "too_large"
    assert decode_video(clip, num_frames=59)[1].total_num_frames == 60
    monkeypatch.setattr(backends, "MAX_FRAME_PIXELS", 96 * 32 - 1)
    assert kind_of(clip, num_frames=1) == "too_large"


def damage(clip: Path, path: Path, frames: range) -> Path:
    """Zeroes what is stored of some frames."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    by_time = sorted(packets, key=lambda packet: packet.pts)
    for packet in (by_time[number] for number in frames):
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    return path


def test_damaged_frames_are_replaced_by_their_neighbours(tmp_path):
    clip = encode(tmp_path / "clip.mp4", range(60), options=PLAIN_GROUPS)
    path = damage(clip, tmp_path / "damaged.mp4", range(22, 24))  # the end of a group: nothing else refers to them
    with pytest.warns(UserWarning, match=r"damaged.mp4: 2 of 60 wanted frames could not be decoded"):
        frames, metadata = decode_video(path)
    assert read_numbers(frames) == [*range(22), 21, 24, *range(24, 60)]
    assert (metadata.total_num_frames, metadata.missing_frames) == (60, 2)
    assert kind_of(path, strict=True) == "undecodable"
    assert decode_video(path, indices=[3, 50], strict=True)[1].missing_frames == 0
    with pytest.warns(UserWarning, match="1 of 1"):
        assert read_numbers(decode_video(path, indices=[23])[0]) == [24]


def test_a_group_that_is_lost_as_a_whole(tmp_path):
    clip = encode(tmp_path / "clip.mp4", range(60), options=PLAIN_GROUPS)
    path = damage(clip, tmp_path / "damaged.mp4", range(48, 60))
    with pytest.warns(UserWarning, match="1 of 1"):
        assert read_numbers(decode_video(path, indices=[55])[0]) == [47]
    path = damage(clip, tmp_path / "nothing.mp4", range(60))
    assert kind_of(path) == "undecodable"


def test_a_file_that_ends_early_gives_what_it_has(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    whole = encode(tmp_path / "whole.mp4", range(60), options=PLAIN_GROUPS)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    with av.open(str(path)) as container:
        cut = [packet for packet in container.demux(video=0) if packet.size][40]
    path.write_bytes(path.read_bytes()[: cut.pos + cut.size // 2])
    with caplog.at_level(logging.WARNING):
        frames, metadata = decode_video(path)
    assert metadata.total_num_frames == 41 and metadata.missing_frames == 0
    assert read_numbers(frames) == [*range(40), 39]  # the frame that is cut through repeats the one before
    assert kind_of(path, backend="decord") == "backend" if _has("decord") else True


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


# --- The shared corpus ------------------------------------------------------------------------------------------------

needs_corpus = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the corpus of clips beside the repository")


def corpus(folder: str, index: str) -> dict:
    path = SHARED / folder / index
    return json.loads(path.read_text()) if path.is_file() else {}


@needs_corpus
@pytest.mark.parametrize("name", corpus("clips", "manifest.json"))
def test_clips_of_the_corpus(name):
    expected = corpus("clips", "manifest.json")[name]
    frames, metadata = decode_video(SHARED / "clips" / name, num_frames=8)
    assert metadata.total_num_frames == expected["nb_frames"]
    assert (metadata.width, metadata.height) == (expected["width"], expected["height"])
    assert frames.shape == (8, expected["height"], expected["width"], 3)


@needs_corpus
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", corpus("clips", "manifest.json"))
def test_other_decoders_on_the_corpus(name, backend):
    total = corpus("clips", "manifest.json")[name]["nb_frames"]
    wanted = np.random.RandomState(0).permutation(min(total, 200))[:12].tolist()
    assert_same_frames(SHARED / "clips" / name, backend, wanted)


@needs_corpus
@pytest.mark.parametrize("name", corpus("bad", "expected.json"))
@pytest.mark.filterwarnings("ignore:.*could not be decoded")
def test_broken_files_of_the_corpus(name):
    expected = corpus("bad", "expected.json")[name]
    path = SHARED / "bad" / name
    eighths = {"indices": lambda metadata: [i * metadata.total_num_frames // 8 for i in range(8)]}
    if expected["expect"] == "error":
        assert kind_of(path, **eighths) == expected["kind"]
        assert kind_of(path.read_bytes(), **eighths) == expected["kind"]
    else:
        _, metadata = decode_video(path, **eighths)
        assert (metadata.total_num_frames, metadata.missing_frames) == (expected["n_frames"], expected["missing"])
