"""From decoded frames to the pictures that are shown: orientation, shape, interlacing, colours, transparency."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import encode, numbered_frame, patch, read_numbers

from swinbert.processing import VideoDecodeError, decode_video

BACKENDS = ["pyav", "decord", "torchcodec"]


def decode_or_skip(source, backend, **arguments):
    try:
        return decode_video(source, backend=backend, **arguments)
    except ImportError as error:
        pytest.skip(str(error))
    except VideoDecodeError as error:
        if backend == "pyav" or error.kind != "backend":
            raise
        pytest.skip(f"{backend} cannot read it: {error.message[:100]}")


# --- Orientation ------------------------------------------------------------------------------------------------------


def set_display_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Pixel (p, q) is shown at (ap + cq, bp + dq)."""
    values = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]
    return patch(path, b"tkhd", 40, b"".join(value.to_bytes(4, "big", signed=True) for value in values))


# The filters by which FFmpeg's command shows each matrix (`configure_input_video_filter` in ffmpeg_filter.c).
FFMPEG_SHOWS = {
    (1, 0, 0, 1): lambda frame: frame,
    (-1, 0, 0, 1): np.fliplr,  # hflip
    (1, 0, 0, -1): np.flipud,  # vflip
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),  # hflip, vflip
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),  # transpose=clock
    (0, -1, 1, 0): lambda frame: np.rot90(frame, 1),  # transpose=cclock
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),  # transpose=cclock_flip
    (0, -1, -1, 0): lambda frame: np.flipud(np.rot90(frame, -1)),  # transpose=clock_flip
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", FFMPEG_SHOWS)
def test_every_quarter_turn_and_flip(tmp_path, matrix, backend):
    stored = decode_video(encode(tmp_path / "stored.mp4", range(3)))[0]
    path = set_display_matrix(encode(tmp_path / "shown.mp4", range(3)), *matrix)
    frames, metadata = decode_or_skip(path, backend)
    expected = np.stack([FFMPEG_SHOWS[matrix](frame) for frame in stored])
    assert frames.shape == expected.shape and np.abs(frames.astype(int) - expected).mean() < 2
    assert (metadata.height, metadata.width) == frames.shape[1:3]


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (0.8, 0.6, 0.6, 0.8), (0, 0, 0, 0)])
def test_any_other_matrix_is_warned_of(tmp_path, matrix):
    stored = decode_video(encode(tmp_path / "stored.mp4", range(3)))[0]
    path = set_display_matrix(encode(tmp_path / "shown.mp4", range(3)), *matrix)
    with pytest.warns(UserWarning, match="shown.mp4: its display matrix") as caught:
        frames, _ = decode_video(path)
    assert len(caught) == 1
    assert np.array_equal(frames, stored)


# --- Shape ------------------------------------------------------------------------------------------------------------


def encode_anamorphic(path: Path, aspect: Fraction, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name,codec", [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.mpg", "mpeg2video"), ("clip.ts", "libx264")]
)
def test_pictures_have_the_shape_in_which_they_are_shown(tmp_path, name, codec, backend):
    aspect = Fraction(2) if codec == "libx264" else Fraction(16, 9) * 32 / 96  # MPEG-2 stores the picture's: 16:9
    path = encode_anamorphic(tmp_path / name, aspect, codec)
    frames, metadata = decode_or_skip(path, backend)
    assert frames.shape == (5, 32, round(96 * aspect), 3)
    assert (metadata.height, metadata.width) == frames.shape[1:3]
    if codec == "libx264":
        assert read_numbers(frames) == list(range(5))


def test_an_aspect_that_rounding_left_changes_nothing(tmp_path):
    assert decode_video(encode_anamorphic(tmp_path / "clip.mp4", Fraction(404, 405)))[0].shape[1:3] == (32, 96)


def test_an_absurd_aspect_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"clip.mp4: .*16"):
        assert decode_video(encode_anamorphic(tmp_path / "clip.mp4", Fraction(16)))[0].shape[1:3] == (32, 96)


def test_an_anamorphic_picture_that_is_turned(tmp_path):
    path = set_display_matrix(encode_anamorphic(tmp_path / "clip.mp4", Fraction(2)), 0, 1, -1, 0)
    assert decode_video(path)[0].shape == (5, 192, 32, 3)
