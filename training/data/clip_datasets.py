"""PyTorch datasets of clips with captions: decoded in the workers, and optionally cached in memory or on disk."""

import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch

from swinbert.processing import VideoDecodeError
from swinbert.training.data.augmentation import shift_clip
from swinbert.training.data.frame_cache import FrameCache, sampled_frames
from swinbert.training.data.sources import clip_name, clip_source, is_stream, load_clips, missing_videos
from swinbert.utils.text import first_names

__all__ = [
    "ClipDataset",
    "ClipStream",
    "UnreadableClipsError",
    "captions_of",
    "load_clips",
    "refuse_missing",
]

# More unreadable clips in a row mean that a disk or a server is unavailable.
MAX_SKIPPED_IN_A_ROW = 20


class UnreadableClipsError(ValueError):
    """Many clips in a row are unreadable, although unreadable clips are to be skipped."""


def refuse_missing(clips: Any) -> None:
    """
    Checks before a long run, without opening them, that the files of all clips exist. Streams are not checked.

    Raises:
        FileNotFoundError: files are missing or empty; the message names the first of them.
    """
    if not is_stream(clips) and (missing := missing_videos(clips)):
        raise FileNotFoundError(
            f"{len(missing)} videos are missing or empty: {first_names(missing)}. Add them, remove their lines from the"
            " metadata, or skip unreadable clips (--skip_unreadable). `swinbert doctor` checks all videos."
        )


def captions_of(clips: Any) -> Iterator[str]:
    """
    All captions of all clips.

    Raises:
        ValueError: the clips are a stream, which is not read before training begins.
    """
    if is_stream(clips):
        raise ValueError(
            "The captions of a streamed dataset are not known before training: name a --tokenizer or a --model."
        )
    for captions in clips["captions"]:
        yield from captions


class _ClipReader:
    """The common part of [`ClipDataset`] and [`ClipStream`]; see there for the arguments."""

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
        # Shared memory, because workers may live for several epochs.
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
        """Warns that a clip is skipped, once in each process; raises `error` if clips must not be skipped."""
        if not self.skip_unreadable:
            raise error
        name = clip_name(clip)
        if name not in self._skipped:
            self._skipped.add(name)
            reason = f"{error.kind}: {error.message.rstrip('.')}"
            warnings.warn(
                f"{name} is unreadable ({reason}) and replaced by another clip: number {len(self._skipped)} in this"
                " process. `swinbert doctor` lists all.",
                stacklevel=4,
            )


class ClipDataset(_ClipReader, torch.utils.data.Dataset):
    """
    Clips as `{"frames": uint8 (T, H, W, C), "captions": [...], "index": int, "seed": (int, int, int)}`.

    The seed of an example (of the run, the epoch, the clip's index) determines all its random augmentations, here and
    in the collator: they do not depend on the number of workers, or on whether the run was resumed.

    Args:
        clips: what `load_clips` returns.
        video_processor: samples and decodes frames.
        keep_frames: decode each clip once and keep its sampled frames, downscaled to the processor's size, in a
            temporary file that is mapped into memory and shared with the workers. All frames must have the same size.
        max_shift: augmentation: shift a clip vertically and horizontally by up to so many pixels (of its frames as they
            are read or kept), all frames alike; the edge is repeated. The caption remains true.
        seed: of the run.
        frame_cache: keeps sampled frames on disk, also for later runs.
        skip_unreadable: replace an unreadable clip by the next readable one, with a warning; `index` is that of the
            replacement.

    Raises:
        VideoDecodeError: by `__getitem__`, for an unreadable clip that is not to be skipped.
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
            # The system deletes these files when no process maps them any more.
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
        raise UnreadableClipsError(f"{step + 1} clips in a row are unreadable: {last}") from last

    def _frames(self, clip: dict[str, Any], index: int) -> np.ndarray:
        if not self._keep_frames:
            return super()._frames(clip, index)
        if self._kept is not None and self._is_kept[index]:
            return self._kept[index]
        frames = sampled_frames(self.video_processor, clip)
        if self._kept is None:  # the constructor reads the first clip to know the shape
            return frames
        if frames.shape != self._kept.shape[1:]:
            raise ValueError(
                f"Clip {index} has frames of shape {frames.shape[1:]}, the first clip {self._kept.shape[2:]}: frames of"
                " different sizes cannot be kept, set `keep_frames` to false."
            )
        self._kept[index] = frames
        self._is_kept[index] = True
        return frames


class ClipStream(_ClipReader, torch.utils.data.IterableDataset):
    """
    The clips of a stream (`load_clips(..., streaming=True)`), decoded as they come; see [`ClipDataset`].

    The stream is infinite: after the last clip it starts again, in another order. So every batch is full, and a resumed
    run gets to the same clips by skipping as many batches as it has trained on. Clips are shuffled before decoding, by
    the files that they come from and within a buffer of `shuffle_buffer` clips. Each file is read by one worker: more
    workers than files are of no use. `skip_unreadable` omits unreadable clips.
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
        while found:  # a worker without files ends at once
            found = False
            for example in self._one_pass(epoch):
                found = True
                yield example
            epoch += 1

    def _one_pass(self, epoch: int) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        num_skipped = 0
        # Not `set_epoch`: workers share that number, but each may be in another epoch.
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
                    raise UnreadableClipsError(f"{num_skipped} clips in a row are unreadable: {error}") from error
