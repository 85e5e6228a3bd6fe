"""All that decides a caption (model, frames, decoder, search, versions), for the record beside results."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.version import __version__


def caption_settings(captioner: VideoCaptioningPipeline, **generation: Any) -> dict[str, Any]:
    """
    All that decides the caption of a clip, as nested dictionaries that JSON can hold; nothing of how it is executed
    (batches, workers, threads).

    Args:
        generation: arguments of `generate()`, on top of the captioner's.
    """
    model = captioner.model
    return {
        "model": {
            "name": model.name_or_path,
            "revision": captioner.model_revision,
            "sha256": _model_hash(captioner),
            "dtype": str(model.dtype).removeprefix("torch."),
            **({} if captioner.load_in is None else {"load_in": captioner.load_in}),
        },
        "frames": _frame_settings(captioner),
        **captioner.family.settings(captioner.sampling.get("prompt")),
        "generation": _generation_settings(captioner, generation),
        "versions": {
            "swinbert": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": version("pillow"),
        },
    }


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _model_hash(captioner: VideoCaptioningPipeline) -> str:
    """SHA-256 of configuration, vocabulary and weights."""
    config = captioner.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "auto_map", "custom_pipelines"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps([config, captioner.tokenizer.get_vocab()], sort_keys=True, default=str).encode())
    for name, value in sorted(captioner.model.state_dict().items()):
        for part, weight in _stored_tensors(name, value):
            digest.update(f"{part} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored_tensors(name: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that a weight consists of: one, or several where it is quantised by torchao."""
    if not isinstance(value, torch.Tensor):
        return []
    if not hasattr(value, "__tensor_flatten__"):
        return [(name, value)]
    return [
        part
        for each in value.__tensor_flatten__()[0]
        for part in _stored_tensors(f"{name}.{each}", getattr(value, each))
    ]


def _frame_settings(captioner: VideoCaptioningPipeline) -> dict[str, Any]:
    family = captioner.family
    processor = captioner.processor.to_dict()
    processor.get("video_processor", {}).pop("auto_map", None)
    backend = "pyav" if family.video_backend == "auto" else family.video_backend
    fps = captioner.sampling.get("fps")
    return {
        **(
            {"frames": captioner.sampling.get("num_frames", family.num_frames)}
            if fps is None
            else {"frames_per_second": fps}
        ),
        "sampler": family.frame_sampling,
        "decoder": f"{backend} {version('av' if backend == 'pyav' else backend)}",
        "processor": processor,
    }


def _generation_settings(captioner: VideoCaptioningPipeline, generation: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults of `GenerationConfig`, and what a reader of results asks for first."""
    kwargs = captioner._prepare_generate_kwargs(generation)
    used = captioner.model._prepare_generation_config(None, **kwargs)[0].to_diff_dict()
    if used.get("max_new_tokens") is not None:
        used.pop("max_length", None)  # `max_new_tokens` takes precedence
    defaults = {**GenerationConfig()._get_default_generation_params(), "use_cache": True}
    always = ("num_beams", "max_length", "min_length", "length_penalty")
    irrelevant = ("_from_model_config", "transformers_version", "output_attentions", "output_hidden_states")
    return {
        name: value
        for name, value in used.items()
        if name in always or (name not in irrelevant and value != defaults.get(name))
    }


__all__ = ["caption_settings", "flattened"]
