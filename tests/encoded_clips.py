"""Short video files in which every frame shows its own number, so that a test can read which frame it got."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from swinbert.processing import VideoDecodeError, decode_video

BLOCK, COLUMNS, ROWS = 16, 6, 2  # 12 bits
# 12 frames from key frame to key frame: with three B-frames in a row, or with none.
GROUPS = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}
GROUPS_WITHOUT_B_FRAMES = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0"}


def numbered_frame(number: int, scale: int = 1) -> np.ndarray:
    """(32, 96, 3), sides times `scale`: the number's bits as dark and bright squares, and a line that moves."""
    bits = (number >> np.arange(COLUMNS * ROWS)) & 1
    squares = bits.reshape(ROWS, COLUMNS).repeat(BLOCK, 0).repeat(BLOCK, 1)
    frame = np.stack([40 + 175 * squares] * 3, axis=-1)
    frame[:, (number * 3) % (BLOCK * COLUMNS), 1] = 128
    return frame.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)


def read_number(frame: np.ndarray) -> int:
    height, width = frame.shape[0] // ROWS, frame.shape[1] // COLUMNS
    squares = frame.reshape(ROWS, height, COLUMNS, width, 3).mean((1, 3, 4)) > 128
    return int((squares.reshape(-1) << np.arange(COLUMNS * ROWS)).sum())


def read_numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


def encode(
    path: Path,
    numbers: list[int] | range,
    rate: Fraction | int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    container: str | None = None,
    scales: tuple[int, ...] = (1,),
    container_options: dict[str, str] | None = None,
    pixels: str | None = None,
) -> Path:
    """Writes the frames `numbers` to `path`; `scales` has the scale of each of its video streams."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        tracks = [output.add_stream(codec, rate=rate, options=options or {}) for _ in scales]
        for stream, factor in zip(tracks, scales, strict=True):
            stream.width, stream.height = BLOCK * COLUMNS * factor, BLOCK * ROWS * factor
            stream.pix_fmt = pixels or ("rgb8" if codec == "gif" else "yuv420p")
            if time_base:
                stream.codec_context.time_base = time_base
        for stream, factor in zip(tracks, scales, strict=True):
            for position, number in enumerate(numbers):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number, factor), format="rgb24")
                if pts:
                    frame.pts, frame.time_base = pts[position], time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return path


def patch(path: Path, box: bytes, offset: int, content: bytes) -> Path:
    """Overwrites bytes of an mp4 file, `offset` bytes behind the name of its first `box`."""
    data = bytearray(path.read_bytes())
    start = data.index(box) + len(box) + offset
    data[start : start + len(content)] = content
    path.write_bytes(data)
    return path


def can_encode(codec: str) -> bool:
    return codec in av.codecs_available and av.Codec(codec, "w") is not None


class Unseekable(io.RawIOBase):
    """A stream that cannot seek, like a pipe."""

    def __init__(self, content: bytes):
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._content.readinto(buffer)


def error_kind(source, **arguments) -> str:
    """`kind` of the error that `decode_video` raises, which must name the source."""
    with pytest.raises(VideoDecodeError) as raised:
        decode_video(source, **arguments)
    assert raised.value.source in str(raised.value)
    return raised.value.kind
