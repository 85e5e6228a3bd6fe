"""Loading for commands: what keeps a model from loading ends the command with one message."""

import functools
import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from swinbert.cli.messages import fail, quiet_libraries, say
from swinbert.utils.memory import share_one_heap

if TYPE_CHECKING:
    import torch

    from swinbert.captioning.isolation import IsolatedReader
    from swinbert.processing import VideoCaptioningPipeline


@functools.cache
def import_captioning() -> None:
    """
    Imports what captioning needs, without garbage collection. The libraries are 700,000 objects, which stay
    until the process ends: to look through them again and again, and once more at the end, would take as long as half
    of the imports. The heap is shared first, since the imports start threads.
    """
    share_one_heap()
    gc.disable()
    try:
        from swinbert.captioning import labelling, loading  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def loading_or_exit(model: str | None = None) -> Iterator[None]:
    """
    For code that loads something: of `model`, whatever the error, or by functions of `swinbert.captioning.loading`,
    whose `ValueError`s are about arguments.
    """
    from swinbert.captioning.loading import LoadingError, explained

    try:
        with nullcontext() if model is None else explained(model):
            yield
    except LoadingError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def load_captioner_or_exit(model: str | None, **options: Any) -> "VideoCaptioningPipeline":
    """`load_captioner` with the options of a command; those that are `None` are left out. Downloads are announced."""
    num_frames, fps = options.get("num_frames"), options.get("fps")
    if num_frames is not None and fps is not None:
        raise typer.BadParameter(f"Expected one of --num-frames {num_frames} and --fps {fps:g}, got both.")
    import_captioning()
    quiet_libraries()
    from swinbert.captioning.loading import DEFAULT_MODEL, load_captioner

    def announce(name: str, num_bytes: int) -> None:
        chosen = "" if model is not None else "No --model was given: "
        say(f"{chosen}{'d' if chosen else 'D'}ownloading {name} ({num_bytes / 1e6:,.0f} MB) from the Hub.")

    given = {option: value for option, value in options.items() if value is not None}
    with loading_or_exit():
        return load_captioner(DEFAULT_MODEL if model is None else model, announce=announce, **given)


def find_model_or_exit(model: str) -> str:
    """The folder or the name on the Hub that `model` stands for."""
    from swinbert.captioning.loading import find_model

    with loading_or_exit():
        return find_model(model)


def choose_device_or_exit(name: str) -> "torch.device":
    from swinbert.captioning.loading import choose_device

    with loading_or_exit():
        return choose_device(name)


def isolation_if(isolate: bool) -> "AbstractContextManager[IsolatedReader | None]":
    """What decodes in processes of its own, or nothing."""
    if not isolate:
        return nullcontext()
    from swinbert.captioning.isolation import IsolatedReader

    return IsolatedReader()
