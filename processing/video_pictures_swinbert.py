"""
From a decoded frame to the picture that is shown: deinterlacing, colours, transparency, shape and orientation.

All of it is done on PyAV's frames. In docstrings H and W are the height and width of a picture.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from .video_colors_swinbert import HDR_TRANSFERS, tone_map, yuv_to_rgb

try:
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]

_PYAV_VERSION = int(av.__version__.split(".")[0]) if av is not None else 0
# PyAV 17 and later would start as many threads as there are cores for each frame, to convert it to RGB.
_REFORMAT_ARGUMENTS: dict[str, Any] = {"threads": 1} if _PYAV_VERSION >= 17 else {}
# A pixel's width over its height: beyond this (or its inverse) the header is wrong. The widest in use is 2.91, of
# half-width 16:9 pictures.
_MAX_PIXEL_ASPECT = 4
# Rounding of a frame's size to even numbers leaves aspects such as 404:405, which nobody sees.
_SQUARE_TOLERANCE = 0.01
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
_BACKGROUND = 255  # white
_BLANK = 0.9  # share of grey pixels from which on nothing of a damaged frame is to be seen

# --- Orientation ------------------------------------------------------------------------------------------------------


def read_orientation(matrix: Any) -> tuple[bool, bool, bool] | None:
    """
    What a display matrix (ISO/IEC 14496-12, 6.2.2) does to a picture: whether to transpose it, then to reverse its
    rows, then its columns. `None` if it is no composition of quarter turns and flips.

    Args:
        matrix: buffer of 9 int32, ((a, b, u), (c, d, v), (x, y, w)): pixel (p, q) is shown at (ap + cq + x,
            bp + dq + y).
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    columns = np.array([[a, c], [b, d]])
    lengths = np.hypot(*columns)  # pictures may be scaled too, which says nothing about their orientation
    if not lengths.all():
        return None
    unit = columns / lengths
    signs = np.rint(unit)
    if np.abs(unit - signs).max() > 0.02 or abs(round(np.linalg.det(signs))) != 1:  # a degree, as in FFmpeg
        return None
    transposed = not signs[0, 0]
    return transposed, signs[1].sum() < 0, signs[0].sum() < 0


def _orient(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """(H, W, 3) or, transposed, (W, H, 3), contiguous."""
    transposed, rows, columns = orientation
    steps = slice(None, None, -1 if rows else 1), slice(None, None, -1 if columns else 1)
    return _contiguous((picture.swapaxes(0, 1) if transposed else picture)[steps])


def _contiguous(picture: np.ndarray) -> np.ndarray:
    """A copy of (H, W, 3)."""
    copy = np.empty(picture.shape, np.uint8)
    for channel in range(3):  # one by one is three times as fast
        copy[..., channel] = picture[..., channel]
    return copy


# --- Interlaced frames ------------------------------------------------------------------------------------------------


def _start_bwdif(frame: Any) -> Any:
    """A filter graph that gives one frame for each, and leaves alone those that are not marked as interlaced."""
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=Fraction(frame.time_base or Fraction(1, 1000)),
        ),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ]
    for node, following in itertools.pairwise(nodes):
        node.link_to(following)
    graph.configure()
    return graph


def deinterlace_frames(frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """
    Numbers and frames, deinterlaced by FFmpeg's `bwdif`, which also looks at the frames before and after: in a run of
    consecutive numbers, all but the first and the last are as if the whole video were filtered.
    """
    graph: Any = None
    properties: tuple | None = None
    numbers: list[int] = []
    latest = -1

    def pull() -> Iterator[tuple[int, Any]]:
        with contextlib.suppress(BlockingIOError, EOFError):
            while True:
                frame = graph.pull()
                yield numbers.pop(0), frame

    for number, frame in frames:
        found = frame.width, frame.height, frame.format.name
        if graph is None or number != latest + 1 or found != properties:
            if graph is not None:
                graph.push(None)
                yield from pull()
            graph, properties, numbers = _start_bwdif(frame), found, []
        numbers.append(number)
        latest = number
        graph.push(frame)
        yield from pull()
    if graph is not None:
        graph.push(None)
        yield from pull()


# --- Pictures ---------------------------------------------------------------------------------------------------------


class PictureConverter:
    """
    Turns the frames of one stream into the pictures that are shown.

    Args:
        name (`str`): the clip, for warnings.
        stream: PyAV's.
        max_pixels (`int`): pictures of more pixels keep the shape in which they are stored.
        tone_map (`bool`): whether pictures of high dynamic range become those of an ordinary screen.

    Attributes:
        size (`tuple[int, int]`): width and height of the pictures before they are turned; 0 where the header says
            nothing.
    """

    def __init__(self, name: str, stream: Any, max_pixels: int, tone_map: bool = True):
        self._name = name
        self._reformatter, self._previews = VideoReformatter(), VideoReformatter()
        self._orientation: tuple[bool, bool, bool] | None = None
        context = stream.codec_context
        self._tone_map = tone_map
        self._transfer, self._primaries = int(context.color_trc), int(context.color_primaries)
        if self._transfer in HDR_TRANSFERS and not tone_map:
            self._warn("its pictures have a high dynamic range; without tone mapping, their colours look washed out.")
        width, height = context.width, context.height
        self._pixel_aspect = self._read_pixel_aspect(stream.sample_aspect_ratio)
        if self._shown_width(width) * height > max_pixels:
            self._pixel_aspect = Fraction(1)
        self.size = self._shown_width(width), height

    def _read_pixel_aspect(self, aspect: Fraction | None) -> Fraction:
        if not aspect or abs(aspect - 1) < _SQUARE_TOLERANCE:
            return Fraction(1)
        if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
            self._warn(f"a pixel's width is {aspect} of its height according to the header; taken as 1.")
            return Fraction(1)
        return Fraction(aspect)

    def _shown_width(self, width: int) -> int:
        return round(width * self._pixel_aspect)

    def _warn(self, problem: str) -> None:
        warnings.warn(f"{self._name}: {problem}", stacklevel=2)

    def needs_pyav(self, frame: Any) -> bool:
        """Whether other decoders do not show this frame as this class does, but for the shape, see `reshape`."""
        transposed, rows, columns = self._read_orientation(frame)
        is_flip = transposed == (rows == columns)  # others know turns only
        return is_flip or self._transfer in HDR_TRANSFERS or self._is_transparent(frame)

    def _is_transparent(self, frame: Any) -> bool:
        if not _can_be_transparent(frame.format.name):
            return False
        return bool(self._reformat(frame, "rgba", frame.width, frame.height).to_ndarray()[..., 3].min() < 255)

    def reshape(self, picture: np.ndarray) -> np.ndarray:
        """A picture that another decoder gave, upright and as wide as it is stored, in the shape of `convert`'s."""
        width, height = self.size[::-1] if self._orientation and self._orientation[0] else self.size
        if self._pixel_aspect == 1 or not width or picture.shape[:2] == (height, width):
            return picture
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))

    def _read_orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """Read once: of the first frame."""
        if self._orientation is None:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            orientation = read_orientation(matrix) if matrix is not None else (False, False, False)
            if orientation is None:
                self._warn("its display matrix is no composition of quarter turns and flips: pictures are not turned.")
            self._orientation = orientation or (False, False, False)
        return self._orientation

    def convert(self, frame: Any) -> np.ndarray:
        """
        (H, W, 3) RGB, upright, in the shape in which it is shown. Where the resolution changes within a stream, the
        header's holds for all pictures.
        """
        orientation = self._read_orientation(frame)
        picture = self._to_rgb(frame, self.size[0] or self._shown_width(frame.width), self.size[1] or frame.height)
        return _orient(picture, orientation) if any(orientation) else picture

    def preview(self, frame: Any, width: int) -> np.ndarray:
        """(H, W, 3) BGR of at most this width, as it is stored, without tone mapping."""
        width = min(width, frame.width)
        height = max(1, round(frame.height * width / frame.width))
        reduced = self._previews.reformat(frame, format="bgr24", width=width, height=height, **_REFORMAT_ARGUMENTS)
        return reduced.to_ndarray()

    def _to_rgb(self, frame: Any, width: int, height: int) -> np.ndarray:
        if self._transfer in HDR_TRANSFERS and self._tone_map:
            return tone_map(self._signals(frame, width, height), self._transfer, self._primaries)
        if _can_be_transparent(frame.format.name):
            return _blend(self._reformat(frame, "rgba", width, height).to_ndarray())
        return self._reformat(frame, "rgb24", width, height).to_ndarray()

    def _reformat(self, frame: Any, pixel_format: str, width: int, height: int) -> Any:
        return self._reformatter.reformat(frame, format=pixel_format, width=width, height=height, **_REFORMAT_ARGUMENTS)

    def _signals(self, frame: Any, width: int, height: int) -> np.ndarray:
        """(H, W, 3) RGB in [0, 1] of more than 8 bits, by the matrix of the frame's own colour space."""
        if frame.format.is_rgb:
            rgb = self._reformat(frame, "rgb48le", width, height)
            return _read_plane(rgb.planes[0], width * 3).reshape(height, width, 3) / np.float32(65535)
        bits = 12 if frame.format.components[0].bits > 10 else 10
        yuv = self._reformat(frame, f"yuv444p{bits}le", width, height)
        planes = np.stack([_read_plane(plane, width) for plane in yuv.planes])
        return yuv_to_rgb(planes, bits, int(frame.colorspace), int(frame.color_range) == _FULL_RANGE)


@cache
def _can_be_transparent(pixel_format: str) -> bool:
    found = av.VideoFormat(pixel_format)
    return found.has_palette or any(component.is_alpha for component in found.components)


def _blend(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, 4), over the background."""
    if rgba.view("<u4").min() >= 255 << 24:  # a pixel's alpha is the highest byte of its four: all of them are opaque
        return _contiguous(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + (255 - alpha) * _BACKGROUND + 127) // 255).astype(np.uint8)


class BlankFrames:
    """
    Finds the frames of which FFmpeg hardly decoded anything, so that they are of middle grey. It marks some of them as
    corrupt, and frames of which it repaired a few blocks too; it does not mark those that are predicted from them, or
    from a key frame that is missing. So before the first key frame, and from damage to the next good one, all grey
    frames count as blank.

    Args:
        only_marked (`bool`): whether only frames that FFmpeg marks count as blank.

    Attributes:
        is_damaged (`bool`): whether there was no good key frame yet, or damage since the last one.
    """

    def __init__(self, only_marked: bool = False):
        self.is_damaged, self._only_marked = True, only_marked

    def is_blank(self, frame: Any) -> bool:
        """Of each decoded frame, in their order."""
        self.is_damaged = bool(frame.is_corrupt or (self.is_damaged and not frame.key_frame))
        return bool(frame.is_corrupt or (self.is_damaged and not self._only_marked)) and _is_grey(frame)


def _is_grey(frame: Any) -> bool:
    if frame.format.is_rgb or frame.format.has_palette:
        return False
    plane, bits = frame.planes[0], frame.format.components[0].bits
    if bits > 8:
        luma = _read_plane(plane, plane.width) >> (bits - 8)
    else:
        luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    return bool(((luma >= 126) & (luma <= 130)).mean() > _BLANK)


def _read_plane(plane: Any, width: int) -> np.ndarray:
    """(H, `width`) uint16, without the padding at the end of each line."""
    return np.frombuffer(plane, "<u2").reshape(plane.height, plane.line_size // 2)[:, :width]


# --- Size -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameResizer:
    """
    Resizes frames, (H, W, 3) uint8, with Pillow; without a size, it leaves them as they are.

    Args:
        shortest_edge (`int`, *optional*): of the result; the other side keeps the aspect, truncated as in the original.
        height, width (`int`, *optional*): of the result, where there is no `shortest_edge`.
        resample (`int`): Pillow's number of the filter.
    """

    shortest_edge: int | None = None
    height: int | None = None
    width: int | None = None
    resample: int = Image.Resampling.BILINEAR

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a frame of these."""
        if self.shortest_edge is not None:
            short = min(height, width)
            return int(self.shortest_edge * height / short), int(self.shortest_edge * width / short)
        return self.height or height, self.width or width

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        size = self.size(height, width)
        return frame if size == (height, width) else resize_picture(frame, size, self.resample)


def resize_picture(picture: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 to `size`, which is height and width."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), resample))


__all__ = [
    "BlankFrames",
    "FrameResizer",
    "PictureConverter",
    "deinterlace_frames",
    "read_orientation",
    "resize_picture",
]
