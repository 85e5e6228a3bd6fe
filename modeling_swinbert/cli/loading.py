"""From the arguments of a command to clips, a device, a data type and a pipeline."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from swinbert import bundled_model
from swinbert.cli.messages import fail, quiet_libraries, say
from swinbert.cli.options import CaptionDType, DType

if TYPE_CHECKING:
    import torch

BUNDLED_MODEL_NOTICE = (
    "No --model was given: using the bundled demo, which knows moving shapes and nothing else. For real clips name a"
    " GIT checkpoint of the Hub (--model microsoft/git-base-vatex), or a SwinBERT checkpoint that you hold, after"
    " `swinbert convert`."
)


def expand(arguments: Iterable[str], from_stdin: bool = False) -> Iterator[tuple[str, str | None]]:
    """(clip, `None` or why it is none) for all that the arguments name, in their order; folders and globs sorted."""
    from swinbert.processing import VIDEO_SUFFIXES

    def is_video(path: Path) -> bool:
        return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()

    for argument in arguments:
        path = Path(argument)
        if argument == "-" and not from_stdin:
            yield from expand((line.strip() for line in sys.stdin if line.strip()), from_stdin=True)
        elif "://" in argument or path.is_file():
            yield argument, None
        elif path.is_dir():
            inside = [str(file) for file in sorted(path.rglob("*")) if is_video(file)]
            yield from ((file, None) for file in inside)
            if not inside:
                yield argument, f"no video in this folder; looked for {' '.join(sorted(VIDEO_SUFFIXES))}"
        elif glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            yield from expand(matches, from_stdin=True)
            if not matches:
                yield argument, "no file matches this pattern"
        else:
            yield argument, "there is no such file"


def load_pipeline(
    model: str | None,
    *,
    device: "torch.device",
    dtype: DType | CaptionDType,
    trust_remote_code: bool,
    revision: str | None,
    **parameters,
):
    """A `VideoCaptioningPipeline`; what keeps it from loading ends the command with one message."""
    if model is None:
        model = bundled_model()
        if not Path(model, "config.json").is_file():
            fail(f"The bundled checkpoint is missing from {model}: install the package again, or name a --model.")
        say(BUNDLED_MODEL_NOTICE)
    model = model_folder_or_name(model)
    quiet_libraries()
    from transformers import pipeline

    from swinbert.deployment.quantization import quantize_linear
    from swinbert.processing import VideoCaptioningPipeline

    with unusable_model(model):
        pipe = pipeline(
            "video-captioning",
            model=model,
            # Ours, whatever pipeline code the model brings along.
            pipeline_class=VideoCaptioningPipeline,
            device=device,
            dtype=torch_dtype(dtype, device),
            # `None` would ask on the terminal.
            trust_remote_code=trust_remote_code,
            revision=revision,
            **parameters,
        )
        if dtype is CaptionDType.int8:
            quantize_linear(pipe.model)
        return pipe


def model_folder_or_name(model: str) -> str:
    path = Path(model).expanduser()
    if path.is_file():
        fail(
            f"--model {model} is a file; expected a model folder or a name on the Hub. A released SwinBERT checkpoint"
            f" becomes a folder by `swinbert convert --checkpoint {model} --output DIR`."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            fail(f"--model {model} is a folder without config.json; expected one that `save_pretrained` wrote.")
        return str(path)
    if model.count("/") > 1 or model.startswith((".", "~", "/")) or os.sep != "/" and os.sep in model:
        fail(f"--model {model}: no such folder, and not a name on the Hub, which is OWNER/NAME.")
    return model


def choose_device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"--device {name}: expected auto, cpu, cuda or cuda:NUMBER.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        fail(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu.")
    return device


def torch_dtype(dtype: DType | CaptionDType, device: "torch.device") -> "torch.dtype":
    import torch

    from swinbert.deployment.quantization import computes_in_bfloat16

    if dtype is CaptionDType.int8:
        return torch.float32  # from which it is made
    if dtype.value != "auto":
        return getattr(torch, dtype.value)
    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


@contextmanager
def unusable_model(model: str) -> Iterator[None]:
    """Ends the command with one message, whatever keeps a model from loading."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        fail(f"Cannot use the model {model!r}: {_explain(error)}")


def _explain(error: Exception) -> str:
    """An exception of model loading in one paragraph, with what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # transformers packs the tracebacks of its attempts into one message; the last line is the reason.
    reason = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines[:3])
    if "trust_remote_code" in reason:
        return f"{reason} Here that is --trust-remote-code: it runs the code of that repository."
    if isinstance(error, OSError):
        return f"{reason} A name on the Hub needs a network connection or an earlier download; a folder needs neither."
    return reason or type(error).__name__
