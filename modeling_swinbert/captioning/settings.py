"""What decides a caption: model, frames, decoder, search, versions."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import GenerationConfig

import swinbert
from swinbert.processing import VideoCaptioningPipeline


def caption_settings(pipe: VideoCaptioningPipeline, revision: str | None = None) -> dict[str, Any]:
    """
    All that decides a clip's caption, as nested dictionaries that JSON can hold.

    Args:
        revision: that the model was loaded with; its commit is recorded.
    """
    return {
        "model": {
            "name": pipe.model.name_or_path,
            "revision": _commit(pipe.model.name_or_path, revision),
            "sha256": _model_hash(pipe),
            "dtype": str(pipe.model.dtype).removeprefix("torch."),
        },
        "frames": _frame_settings(pipe),
        "generation": _generation_settings(pipe),
        "versions": {
            "swinbert": swinbert.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": version("pillow"),
        },
    }


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a model that was just loaded from the Hub; `None` of a folder."""
    file = (
        None if Path(name).exists() else huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    )
    return Path(file).parent.name if isinstance(file, str) else revision


def _model_hash(pipe: VideoCaptioningPipeline) -> str:
    """SHA-256 of configuration, vocabulary and weights."""
    config = pipe.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "auto_map", "custom_pipelines"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps([config, pipe.tokenizer.get_vocab()], sort_keys=True, default=str).encode())
    for name, weight in sorted(pipe.model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _frame_settings(pipe: VideoCaptioningPipeline) -> dict[str, Any]:
    processor = pipe.processor.to_dict()
    processor.get("video_processor", {}).pop("auto_map", None)
    if pipe._is_git:
        limit = pipe.model.config.num_image_with_embedding
        num_frames, sampler, backend = limit or 1, "uniform" if limit else "round", "pyav"
    else:
        reader = pipe.processor.video_processor
        num_frames, sampler, backend = reader.num_frames, reader.frame_sampling, reader.video_backend or "auto"
    backend = "pyav" if backend == "auto" else backend
    return {
        "frames": pipe._preprocess_params.get("num_frames", num_frames),
        "sampler": sampler,
        "decoder": f"{backend} {version('av' if backend == 'pyav' else backend)}",
        "processor": processor,
    }


def _generation_settings(pipe: VideoCaptioningPipeline) -> dict[str, Any]:
    kwargs = pipe._prepare_generate_kwargs({"do_sample": False})
    used = pipe.model._prepare_generation_config(None, **kwargs)[0].to_diff_dict()
    if used.get("max_new_tokens") is not None:
        used.pop("max_length", None)  # the other one counts
    usual = {**GenerationConfig()._get_default_generation_params(), "use_cache": True}
    always = ("num_beams", "max_length", "min_length", "length_penalty")
    no_part = ("_from_model_config", "transformers_version", "output_attentions", "output_hidden_states")
    return {
        name: value
        for name, value in used.items()
        if name in always or (name not in no_part and value != usual.get(name))
    }
