"""What people give as a clip: arrays of any type, file objects of any library, decoders, rows of tables, odd names."""

import io
import os
import tarfile
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from encoded_clips import encode, error_kind, read_numbers
from loopback import QuietHandler, serving
from PIL import Image

from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError, decode_video
from swinbert.processing.video_sources_swinbert import as_seconds, describe_source, is_content


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", range(60))


@pytest.fixture
def clip() -> np.ndarray:
    """6 frames of 32 x 40 with all values from 0 to 255."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), dtype=np.uint8)
    frames[0, 0, 0], frames[0, 0, 1] = 0, 255
    return frames


def make_processor(**options) -> SwinBertVideoProcessor:
    return SwinBertVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=4, **options
    )


def pixels_of(videos, **arguments) -> torch.Tensor:
    return make_processor()(videos, return_tensors="pt", **arguments)["pixel_values_videos"]


def kind_of(videos, **arguments) -> str:
    with pytest.raises(VideoDecodeError) as raised:
        pixels_of(videos, **arguments)
    return raised.value.kind


# --- Arrays and images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overshoot", [1e-7, 0.1])
def test_floats_a_little_outside_of_their_range_are_cut(clip, overshoot):
    frames = clip.astype(np.float32) / 255
    frames[frames == 1] = 1 + overshoot
    frames[frames == 0] = -overshoot
    assert frames.max() > 1 and frames.min() < 0
    torch.testing.assert_close(pixels_of(frames), pixels_of(clip), rtol=0, atol=1e-5)


@pytest.mark.parametrize("low, high", [(-1, 1), (-2.1, 2.6), (0, 1.5), (-0.3, 1), (0, 300), (-20, 255)])
def test_floats_of_another_range_are_refused(clip, low, high):
    frames = clip.astype(np.float32) / 255 * (high - low) + low
    assert kind_of(frames) == "bad_array"


def test_a_dark_clip_of_floats_up_to_255_stays_dark():
    frames = np.zeros((4, 32, 32, 3), np.float32)
    frames[1] = 2
    assert torch.equal(pixels_of(frames), pixels_of(frames.astype(np.uint8)))


def test_views_and_types_of_numpy(clip):
    for name, frames, expected in (
        ("BGR", clip[..., ::-1], clip[..., ::-1].copy()),
        ("reversed", clip[::-1], clip[::-1].copy()),
        ("mirrored list", [frame[:, ::-1] for frame in clip], clip[:, :, ::-1].copy()),
        ("big-endian floats", clip.astype(">f4") / np.array(255, ">f4"), clip),
        ("big-endian doubles", clip.astype(">f8"), clip),
        ("long doubles", clip.astype(np.longdouble), clip),
        ("uint16", clip.astype(np.uint16) * 257, clip),
        ("big-endian uint16", (clip.astype(np.uint16) * 257).astype(">u2"), clip),
        ("uint16 tensor", torch.from_numpy(clip.astype(np.uint16) * 257), clip),
        ("uint32 tensor", torch.from_numpy(clip.astype(np.uint32)), clip),
        ("a tensor with a gradient", torch.from_numpy(clip / 255.0).requires_grad_(), clip),
    ):
        assert torch.equal(pixels_of(frames), pixels_of(expected)), name


def test_images_of_more_than_eight_bits(clip):
    grey = clip[..., 0]
    expected = pixels_of(grey[..., None].repeat(3, -1))
    for mode in ("I;16", "I;16B"):
        values = (grey.astype(np.uint16) * 257).astype(">u2" if mode.endswith("B") else "<u2")
        images = [Image.frombytes(mode, (40, 32), frame.tobytes()) for frame in values]
        assert torch.equal(pixels_of(images), expected), mode
    assert torch.equal(pixels_of([Image.fromarray(frame.astype(np.float32)) for frame in grey]), expected)
    assert torch.equal(pixels_of([Image.fromarray(frame.astype(np.int32)) for frame in grey]), expected)
    assert kind_of([Image.fromarray(frame.astype(np.int32) * 257) for frame in grey]) == "bad_array"


# --- File objects and pipes -------------------------------------------------------------------------------------------


class Failing(io.BytesIO):
    """Gives 500 bytes at a time; raises `error` once `after` have been read."""

    def __init__(self, content: bytes, error: Exception, after: int):
        super().__init__(content)
        self.error, self.left = error, after

    def read(self, size=-1):
        if self.left <= 0:
            raise self.error
        content = super().read(500)
        self.left -= len(content)
        return content


class LibraryError(Exception):
    """Of a library that reads over the network: no OSError."""


@pytest.mark.parametrize("after", [0, 1, 3000])
@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError(), LibraryError("gone\naway")])
def test_a_file_object_that_fails(path, error, after):
    assert after < path.stat().st_size
    with pytest.raises(VideoDecodeError) as raised:
        decode_video(Failing(path.read_bytes(), error, after))
    assert raised.value.kind == "not_readable" and "\n" not in str(raised.value)
    assert (str(error).split() or ["TimeoutError"])[0] in str(raised.value)


def test_file_objects_of_every_mode(path, tmp_path):
    with tempfile.SpooledTemporaryFile(max_size=10 << 20) as upload:
        upload.write(path.read_bytes())
        assert read_numbers(decode_video(upload, indices=[7])[0]) == [7]
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    for mode in ("a+b", "r+b"):
        with open(copy, mode) as file:
            assert read_numbers(decode_video(file, indices=[7])[0]) == [7]
    with open(os.open(copy, os.O_RDONLY), "rb") as file:  # its name is a number
        assert read_numbers(decode_video(file, indices=[7])[0]) == [7]
    assert copy.read_bytes() == path.read_bytes()


def test_members_of_a_tar_that_is_read_as_a_stream(path, tmp_path):
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        for name in ("a.mp4", "b.mp4"):
            tar.add(path, name)
    with tarfile.open(tmp_path / "clips.tar", "r|") as tar:
        assert [read_numbers(decode_video(tar.extractfile(member), indices=[9])[0]) for member in tar] == [[9], [9]]


def test_an_asynchronous_file_object_is_refused_with_advice():
    class Upload:
        async def read(self, size=-1): ...

    with pytest.raises(VideoDecodeError, match="`file`") as raised:
        decode_video(Upload())
    assert raised.value.kind == "bad_source"


@pytest.fixture
def pipe(tmp_path):
    """A function that makes a pipe with some content, and returns its name."""

    def make(content: bytes) -> str:
        name = str(tmp_path / "pipe")
        os.mkfifo(name)
        threading.Thread(target=lambda: Path(name).write_bytes(content), daemon=True).start()
        return name

    return make


def test_pipes(path, pipe):
    name = pipe(path.read_bytes())
    assert read_numbers(decode_video(name, indices=[7])[0]) == [7]
    os.unlink(name)
    assert error_kind(pipe(b"")) == "empty"


# --- Names ------------------------------------------------------------------------------------------------------------


def test_content_in_the_place_of_a_name():
    for content, kind in (("data:video/mp4;base64," + "AAAA" * 5000, "refused_url"), ("AAAAIGZ0" * 2000, "bad_source")):
        with pytest.raises(VideoDecodeError) as raised:
            decode_video(content)
        assert raised.value.kind == kind and len(str(raised.value)) < 250
        assert (
            raised.value.source == content[:57] + "..." and describe_source(raised.value.source) == raised.value.source
        )
    assert error_kind("a" * 300 + ".mp4") == "not_readable"
    name = "/data/" + "x" * 250
    assert not is_content(name) and describe_source(name) == name and error_kind(name) == "not_found"


@pytest.fixture(scope="module")
def server(path):
    """Serves the clip under names with spaces and umlauts, and redirects to such names; notes what it was asked for."""
    asked = []

    class Handler(QuietHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Host"]))
            if self.path.startswith("/to/"):
                self.send_response(302)
                target = {"/to/raw": "/größe 1.mp4".encode().decode("latin-1"), "/to/latin": "/gr\xf6\xdfe 1.mp4"}
                self.send_header("Location", target[self.path])
                self.end_headers()
            elif self.path.partition("?")[0] == "/" + quote("größe 1.mp4"):
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            else:
                self.send_error(404)

    with serving(Handler) as address:
        yield address, asked


@pytest.mark.parametrize(
    "name, asked",
    [
        ("/größe 1.mp4", "/gr%C3%B6%C3%9Fe%201.mp4"),
        ("/gr%C3%B6%C3%9Fe%201.mp4", "/gr%C3%B6%C3%9Fe%201.mp4"),
        ("/größe 1.mp4?q=ä b&c=[1]&d=100%", "/gr%C3%B6%C3%9Fe%201.mp4?q=%C3%A4%20b&c=[1]&d=100%25"),
        ("/to/raw", "/gr%C3%B6%C3%9Fe%201.mp4"),
        ("/to/latin", "/gr%C3%B6%C3%9Fe%201.mp4"),
    ],
)
def test_urls_are_percent_encoded(server, name, asked):
    base, seen = server
    assert read_numbers(decode_video(base + name, indices=[7], allow_private_urls=True)[0]) == [7]
    assert seen[-1][0] == asked


def test_hosts_beyond_ascii(server, monkeypatch):
    base, seen = server
    looked_up = []

    def getaddrinfo(host, port, **options):
        looked_up.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    port = base.rpartition(":")[2]
    monkeypatch.setattr("socket.create_connection", _connect_to(int(port)))
    decode_video(f"http://bücher.example:{port}/größe 1.mp4", num_frames=1, allow_private_urls=True)
    assert looked_up == ["xn--bcher-kva.example"] and seen[-1][1] == f"xn--bcher-kva.example:{port}"


def _connect_to(port: int):
    import socket

    def connect(address, timeout=None):
        connection = socket.socket()
        connection.connect(("127.0.0.1", port))
        return connection

    return connect


def test_no_advice_that_a_command_cannot_follow():
    with pytest.raises(VideoDecodeError) as raised:
        decode_video("http://127.0.0.1/a.mp4")
    assert raised.value.kind == "refused_url" and "allow_private_urls" not in str(raised.value)


# --- Ranges from tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [1, np.int64(1), np.float32(1), np.float64(1), np.array(1), torch.tensor(1)])
def test_numbers_of_seconds(path, one):
    assert decode_video(path, start=one)[1].frames_indices == list(range(30, 60))
    assert decode_video(path, end=one)[1].frames_indices == list(range(32))
    assert make_processor()(path, start=one, return_metadata=True)["video_metadata"][0].frames_indices[0] == 30


@pytest.mark.parametrize("none", [None, float("nan"), np.float32("nan"), torch.tensor(float("nan"))])
def test_no_limit(path, none):
    assert len(decode_video(path, start=none, end=none)[0]) == 60
    assert pixels_of(np.zeros((6, 32, 32, 3), np.uint8), start=none, end=none).shape[1] == 4  # no frame rate needed


def test_pandas_missing_value():
    pandas = pytest.importorskip("pandas")
    assert as_seconds("clip", "start", pandas.NA) is None and as_seconds("clip", "end", pandas.NaT) is None


def test_an_infinite_end_is_the_end(path):
    for end in (float("inf"), np.float32("inf"), 1e9):
        assert decode_video(path, start=1.5, end=end)[1].frames_indices == list(range(45, 60))


@pytest.mark.parametrize("value", [True, "1", -1, float("-inf"), np.array([1.0, 2.0]), 1j])
def test_what_is_no_number_of_seconds(path, value):
    assert error_kind(path, start=value) == error_kind(path, end=value) == "bad_range"
    assert error_kind(path, start=float("inf")) == "bad_range"


def test_columns_of_ranges(path):
    starts = np.array([0.5, np.nan])
    for column in (starts, torch.from_numpy(starts), starts.tolist()):
        found = make_processor()([path, path], start=column, end=1, return_metadata=True)["video_metadata"]
        assert [about.frames_indices for about in found] == [[15, 20, 25, 31], [0, 10, 20, 31]]
    assert make_processor()(path, fps=np.float32(2), return_tensors="pt")["pixel_values_videos"].shape[1] == 4


# --- Decoders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["NCHW", "NHWC"])
def decoder(request, path):
    decoders = pytest.importorskip("torchcodec.decoders")
    try:
        return decoders.VideoDecoder(str(path), dimension_order=request.param)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not work here: {error}")


class FrameDecoder:
    """What is used of torchcodec's `VideoDecoder`, for machines without FFmpeg's libraries."""

    def __init__(self, path, fails=False):
        self._frames = torch.from_numpy(decode_video(path)[0])
        self.fails, self.asked = fails, []

    class metadata:
        average_fps, height, width, duration_seconds = 30.0, 32, 96, 2.0

    def __len__(self):
        return len(self._frames)

    def __getitem__(self, number):
        raise AssertionError("a decoder is one clip, not a list of frames")

    def get_frames_at(self, indices):
        if self.fails:
            raise RuntimeError("no such packet")
        self.asked += indices

        class Batch:
            data = self._frames[indices]

        return Batch


def check_decoder(decoder, path):
    about = {"fps": 30, "total_num_frames": 60}
    for arguments in ({}, {"start": 0.5, "end": 1.2}, {"num_frames": 3}, {"fps": 5}):
        expected = pixels_of(decode_video(path)[0], video_metadata=about, **arguments)
        assert torch.equal(pixels_of(decoder, **arguments), expected)
    assert pixels_of([decoder, path]).shape[0] == 2


def test_decoders_are_one_clip(path):
    decoder = FrameDecoder(path)
    check_decoder(decoder, path)
    decoder.asked.clear()
    pixels_of(decoder)
    assert decoder.asked == [0, 19, 39, 59]  # no frame that is not wanted
    assert kind_of(FrameDecoder(path, fails=True)) == "undecodable"


def test_decoders_of_torchcodec_are_one_clip(decoder, path):
    found = pixels_of(decoder)
    assert found.shape == (1, 4, 3, 32, 32)
    torch.testing.assert_close(found, pixels_of(path), rtol=0, atol=0.1)


def test_the_file_of_a_decoder_is_read_where_datasets_names_it(path):
    decoder = FrameDecoder(path)
    decoder._hf_encoded = {"path": str(path), "bytes": None}
    assert torch.equal(pixels_of(decoder), pixels_of(path)) and not decoder.asked
    decoder._hf_encoded = {"path": "hf://datasets/somebody/clips/clip.mp4", "bytes": None}
    assert pixels_of(decoder).shape == (1, 4, 3, 32, 32) and decoder.asked


def test_rows_of_a_videofolder_as_they_come(decoder, path, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "clip.mp4").write_bytes(path.read_bytes())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "clip.mp4", "caption": "a cat"}\n')
    rows = datasets.load_dataset(
        "videofolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert type(rows[0]["video"]) is type(decoder)
    expected = pixels_of(path)
    assert torch.equal(pixels_of(rows[0]["video"]), expected) and torch.equal(pixels_of(rows["video"]), expected)
