"""Video captioning as a transformers pipeline: `pipeline("video-captioning", model=...)`.

One call for two families of models: SwinBERT, and GIT as it was published (`microsoft/git-base-vatex` and others).
In the order of the data: what counts as one clip, reading it, generating, scoring.
"""

import collections.abc
import contextlib
import functools
import os
import queue
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .video_backends_swinbert import BACKENDS  # noqa: F401 - named here, so that the Hub's loader finds its file
from .video_decoding_swinbert import decode_video  # noqa: F401 - the same
from .video_processing_swinbert import SwinBertVideoProcessor
from .video_sources_swinbert import is_url
from .video_timeline_swinbert import VideoTimeline  # noqa: F401 - the same

logger = logging.get_logger(__name__)

TASK = "video-captioning"


class VideoCaptioningPipeline(Pipeline):
    """
    Captions video clips with a SwinBERT or a GIT model.

    ```python
    pipe = pipeline("video-captioning", model="microsoft/git-base-vatex")
    pipe("clip.mp4")                                     # [{"generated_text": "...", "score": -0.7}]
    pipe({"video": "film.mkv", "start": 61.0, "end": 68.5}, num_beams=4)
    pipe(["a.mp4", "b.mp4"], batch_size=2)               # one such list for each clip
    ```

    **One clip** is a path, a URL, bytes, a file object, an array of frames (T, H, W, C), one image, a list of images,
    or a dictionary with `video` (any of these) and, if wanted, its own `start`, `end`, `num_frames`; further keys are
    ignored, so that the rows of a dataset can be passed as they are. What a `Video` column of `datasets` yields,
    decoded or not, is a clip too. **Many clips** are a list, a tuple, an array (B, T, H, W, C), a generator or a
    dataset; the last two are answered one by one as they are read. Threads read a few clips ahead, in order (a
    generator is run by one of them): while the model works on those before, or in turns with a model on the same CPU. A
    list in which every entry is an image (PIL, or an array of at most three dimensions) is the frames of *one* clip; to
    caption stills, pass `[{"video": image}, ...]`.

    A clip that cannot be read raises `VideoDecodeError` when it is passed alone. Among many it is logged, and has
    `[{"generated_text": None, "score": None, "error": "..."}]` in its place, so that it costs the others nothing.
    `on_error="raise"` or `on_error="return"` asks for one of the two in every case.

    Args (of the constructor or of a call):
        start, end (`float`, *optional*): range to caption, in seconds; a clip's own range comes first.
        num_frames (`int`, *optional*): frames to sample uniformly; the model's own number when absent. GIT has one
            embedding for each frame of its training (`config.num_image_with_embedding`, six) and cannot take more.
        on_error (`"raise"` or `"return"`, *optional*): see above.
        batch_size, num_workers: as in every pipeline; `num_workers` are processes that read instead of threads.
        Everything else goes to `generate()`: `num_beams`, `num_return_sequences`, `max_length`, `do_sample`...

    Returns:
        For each clip a list of `num_return_sequences` dictionaries with `generated_text` and `score`. Without beams the
        score is the mean log-probability of the generated tokens, the closing `[SEP]` included, under the distribution
        that they were picked from; at a `[SEP]` that the length limit forced, it is that of the word which it replaced.
        With beams it is the sum of log-probabilities over `length ** length_penalty`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = True
    # For models that do not say: published GIT checkpoints have no generation_config.json, and would stop at 20 tokens.
    _default_generation_config = GenerationConfig(max_new_tokens=50)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                f"The {TASK} pipeline needs the model's processor: pass `processor=AutoProcessor.from_pretrained(...)`."
            )
        if not self._is_git and not hasattr(self.processor, "video_processor"):
            raise ValueError(
                f"The {TASK} pipeline serves SwinBERT models, whose processor has a video processor, and GIT models;"
                f" got a {self.model.config.model_type!r} model with a {type(self.processor).__name__}."
            )

    def _sanitize_parameters(self, start=None, end=None, num_frames=None, on_error=None, **generate_kwargs):
        if on_error not in (None, "raise", "return"):
            raise ValueError(f'`on_error` must be "raise" or "return", got {on_error!r}.')
        self._check_num_frames(num_frames)
        reading = {"start": start, "end": end, "num_frames": num_frames, "on_error": on_error}
        return {name: value for name, value in reading.items() if value is not None}, generate_kwargs, {}

    def __call__(self, inputs, **kwargs):
        """Captions one clip, or many; the class says what is which, and what comes back."""
        if _is_clip(inputs):
            # Frames in a list would read as a list of inputs further up.
            return super().__call__({"video": inputs} if isinstance(inputs, (list, tuple)) else inputs, **kwargs)
        if "on_error" not in self._preprocess_params:
            kwargs.setdefault("on_error", "return")
        return super().__call__(_as_many(inputs), **kwargs) if not _is_empty(inputs) else []

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        outputs = self.forward(collate([self.preprocess(inputs, **preprocess_params)]), **forward_params)
        return self.postprocess(outputs, **postprocess_params)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        """
        As the stock one, but for threads that read ahead, and for a collation that leaves unreadable clips out of the
        model's batch.
        """
        sized = isinstance(inputs, collections.abc.Sized)
        if num_workers == 0:
            read = functools.partial(self.preprocess, **preprocess_params)
            clips = ReadAhead(inputs, read, batch_size, takes_turns=self.device.type == "cpu")
        else:
            clips = (PipelineDataset if sized else PipelineIterator)(inputs, self.preprocess, preprocess_params)
        # A generator can be read by one process only.
        num_workers = num_workers if sized else min(num_workers, 1)
        batches = DataLoader(clips, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        outputs = PipelineIterator(batches, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def preprocess(self, clip, start=None, end=None, num_frames=None, on_error="raise") -> dict[str, Any]:
        """Reads one clip into a batch of one: the model's inputs, or no input and the `error` that prevented it."""
        try:
            video, own = _unpack(clip)
            wanted = {"start": start, "end": end, "num_frames": num_frames, **own}
            self._check_num_frames(wanted["num_frames"])
            read = self._read_for_git if self._is_git else self._read_for_swinbert
            return {
                **read(video, **{name: value for name, value in wanted.items() if value is not None}),
                "error": [None],
            }
        except ValueError as error:
            # By its `kind`, not by its class: in remote code the processor may have its own copy of `VideoDecodeError`.
            if on_error == "raise" or not hasattr(error, "kind"):
                raise
            logger.warning(f"A clip has no caption: {error}")
            return {"error": [str(error)]}

    def _forward(self, model_inputs, **generate_kwargs) -> dict[str, list]:
        """Lists over clips: `sequences` (R, L) and `scores` (R,) of those that were read, `error` of the others."""
        errors = model_inputs.pop("error")
        readable = [index for index, error in enumerate(errors) if error is None]
        sequences: list[torch.Tensor | None] = [None] * len(errors)
        scores: list[torch.Tensor | None] = [None] * len(errors)
        if readable:
            kwargs = self._prepare_generate_kwargs(
                generate_kwargs, return_dict_in_generate=True, output_scores=True, output_logits=True
            )
            pixels = {name: value.to(self.model.dtype) for name, value in model_inputs.items()}
            generated = self.model.generate(**pixels, **kwargs)
            generated_scores = _scores(generated, self._eos_token_ids(kwargs))
            per_clip = len(generated.sequences) // len(readable)
            for clip, rows, row_scores in zip(
                readable, generated.sequences.split(per_clip), generated_scores.split(per_clip), strict=True
            ):
                sequences[clip], scores[clip] = rows, row_scores
        return {"error": errors, "sequences": sequences, "scores": scores}

    def postprocess(self, model_outputs) -> list[dict[str, Any]]:
        # One clip of a batch comes without the list around its error, a batch of one comes with it.
        error = model_outputs["error"]
        error = error[0] if isinstance(error, list) else error
        if error is not None:
            return [{"generated_text": None, "score": None, "error": error}]
        texts = self.processor.batch_decode(model_outputs["sequences"][0], skip_special_tokens=True)
        return [
            {"generated_text": text.strip(), "score": score}
            for text, score in zip(texts, model_outputs["scores"][0].tolist(), strict=True)
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Saves model, tokenizer, the whole processor and the code of this pipeline: all that a fresh process needs."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any):
        """As every `push_to_hub`; a new card has the tags of the model."""
        return super().push_to_hub(repo_id, **{"tags": self.model.model_tags, **kwargs})

    @property
    def _is_git(self) -> bool:
        return self.model.config.model_type == "git"

    def _check_num_frames(self, num_frames: int | None) -> None:
        """Refuses a number of frames that the model has no embeddings, or no sparse mask, for."""
        if num_frames is None:
            return
        config = self.model.config
        if not self._is_git:
            if getattr(config, "sparse_mask", "none") != "none" and num_frames != config.num_frames:
                raise ValueError(
                    f"This model's sparse mask was learned on {config.num_frames} frames, got num_frames={num_frames}:"
                    " leave `num_frames` out."
                )
        elif num_frames > (config.num_image_with_embedding or 1):
            limit = config.num_image_with_embedding
            learned = "a single image" if limit is None else f"{limit} frames (config.num_image_with_embedding)"
            raise ValueError(
                f"This GIT model was trained on {learned} and has no embedding for more, got num_frames={num_frames}:"
                f" ask for at most {limit or 1}, or leave `num_frames` out."
            )

    def _read_for_swinbert(self, video, **wanted) -> dict[str, torch.Tensor]:
        return dict(self.processor.video_processor(video, return_tensors="pt", **wanted))

    def _read_for_git(self, video, num_frames: int | None = None, **wanted) -> dict[str, torch.Tensor]:
        """`pixel_values` (1, T, C, H, W); (1, C, H, W) of the middle frame for a model that was trained on images."""
        limit = self.model.config.num_image_with_embedding
        if limit is None:
            logger.warning_once(
                "This GIT model was trained on single images: each clip is captioned by its middle frame. The"
                " models whose names end in -vatex see six frames."
            )
            wanted["frame_sampling"] = "round"  # of which a single frame is the middle
        # Ours reads and samples every kind of clip; what is done to the pixels is for GIT's own processor to say.
        reader = SwinBertVideoProcessor(do_resize=False, do_center_crop=False, do_normalize=False, rescale_factor=1.0)
        num_frames = (limit or 1) if num_frames is None else num_frames
        clip = reader(video, num_frames=num_frames, return_tensors="pt", **wanted).pixel_values_videos
        frames = list(clip[0].round().to(torch.uint8))
        pixels = self.processor(images=frames, return_tensors="pt").pixel_values
        # GIT's two image processors differ: one returns a batch of images, the other a batch of videos.
        pixels = pixels.reshape(1, len(frames), *pixels.shape[-3:])
        return {"pixel_values": pixels[:, 0] if limit is None else pixels}

    def _eos_token_ids(self, generate_kwargs: dict) -> list[int]:
        eos = self._get_set_generation_params(generate_kwargs).get("eos_token_id")
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


class ReadAhead(IterableDataset):
    """
    Clips, read by threads in the order of `inputs`, several at once.

    No more lie ready, or are being read, than the next batch or the threads need. Decoders, Pillow and torch release
    the interpreter's lock, so threads do what processes would, without sending frames around.

    Args:
        read: what gives a clip's reading.
        takes_turns: whether files are read only while somebody waits for a clip, not while the model works on those
            before. For a model on the same cores: its threads wait for each other in every layer, so that one that
            shares its core with a decoder holds up all.
    """

    def __init__(self, inputs, read, batch_size: int, takes_turns: bool = False):
        self._inputs, self._read, self._batch_size, self._takes_turns = inputs, read, batch_size, takes_turns

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self):
        return _Readings(self._inputs, self._read, self._batch_size, self._takes_turns)


class _Readings:
    """One pass over a `ReadAhead`. What reading one clip raises is raised in its place, and the others go on."""

    def __init__(self, inputs, read, batch_size: int, takes_turns: bool):
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = min(8, available)
        # One more than the queue holds is on its way into it.
        self._readings: queue.Queue = queue.Queue(max(batch_size, num_threads) - 1 or 1)
        self._takes_turns, self._turn, self._closed = takes_turns, threading.Event(), threading.Event()
        if not takes_turns:
            self._turn.set()
        # It may wait for a generator for ever: such a thread must not keep the process from ending.
        arguments = (inputs, read, num_threads, self._readings, self._turn, self._closed)
        threading.Thread(target=_read_all, args=arguments, daemon=True, name="feed-clips").start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._closed.is_set():
            raise StopIteration
        try:
            reading = self._readings.get_nowait()
        except queue.Empty:
            self._turn.set()
            reading = self._readings.get()
        if reading is None:
            self.close()
            raise StopIteration
        if not reading.done():
            self._turn.set()
        try:
            return reading.result()
        finally:
            if self._takes_turns:
                self._turn.clear()

    def close(self) -> None:
        """Lets go of what was not asked for; whatever a thread is reading at the moment, it ends and forgets."""
        self._closed.set()
        self._turn.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._readings.get_nowait()

    def __del__(self):
        self.close()


def _read_all(
    inputs, read, num_threads: int, readings: queue.Queue, turn: threading.Event, closed: threading.Event
) -> None:
    """Puts a future for every clip into `readings`, which makes it wait where it is full, and `None` at the end."""
    free = threading.Semaphore(num_threads)

    def run(clip, reading: Future) -> None:
        try:
            reading.set_result(read(clip))
        except BaseException as error:
            reading.set_exception(error)
        finally:
            free.release()

    try:
        sized = isinstance(inputs, collections.abc.Sized)
        for clip in map(inputs.__getitem__, range(len(inputs))) if sized else inputs:
            free.acquire()
            # To fetch a clip is to wait more than to work.
            if not is_url(clip.get("video") if isinstance(clip, collections.abc.Mapping) else clip):
                turn.wait()
            if closed.is_set():
                return
            reading: Future = Future()
            # A thread for each clip: torch gives every thread that computes threads of its own, which last as long, and
            # while there are more of them than cores, the model's wait for each other asleep, an eighth slower.
            threading.Thread(target=run, args=(clip, reading), name="read-clip").start()
            readings.put(reading)
    except BaseException as error:  # the generator's or dataset's own
        failed: Future = Future()
        failed.set_exception(error)
        readings.put(failed)
    if not closed.is_set():
        readings.put(None)


def _is_array(item) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor))


def _is_image(item) -> bool:
    return isinstance(item, Image.Image) or (_is_array(item) and item.ndim <= 3)


def _is_clip(inputs) -> bool:
    """Whether `inputs` is one clip, as `VideoCaptioningPipeline` describes it, rather than many."""
    if isinstance(inputs, (list, tuple)):
        return len(inputs) > 0 and all(map(_is_image, inputs))
    if _is_array(inputs):
        return inputs.ndim <= 4
    single = (str, os.PathLike, bytes, bytearray, memoryview, collections.abc.Mapping, Image.Image)
    return isinstance(inputs, single) or hasattr(inputs, "read") or hasattr(inputs, "_hf_encoded")


def _is_empty(inputs) -> bool:
    return isinstance(inputs, collections.abc.Sized) and len(inputs) == 0


def _as_many(inputs):
    """Many clips in a form that transformers iterates over: a list, a `torch` dataset or a generator."""
    if isinstance(inputs, tuple) or _is_array(inputs):
        return list(inputs)
    if isinstance(inputs, (list, Dataset)):
        return inputs
    if isinstance(inputs, collections.abc.Sized) and hasattr(inputs, "__getitem__"):
        return Subset(inputs, range(len(inputs)))
    if isinstance(inputs, collections.abc.Iterable):
        return (clip for clip in inputs)
    raise ValueError(
        "Expected a clip (path, URL, bytes, file object, array, image, list of images, or a dictionary with `video`) or"
        f" a list, generator or dataset of clips, got {type(inputs).__name__}."
    )


def _unpack(clip) -> tuple[Any, dict[str, Any]]:
    """The video of a clip, and the range and number of frames that it brings along."""
    own = {}
    if isinstance(clip, collections.abc.Mapping) and "video" in clip:
        own = {name: clip[name] for name in ("start", "end", "num_frames") if clip.get(name) is not None}
        clip = clip["video"]
    # What a `Video` column of `datasets` yields: undecoded, the file or its bytes; decoded, an object that knows them.
    clip = getattr(clip, "_hf_encoded", clip)
    if isinstance(clip, collections.abc.Mapping):
        if clip.get("bytes") is None and clip.get("path") is None:
            raise ValueError(
                "A dictionary as a clip needs `video` (with `start`, `end`, `num_frames` if wanted), or `bytes` or"
                f" `path`; got the keys {sorted(map(str, clip))}."
            )
        clip = clip["path"] if clip.get("bytes") is None else clip["bytes"]
    if not _is_clip(clip) and (_is_array(clip) or isinstance(clip, (list, tuple)) and len(clip)):
        raise ValueError(
            "Expected one clip, got several: give `video` in a dictionary, and every entry of a list, one."
        )
    return clip, own


def collate(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches clips; those with an error add nothing but their error."""
    batch: dict[str, Any] = {"error": [error for clip in clips for error in clip["error"]]}
    readable = [clip for clip in clips if len(clip) > 1]
    for name in readable[0] if readable else ():
        if name != "error":
            shapes = sorted({tuple(clip[name].shape[1:]) for clip in readable})
            if len(shapes) > 1:
                raise ValueError(
                    f"The clips of a batch must have equal shapes, got {name} of {' and '.join(map(str, shapes))}: give"
                    " all the same `num_frames`, or use batch_size=1."
                )
            batch[name] = torch.cat([clip[name] for clip in readable])
    return batch


def _scores(generated, eos_token_ids: list[int]) -> torch.Tensor:
    """Score of each sequence (B * R,); the class says which."""
    if getattr(generated, "sequences_scores", None) is not None:
        return generated.sequences_scores.float()
    tokens = generated.sequences[:, generated.sequences.shape[1] - len(generated.scores) :]
    eos = torch.tensor(eos_token_ids, device=tokens.device)
    total = torch.zeros(len(tokens), device=tokens.device)
    length = torch.zeros_like(total)
    running = torch.ones_like(total, dtype=torch.bool)
    for step, (scores, logits) in enumerate(zip(generated.scores, generated.logits, strict=True)):
        picked = scores.float().log_softmax(-1).gather(-1, tokens[:, step, None]).squeeze(-1)
        was_forced = scores.isfinite().sum(-1) == 1
        picked = torch.where(was_forced, logits.float().log_softmax(-1).amax(-1), picked)
        total += torch.where(running, picked, 0.0)
        length += running
        running = running & ~torch.isin(tokens[:, step], eos)
    return total / length.clamp(min=1)


# `save_pretrained` writes this into config.json. Set here, since a class that came from the Hub is never registered.
VideoCaptioningPipeline._registered_impl = {
    TASK: {"impl": VideoCaptioningPipeline, "pt": (AutoModelForImageTextToText,), "type": "multimodal"}
}


def register_pipeline() -> None:
    """Makes `pipeline("video-captioning", model=...)` known to transformers."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=VideoCaptioningPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
        )


__all__ = ["VideoCaptioningPipeline"]
