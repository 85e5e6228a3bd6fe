"""Clips with captions as datasets of PyTorch: decoded in the workers, kept in memory or on disk where that pays."""

import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from transformers import BertTokenizerFast

from swinbert.processing import VideoDecodeError
from swinbert.training.data.frame_cache import FrameCache, sampled_frames
from swinbert.training.data.sources import clip_name, clip_source, is_stream, load_clips, missing_videos
from swinbert.utils.text import first_names

__all__ = [
    "ClipDataset",
    "ClipStream",
    "build_tokenizer",
    "captions_of",
    "load_clips",
    "refuse_missing",
    "seeded",
    "shift_clip",
]

# More are no bad clips but a disk or a server that is gone.
MAX_SKIPPED_IN_A_ROW = 20


def refuse_missing(clips: Any) -> None:
    """Looks, without opening any, whether the files of all clips are there; for the start of a long run.

    Raises:
        FileNotFoundError: with the first of them.
    """
    if not is_stream(clips) and (missing := missing_videos(clips)):
        raise FileNotFoundError(
            f"{len(missing)} videos are missing or empty: {first_names(missing)}. Complete the folder, take their lines"
            " out of the metadata, or skip unreadable clips (--skip_unreadable). `swinbert doctor` looks into the rest."
        )


def captions_of(clips: Any) -> Iterator[str]:
    """All captions.

    Raises:
        ValueError: of a stream, which one does not read through before training begins.
    """
    if is_stream(clips):
        raise ValueError(
            "The captions of a streamed dataset are not known beforehand: name a --tokenizer or a --model."
        )
    for captions in clips["captions"]:
        yield from captions


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


class _Clips:
    """What datasets with and without random access have in common; the arguments are those of [`ClipDataset`]."""

    def __init__(
        self,
        clips: Any,
        video_processor: Any,
        max_shift: int = 0,
        seed: int = 0,
        frame_cache: FrameCache | None = None,
        skip_unreadable: bool = False,
    ):
        self.clips = clips
        self.video_processor = video_processor
        self.max_shift = max_shift
        self.seed = seed
        self.frame_cache = frame_cache
        self.skip_unreadable = skip_unreadable
        self._skipped: set[str] = set()
        # Shared, because workers may outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def _example(self, clip: dict[str, Any], index: int, seed: tuple[int, int, int]) -> dict[str, Any]:
        frames = self._frames(clip, index)
        if self.max_shift:
            down, right = np.random.default_rng(seed).integers(-self.max_shift, self.max_shift, 2, endpoint=True)
            frames = shift_clip(frames, down, right)
        return {"frames": frames, "captions": clip["captions"], "index": index, "seed": seed}

    def _frames(self, clip: dict[str, Any], index: int) -> np.ndarray:
        if self.frame_cache is not None:
            return self.frame_cache.frames(clip)
        return self.video_processor.load_frames(clip_source(clip), start=clip.get("start"), end=clip.get("end"))[0]

    def _skip(self, clip: dict[str, Any], error: VideoDecodeError) -> None:
        """Says that a clip is passed over, once in this process, or raises why it may not be."""
        if not self.skip_unreadable:
            raise error
        name = clip_name(clip)
        if name not in self._skipped:
            self._skipped.add(name)
            text = f"{name} is unreadable ({error.kind}: {error.message}) and another clip takes its place: number"
            warnings.warn(f"{text} {len(self._skipped)} in this process. `swinbert doctor` lists all.", stacklevel=4)


class ClipDataset(_Clips, torch.utils.data.Dataset):
    """
    Clips as `{"frames": uint8 (T, H, W, C), "captions": [...], "index": int, "seed": (int, int, int)}`.

    `seed` (that of the run, the epoch, the clip's number) alone decides all that is drawn at random for a clip, here
    and in the collator: it is the same in the main process as in any number of workers, and in a run that was resumed.

    Args:
        clips: what `load_clips` returns.
        video_processor: samples and decodes.
        keep_frames: decode each clip once and keep its sampled frames, no larger than the processor makes them, in a
            temporary file that is mapped into memory and shared with the workers. For small frames of one size.
        max_shift: shift a clip by up to so many pixels (of its frames as they are read or kept) down or up and right or
            left, the same for all its frames; what comes in repeats the edge. An augmentation that keeps what a caption
            says.
        seed: of the run.
        frame_cache: keeps sampled frames on disk, from run to run.
        skip_unreadable: a clip that cannot be read is replaced by the next that can, with a warning that names and
            counts; `index` is then the other's. Without it, it is an error.

    Raises:
        VideoDecodeError: when a clip is wanted that cannot be read.
    """

    def __init__(
        self,
        clips: datasets.Dataset,
        video_processor: Any,
        keep_frames: bool = False,
        max_shift: int = 0,
        seed: int = 0,
        frame_cache: FrameCache | None = None,
        skip_unreadable: bool = False,
    ):
        super().__init__(clips, video_processor, max_shift, seed, frame_cache, skip_unreadable)
        self._keep_frames = keep_frames
        self._kept: np.ndarray | None = None
        if keep_frames:
            if frame_cache is not None:
                raise ValueError("Frames are kept in memory (`keep_frames`) or on disk (`frame_cache`): choose one.")
            shape = (len(clips), *self[0]["frames"].shape)
            # Deleted by the system once no process maps them.
            with tempfile.TemporaryFile() as frames, tempfile.TemporaryFile() as flags:
                self._kept = np.memmap(frames, dtype=np.uint8, mode="w+", shape=shape)
                self._is_kept: np.ndarray = np.memmap(flags, dtype=np.bool_, mode="w+", shape=shape[:1])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = (self.seed, int(self._epoch), index)
        for step in range(min(MAX_SKIPPED_IN_A_ROW, len(self))):
            number = (index + step) % len(self)
            clip = self.clips[number]
            try:
                return self._example(clip, number, seed)
            except VideoDecodeError as error:
                self._skip(clip, error)
                last = error
        raise ValueError(f"{step + 1} clips in a row are unreadable: {last}") from last

    def _frames(self, clip: dict[str, Any], index: int) -> np.ndarray:
        if not self._keep_frames:
            return super()._frames(clip, index)
        if self._kept is not None and self._is_kept[index]:
            return self._kept[index]
        frames = sampled_frames(self.video_processor, clip)
        if self._kept is None:  # it is not known yet how large they are
            return frames
        if frames.shape != self._kept.shape[1:]:
            raise ValueError(
                f"Clip {index} has frames {frames.shape[1:]}, the first clip {self._kept.shape[2:]}: frames of"
                " several sizes cannot be kept, set `keep_frames` to false."
            )
        self._kept[index] = frames
        self._is_kept[index] = True
        return frames


class ClipStream(_Clips, torch.utils.data.IterableDataset):
    """
    The clips of a stream (`load_clips(..., streaming=True)`), decoded as they come; see [`ClipDataset`].

    It has no end: after the last clip it begins again, in another order, so that every batch is full and a run that is
    resumed comes to the same clips by passing over as many batches as it had. Clips are shuffled within a buffer of
    `shuffle_buffer`, not yet decoded, and by the files that they come from; those are shared among the workers, so that
    there is work for no more workers than there are files. An unreadable clip is left out where `skip_unreadable` says
    so.
    """

    def __init__(
        self,
        clips: datasets.IterableDataset,
        video_processor: Any,
        max_shift: int = 0,
        seed: int = 0,
        frame_cache: FrameCache | None = None,
        skip_unreadable: bool = False,
        shuffle_buffer: int = 100,
    ):
        super().__init__(clips, video_processor, max_shift, seed, frame_cache, skip_unreadable)
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, found = 0, True
        while found:  # nothing, where there are more workers than files
            found = False
            for example in self._one_pass(epoch):
                found = True
                yield example
            epoch += 1

    def _one_pass(self, epoch: int) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        num_skipped = 0
        # Not `set_epoch`: the workers share its number, but not how far they are.
        shuffle_seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        for number, clip in enumerate(self.clips.shuffle(seed=shuffle_seed, buffer_size=self.shuffle_buffer)):
            index = first + number * step
            try:
                yield self._example(clip, index, (self.seed, epoch, index))
                num_skipped = 0
            except VideoDecodeError as error:
                self._skip(clip, error)
                num_skipped += 1
                if num_skipped == MAX_SKIPPED_IN_A_ROW:
                    raise ValueError(f"{num_skipped} clips in a row are unreadable: {error}") from error


def shift_clip(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """Frames (T, H, W, C), shifted; what comes in repeats the edge."""
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return frames.take(rows, axis=1).take(columns, axis=2)
