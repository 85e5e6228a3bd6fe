"""Random augmentations of clips, reproducible by a seed."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """
    Seeds `random`, numpy and torch (on the CPU) within the context, and restores their states afterwards.

    Args:
        numbers: the seed, integers >= 0.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed all devices
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def shift_clip(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """Shifts frames (T, H, W, C) by so many pixels; the edge is repeated."""
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return frames.take(rows, axis=1).take(columns, axis=2)


def random_crops(examples: Sequence[dict[str, Any]], video_processor: Any) -> list[torch.Tensor]:
    """
    Resizes clips as `video_processor` does, and crops them at random, all frames of a clip at the same place.

    Args:
        examples: items of [`ClipDataset`].

    Returns:
        For each clip uint8 (T, C, H, W).
    """
    crop_size = video_processor.crop_size
    crop = v2.RandomCrop((crop_size["height"], crop_size["width"]), pad_if_needed=True)
    crops = []
    for example in examples:
        frames = torch.from_numpy(np.ascontiguousarray(example["frames"])).permute(0, 3, 1, 2)
        frames = video_processor.resize(frames, video_processor.size, resample=video_processor.resample)
        with seeded(*example["seed"]):
            crops.append(crop(frames))
    return crops
