"""Clips in, captions out: the stream that every command and every other way of captioning many clips reads from."""

import collections.abc
import contextlib
import dataclasses
import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from swinbert.captioning.batching import Batching, MeasuredBatching
from swinbert.captioning.films import FilmSegment, read_segments
from swinbert.captioning.isolation import IsolatedReader, ReaderDied
from swinbert.captioning.live import LiveStream
from swinbert.captioning.scenes import adaptive_detector
from swinbert.captioning.segments import Segmentation
from swinbert.captioning.settings import caption_settings
from swinbert.processing.clip_reading_swinbert import (
    CaptionerFamily,
    FetchedClips,
    ReadAhead,
    UnavailableClip,
    available_cores,
    collate_clips,
    read_clip,
    without_decoding,
)
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import VideoDecodeError, as_seconds, describe_source
from swinbert.utils.text import one_line


@dataclass(frozen=True)
class Clip:
    """
    A video, or a part of one, to caption.

    Args:
        video: what the video processor reads: a path, a URL, bytes, a file object, an array of frames, images.
        start, end: seconds from the first frame; `None` for the beginning and the end of the video.
        name: what the clip is called in results; by default the path, the URL, or a description of `video`.
        error: why there is nothing to read; such a clip becomes a `Caption` with this error.
    """

    video: Any
    start: float | None = None
    end: float | None = None
    name: str = ""
    error: str | None = None

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", describe_source(self.video))
        for name in ("start", "end"):  # a wrong one is reported by whoever reads the clip
            with contextlib.suppress(VideoDecodeError):
                object.__setattr__(self, name, as_seconds(self.name, name, getattr(self, name)))


class Alternative(NamedTuple):
    """Another caption of a clip, from `num_return_sequences` above 1."""

    text: str
    score: float


@dataclass(frozen=True)
class Caption:
    """
    The result of captioning a clip, or a segment of a film: `text` and `score`, or `error`.

    Args:
        clip: name of the clip.
        start, end: the part that was asked for, or the segment, in seconds.
        text: the best caption; `None` if the clip could not be captioned.
        score: see [`VideoCaptioningPipeline`].
        error: why there is no caption, in one line.
        alternatives: further captions, best first.
        duration: of the whole video, in seconds; `None` if it is unknown.
        error_kind: the `kind` of a `VideoDecodeError`, or the class of another exception.
    """

    clip: str
    start: float | None = None
    end: float | None = None
    text: str | None = None
    score: float | None = None
    error: str | None = None
    alternatives: tuple[Alternative, ...] = ()
    duration: float | None = None
    error_kind: str | None = None

    @classmethod
    def of_failure(cls, clip: Clip, error: str) -> "Caption":
        return cls(clip.name, clip.start, clip.end, error=error, error_kind="not_found")


@dataclass(frozen=True)
class _ReadClip:
    """
    A clip on its way to the model.

    Args:
        clip: without its video, which has been read.
        inputs: what `read_clip` returned.
        batch_length: clips in the batch that it belongs to; `None` leaves that to the stream.
        duration, error_kind: as of [`Caption`].
    """

    clip: Clip
    inputs: dict[str, Any]
    batch_length: int | None
    duration: float | None = None
    error_kind: str | None = None

    @property
    def num_values(self) -> int:
        """Size of the model's input; 0 of a clip that could not be read."""
        return sum(value.numel() for value in self.inputs.values() if isinstance(value, torch.Tensor))


class CaptionStream:
    """
    Iterates over the captions of clips; see [`captions`].

    Attributes:
        largest_batch: clips in one forward pass at most; lower once memory was short.
    """

    def __init__(
        self,
        clips: Iterable[Any],
        captioner: VideoCaptioningPipeline,
        *,
        batch_size: int | Literal["auto"] = 1,
        threads: int | None = None,
        num_workers: int = 0,
        only: Sequence[int] | None = None,
        seed: int | None = None,
        segments: Segmentation | float | str | None = None,
        is_done: Callable[[Clip], bool] | None = None,
        isolation: IsolatedReader | None = None,
        **generation: Any,
    ):
        is_sequence = isinstance(clips, collections.abc.Sized) and hasattr(clips, "__getitem__")
        if (num_workers or only is not None) and not is_sequence:
            raise ValueError(
                f"`num_workers` and `only` need a list of clips (or what has a length and indices), got"
                f" {type(clips).__name__}."
            )
        if num_workers and batch_size == "auto":
            raise ValueError("Workers cut batches before any is measured: give `batch_size` a number.")
        if num_workers and segments is not None:
            raise ValueError("Workers read whole clips: leave `num_workers` out where films are cut into segments.")
        if num_workers and isolation is not None:
            raise ValueError("`isolation` has processes of its own: leave `num_workers` out.")
        self.clips = FetchedClips(clips) if is_sequence else without_decoding(clips)
        self.captioner = captioner
        self.batch_size = batch_size
        self.threads = threads
        self.num_workers = num_workers
        self.only = only
        self.seed = seed
        self.segmentation = None if segments is None else Segmentation.of(segments)
        if self.segmentation is not None and self.segmentation.scenes:
            adaptive_detector()  # if it is missing, no film can be cut
        self.is_done = is_done or (lambda segment: False)
        self.isolation = isolation
        # A stream is received by a thread of its own.
        self._is_live = is_sequence and len(self.clips) == 1 and isinstance(_as_clip(self.clips[0]).video, LiveStream)  # type: ignore[arg-type, index]
        self.generation = generation
        self.largest_batch = sys.maxsize

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides a caption, and nothing of how it is computed: see `caption_settings`."""
        settings = caption_settings(self.captioner, **self.generation)
        if self.segmentation is not None:
            settings["segments"] = self.segmentation.settings
        return settings if self.seed is None else {**settings, "seed": self.seed}

    def __iter__(self) -> Iterator[Caption]:
        if self.batch_size == "auto":
            batching: Batching = MeasuredBatching(self.captioner.device, self.threads)
        else:
            batching = Batching(self.batch_size, self.threads)
        with batching.active():
            for batch in self._batches_in_workers() if self.num_workers else self._batches_in_threads(batching):
                with batching.measured([read.num_values for read in batch if read.num_values]):
                    results = list(self._caption(batch))
                yield from results

    @property
    def _reader(self) -> "_Reader":
        return _Reader(self.captioner.family, self.captioner.sampling, self.isolation)

    def _batches_in_threads(self, batching: Batching) -> Iterator[list[_ReadClip]]:
        takes_turns = self.captioner.device.type == "cpu" and torch.get_num_threads() >= len(available_cores())
        reads: Iterable[_ReadClip]
        if self.segmentation is None:
            reads = ReadAhead(self._items(), self._reader.read_item, batching.largest, takes_turns=takes_turns)
        else:
            reads = self._read_films(self.segmentation)
            if not takes_turns and not self._is_live:  # one thread reads on while the model works
                reads = ReadAhead(reads, lambda read: read, batching.largest)
        batch: list[_ReadClip] = []
        for read in reads:
            batch.append(read)
            # Not when the next clip arrives: that one may follow from this caption.
            if len(batch) >= min(read.batch_length or batching.batch_size, self.largest_batch):
                yield batch
                batch = []
        if batch:
            yield batch

    def _items(self) -> Iterator[dict[str, Any]]:
        """Each clip and the length of its batch; `video` is where [`ReadAhead`] looks for URLs."""
        if self.only is None or self.batch_size == "auto":
            for clip in self._chosen_clips():
                yield {"video": clip.video, "clip": clip, "batch_length": None}
            return
        for batch in self._chosen_batches():
            for number in batch:
                clip = _as_clip(self.clips[number])  # type: ignore[index]
                yield {"video": clip.video, "clip": clip, "batch_length": len(batch)}

    def _chosen_clips(self) -> Iterator[Clip]:
        return map(_as_clip, self.clips if self.only is None else (self.clips[number] for number in self.only))  # type: ignore[index]

    def _read_films(self, segmentation: Segmentation) -> Iterator[_ReadClip]:
        """The segments of each film that are to be captioned, in batches that do not depend on what is left out."""
        number = num_left_out = 0  # segments before this one, and those left out of its batch
        for clip in self._chosen_clips():
            for read in self._reader.read_film(clip, segmentation, self.is_done):
                if self.batch_size != "auto" and number % self.batch_size == 0:
                    num_left_out = 0
                number += 1
                if read is None:
                    num_left_out += 1
                elif self.batch_size == "auto":
                    yield read
                else:
                    yield dataclasses.replace(read, batch_length=self.batch_size - num_left_out)

    def _batches_in_workers(self) -> Iterator[list[_ReadClip]]:
        return iter(
            DataLoader(
                _ClipDataset(self.clips, self._reader),  # type: ignore[arg-type]
                batch_sampler=self._chosen_batches(),
                num_workers=self.num_workers,
                collate_fn=list,
            )
        )

    def _chosen_batches(self) -> list[list[int]]:
        """Numbers of the clips of each batch. Batches are cut from all clips, so that they do not depend on `only`."""
        numbers = range(len(self.clips)) if self.only is None else self.only  # type: ignore[arg-type]
        assert isinstance(self.batch_size, int)
        batches: dict[int, list[int]] = {}
        for number in numbers:
            batches.setdefault(number // self.batch_size, []).append(number)
        return list(batches.values())

    def _caption(self, batch: list[_ReadClip]) -> Iterator[Caption]:
        results, reason, kind, is_too_large = self._tried(batch)
        if reason is not None and len(batch) > 1:
            if is_too_large:
                self.largest_batch = len(batch) // 2
                torch.cuda.empty_cache()
                remedy = f"from here on, at most {self.largest_batch} clips are captioned at once"
                parts = [batch[: self.largest_batch], batch[self.largest_batch :]]
            else:
                remedy = f"its {len(batch)} clips are captioned one by one"
                parts = [[each] for each in batch]
            warnings.warn(f"A batch failed ({reason}): {remedy}.", stacklevel=2)
            for part in parts:
                yield from self._caption(part)
            return
        for read, (best, *others) in zip(batch, results, strict=True):
            yield Caption(
                clip=read.clip.name,
                start=read.clip.start,
                end=read.clip.end,
                text=best["generated_text"],
                score=best["score"],
                error=best.get("error"),
                alternatives=tuple(Alternative(other["generated_text"], other["score"]) for other in others),
                duration=read.duration,
                error_kind=read.error_kind or kind,
            )

    def _tried(self, batch: list[_ReadClip]) -> tuple[list[list[dict[str, Any]]], str | None, str | None, bool]:
        """
        What the pipeline returns for a batch; if it failed, one empty result, why, the kind of error, and whether
        memory was short. The exception, whose traceback holds the tensors of the batch, is gone then.
        """
        try:
            return self._generate(batch), None, None, False
        except Exception as error:
            reason = one_line(error)
            nothing = [[{"generated_text": None, "score": None, "error": reason}]]
            return nothing, reason, _error_kind(error), is_out_of_memory(error)

    def _generate(self, batch: list[_ReadClip]) -> list[list[dict[str, Any]]]:
        """For each clip of a batch what the pipeline returns for it."""
        if self.seed is not None and len(batch) > 1:
            # A random number generator serves all rows of a batch: only a clip alone is independent of the others.
            return [result for read in batch for result in self._generate([read])]
        with self._random_state_of(batch[0].clip):
            return self._forward(batch)

    @contextlib.contextmanager
    def _random_state_of(self, clip: Clip) -> Iterator[None]:
        """With a seed, sampling depends on it and on the clip alone; the caller's random state is restored."""
        if self.seed is None:
            yield
            return
        key = repr((self.seed, PurePath(clip.name).name, clip.start, clip.end)).encode(errors="surrogateescape")
        device = self.captioner.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
            yield

    def _forward(self, batch: list[_ReadClip]) -> list[list[dict[str, Any]]]:
        inputs = collate_clips(self.captioner.family, [read.inputs for read in batch])
        outputs = self.captioner.forward(inputs, **self.generation)
        rows = ({name: [values[row]] for name, values in outputs.items()} for row in range(len(batch)))
        return [self.captioner.postprocess(row) for row in rows]


def captions(
    clips: Iterable[Any],
    captioner: VideoCaptioningPipeline,
    *,
    batch_size: int | Literal["auto"] = 1,
    threads: int | None = None,
    num_workers: int = 0,
    only: Sequence[int] | None = None,
    seed: int | None = None,
    segments: Segmentation | float | str | None = None,
    is_done: Callable[[Clip], bool] | None = None,
    isolation: IsolatedReader | None = None,
    **generation: Any,
) -> CaptionStream:
    """
    Captions of clips, or of the segments of films, one for each, in their order.

    ```python
    for caption in captions(["a.mp4", "b.mp4"], load_captioner("moving-shapes")):
        print(caption.clip, caption.text, caption.score, caption.error)
    ```

    Clips are read ahead of the model. A clip that cannot be captioned is a `Caption` with an `error`. A batch that the
    model cannot process is repeated clip by clip; for lack of memory in halves, and further batches are so small too.

    Args:
        clips: [`Clip`]s, or what a pipeline takes as one; a list, a generator, or what fetches them by their numbers.
        captioner: see `load_captioner`, whose parameters say how to sample clips and to search captions.
        batch_size: clips in one forward pass; `"auto"` chooses more for smaller clips. Rounding depends on it: scores
            change by less than 1e-5 in float32, by some 1e-3 in bfloat16, which may decide between two likely words.
        threads: of PyTorch on the CPU meanwhile; `None` leaves them as they are, or, with `batch_size="auto"`, chooses
            between those and one by trying them on the first clips.
        num_workers: processes that read clips; 0 reads in threads of this process.
        only: numbers of the clips to caption. Batches are the same as without it, unless their size is `"auto"`, so
            that a caption does not depend on where an earlier run ended.
        seed: with `do_sample=True`, captions depend on it, the file's name and range alone; batches are of one clip.
        segments: caption the segments of each clip: seconds of a window, `"scenes"`, or a [`Segmentation`]. A segment
            that cannot be read is a `Caption` with an error, and so is a film of which none can.
        is_done: called with each segment, a `Clip` without its video: whether to leave it out.
        isolation: decodes files in processes of its own; one that dies costs its clip, or what is left of its film.
        generation: arguments of `generate()`, on top of the captioner's.

    Raises:
        ValueError: arguments that exclude each other; `num_workers` or `only` for clips without a length.
        ImportError: scenes need an extra.
        RuntimeError: while iterating, a worker process died.
    """
    return CaptionStream(
        clips,
        captioner,
        batch_size=batch_size,
        threads=threads,
        num_workers=num_workers,
        only=only,
        seed=seed,
        segments=segments,
        is_done=is_done,
        isolation=isolation,
        **generation,
    )


def _error_kind(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out_of_memory"
    return getattr(error, "kind", None) or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of Python, or of torch on the CPU, which has no class for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _as_clip(clip: Any) -> Clip:
    if isinstance(clip, UnavailableClip):
        return Clip(None, name=clip.name, error=clip.reason)
    if isinstance(clip, collections.abc.Mapping) and "video" in clip:  # a row of a data set
        return Clip(clip["video"], clip.get("start"), clip.get("end"))
    if isinstance(clip, LiveStream):
        return Clip(clip, name=clip.name)
    return clip if isinstance(clip, Clip) else Clip(clip)


@dataclass(frozen=True)
class _Reader:
    """Reads clips; small enough to be sent to worker processes, since it holds no weights."""

    family: CaptionerFamily
    sampling: dict[str, Any]
    isolation: IsolatedReader | None = None

    def read_item(self, item: dict[str, Any]) -> _ReadClip:
        return self.read(item["clip"], item["batch_length"])

    def read(self, clip: Clip, batch_length: int | None) -> _ReadClip:
        without_video = dataclasses.replace(clip, video=None)
        if clip.error is not None:
            return _ReadClip(without_video, {"error": [clip.error]}, batch_length, error_kind="not_found")
        try:
            video = clip.video if self.isolation is None else self.isolation.video(clip.video, self.family.decoding)
            source = {"video": video, "start": clip.start, "end": clip.end}
            inputs = read_clip(self.family, source, **self.sampling)
            return _ReadClip(without_video, inputs, batch_length, *inputs["duration"])
        except Exception as error:  # of any kind: it concerns this clip alone
            return _failed(without_video, error, batch_length)

    def read_film(
        self, film: Clip, segmentation: Segmentation, is_done: Callable[[Clip], bool]
    ) -> Iterator[_ReadClip | None]:
        """
        The segments of a film, `None` for those that are done. Of a film without a readable segment there is one
        failure, in the place of all.
        """
        if film.error is not None:
            yield self.read(film, None)
            return
        failures, any_readable = [], False
        rest = Clip(None, film.start, film.end, film.name)  # what is still to be read
        try:
            start, end = (
                self.sampling.get(bound) if getattr(film, bound) is None else getattr(film, bound)
                for bound in ("start", "end")
            )
            for segment in read_segments(self.family, film.video, segmentation, start, end, self.isolation):
                clip = Clip(None, segment.start, segment.end, film.name)
                if is_done(clip):
                    read = None
                else:
                    read = self._read_segment(clip, segment)
                    if not any_readable and read.error_kind is not None:
                        failures.append(read)
                        continue
                any_readable, rest = True, dataclasses.replace(rest, start=segment.end)
                yield from failures
                failures.clear()
                yield read
        except Exception as error:
            yield _failed(rest, error)
            return
        if failures:
            first, count = failures[0], len(failures)
            (reason,) = first.inputs["error"]
            reason = reason if count == 1 else f"none of its {count} segments can be read; the first: {reason}"
            yield dataclasses.replace(first, clip=rest, inputs={"error": [reason]})

    def _read_segment(self, clip: Clip, segment: FilmSegment) -> _ReadClip:
        sampling = {name: value for name, value in self.sampling.items() if name not in ("start", "end")}
        try:
            inputs = read_clip(self.family, segment.video, **sampling)
            return _ReadClip(clip, inputs, None, segment.duration)
        except ReaderDied:  # with the film that it had open
            raise
        except Exception as error:
            return dataclasses.replace(_failed(clip, error), duration=segment.duration)


def _failed(clip: Clip, error: Exception, batch_length: int | None = None) -> _ReadClip:
    return _ReadClip(clip, {"error": [one_line(error)]}, batch_length, error_kind=_error_kind(error))


class _ClipDataset(Dataset):
    """Clips by their numbers, read in worker processes."""

    def __init__(self, clips: Sequence[Any], reader: _Reader):
        self._clips, self._reader = clips, reader

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> _ReadClip:
        return self._reader.read(_as_clip(self._clips[number]), batch_length=1)


__all__ = ["Alternative", "Caption", "CaptionStream", "Clip", "captions"]
