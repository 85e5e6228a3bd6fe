"""Loading for commands: what keeps a model from loading ends the command with one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from swinbert.cli.messages import fail, quiet_libraries, say

if TYPE_CHECKING:
    import torch

    from swinbert.processing import VideoCaptioningPipeline


def load_captioner_or_exit(model: str | None, **options: Any) -> "VideoCaptioningPipeline":
    """`load_captioner` with the options of a command; those that are `None` are left out. Downloads are announced."""
    num_frames, fps = options.get("num_frames"), options.get("fps")
    if num_frames is not None and fps is not None:
        raise typer.BadParameter(f"Expected one of --num-frames {num_frames} and --fps {fps:g}, got both.")
    quiet_libraries()
    from swinbert.captioning.loading import DEFAULT_MODEL, LoadingError, download_size, find_model, load_captioner

    try:
        name = find_model(DEFAULT_MODEL if model is None else model)
        if (size := download_size(name, options.get("revision"))) is not None:
            chosen = "" if model is not None else "No --model was given: "
            say(f"{chosen}{'d' if chosen else 'D'}ownloading {name} ({size / 1e6:,.0f} MB) from the Hub.")
        return load_captioner(name, **{option: value for option, value in options.items() if value is not None})
    except LoadingError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def find_model_or_exit(model: str) -> str:
    """The folder or the name on the Hub that `model` stands for."""
    from swinbert.captioning.loading import LoadingError, find_model

    try:
        return find_model(model)
    except LoadingError as error:
        fail(str(error))


def choose_device_or_exit(name: str) -> "torch.device":
    from swinbert.captioning.loading import LoadingError, choose_device

    try:
        return choose_device(name)
    except LoadingError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def loading_or_exit(model: str) -> Iterator[None]:
    """For code that loads something of a model."""
    from swinbert.captioning.loading import LoadingError, explained

    try:
        with explained(model):
            yield
    except LoadingError as error:
        fail(str(error))
