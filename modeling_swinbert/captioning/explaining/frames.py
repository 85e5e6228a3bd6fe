"""The sampled frames of a clip as people look at them: at their own aspect ratio, with the part that the model saw.

Shapes: T frames, H and W pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from swinbert.captioning.families.sampler import frame_sampler
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import is_encoded_source

# Pixels of the long side of a picture.
MAX_PICTURE_SIDE = 480


@dataclass(frozen=True, eq=False)
class Frames:
    """
    Args:
        pictures: (T, H, W, 3) uint8, no side longer than `MAX_PICTURE_SIDE`.
        times: (T,) seconds from the start of the video; `None` if no rate is known.
        size: height and width of the video.
    """

    pictures: np.ndarray
    times: tuple[float, ...] | None
    size: tuple[int, int]


def read_frames(captioner: VideoCaptioningPipeline, video: Any) -> Frames:
    """
    The frames that the captioner samples from a video.

    Raises:
        VideoDecodeError: the video cannot be used.
    """
    family, processor = captioner.family, captioner.processor
    sampler = getattr(processor, "video_processor", None)
    if sampler is None:
        sampler = frame_sampler(family.num_frames, family.frame_sampling)
    sampling = {name: value for name, value in captioner.sampling.items() if name != "prompt"}
    if is_encoded_source(video):
        frames, metadata = sampler.load_frames(video, transform=_shrunk, video_backend=family.video_backend, **sampling)
        return Frames(frames, _times(metadata), (metadata.height, metadata.width))
    # Decoded frames, of which the values may have to be scaled to [0, 255].
    as_they_are = {"do_resize": False, "do_center_crop": False, "do_normalize": False, "rescale_factor": 1.0}
    sampled = sampler(video, return_tensors="pt", return_metadata=True, **as_they_are, **sampling)
    frames = sampled.pixel_values_videos[0].round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Frames(np.stack([_shrunk(frame) for frame in frames]), _times(sampled.video_metadata[0]), frames.shape[1:3])


def _shrunk(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, made smaller if a side is too long."""
    picture = Image.fromarray(frame)
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _times(metadata: Any) -> tuple[float, ...] | None:
    return None if metadata.fps is None and metadata.frame_times is None else tuple(map(float, metadata.timestamps))


def shown_box(captioner: VideoCaptioningPipeline, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """
    The part of a picture that remains after resizing and the central crop.

    Args:
        size: height and width of the picture.

    Returns:
        Left, top, right and bottom as shares of the picture's width and height.
    """
    processor = captioner.processor
    settings = (getattr(processor, "video_processor", None) or processor.image_processor).to_dict()
    height, width = size
    wanted, crop = settings["size"], settings["crop_size"]
    if settings["do_resize"] and "shortest_edge" in wanted:
        scale = wanted["shortest_edge"] / min(height, width)
        height, width = int(height * scale), int(width * scale)
    elif settings["do_resize"]:
        height, width = wanted["height"], wanted["width"]
    if not settings["do_center_crop"]:
        return 0.0, 0.0, 1.0, 1.0
    beside, above = (1 - crop["width"] / width) / 2, (1 - crop["height"] / height) / 2
    return beside, above, 1 - beside, 1 - above


__all__ = ["MAX_PICTURE_SIDE", "Frames", "read_frames", "shown_box"]
