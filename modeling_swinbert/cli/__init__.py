"""The `swinbert` command: one file for each group of commands.

`--help`, `--version` and shell completion import nothing heavy: the files of this folder import torch, transformers and
the rest of the package in the functions that need them.
"""

from typing import Annotated

import typer

from swinbert.cli import bench, bulk, caption, datasets, demo, evaluate, explain, models, train
from swinbert.cli.messages import quiet_imports, stopped_by_signals, write_any_file_name
from swinbert.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"swinbert {__version__}")
        raise typer.Exit()


@app.callback()
def _before_every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Video captioning with SwinBERT: a clip in, an English sentence out."""
    quiet_imports()
    write_any_file_name()


# `--help` lists the commands in this order.
app.command()(caption.caption)
app.command()(bulk.bulk)
app.command()(explain.explain)
app.command()(demo.demo)
app.command()(models.info)
app.command()(models.convert)
app.command("make-shapes")(datasets.make_shapes)
app.command()(datasets.prepare)
app.command()(evaluate.evaluate)
app.command()(datasets.doctor)
# The Trainer's own parser reads the arguments of `train`, and prints its help.
app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(train.train)
app.command()(train.harden)
app.command()(bench.bench)
app.command()(models.push)


def main() -> None:
    """Entry point of the `swinbert` command."""
    with stopped_by_signals():
        app(prog_name="swinbert")
