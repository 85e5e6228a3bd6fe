"""Batches of clips and captions: tokenisation, masking and labels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swinbert.training.data.augmentation import random_crops
from swinbert.training.data.rows import captions_in
from swinbert.training.data.sources import clip_source


def mask_caption(
    input_ids: Sequence[int],
    mask_token_id: int,
    vocab_size: int,
    mask_prob: float = 0.5,
    max_masked_tokens: int = 45,
    generator: Any = random,
) -> tuple[list[int], list[int]]:
    """
    Masks a caption as the original SwinBERT does; with the same seed of `random`, it masks the same tokens.

    It selects `round(mask_prob * length)` tokens (half to even; at least 1, at most `max_masked_tokens`; `length`
    includes `[CLS]` and `[SEP]`), never `[CLS]`. A selected token is replaced by `[MASK]` in 80% of cases, by a random
    token in 10%, and kept in 10%.

    Args:
        input_ids: `[CLS] caption [SEP]`, without padding.
        generator: `random` or a `random.Random`.

    Returns:
        The masked ids, and the labels: the original ids of selected tokens, -100 elsewhere.
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
            # The original also draws `vocab_size` itself, which is not a token.
            masked[position] = generator.randrange(vocab_size)
    return masked, labels


@dataclass
class CaptionCollator:
    """
    Makes a batch of V clips, with `captions_per_clip` captions of each clip.

    It takes items of [`ClipDataset`], and rows of any other dataset:

        video        a path, URL, `bytes`, a record `{"path", "bytes"}`, or whatever else the processor reads
        caption      a text or a list of texts; the column may also be called captions, sentence, sentences or text
        start, end   seconds, optional

    A row's video is decoded here, so in the data loader's workers if it has some. With transformers' `Trainer`, set
    `remove_unused_columns=False`: it would drop these columns. Augmentations of a row are drawn from Python's `random`,
    which `Trainer` and the data loader seed; those of an item of `ClipDataset` depend on that item only.

    Args:
        processor (`SwinBertProcessor`): preprocesses frames and tokenises captions.
        objective (`str`): `"masked_lm"` masks captions (see `mask_caption`); `"causal_lm"` does not, and every token is
            predicted from the tokens before it.
        max_caption_length (`int`): longer captions are truncated, keeping `[SEP]`.
        mask_prob, max_masked_tokens: see `mask_caption`.
        captions_per_clip (`int`): number of captions that share one encoded clip, sampled without repetition if the
            clip has enough.
        random_crop (`bool`): crop clips at a random place instead of the centre, all frames of a clip alike, as the
            original does in training. (There are no flips, because captions mention left and right.)

    Returns:
        `pixel_values_videos` (V, T, C, H, W); `input_ids`, `attention_mask`, `labels` (V * captions_per_clip, L), the
        captions of a clip in consecutive rows; `index` (V,), the indices of the clips, for items of `ClipDataset`.

    Raises:
        VideoDecodeError: a video cannot be read.
        ValueError: a row has no video or no captions.
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
        examples = [each if "frames" in each else _read_row(each, self._frame_reader) for each in examples]
        captions, generators = [], []
        for example in examples:
            # Depends on the example only: the same in every batch, process and worker, and in a resumed run.
            generator = random.Random(str(example["seed"]))
            captions += _sample_captions(example["captions"], self.captions_per_clip, generator)
            generators += [generator] * self.captions_per_clip
        unmasked = tokenizer(captions, truncation=True, max_length=self.max_caption_length)["input_ids"]
        rows, labels = unmasked, unmasked
        if self.objective == "masked_lm":
            arguments = tokenizer.mask_token_id, len(tokenizer), self.mask_prob, self.max_masked_tokens
            masked = [mask_caption(ids, *arguments, each) for ids, each in zip(unmasked, generators, strict=True)]
            rows, labels = zip(*masked, strict=True)
        batch = {
            # First, because `Trainer` takes the batch size from the first tensor.
            "pixel_values_videos": self._pixels(examples),
            "input_ids": _pad(rows, tokenizer.pad_token_id),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0),
            "labels": _pad(labels, -100),
        }
        if all("index" in example for example in examples):
            batch["index"] = torch.tensor([example["index"] for example in examples])
        return batch

    @property
    def _frame_reader(self) -> Any:
        """The video processor that decodes and samples the clip of a row."""
        return self.processor.video_processor

    def _pixels(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        """(V, T, C, H, W)."""
        video_processor = self.processor.video_processor
        settings = {"do_sample_frames": False, "return_tensors": "pt"}
        if not self.random_crop:
            videos = [example["frames"] for example in examples]
            return video_processor(videos, **settings)["pixel_values_videos"]
        crops = random_crops(examples, video_processor)
        return video_processor(crops, do_resize=False, do_center_crop=False, **settings)["pixel_values_videos"]


def _read_row(row: dict[str, Any], video_processor: Any) -> dict[str, Any]:
    """A row of any dataset as an item of `ClipDataset`, with a random seed and without an index."""
    if row.get("video") is None:
        raise ValueError(
            f"Expected rows with `video` and `caption`, found the columns {list(row)}. With transformers' Trainer, set"
            " remove_unused_columns=False: it drops columns that are not arguments of the model."
        )
    captions = captions_in(row)[1]
    if not captions:
        raise ValueError(f"Expected a row with `caption`, a text or a list of texts, found the columns {list(row)}.")
    untouched = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False)
    frames = video_processor(
        clip_source(dict(row)), start=row.get("start"), end=row.get("end"), return_tensors="pt", **untouched
    )["pixel_values_videos"][0]
    return {"frames": frames.permute(0, 2, 3, 1).numpy(), "captions": captions, "seed": (random.getrandbits(32),)}


def _sample_captions(captions: Sequence[str], count: int, generator: Any) -> list[str]:
    """`count` captions; none is repeated before all have been sampled."""
    sampled: list[str] = []
    while len(sampled) < count:
        sampled += generator.sample(captions, min(count - len(sampled), len(captions)))
    return sampled


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """int64 (number of rows, length of the longest row)."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
