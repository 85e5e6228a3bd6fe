"""Clips with captions as datasets of PyTorch: decoded in the workers, kept in memory or on disk where that pays."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from transformers import BertTokenizerFast

from swinbert.training.sources import clip_source, load_clips

__all__ = ["ClipDataset", "build_tokenizer", "load_clips", "seeded", "shift_clip"]


def build_tokenizer(captions: Iterable[str]) -> BertTokenizerFast:
    """A WordPiece tokenizer whose vocabulary is the words of `captions`, most frequent first, then letters and digits,
    by which any other word is spelt."""
    splitter = BertTokenizerFast(vocab={"[UNK]": 0}).backend_tokenizer
    words: Counter[str] = Counter()
    for caption in captions:
        text = splitter.normalizer.normalize_str(caption)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    vocabulary = dict.fromkeys([*special, *by_frequency, *",.'-", *characters, *(f"##{each}" for each in characters)])
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)})


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Lets what is drawn from `random`, numpy and torch (on the CPU) depend on `numbers` >= 0 alone; their states are
    put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds all devices
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class ClipDataset(torch.utils.data.Dataset):
    """
    Clips as `{"frames": uint8 (T, H, W, C), "captions": [...], "index": int, "seed": (int, int, int)}`.

    `seed` (that of the run, the epoch, the clip's number) alone decides all that is drawn at random for a clip, here
    and in the collator: it is the same in the main process as in any number of workers, and in a run that was resumed.

    Args:
        clips: what `load_clips` returns.
        video_processor: samples and decodes.
        keep_frames: decode each clip once and keep its sampled frames in a temporary file that is mapped into memory
            and shared with the workers. For small frames; they must all have one size.
        max_shift: shift a clip by up to so many pixels down or up and right or left, the same for all its frames; what
            comes in repeats the edge. An augmentation that keeps what a caption says.
        seed: of the run.
    """

    def __init__(
        self,
        clips: datasets.Dataset,
        video_processor: Any,
        keep_frames: bool = False,
        max_shift: int = 0,
        seed: int = 0,
    ):
        self.clips = clips
        self.video_processor = video_processor
        self.max_shift = max_shift
        self.seed = seed
        # Shared, because workers may outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._kept: np.ndarray | None = None
        self._is_kept: np.ndarray | None = None
        if keep_frames:
            shape = (len(clips), *self._decode(0).shape)
            # Deleted by the system once no process maps them.
            with tempfile.TemporaryFile() as frames, tempfile.TemporaryFile() as flags:
                self._kept = np.memmap(frames, dtype=np.uint8, mode="w+", shape=shape)
                self._is_kept = np.memmap(flags, dtype=np.bool_, mode="w+", shape=shape[:1])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = (self.seed, int(self._epoch), index)
        frames = self._frames(index)
        if self.max_shift:
            with seeded(*seed):
                frames = shift_clip(frames, *np.random.randint(-self.max_shift, self.max_shift + 1, 2))
        return {"frames": frames, "captions": self.clips[index]["captions"], "index": index, "seed": seed}

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def _frames(self, index: int) -> np.ndarray:
        if self._kept is None or self._is_kept is None:
            return self._decode(index)
        if not self._is_kept[index]:
            frames = self._decode(index)
            if frames.shape != self._kept.shape[1:]:
                raise ValueError(
                    f"Clip {index} has frames {frames.shape[1:]}, the first clip {self._kept.shape[2:]}: frames of"
                    " several sizes cannot be kept, set `keep_frames` to false."
                )
            self._kept[index] = frames
            self._is_kept[index] = True
        return self._kept[index]

    def _decode(self, index: int) -> np.ndarray:
        clip = self.clips[index]
        return self.video_processor.load_frames(clip_source(clip), start=clip.get("start"), end=clip.get("end"))[0]


def shift_clip(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """Frames (T, H, W, C), shifted; what comes in repeats the edge."""
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return frames[:, rows[:, None], columns]
