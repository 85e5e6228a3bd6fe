"""From clips with captions to a batch: what is masked, what is predicted."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from swinbert.training.data.clip_datasets import seeded


def mask_caption(
    input_ids: Sequence[int],
    mask_token_id: int,
    vocab_size: int,
    mask_prob: float = 0.5,
    max_masked_tokens: int = 45,
    generator: Any = random,
) -> tuple[list[int], list[int]]:
    """
    Masks a caption as the original SwinBERT does; with `random` seeded alike, it masks the very same tokens.

    `round(mask_prob * length)` tokens are chosen (half to even; at least 1, at most `max_masked_tokens`; `length`
    counts `[CLS]` and `[SEP]`), never `[CLS]`. A chosen token becomes `[MASK]` in 80%, a random token in 10%, and
    stays in 10%.

    Args:
        input_ids: `[CLS] caption [SEP]`, without padding.
        generator: `random` or a `random.Random`.

    Returns:
        The masked ids, and the labels: the original ids where a token was chosen, -100 elsewhere.
    """
    masked, labels = list(input_ids), [-100] * len(input_ids)
    candidates = list(range(1, len(input_ids)))
    generator.shuffle(candidates)
    count = min(max(round(mask_prob * len(input_ids)), 1), max_masked_tokens)
    for position in sorted(candidates[:count]):
        labels[position] = masked[position]
        if generator.random() <= 0.8:
            masked[position] = mask_token_id
        elif generator.random() <= 0.5:
            # The original draws up to and including `vocab_size`, which is no token.
            masked[position] = generator.randrange(vocab_size)
    return masked, labels


@dataclass
class CaptionCollator:
    """
    Makes a batch of what [`ClipDataset`] yields: V clips and `captions_per_clip` captions of each.

    Args:
        processor (`SwinBertProcessor`): preprocesses frames and tokenises captions.
        objective (`str`): `"masked_lm"` masks captions (see `mask_caption`); `"causal_lm"` leaves them whole, and every
            token is predicted from those before it.
        max_caption_length (`int`): longer captions are cut, `[SEP]` kept.
        captions_per_clip (`int`): how many captions share one encoded clip, drawn without repetition if there are
            enough.
        random_crop (`bool`): cut clips at a random place instead of the centre, the same for all frames of a clip, as
            the original does in training. (It flips none: captions say left and right.)

    Returns:
        `pixel_values_videos` (V, T, C, H, W); `input_ids`, `attention_mask`, `labels` (V * captions_per_clip, L), the
        captions of a clip one after the other; `index` (V,), the numbers of the clips.
    """

    processor: Any
    objective: str = "masked_lm"
    max_caption_length: int = 50
    mask_prob: float = 0.5
    max_masked_tokens: int = 45
    captions_per_clip: int = 1
    random_crop: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        captions, generators = [], []
        for example in examples:
            # Of the example alone: the same in any batch, process and worker, and when a run is resumed.
            generator = random.Random(str(example["seed"]))
            captions += _draw(example["captions"], self.captions_per_clip, generator)
            generators += [generator] * self.captions_per_clip
        whole = tokenizer(captions, truncation=True, max_length=self.max_caption_length)["input_ids"]
        rows, labels = whole, whole
        if self.objective == "masked_lm":
            arguments = tokenizer.mask_token_id, len(tokenizer), self.mask_prob, self.max_masked_tokens
            masked = [mask_caption(ids, *arguments, each) for ids, each in zip(whole, generators, strict=True)]
            rows, labels = zip(*masked, strict=True)
        return {
            # First, because `Trainer` counts clips by the first tensor.
            "pixel_values_videos": self._pixels(examples),
            "input_ids": _pad(rows, tokenizer.pad_token_id),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0),
            "labels": _pad(labels, -100),
            "index": torch.tensor([example["index"] for example in examples]),
        }

    def _pixels(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        """(V, T, C, H, W)."""
        video_processor = self.processor.video_processor
        given = {"do_sample_frames": False, "return_tensors": "pt"}
        if not self.random_crop:
            videos = [example["frames"] for example in examples]
            return video_processor(videos, **given)["pixel_values_videos"]
        crops = random_crops(examples, video_processor)
        return video_processor(crops, do_resize=False, do_center_crop=False, **given)["pixel_values_videos"]


def random_crops(examples: Sequence[dict[str, Any]], video_processor: Any) -> list[torch.Tensor]:
    """Clips, uint8 (T, C, H, W), resized as `video_processor` does and cut, all frames of a clip at one place."""
    crop_size = video_processor.crop_size
    crop = v2.RandomCrop((crop_size["height"], crop_size["width"]), pad_if_needed=True)
    crops = []
    for example in examples:
        frames = torch.from_numpy(np.ascontiguousarray(example["frames"])).permute(0, 3, 1, 2)
        frames = video_processor.resize(frames, video_processor.size, resample=video_processor.resample)
        with seeded(*example["seed"]):
            crops.append(crop(frames))
    return crops


def _draw(captions: Sequence[str], count: int, generator: Any) -> list[str]:
    """`count` captions, none twice before all have been drawn."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += generator.sample(captions, min(count - len(drawn), len(captions)))
    return drawn


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """(rows, longest row) int64."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
