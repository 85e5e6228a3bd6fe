"""Video captioning as a transformers pipeline: `pipeline("video-captioning", model=...)`.

In the order of the data: reading clips, generating, scoring. Films are left to `swinbert.captioning`, which this file,
that comes with saved models, imports when it is asked for them: it needs the package.
"""

import collections.abc
import copy
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .clip_reading_swinbert import (
    ReadAhead,
    as_clips,
    collate_clips,
    family_of,
    is_clip,
    prepare_for_forks,
    read_clip,
)

# The loader of remote code copies the files that this one imports, one level deep: their imports stand here too.
from .video_backends_swinbert import BACKENDS  # noqa: F401
from .video_colors_swinbert import HDR_TRANSFERS  # noqa: F401
from .video_containers_swinbert import CONTAINERS  # noqa: F401
from .video_decoding_swinbert import decode_video  # noqa: F401
from .video_losses_swinbert import find_lost_frames  # noqa: F401
from .video_pictures_swinbert import PictureConverter  # noqa: F401
from .video_processing_swinbert import SwinBertVideoProcessor  # noqa: F401
from .video_sources_swinbert import VideoDecodeError
from .video_timeline_swinbert import VideoTimeline  # noqa: F401

TASK = "video-captioning"
# What captions clips if no model is named: of the Hub, for clips of all kinds.
DEFAULT_MODEL = "microsoft/git-base-vatex"
# Arguments that say how a film is cut; the last three are those of transformers' speech recognition.
_CUTTING = ("segments", "stride", "merge", "chunk_length_s", "stride_length_s", "return_timestamps")


class VideoCaptioningPipeline(Pipeline):
    """
    Captions video clips with a SwinBERT model; where this package is installed, with GIT and chat models too.

    ```python
    pipe = pipeline("video-captioning")                  # microsoft/git-base-vatex of the Hub
    pipe("clip.mp4")                                     # [{"generated_text": "...", "score": -0.7}]
    pipe({"video": "film.mkv", "start": 61.0, "end": 68.5}, num_beams=4)
    pipe(["a.mp4", "b.mp4"], batch_size=2)               # one such list for each clip
    pipe("film.mp4", segments=10.0, batch_size=8)        # [{"generated_text", "score", "timestamp": (0.0, 10.0)}, ...]
    ```

    **One clip** is a path, a URL, bytes, a file object, an array of frames (T, H, W, C), one image, a list of images,
    or a dictionary with `video` (any of these) and, optionally, its own `start`, `end` and `num_frames`. Further keys
    are ignored, so that rows of a dataset can be passed as they are. The values of a `Video` column of `datasets`,
    decoded or not, are clips too.

    **Many clips** are a list, a tuple, an array (B, T, H, W, C), a generator or a dataset. A generator or dataset is
    read as its captions are asked for. A list of images only (PIL, or arrays of at most three dimensions) is the frames
    of *one* clip; to caption images, pass `[{"video": image}, ...]`.

    Threads read the next clips while the model works on the ones before or, if both share a CPU, in turns with it. One
    of the threads runs a generator. A process that is forked from this one can use the pipeline, on one thread.

    A clip that cannot be read raises `VideoDecodeError` if it is passed alone. Among many clips it is logged, and its
    result is `[{"generated_text": None, "score": None, "error": "..."}]`; the others are captioned. `on_error="raise"`
    or `on_error="return"` chooses one of the two in every case.

    Args (of the constructor or of a call):
        start, end (`float`, *optional*): range to caption, in seconds, for clips without a range of their own.
        num_frames (`int`, *optional*): frames to sample uniformly; by default the model's number. GIT has an embedding
            for each frame that it was trained with (`config.num_image_with_embedding`, six) and cannot take more.
        fps (`float`, *optional*): frames to sample per second instead; not for models of a fixed number of frames.
        segments (`float`, `"scenes"` or `Segmentation`, *optional*): take clips for films and caption each window of so
            many seconds, or each scene; needs this package. `chunk_length_s` is another name for it.
        stride (`float`, *optional*): seconds from window to window; less than their length makes them overlap.
            `stride_length_s`, as in speech recognition, is the overlap on either side, or a pair (left, right) of them:
            `stride = chunk_length_s - left - right`.
        merge (`bool`, *optional*, defaults to `True`): whether neighbouring segments of one caption become one.
        prompt (`str`, *optional*): the question to a chat model; for SwinBERT and GIT, the beginning of the caption.
        on_error (`"raise"` or `"return"`, *optional*): see above.
        batch_size, num_workers: as in every pipeline; `num_workers` is the number of processes that read clips, instead
            of threads.
        All others are arguments of `generate()`: `num_beams`, `num_return_sequences`, `max_length`, `do_sample`... Chat
            models search greedily by default, and `max_length` does not count their prompt.

    Returns:
        For each clip a list of `num_return_sequences` dictionaries with `generated_text` and `score`. Without beams the
        score is the mean log-probability of the generated tokens, including the final `[SEP]`, under the distribution
        that they were sampled from; a `[SEP]` that the length limit forces counts with the log-probability of the word
        that it replaces. With beams the score is the sum of log-probabilities over `length ** length_penalty`.
    """

    # Commit of a model from the Hub, for records; `load_captioner` sets it.
    model_revision: str | None = None
    # "8bit" or "4bit" for a model whose weights were quantised when they were loaded; set likewise.
    load_in: str | None = None

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = True
    # For models that do not say: published GIT checkpoints have no generation_config.json, and would stop at 20 tokens.
    _default_generation_config = GenerationConfig(max_new_tokens=50)

    def __init__(self, *args, **kwargs):
        self._cutting = {name: kwargs.pop(name) for name in _CUTTING if name in kwargs}
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                f"The {TASK} pipeline needs the model's processor: pass `processor=AutoProcessor.from_pretrained(...)`."
            )
        self.family = family_of(self.model.config, self.processor)
        self._generate_kwargs = {**self.family.generation, **self.family.generation_arguments(self._generate_kwargs)}
        self._check_sampling(self._preprocess_params)
        prepare_for_forks()

    def _sanitize_parameters(
        self, start=None, end=None, num_frames=None, fps=None, prompt=None, on_error=None, **generate_kwargs
    ):
        if on_error not in (None, "raise", "return"):
            raise ValueError(f'`on_error` must be "raise" or "return", got {on_error!r}.')
        reading = {
            "start": start,
            "end": end,
            "num_frames": num_frames,
            "fps": fps,
            "prompt": prompt,
            "on_error": on_error,
        }
        return {name: value for name, value in reading.items() if value is not None}, generate_kwargs, {}

    def __call__(self, inputs, **kwargs):
        """Captions one clip, or many: see the class for what counts as one and for what is returned."""
        cutting = _cutting({**self._cutting, **{name: kwargs.pop(name) for name in _CUTTING if name in kwargs}})
        if cutting:
            return self._caption_films(inputs, **cutting, **kwargs)
        self._check_sampling({**self._preprocess_params, **kwargs})
        if is_clip(inputs):
            # `Pipeline` would take a list of frames for a list of inputs.
            return super().__call__({"video": inputs} if isinstance(inputs, (list, tuple)) else inputs, **kwargs)
        if isinstance(inputs, collections.abc.Sized) and len(inputs) == 0:
            return []
        if "on_error" not in self._preprocess_params:
            kwargs.setdefault("on_error", "return")
        return super().__call__(as_clips(inputs), **kwargs)

    def _caption_films(self, films, **kwargs):
        """For one film a list of what `stream` yields, or one for each of many."""
        if is_clip(films):
            return list(self.stream(films, **kwargs))
        kwargs = {"on_error": "return", **kwargs}
        results = (list(self.stream(film, **kwargs)) for film in as_clips(films))
        return list(results) if isinstance(films, collections.abc.Sized) else results

    def stream(
        self, film: Any, segments: Any, *, merge: bool = True, on_error: str | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """
        The captions of a film's segments, in the order of time, each as soon as it is known.

        Args:
            film: one clip, see the class; a file, not decoded frames.
            segments, merge: see the class. Merged ones are known when the next caption differs.
            on_error: `"raise"` for the first segment that cannot be read. Otherwise, as for many films, it has an
                `error`; by default, only a film of which none can is raised.
            kwargs: as of a call.

        Yields:
            `{"generated_text", "score", "timestamp": (start, end)}` in seconds from the beginning of the film, with
            `num_return_sequences` above 1 also `alternatives`, a list of such dictionaries without `timestamp`.

        Raises:
            ValueError: other `segments`.
            VideoDecodeError: see `on_error`.
        """
        try:
            from swinbert.captioning import Segmentation, captions, merge_segments
        except ImportError as error:
            raise ImportError("Captioning the segments of a film needs this package: pip install swinbert") from error
        stride = kwargs.pop("stride", None)
        segmentation = Segmentation.of(segments, **({} if stride is None else {"stride": stride}))
        self._check_sampling({**self._preprocess_params, **kwargs})
        workers, batch_size = kwargs.pop("num_workers", 0), kwargs.pop("batch_size", self._batch_size or 1)
        reading, generation, _ = self._sanitize_parameters(on_error=on_error, **kwargs)
        captioner = copy.copy(self)
        captioner._preprocess_params = {**self._preprocess_params, **reading}
        found = captions(
            [film], captioner, segments=segmentation, batch_size=batch_size, num_workers=workers, **generation
        )
        on_error = captioner._preprocess_params.get("on_error")
        return _as_dictionaries(merge_segments(found) if merge else found, on_error)

    def _check_sampling(self, parameters: dict[str, Any]) -> None:
        """Refuses numbers of frames that no clip can have, before the first is read."""
        num_frames, fps = parameters.get("num_frames"), parameters.get("fps")
        if num_frames is not None and fps is not None:
            raise ValueError(f"`num_frames` and `fps` exclude each other, got {num_frames} and {fps}.")
        if num_frames is not None:
            self.family.check_num_frames(num_frames)
        if fps is not None:
            if not fps > 0:
                raise ValueError(f"`fps` must be positive, got {fps}.")
            self.family.check_fps()

    def _prepare_generate_kwargs(self, generate_kwargs: dict, **overrides) -> dict:
        return super()._prepare_generate_kwargs(self.family.generation_arguments(generate_kwargs), **overrides)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        outputs = self.forward(
            collate_clips(self.family, [self.preprocess(inputs, **preprocess_params)]), **forward_params
        )
        return self.postprocess(outputs, **postprocess_params)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        """The stock iterator, but threads read ahead, and unreadable clips are left out of the model's batch."""
        sized = isinstance(inputs, collections.abc.Sized)
        if num_workers == 0:
            read = functools.partial(self.preprocess, **preprocess_params)
            clips = ReadAhead(inputs, read, batch_size, takes_turns=self.device.type == "cpu")
        else:
            clips = (PipelineDataset if sized else PipelineIterator)(inputs, self.preprocess, preprocess_params)
        collate = functools.partial(collate_clips, self.family)
        # A generator can be read by one process only.
        num_workers = num_workers if sized else min(num_workers, 1)
        batches = DataLoader(clips, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        outputs = PipelineIterator(batches, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    @property
    def sampling(self) -> dict[str, Any]:
        """Those of `start`, `end`, `num_frames`, `fps` and `prompt` that the constructor was given."""
        return {name: value for name, value in self._preprocess_params.items() if name != "on_error"}

    def preprocess(self, clip, on_error="raise", **sampling) -> dict[str, Any]:
        """Inputs of `forward` for one clip: see `read_clip`."""
        inputs = read_clip(self.family, clip, on_error, **sampling)
        inputs.pop("duration", None)
        return inputs

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
            inputs = {
                name: value.to(self.model.dtype) if name.startswith("pixel_values") else value
                for name, value in model_inputs.items()
            }
            generated = self.family.generate(self.model, inputs, **kwargs)
            generated_scores = _scores(generated, self._eos_token_ids(kwargs))
            captions = self.family.captions(generated.sequences, inputs)
            per_clip = len(captions) // len(readable)
            for clip, rows, row_scores in zip(
                readable, captions.split(per_clip), generated_scores.split(per_clip), strict=True
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
            {"generated_text": " ".join(text.split()), "score": score}
            for text, score in zip(texts, model_outputs["scores"][0].tolist(), strict=True)
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Saves model and processor and, where the model type is not one of transformers', the code of all of them."""
        # `pipeline` hands its dtype to the tokenizer too, whose settings are saved as JSON.
        self.processor.tokenizer.init_kwargs.pop("dtype", None)
        if self.family.ships_code:
            super().save_pretrained(save_directory, **kwargs)
        else:
            self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any):
        """As every `push_to_hub`; a new card has the tags of the model."""
        return super().push_to_hub(repo_id, **{"tags": self.model.model_tags, **kwargs})

    def _eos_token_ids(self, generate_kwargs: dict) -> list[int]:
        eos = self._get_set_generation_params(generate_kwargs).get("eos_token_id")
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _cutting(arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of `stream`, from those of a call, some of which have the names of speech recognition; empty where clips
    are not cut.

    Raises:
        ValueError: arguments that exclude each other.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    length, overlap = given.pop("chunk_length_s", 0), given.pop("stride_length_s", None)
    has_times = given.pop("return_timestamps", False)
    if length and "segments" in given or overlap is not None and "stride" in given:
        raise ValueError("`chunk_length_s` and `stride_length_s` stand for `segments` and `stride`: give one of both.")
    if length:
        given["segments"] = length
    if "segments" not in given:
        if given or has_times or overlap is not None:
            name = next(iter(given), "return_timestamps" if has_times else "stride_length_s")
            raise ValueError(f"`{name}` needs `segments` (or `chunk_length_s`): how to cut a film.")
        return {}
    if overlap is not None:
        left, right = overlap if isinstance(overlap, (list, tuple)) else (overlap, overlap)
        if not isinstance(given["segments"], (int, float)) or min(left, right) < 0 or left + right >= given["segments"]:
            raise ValueError(
                "`stride_length_s`, the overlap on either side of a window, must leave something of its length, got"
                f" {overlap} and {given['segments']}."
            )
        given["stride"] = given["segments"] - left - right
    return given


def _as_dictionaries(found: Any, on_error: str | None) -> Iterator[dict[str, Any]]:
    """What `stream` yields, from captions."""
    for caption in found:
        if caption.error is not None and (on_error == "raise" or on_error is None and caption.end is None):
            raise VideoDecodeError(caption.clip, caption.error_kind or "undecodable", caption.error)
        result = {"generated_text": caption.text, "score": caption.score, "timestamp": (caption.start, caption.end)}
        if caption.error is not None:
            result["error"] = caption.error
        if caption.alternatives:
            result["alternatives"] = [
                {"generated_text": each.text, "score": each.score} for each in caption.alternatives
            ]
        yield result


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


def register_pipeline(default: dict[str, Any]) -> None:
    """Makes `pipeline("video-captioning")` known to transformers, with the model and revision `default["model"]`."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        saved = VideoCaptioningPipeline._registered_impl
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=VideoCaptioningPipeline,
            pt_model=AutoModelForImageTextToText,
            default=default,
            type="multimodal",
        )
        VideoCaptioningPipeline._registered_impl = saved  # a saved model has no default model


__all__ = ["VideoCaptioningPipeline"]
