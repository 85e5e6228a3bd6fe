"""Commands on saved models: `swinbert info`, `swinbert convert`, `swinbert push`."""

from pathlib import Path
from typing import Annotated

import typer

from swinbert import bundled_model
from swinbert.cli.loading import find_model_or_exit, loading_or_exit
from swinbert.cli.messages import fail, going_on, needs_extra, quiet_libraries, say
from swinbert.cli.options import NewFolder, Revision, TrustRemoteCode


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="ID|DIR",
            help="A folder, a name on the Hub, or moving-shapes; default: moving-shapes, the bundled model.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the sparse mask into this file (PNG); for a folder of `swinbert train`, over the steps too.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """Show a model's configuration, its number of parameters and, for SwinBERT, how sparse its attention mask is."""
    name = find_model_or_exit(bundled_model() if model is None else model)
    quiet_libraries()
    from swinbert.deployment.inspection import describe_model, load_model, mask_picture
    from swinbert.utils.files import write_atomically

    with needs_extra("explain"), loading_or_exit(name):
        loaded = load_model(name, trust_remote_code=trust_remote_code, revision=revision)
        drawn = mask_picture(loaded, Path(name)) if picture is not None else None
    if picture is not None and drawn is not None:
        try:
            write_atomically(picture, drawn)
        except OSError as error:
            fail(f"The picture cannot be written: {error}")
    typer.echo(describe_model(loaded, name), nl=False)


def convert(
    checkpoint: Annotated[Path, typer.Option(metavar="FILE", help="model.bin of SwinBERT, or the weights of a Swin.")],
    output: NewFolder,
    args: Annotated[
        Path | None, typer.Option(metavar="FILE", help="args.json of the training run; default: beside the checkpoint.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Default: beside the checkpoint, or else bert-base-uncased.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Configuration field that the checkpoint does not determine; repeatable."
        ),
    ] = None,
):
    """
    Convert a released checkpoint to a folder that from_pretrained loads.

    Takes SwinBERT captioning models, Video Swin backbones (mmaction, torchvision) and 2D Swin image models (timm),
    which are inflated to video.
    """
    quiet_libraries()
    from swinbert.conversion import ConversionError, parse_overrides
    from swinbert.conversion import convert as convert_checkpoint

    try:
        with going_on(f"{output} is not written: run the same command again."):
            report = convert_checkpoint(
                checkpoint, output, args=args, tokenizer=tokenizer, overrides=parse_overrides(overrides or [])
            )
    except (ConversionError, OSError) as error:
        fail(str(error))
    typer.echo(report)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a SwinBERT model and its processor.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Created if it does not exist; default: main.")
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Push a Space that serves the demo (`swinbert demo`) with the model.")
    ] = False,
):
    """
    Check that a folder is complete and holds no pickle, and upload it to the Hub.

    Only changed files are uploaded, and the same command continues after an interruption. A folder without README.md
    gets a first model card, for you to complete. Prints the URL of the commit, whose hash is for revision=.
    """
    quiet_libraries()
    from swinbert.deployment.hub import PushError
    from swinbert.deployment.hub import push as push_folder
    from swinbert.deployment.spaces import push_space

    wrote_card = False
    rest = f"{folder} was not, or only partly, pushed to {repository}: the same command uploads the rest."
    try:
        with going_on(rest):
            if space:
                commit = push_space(folder, repository, private=private, revision=revision)
            else:
                commit, wrote_card = push_folder(folder, repository, private=private, revision=revision)
    except (PushError, OSError) as error:
        fail(str(error))
    if wrote_card:
        say(f"{folder / 'README.md'} is a first model card: complete it, and push again.")
    typer.echo(commit.commit_url)
