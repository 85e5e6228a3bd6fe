"""From the name of a model to a captioner on a device, in a data type."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import pipeline

from swinbert import bundled_model
from swinbert.deployment.quantization import computes_in_bfloat16, quantize_linear
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline

# The bundled model's name wherever a model can be named.
BUNDLED_MODEL = "moving-shapes"


class LoadingError(ValueError):
    """A captioner that cannot be loaded: which model or device, why, and what to do."""


def load_captioner(
    model: str,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    **parameters: Any,
) -> VideoCaptioningPipeline:
    """
    A captioner of a SwinBERT or GIT model.

    Args:
        model: a folder, a name on the Hub, or `"moving-shapes"`, the bundled model.
        device: see `choose_device`.
        dtype: see `choose_dtype`.
        trust_remote_code, revision: as for `from_pretrained`.
        parameters: how clips are sampled and captions are searched: see [`VideoCaptioningPipeline`].

    Raises:
        LoadingError: there is no such model, or it cannot be loaded.
        ValueError: `device` or `dtype` cannot be used here.
    """
    name, device = find_model(model), choose_device(device)
    with explained(name):
        captioner = pipeline(
            "video-captioning",
            model=name,
            # Ours, whatever pipeline code the model brings along.
            pipeline_class=VideoCaptioningPipeline,
            device=device,
            dtype=choose_dtype(dtype, device),
            # `None` would ask on the terminal.
            trust_remote_code=trust_remote_code,
            revision=revision,
            **parameters,
        )
        if dtype == "int8":
            quantize_linear(captioner.model)
    captioner.model_revision = _commit(name, revision)
    return captioner


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a model that was just loaded from the Hub; `None` for a folder."""
    if Path(name).exists():
        return None
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision


def find_model(model: str) -> str:
    """
    The folder or the name on the Hub that `model` stands for.

    Raises:
        LoadingError: it can be neither.
    """
    if model == BUNDLED_MODEL and not Path(model).exists():
        model = bundled_model()
        if not Path(model, "config.json").is_file():
            raise LoadingError(f"The bundled model is missing from {model}: install the package again.")
    path = Path(model).expanduser()
    if path.is_file():
        raise LoadingError(
            f"{model} is a file; expected a model folder or a name on the Hub. A released SwinBERT checkpoint becomes a"
            f" folder by `swinbert convert --checkpoint {model} --output DIR`."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadingError(f"{model} is a folder without config.json; expected one of `save_pretrained`.")
        return str(path)
    if model.count("/") > 1 or model.startswith((".", "~", "/")) or os.sep != "/" and os.sep in model:
        raise LoadingError(f"{model}: there is no such folder, and a name on the Hub is OWNER/NAME.")
    return model


def choose_device(name: str | torch.device) -> torch.device:
    """
    `"auto"` is CUDA where there is a device of it, else the CPU.

    Raises:
        ValueError: no such device, or none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"Expected a device of auto, cpu, cuda or cuda:NUMBER, got {name}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadingError(f"The device {name} is not available: this PyTorch sees no CUDA device. Use cpu.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """
    `"auto"` is bfloat16 where the hardware computes in it, else float32; `"int8"` is made from float32.

    Raises:
        ValueError: no such data type.
    """
    types = {"float32": torch.float32, "int8": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    if name not in types:
        raise ValueError(f"Expected the dtype auto, {', '.join(types)}, got {name}.")
    return types[name]


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turns whatever keeps a model from loading into one `LoadingError`."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise LoadingError(f"Cannot use the model {model!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An exception of model loading in one paragraph, with what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # transformers packs the tracebacks of its attempts into one message; the last line is the reason.
    reason = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines[:3])
    if "trust_remote_code" in reason:
        return f"{reason} On the command line that is --trust-remote-code: it runs the code of that repository."
    if isinstance(error, OSError):
        return f"{reason} A name on the Hub needs a network connection or an earlier download; a folder needs neither."
    return reason or type(error).__name__


__all__ = ["BUNDLED_MODEL", "LoadingError", "load_captioner"]
