"""Frames that wait in memory until their segment is known, to be read like a file of their own."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from swinbert.processing.clip_reading_swinbert import CaptionerFamily
from swinbert.processing.video_decoding_swinbert import wanted_frames
from swinbert.processing.video_sources_swinbert import VideoDecodeError
from swinbert.processing.video_timeline_swinbert import VideoMetadata

# Short side of kept frames, for models whose processors get them as they are.
_KEPT_SHORT_SIDE = 480
# Kept frames of a second for these models, which sample few: reducing a frame takes longer than decoding it.
_KEPT_RATE = 12.5


class KeptFrames:
    """
    Some of the frames of a segment, to be read like a [`VideoSegment`]. In the place of a frame that is not kept stands
    the nearest one.

    Args:
        name: of the film.
        times: (F,) seconds from the beginning of the segment at which each of its frames is shown.
        duration: of the segment, in seconds.
        frames: numbers in the segment, ascending, and pictures of the frames that are kept.
        num_lost: frames that could not be decoded.
    """

    def __init__(
        self,
        name: str,
        times: np.ndarray,
        duration: float,
        frames: Sequence[tuple[int, np.ndarray]],
        num_lost: int = 0,
    ):
        self.name, self.times, self.duration, self.frames, self.num_lost = name, times, duration, frames, num_lost

    def read_frames(
        self,
        *,
        indices: Any = None,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        strict: bool = False,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """Arguments, result and errors as of `decode_video`."""
        if not self.frames:
            raise undecodable(self.name, len(self.times))
        if self.num_lost:
            text = f"{self.num_lost} of {len(self.times)} frames could not be decoded"
            if strict:
                raise VideoDecodeError(self.name, "undecodable", f"{text}.")
            warnings.warn(f"{self.name}: {text}.", stacklevel=2)
        wanted = wanted_frames(self.name, self.times, self._metadata, indices, num_frames, start, end)
        kept = np.array([number for number, _ in self.frames])
        nearest = np.abs(kept - wanted[:, None]).argmin(axis=1)
        unique, inverse = np.unique(nearest, return_inverse=True)
        pictures = [self.frames[position][1] for position in unique]
        pictures = pictures if transform is None else [transform(picture) for picture in pictures]
        metadata = self._metadata(0, len(self.times))
        metadata.height, metadata.width = self.frames[0][1].shape[:2]
        metadata.video_backend = "pyav"
        metadata.frames_indices = kept[nearest].tolist()
        metadata.frame_times = self.times[kept[nearest]].tolist()
        metadata.missing_frames = self.num_lost
        return np.stack(pictures)[inverse], metadata

    def _metadata(self, first: int, last: int) -> VideoMetadata:
        stop = self.times[last] if last < len(self.times) else self.duration
        duration = float(stop - self.times[first])
        fps = (last - first) / duration if duration > 0 else None
        return VideoMetadata(total_num_frames=last - first, fps=fps, duration=duration)


def undecodable(name: str, num_frames: int) -> VideoDecodeError:
    return VideoDecodeError(name, "undecodable", f"expected frames, found {num_frames} of which none can be decoded.")


def frame_reducer(family: CaptionerFamily) -> Callable[[np.ndarray], np.ndarray]:
    """What makes a frame, (H, W, 3), small enough to be kept: the family's own resizing, or a smaller short side."""
    return family.frame_resizer() or _shrink


def frame_step(family: CaptionerFamily, fps: float | None) -> int:
    """Every how many frames one is kept where memory sets no limit."""
    return 1 if family.frame_resizer() is not None or fps is None else max(1, round(fps / _KEPT_RATE))


def _shrink(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = _KEPT_SHORT_SIDE / min(height, width)
    if factor >= 1:
        return picture
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


__all__ = ["KeptFrames", "frame_reducer", "frame_step", "undecodable"]
