"""Loading for commands: what keeps a model from loading ends the command with one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from swinbert.cli.messages import fail, quiet_libraries, say

if TYPE_CHECKING:
    import torch

    from swinbert.processing import VideoCaptioningPipeline

BUNDLED_MODEL_NOTICE = (
    "No --model was given: using the bundled demo, which knows moving shapes and nothing else. For real clips name a"
    " GIT checkpoint of the Hub (--model microsoft/git-base-vatex), or a SwinBERT checkpoint that you have, after"
    " `swinbert convert`."
)


def load_captioner_or_exit(model: str | None, **options: Any) -> "VideoCaptioningPipeline":
    """`load_captioner` with the options of a command; those that are `None` are left out."""
    quiet_libraries()
    from swinbert.captioning.loading import BUNDLED_MODEL, LoadingError, load_captioner

    if model is None:
        model = BUNDLED_MODEL
        say(BUNDLED_MODEL_NOTICE)
    try:
        return load_captioner(model, **{name: value for name, value in options.items() if value is not None})
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
