"""GIT (arXiv:2205.14100), as its checkpoints were published: `microsoft/git-base-vatex` and others.

Shapes: T frames, C channels, H and W pixels.
"""

from typing import Any

import torch
from transformers.utils import logging

from swinbert.captioning.families.git_generation import generate_captions
from swinbert.captioning.families.sampler import frame_sampler
from swinbert.processing.clip_reading_swinbert import CaptionerFamily, beginning_of_caption

logger = logging.get_logger(__name__)


class GitFamily(CaptionerFamily):
    """
    As many frames as the model has temporal embeddings for (six), or the middle frame for a model of single images.

    Our video processor reads and samples the clip; GIT's own processor turns the frames into pixel values.
    """

    model_type = "git"
    video_backend = "auto"

    def __init__(self, config: Any, processor: Any):
        self._processor = processor
        self._max_frames: int | None = config.num_image_with_embedding
        self.num_frames = self._max_frames or 1
        # Of a single frame, `round` takes the middle one.
        self.frame_sampling = "round" if self._max_frames is None else "uniform"
        self._sampler = frame_sampler(self.num_frames, self.frame_sampling)

    def check_num_frames(self, num_frames: int) -> None:
        if num_frames > self.num_frames:
            trained_on = (
                "a single image"
                if self._max_frames is None
                else f"{self._max_frames} frames (config.num_image_with_embedding)"
            )
            raise ValueError(
                f"This GIT model was trained on {trained_on} and has no embedding for more, got"
                f" num_frames={num_frames}: ask for at most {self.num_frames}, or leave `num_frames` out."
            )

    def check_fps(self) -> None:
        raise ValueError(
            f"This GIT model takes {self.num_frames} frames of a clip, whatever its length: leave `fps` out."
        )

    def read(self, video: Any, prompt: str | None = None, **sampling: Any) -> dict[str, Any]:
        """
        `pixel_values` (1, T, C, H, W), or (1, C, H, W) for a model of single images; with a prompt, `input_ids` (1, L);
        and `video_metadata`.
        """
        if self._max_frames is None:
            logger.warning_once(
                "This GIT model was trained on single images: each clip is captioned by its middle frame. The models"
                " whose names end in -vatex see six frames."
            )
        sampled = self._sampler(video, return_tensors="pt", return_metadata=True, **sampling)
        clip = sampled.pixel_values_videos[0]
        pixels = git_pixel_values(self._processor, list(clip.round().to(torch.uint8)))
        inputs = {
            "pixel_values": pixels if self._max_frames is None else pixels[None],
            "video_metadata": sampled.video_metadata,
        }
        if prompt is not None:
            inputs["input_ids"] = beginning_of_caption(self._processor.tokenizer, prompt)
        return inputs

    def generate(self, model: Any, inputs: dict[str, torch.Tensor], **arguments: Any) -> Any:
        return generate_captions(model, **inputs, **arguments)


def git_pixel_values(processor: Any, frames: list[Any], **options: Any) -> torch.Tensor:
    """(T, C, H, W) of T frames; `options` of the image processor, such as `do_resize`."""
    pixels = processor(images=frames, return_tensors="pt", **options).pixel_values
    # GIT's two image processors differ: one returns a batch of images, the other a batch of videos.
    return pixels.reshape(len(frames), *pixels.shape[-3:])


__all__ = ["GitFamily", "git_pixel_values"]
