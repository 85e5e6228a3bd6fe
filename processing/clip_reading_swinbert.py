"""From a clip, as a user names it, to a batch of model inputs: what one clip is, reading it, reading ahead, batching.

A *family* says how a kind of model wants its frames and how its captions are read from what it generates. This file
holds SwinBERT's, which every saved model needs; the installed package adds others to `FAMILIES` and
`FAMILIES_BY_PROCESSOR` (`swinbert.captioning.families`).

Shapes: B clips, T frames, C channels, H and W pixels, L tokens.
"""

import collections.abc
import functools
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from .video_backends_swinbert import available_cores
from .video_decoding_swinbert import VideoReader
from .video_sources_swinbert import VideoDecodeError, as_seconds, is_frame_decoder, is_segment, is_url

logger = logging.get_logger(__name__)

# --- Families of models -----------------------------------------------------------------------------------------------


class CaptionerFamily(ABC):
    """
    How one kind of model wants the frames of a clip, and how its captions are read from what it generates.

    Args:
        config: of the model.
        processor: of the model.

    Attributes:
        model_type: `config.model_type` of the models of this family.
        ships_code: whether a saved model of this family needs the modules of this package beside it.
        num_frames, frame_sampling, video_backend: how a clip is sampled and decoded by default.
        prompt: the text before the caption, by default.
        generation: arguments of `generate()` that come before those of the model's own `generation_config`.
    """

    model_type: ClassVar[str]
    ships_code: ClassVar[bool] = False
    num_frames: int
    frame_sampling: str
    video_backend: str
    prompt: str | None = None
    generation: collections.abc.Mapping[str, Any] = {}

    @abstractmethod
    def __init__(self, config: Any, processor: Any): ...

    @abstractmethod
    def check_num_frames(self, num_frames: int) -> None:
        """Raises `ValueError` for a number of frames that the model cannot take."""

    @abstractmethod
    def check_fps(self) -> None:
        """Raises `ValueError` if the model cannot take a number of frames that depends on the length of the clip."""

    @abstractmethod
    def read(self, video: Any, prompt: str | None = None, **sampling: Any) -> dict[str, Any]:
        """
        The inputs of `generate()` for one clip, with a batch axis of 1, and, where it is known, `video_metadata`: a
        list of the clip's `VideoMetadata`.

        Args:
            prompt: text before the caption.
            sampling: any of `num_frames`, `fps`, `start` and `end` (seconds).

        Raises:
            VideoDecodeError: the clip cannot be used.
        """

    def open_video(self, video: Any) -> VideoReader:
        """
        A reader that decodes as `read` does, for [`VideoSegment`]s, which `read` takes as it takes files.

        Raises:
            VideoDecodeError: the video cannot be opened, or is no file.
        """
        return VideoReader(video, **self.decoding)

    @property
    def decoding(self) -> dict[str, Any]:
        """How `read` decodes files: arguments of `VideoReader`."""
        return {"backend": self.video_backend}

    def frame_resizer(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """
        What `read` does with each frame, (H, W, 3), before anything else, so that frames can wait for it in less
        memory; `None` if it needs them as they are.
        """
        return None

    def collate(self, clips: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """
        Batches the inputs of several clips.

        Raises:
            ValueError: they differ in shape.
        """
        return concatenate(clips)

    def generation_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate()`, from those that count the tokens of a caption alone."""
        return arguments

    def generate(self, model: Any, inputs: dict[str, torch.Tensor], **arguments: Any) -> Any:
        """What `model.generate` returns for the inputs of some clips."""
        return model.generate(**inputs, **arguments)

    def captions(self, sequences: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The tokens of captions (R, L) in what `generate()` returned for `inputs`."""
        return sequences

    def settings(self, prompt: str | None) -> dict[str, Any]:
        """What decides a caption beside the model, the frames and the search, for the record."""
        prompt = self.prompt if prompt is None else prompt
        return {} if prompt is None else {"prompt": prompt}


def concatenate(clips: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Concatenates each input of the clips along the first axis.

    Raises:
        ValueError: they differ in their other axes.
    """
    batch = {}
    for name in clips[0]:
        shapes = sorted({tuple(clip[name].shape[1:]) for clip in clips})
        if len(shapes) > 1:
            raise ValueError(
                f"The clips of a batch must have equal shapes, got {name} of {' and '.join(map(str, shapes))}: give"
                " all the same `num_frames`, or use batch_size=1."
            )
        batch[name] = torch.cat([clip[name] for clip in clips])
    return batch


def beginning_of_caption(tokenizer: Any, prompt: str) -> torch.Tensor:
    """`[CLS]` and the tokens of the beginning of a caption, (1, L), for models with BERT's tokenizer."""
    words = tokenizer(prompt, add_special_tokens=False).input_ids
    return torch.tensor([[tokenizer.cls_token_id, *words]])


# model_type -> family.
FAMILIES: dict[str, type[CaptionerFamily]] = {}
# A description of processors -> whether a processor is one, and the family of the models that have such a processor.
# They serve the types of models that are not in `FAMILIES`.
FAMILIES_BY_PROCESSOR: dict[str, tuple[Callable[[Any], bool], type[CaptionerFamily]]] = {}


def family_of(config: Any, processor: Any) -> CaptionerFamily:
    """
    The family of a model.

    Raises:
        ValueError: no family serves this type of model, or the processor is not the one that the family needs.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type](config, processor)
    for is_served, family in FAMILIES_BY_PROCESSOR.values():
        if is_served(processor):
            return family(config, processor)
    served = [f"of type {', '.join(sorted(FAMILIES))}", *(f"with {each}" for each in FAMILIES_BY_PROCESSOR)]
    raise ValueError(
        f"Captioning serves models {' and models '.join(served)}; got a {config.model_type!r} model with a"
        f" {type(processor).__name__}."
    )


class SwinBertFamily(CaptionerFamily):
    """SwinBERT's own video processor does all the work."""

    model_type = "swinbert"
    ships_code = True

    def __init__(self, config: Any, processor: Any):
        if not hasattr(processor, "video_processor"):
            raise ValueError(
                f"A SwinBERT model needs a processor with a video processor; got a {type(processor).__name__}."
            )
        self._config = config
        self._tokenizer = processor.tokenizer
        self._video_processor = processor.video_processor
        self.num_frames = self._video_processor.num_frames
        self.frame_sampling = self._video_processor.frame_sampling
        self.video_backend = self._video_processor.video_backend or "auto"

    def check_num_frames(self, num_frames: int) -> None:
        if self._config.sparse_mask != "none" and num_frames != self._config.num_frames:
            raise ValueError(
                f"This model's sparse mask was learned on {self._config.num_frames} frames, got"
                f" num_frames={num_frames}: leave `num_frames` out."
            )

    def check_fps(self) -> None:
        if self._config.sparse_mask != "none":
            raise ValueError(
                f"This model's sparse mask was learned on {self._config.num_frames} frames, whatever the length of the"
                " clip: leave `fps` out."
            )

    def read(self, video: Any, prompt: str | None = None, **sampling: Any) -> dict[str, Any]:
        """`pixel_values_videos` (1, T, C, H, W), with a prompt `input_ids` (1, L), and `video_metadata`."""
        inputs = dict(self._video_processor(video, return_tensors="pt", return_metadata=True, **sampling))
        return inputs if prompt is None else {**inputs, "input_ids": beginning_of_caption(self._tokenizer, prompt)}

    @property
    def decoding(self) -> dict[str, Any]:
        stored = self._video_processor
        return {
            "backend": self.video_backend,
            "deinterlace": stored.deinterlace is not False,
            "tone_map": stored.tone_map is not False,
        }

    def frame_resizer(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return self._video_processor.frame_resizer()


FAMILIES[SwinBertFamily.model_type] = SwinBertFamily

# --- What counts as one clip ------------------------------------------------------------------------------------------


def is_clip(inputs: Any) -> bool:
    """Whether `inputs` is one clip, as [`VideoCaptioningPipeline`] defines it, rather than many."""
    if isinstance(inputs, (list, tuple)):
        return len(inputs) > 0 and all(map(_is_image, inputs))
    if _is_array(inputs):
        return inputs.ndim <= 4
    single = (str, os.PathLike, bytes, bytearray, memoryview, collections.abc.Mapping, Image.Image)
    return isinstance(inputs, single) or hasattr(inputs, "read") or is_frame_decoder(inputs) or is_segment(inputs)


class UnavailableClip:
    """
    In the place of a clip that its collection failed to give, as `datasets` does where it opens a broken file.

    Attributes:
        name, reason: for messages.
    """

    def __init__(self, number: int, error: Exception):
        self.name = f"clips[{number}]"
        self.reason = "it cannot be loaded: " + (" ".join(str(error).split()) or type(error).__name__)


class FetchedClips(Dataset):
    """
    The clips of a collection with a length and indices, each fetched when its turn comes. A clip that cannot be fetched
    is an [`UnavailableClip`].
    """

    def __init__(self, clips: Any):
        self._clips = without_decoding(clips)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> Any:
        try:
            return self._clips[number]
        except Exception as error:
            return UnavailableClip(number, error)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))


def without_decoding(clips: Any) -> Any:
    """
    A data set of `datasets`, or one column of it, whose videos are files instead of decoders: opening a broken one
    would end the iteration. Anything else as it is.
    """
    if isinstance(clips, KeyDataset):
        return KeyDataset(without_decoding(clips.dataset), clips.key)
    if hasattr(clips, "column_name") and hasattr(clips, "source"):  # dataset["video"]
        return without_decoding(clips.source)[clips.column_name]
    features = getattr(clips, "features", None)
    if isinstance(features, collections.abc.Mapping) and hasattr(clips, "cast_column"):
        for name, feature in features.items():
            if type(feature).__name__ == "Video" and feature.decode:
                clips = clips.cast_column(name, type(feature)(decode=False))
    return clips


def as_clips(inputs: Any) -> Any:
    """
    Many clips in a form that transformers iterates over: a list, a `torch` dataset or a generator.

    Raises:
        ValueError: `inputs` is neither a clip nor a collection of clips.
    """
    if isinstance(inputs, tuple) or _is_array(inputs):
        return list(inputs)
    if isinstance(inputs, list):
        return inputs
    if isinstance(inputs, collections.abc.Sized) and hasattr(inputs, "__getitem__"):
        return FetchedClips(inputs)
    inputs = without_decoding(inputs)
    if isinstance(inputs, Dataset):
        return inputs
    if isinstance(inputs, collections.abc.Iterable):
        return (clip for clip in inputs)
    raise ValueError(
        "Expected a clip (path, URL, bytes, file object, array, image, list of images, or a dictionary with `video`) or"
        f" a list, generator or dataset of clips, got {type(inputs).__name__}."
    )


def unpack_clip(clip: Any) -> tuple[Any, dict[str, Any]]:
    """
    The video of a clip, and those of `start`, `end` and `num_frames` that the clip brings along.

    Raises:
        ValueError: a dictionary without a video, or several clips where one is expected.
        VideoDecodeError: the clip could not be fetched, or its range is not one of numbers.
    """
    if isinstance(clip, UnavailableClip):
        raise VideoDecodeError(clip.name, "not_readable", clip.reason)
    options = {}
    if isinstance(clip, collections.abc.Mapping) and "video" in clip:
        options = {name: as_seconds(clip["video"], name, clip.get(name)) for name in ("start", "end")}
        options["num_frames"] = _whole_number(clip.get("num_frames"))
        options = {name: value for name, value in options.items() if value is not None}
        clip = clip["video"]
    if isinstance(clip, collections.abc.Mapping):
        if clip.get("bytes") is None and clip.get("path") is None:
            raise ValueError(
                "A dictionary as a clip needs `video` (with `start`, `end`, `num_frames` if wanted), or `bytes` or"
                f" `path`; got the keys {sorted(map(str, clip))}."
            )
        clip = clip["path"] if clip.get("bytes") is None else clip["bytes"]
    if not is_clip(clip) and (_is_array(clip) or isinstance(clip, (list, tuple)) and len(clip)):
        raise ValueError(
            "Expected one clip, got several: give `video` in a dictionary, and every entry of a list, one."
        )
    return clip, options


def _whole_number(value: Any) -> Any:
    """A number of frames from a table, which has 8.0 and NaN for 8 and for none; anything else as it is."""
    if type(value).__name__ == "NAType":
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _is_array(item: Any) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor))


def _is_image(item: Any) -> bool:
    return isinstance(item, Image.Image) or (_is_array(item) and item.ndim <= 3)


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_clip(family: CaptionerFamily, clip: Any, on_error: str = "raise", **defaults: Any) -> dict[str, Any]:
    """
    Reads one clip into a batch of one.

    Args:
        on_error: `"raise"`; `"return"` for an unreadable clip's reason in its place.
        defaults: `start`, `end`, `num_frames`, `fps` for clips that do not bring their own, and `prompt`.

    Returns:
        The model's inputs, `error` `[None]` and `duration`, a list of the seconds of the whole video, or of `None`; for
        an unreadable clip `error` alone, a list of the one reason.
    """
    try:
        video, options = unpack_clip(clip)
        if "num_frames" in options:
            defaults.pop("fps", None)
        wanted = {name: value for name, value in {**defaults, **options}.items() if value is not None}
        if "num_frames" in wanted:
            family.check_num_frames(wanted["num_frames"])
        inputs = dict(family.read(video, **wanted))
        (metadata,) = inputs.pop("video_metadata", None) or [None]
        return {**inputs, "error": [None], "duration": [getattr(metadata, "duration", None)]}
    except ValueError as error:
        # By its `kind`, not by its class: in remote code the processor may have its own copy of `VideoDecodeError`.
        if on_error == "raise" or not hasattr(error, "kind"):
            raise
        logger.warning(f"A clip could not be captioned: {error}")
        return {"error": [str(error)]}


def collate_clips(family: CaptionerFamily, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Batches what `read_clip` returned: inputs of the readable clips (B, ...), and `error` of all, in their order. Leaves
    out `duration`.

    Raises:
        ValueError: the readable clips differ in shape, and the family cannot batch them.
    """
    errors = [error for clip in clips for error in clip["error"]]
    records = ("error", "duration")
    readable = [{name: clip[name] for name in clip if name not in records} for clip in clips if len(clip) > 1]
    return {"error": errors, **(family.collate(readable) if readable else {})}


_is_forked = False


@functools.cache
def prepare_for_forks() -> None:
    """
    Has processes that are forked from this one compute on one thread. They inherit the records of OpenMP's threads, but
    not the threads, and would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=_compute_on_one_thread)


def _compute_on_one_thread() -> None:
    global _is_forked
    _is_forked = True
    torch.set_num_threads(1)


def check_threads(threads: int) -> None:
    """Raises `ValueError` if this process cannot compute on so many threads."""
    if _is_forked and threads > 1:
        raise ValueError(
            f"Expected one thread, got {threads}: this process was forked from one that had a captioner, and threads do"
            ' not survive a fork. Start processes by "spawn" or "forkserver" to use more.'
        )


class ReadAhead(IterableDataset):
    """
    Reads clips in threads, several at once, and yields them in the order of `inputs`.

    It reads no further ahead than the next batch, or the number of threads, requires. Decoders, Pillow and torch
    release the GIL. An exception of `read` is raised in the place of its clip, and iteration can continue.

    Args:
        inputs: clips, with or without a length; one of the threads runs an iterator.
        read: from a clip to what is yielded.
        batch_size: clips in a batch of the model.
        takes_turns: stop reading files while the consumer works. For a model on the same cores: its threads wait for
            each other in every layer, so that one thread which shares its core with a decoder delays all of them.
    """

    def __init__(self, inputs: Any, read: Callable[[Any], Any], batch_size: int, takes_turns: bool = False):
        self._inputs, self._read, self._batch_size, self._takes_turns = inputs, read, batch_size, takes_turns

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Any]:
        return _ReadAheadIterator(self._inputs, self._read, self._batch_size, self._takes_turns)


class _ReadAheadIterator:
    """One pass over a [`ReadAhead`]."""

    def __init__(self, inputs: Any, read: Callable[[Any], Any], batch_size: int, takes_turns: bool):
        num_threads = min(8, len(available_cores()))
        self._process = os.getpid()
        # One clip more than the queue holds is on its way into it.
        self._results: queue.Queue = queue.Queue(max(batch_size, num_threads) - 1 or 1)
        # Set while files may be read.
        self._may_read, self._closed = threading.Event(), threading.Event()
        self._takes_turns = takes_turns
        if not takes_turns:
            self._may_read.set()
        # A daemon, since it may wait for a generator for ever and must not keep the process from ending.
        arguments = (inputs, read, num_threads, self._results, self._may_read, self._closed)
        threading.Thread(target=_read_all, args=arguments, daemon=True, name="feed-clips").start()

    def __iter__(self) -> "_ReadAheadIterator":
        return self

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        if os.getpid() != self._process:
            raise RuntimeError(
                "The threads that read these clips are in the process that this one was forked from: begin to iterate"
                " in one process only."
            )
        try:
            result = self._results.get_nowait()
        except queue.Empty:
            self._may_read.set()
            result = self._results.get()
        if result is None:
            self.close()
            raise StopIteration
        if not result.done():
            self._may_read.set()
        try:
            return result.result()
        finally:
            if self._takes_turns:
                self._may_read.clear()

    def close(self) -> None:
        """Drops the clips that wait; a thread that is reading finishes its clip and discards it."""
        self._closed.set()
        self._may_read.set()
        while not self._results.empty():  # nobody else takes from it
            self._results.get_nowait()

    def __del__(self):
        if os.getpid() == self._process:  # in a forked one, locks may be held by threads that it lacks
            self.close()


def _read_all(
    inputs: Any,
    read: Callable[[Any], Any],
    num_threads: int,
    results: queue.Queue,
    may_read: threading.Event,
    closed: threading.Event,
) -> None:
    """Puts a future for every clip into `results`, which blocks while it is full, and `None` at the end."""
    free_threads = threading.Semaphore(num_threads)

    def run(clip: Any, result: Future) -> None:
        try:
            result.set_result(read(clip))
        except BaseException as error:
            result.set_exception(error)
        finally:
            free_threads.release()

    try:
        sized = isinstance(inputs, collections.abc.Sized)
        for clip in map(inputs.__getitem__, range(len(inputs))) if sized else inputs:  # type: ignore[attr-defined]
            free_threads.acquire()
            # Downloading waits for the network and hardly computes: it need not take turns with the model.
            if not is_url(clip.get("video") if isinstance(clip, collections.abc.Mapping) else clip):
                may_read.wait()
            if closed.is_set():
                return
            result: Future = Future()
            # A thread for each clip: torch gives every thread that computes OpenMP threads of its own, which live as
            # long as it, and while there are more of them than cores, the model's stop spinning: an eighth slower.
            threading.Thread(target=run, args=(clip, result), name="read-clip").start()
            results.put(result)
    except BaseException as error:  # raised by the generator or dataset itself
        failed: Future = Future()
        failed.set_exception(error)
        results.put(failed)
    if not closed.is_set():
        results.put(None)


__all__ = ["FAMILIES", "FAMILIES_BY_PROCESSOR", "CaptionerFamily", "ReadAhead", "SwinBertFamily", "family_of"]
