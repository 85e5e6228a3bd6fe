"""Clips in, captions out: the stream that every command and every other way of captioning many clips reads from."""

import collections.abc
import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from swinbert.captioning.settings import caption_settings
from swinbert.processing.clip_reading_swinbert import CaptionerFamily, ReadAhead, collate_clips, read_clip
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import describe_source
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


class Alternative(NamedTuple):
    """Another caption of a clip, from `num_return_sequences` above 1."""

    text: str
    score: float


@dataclass(frozen=True)
class Caption:
    """
    The result of captioning a clip: `text` and `score`, or `error`.

    Args:
        clip: name of the clip.
        start, end: the part that was asked for, in seconds.
        text: the best caption; `None` if the clip could not be captioned.
        score: see [`VideoCaptioningPipeline`].
        error: why there is no caption, in one line.
        alternatives: further captions, best first.
    """

    clip: str
    start: float | None = None
    end: float | None = None
    text: str | None = None
    score: float | None = None
    error: str | None = None
    alternatives: tuple[Alternative, ...] = ()

    @classmethod
    def of_failure(cls, clip: Clip, error: str) -> "Caption":
        return cls(clip.name, clip.start, clip.end, error=error)


@dataclass(frozen=True)
class _ReadClip:
    """
    A clip on its way to the model.

    Args:
        clip: without its video, which has been read.
        inputs: what `read_clip` returned.
        batch_length: clips in the batch that it belongs to.
    """

    clip: Clip
    inputs: dict[str, Any]
    batch_length: int


class CaptionStream:
    """Iterates over the captions of clips; see [`captions`]."""

    def __init__(
        self,
        clips: Iterable[Any],
        captioner: VideoCaptioningPipeline,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        only: Sequence[int] | None = None,
        **generation: Any,
    ):
        is_sequence = isinstance(clips, collections.abc.Sized) and hasattr(clips, "__getitem__")
        if (num_workers or only is not None) and not is_sequence:
            raise ValueError(
                f"`num_workers` and `only` need a list of clips (or what has a length and indices), got"
                f" {type(clips).__name__}."
            )
        self.clips = clips
        self.captioner = captioner
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.only = only
        self.generation = generation

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides a caption, and nothing of how it is computed: see `caption_settings`."""
        return caption_settings(self.captioner, **self.generation)

    def __iter__(self) -> Iterator[Caption]:
        for batch in self._batches_in_workers() if self.num_workers else self._batches_in_threads():
            yield from self._caption(batch)

    @property
    def _reader(self) -> "_Reader":
        return _Reader(self.captioner.family, self.captioner.sampling)

    def _batches_in_threads(self) -> Iterator[list[_ReadClip]]:
        takes_turns = self.captioner.device.type == "cpu"
        batch: list[_ReadClip] = []
        for read in ReadAhead(self._items(), self._reader.read_item, self.batch_size, takes_turns=takes_turns):
            batch.append(read)
            # Not when the next clip arrives: that one may follow from this caption.
            if len(batch) == read.batch_length:
                yield batch
                batch = []
        if batch:
            yield batch

    def _items(self) -> Iterator[dict[str, Any]]:
        """Each clip and the length of its batch; `video` is where [`ReadAhead`] looks for URLs."""
        if self.only is None:
            for clip in map(_as_clip, self.clips):
                yield {"video": clip.video, "clip": clip, "batch_length": self.batch_size}
            return
        for batch in self._chosen_batches():
            for number in batch:
                clip = _as_clip(self.clips[number])  # type: ignore[index]
                yield {"video": clip.video, "clip": clip, "batch_length": len(batch)}

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
        batches: dict[int, list[int]] = {}
        for number in numbers:
            batches.setdefault(number // self.batch_size, []).append(number)
        return list(batches.values())

    def _caption(self, batch: list[_ReadClip]) -> Iterator[Caption]:
        try:
            results = self._generate(batch)
        except Exception as error:
            if len(batch) > 1:
                reason = one_line(error)
                warnings.warn(f"A batch failed ({reason}): its {len(batch)} clips go one by one.", stacklevel=2)
                for each in batch:
                    yield from self._caption([each])
                return
            results = [[{"generated_text": None, "score": None, "error": one_line(error)}]]
        for read, (best, *others) in zip(batch, results, strict=True):
            yield Caption(
                clip=read.clip.name,
                start=read.clip.start,
                end=read.clip.end,
                text=best["generated_text"],
                score=best["score"],
                error=best.get("error"),
                alternatives=tuple(Alternative(other["generated_text"], other["score"]) for other in others),
            )

    def _generate(self, batch: list[_ReadClip]) -> list[list[dict[str, Any]]]:
        """For each clip of a batch what the pipeline returns for it."""
        outputs = self.captioner.forward(
            collate_clips(self.captioner.family, [read.inputs for read in batch]), **self.generation
        )
        rows = ({name: [values[row]] for name, values in outputs.items()} for row in range(len(batch)))
        return [self.captioner.postprocess(row) for row in rows]


def captions(
    clips: Iterable[Any],
    captioner: VideoCaptioningPipeline,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    only: Sequence[int] | None = None,
    **generation: Any,
) -> CaptionStream:
    """
    Captions of clips, one for each, in their order.

    ```python
    for caption in captions(["a.mp4", "b.mp4"], load_captioner("moving-shapes")):
        print(caption.clip, caption.text, caption.score, caption.error)
    ```

    Clips are read ahead of the model. Whatever is wrong with a clip becomes the `error` of its caption, and the others
    go on; a batch that the model cannot process, for lack of memory say, is repeated clip by clip.

    Args:
        clips: [`Clip`]s, or what a pipeline takes as one clip; a list, a generator, or anything with a length and
            indices, of which each clip is fetched when its turn comes.
        captioner: see `load_captioner`. How clips are sampled and captions are searched is said there.
        batch_size: clips in one forward pass.
        num_workers: processes that read clips; 0 reads in threads of this process.
        only: numbers of the clips to caption. Batches are the same as without it, so that a caption does not depend on
            where an earlier run ended.
        generation: arguments of `generate()`, on top of the captioner's.

    Raises:
        ValueError: `num_workers` or `only` for clips without a length.
        RuntimeError: while iterating, a worker process died.
    """
    return CaptionStream(clips, captioner, batch_size=batch_size, num_workers=num_workers, only=only, **generation)


def _as_clip(clip: Any) -> Clip:
    return clip if isinstance(clip, Clip) else Clip(clip)


@dataclass(frozen=True)
class _Reader:
    """Reads clips; small enough to be sent to worker processes, since it holds no weights."""

    family: CaptionerFamily
    sampling: dict[str, Any]

    def read_item(self, item: dict[str, Any]) -> _ReadClip:
        return self.read(item["clip"], item["batch_length"])

    def read(self, clip: Clip, batch_length: int) -> _ReadClip:
        without_video = Clip(None, clip.start, clip.end, clip.name, clip.error)
        if clip.error is not None:
            return _ReadClip(without_video, {"error": [clip.error]}, batch_length)
        try:
            source = {"video": clip.video, "start": clip.start, "end": clip.end}
            inputs = read_clip(self.family, source, **self.sampling)
        except Exception as error:  # whatever is wrong with one clip, the others go on
            inputs = {"error": [one_line(error)]}
        return _ReadClip(without_video, inputs, batch_length)


class _ClipDataset(Dataset):
    """Clips by their numbers, read in worker processes."""

    def __init__(self, clips: Sequence[Any], reader: _Reader):
        self._clips, self._reader = clips, reader

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> _ReadClip:
        return self._reader.read(_as_clip(self._clips[number]), batch_length=1)


__all__ = ["Alternative", "Caption", "CaptionStream", "Clip", "captions"]
