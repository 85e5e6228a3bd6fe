"""From the name of a model to a captioner on a device, in a data type."""

import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from transformers import BitsAndBytesConfig, TorchAoConfig, pipeline

from swinbert import bundled_model
from swinbert.deployment.quantization import computes_in_bfloat16, quantize_linear
from swinbert.processing.pipeline_swinbert import DEFAULT_MODEL, VideoCaptioningPipeline

# The bundled model's name wherever a model can be named.
BUNDLED_MODEL = "moving-shapes"
# Of weights in float32; SwinBERT base and GIT base are larger.
_SMALL_MODEL_BYTES = 256 << 20
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class LoadingError(ValueError):
    """A captioner that cannot be loaded: which model or device, why, and what to do."""


def load_captioner(
    model: str = DEFAULT_MODEL,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    load_in: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    announce: Callable[[str, int], Any] | None = None,
    **parameters: Any,
) -> VideoCaptioningPipeline:
    """
    A captioner of a SwinBERT or GIT model, or of a chat model that watches videos.

    Args:
        model: a folder, a name on the Hub, or `"moving-shapes"`, the bundled model.
        device: see `choose_device`.
        dtype: see `choose_dtype`.
        load_in: `"8bit"` or `"4bit"` for weights of so many bits, which take a half or a quarter of the memory of
            bfloat16; needs the extra `quantization`.
        trust_remote_code, revision: as for `from_pretrained`.
        announce: called before a model is downloaded from the Hub, with its name and size in bytes.
        parameters: how clips are sampled and captions are searched: see [`VideoCaptioningPipeline`].

    Raises:
        LoadingError: there is no such model, or it cannot be loaded.
        ValueError: `device`, `dtype` or `load_in` cannot be used here.
    """
    name, device = find_model(model), choose_device(device)
    if load_in is not None and dtype == "int8":
        raise ValueError(f"The dtype int8 and load_in={load_in!r} are two ways to quantise: choose one.")
    compute_dtype = choose_dtype(dtype, device, _weight_bytes(name))
    if load_in is not None:
        parameters["model_kwargs"] = {"quantization_config": _quantization(load_in, device, compute_dtype)}
        # A quantised model cannot be moved to a device after loading.
        parameters["device_map"] = device
    else:
        parameters["device"] = device
    if name == DEFAULT_MODEL or announce is not None:
        num_bytes = download_size(name, revision)
        if num_bytes is not None and announce is not None:
            announce(name, num_bytes)
    with explained(name):
        captioner = pipeline(
            "video-captioning",
            model=name,
            # Ours, whatever pipeline code the model brings along.
            pipeline_class=VideoCaptioningPipeline,
            dtype=compute_dtype,
            # `None` would ask on the terminal.
            trust_remote_code=trust_remote_code,
            revision=revision,
            **parameters,
        )
        if dtype == "int8":
            quantize_linear(captioner.model)
    captioner.model_revision = _commit(name, revision)
    captioner.load_in = None if load_in is None else str(load_in)
    return captioner


def _quantization(load_in: str, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    """
    How to quantise weights at loading: in 8 bits by torchao on a CPU, otherwise by bitsandbytes.

    Raises:
        LoadingError: the library is not installed.
        ValueError: no such number of bits.
    """
    if load_in not in ("8bit", "4bit"):
        raise ValueError(f"Expected 8bit or 4bit as `load_in`, got {load_in}.")
    library = "torchao" if load_in == "8bit" and device.type == "cpu" else "bitsandbytes"
    if find_spec(library) is None:
        raise LoadingError(
            f"Weights of {load_in} need {library}, which is not installed: pip install 'swinbert[quantization]'."
        )
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def is_cached(model: str, revision: str | None = None) -> bool:
    """Whether loading a model downloads no weights: a folder, or a name whose weights are in the Hub's cache."""
    if Path(model).exists():
        return True
    try:
        return any(isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in _WEIGHTS)
    except ValueError:  # not the name of a repository
        return False


def download_size(model: str = DEFAULT_MODEL, revision: str | None = None) -> int | None:
    """
    Bytes that loading a model downloads from the Hub; `None` if it is there already, or the Hub does not tell.

    Raises:
        LoadingError: the default model is not in the cache, and the Hub does not answer. Loading would retry each of
            its files for half a minute.
    """
    if is_cached(model, revision):
        return None
    try:
        files = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=10).siblings or []
    except Exception as error:
        if model != DEFAULT_MODEL or isinstance(error, HfHubHTTPError):
            return None  # loading says what is wrong
        raise LoadingError(
            f"The default model, {DEFAULT_MODEL} of the Hub, is not in the cache, and the Hub does not answer. Connect"
            " to the network, name the folder of a model (--model DIR; in Python, model=DIR), or use the bundled model,"
            f" which captions moving shapes only (--model {BUNDLED_MODEL}; in Python, model=swinbert.bundled_model())."
        ) from error
    names = {file.rfilename for file in files}
    weights = "*.safetensors" if fnmatch.filter(names, "*.safetensors") else "*.bin"
    loaded = [
        file
        for file in files
        if "/" not in file.rfilename
        and any(fnmatch.fnmatch(file.rfilename, each) for each in (weights, "*.json", "*.txt", "*.model", "*.jinja"))
    ]
    return sum(file.size or 0 for file in loaded)


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


def _weight_bytes(folder: str) -> int | None:
    """Bytes of a model's weights; `None` if it is not in a folder."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) or None


def choose_dtype(name: str, device: torch.device, weight_bytes: int | None = None) -> torch.dtype:
    """
    `"auto"` is bfloat16 where the hardware computes in it, else float32; `"int8"` is made from float32.

    On a CPU, `"auto"` is float32 for small models: they gain little, and in bfloat16 rounding, which depends on the
    batch, changes a caption now and then.

    Args:
        weight_bytes: size of the model's weights, if known.

    Raises:
        ValueError: no such data type.
    """
    types = {"float32": torch.float32, "int8": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        is_small = device.type == "cpu" and weight_bytes is not None and weight_bytes < _SMALL_MODEL_BYTES
        return torch.bfloat16 if computes_in_bfloat16(device) and not is_small else torch.float32
    if name not in types:
        raise ValueError(f"Expected the dtype auto, {', '.join(types)}, got {name}.")
    return types[name]


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turns whatever keeps a model from loading into one `LoadingError`."""
    try:
        yield
    except LoadingError:
        raise
    except Exception as error:  # of damaged files, the libraries raise whatever happens to go wrong
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


__all__ = ["BUNDLED_MODEL", "DEFAULT_MODEL", "LoadingError", "download_size", "find_model", "load_captioner"]
