"""Commands that train a model: `swinbert train`, `swinbert harden`."""

from typing import Annotated

import typer

from swinbert.cli.loading import find_model_or_exit
from swinbert.cli.messages import fail, going_on, needs_extra, quiet_libraries
from swinbert.cli.options import NewFolder


def train(context: typer.Context):
    """Train a model; `swinbert train --help` lists the arguments of transformers' Trainer and ours."""
    with needs_extra("train"):
        from swinbert.training.train import train_or_exit
    train_or_exit(context.args)


def harden(
    model: Annotated[str, typer.Argument(metavar="ID|DIR", help="SwinBERT with a soft sparse mask.")],
    output: NewFolder,
    threshold: Annotated[
        float, typer.Option(metavar="M", help="Keep the entries of the mask that are at least this large.")
    ] = 0.5,
):
    """Make a soft sparse mask binary; train for some more steps afterwards (`swinbert train --model DIR`)."""
    quiet_libraries()
    with needs_extra("train"):
        from swinbert.training.hardening import harden as harden_model
    try:
        with going_on(f"{output} is not written: run the same command again."):
            report = harden_model(find_model_or_exit(model), output, threshold)
    except (ValueError, OSError) as error:
        fail(str(error))
    typer.echo(report)
