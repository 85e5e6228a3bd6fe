"""Commands on datasets: `swinbert make-shapes`, `swinbert prepare`, `swinbert doctor`."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from swinbert.cli.loading import find_model_or_exit, loading_or_exit
from swinbert.cli.messages import fail, going_on, needs_extra, quiet_libraries, say


def make_shapes(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must be empty or not exist yet.")],
    train: Annotated[int, typer.Option(min=0, metavar="N", help="Number of training clips.")] = 16000,
    validation: Annotated[int, typer.Option(min=0, metavar="N", help="Number of validation clips.")] = 200,
    test: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Number of test clips, with combinations that no training clip shows."),
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same files.")] = 0,
    world: Annotated[
        str, typer.Option(metavar="NAME", help="shapes; or tiles, with other shapes and words.")
    ] = "shapes",
    kinds: Annotated[
        str, typer.Option(metavar="A,B", help="Kinds of clips: one action, two actions, passing a wall.")
    ] = "solo,sequence,passage",
):
    """Write a VideoFolder of short clips of moving shapes, each with several captions."""
    with needs_extra("train"):
        from swinbert.training import moving_shapes
    try:
        with going_on(f"{output} is not written: run the same command again."):
            folder = moving_shapes.make_shapes(
                output, train=train, validation=validation, test=test, seed=seed, world=world, kinds=kinds.split(",")
            )
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(folder)


def prepare(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="msvd, msrvtt, vatex, youcook2, tvc, activitynet or tsv.")
    ],
    annotations: Annotated[
        list[str], typer.Argument(metavar="ANNOTATION", help="Original annotation files, each FILE or SPLIT=FILE.")
    ],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the videos; TSV files of frames need none.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="New folder of links to the videos; default: metadata.jsonl is written beside them."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out the clips that are missing or unreadable.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Open every video.")] = True,
    untrimmed: Annotated[
        bool,
        typer.Option(
            "--untrimmed", help="Take clips as parts of whole videos, even where there are files of the parts."
        ),
    ] = False,
):
    """Make a training dataset from the annotation files of a benchmark, and report problems."""
    with needs_extra("train"):
        from swinbert.training.prepare import prepare as prepare_dataset

        try:
            report = prepare_dataset(
                benchmark,
                annotations,
                videos=videos,
                output=output,
                allow_missing=allow_missing,
                check=check,
                untrimmed=untrimmed,
            )
        except (ValueError, OSError) as error:
            fail(str(error))
    typer.echo(report)


def doctor(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="Folder, parquet, tar shards or a name on the Hub.")
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="Only these splits; repeatable, or separated by commas.")
    ] = None,
    clips_per_split: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Clips to decode of each split; default: all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for doctor.json and doctor.png (frames with captions), or for findings."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="Count tokens with the tokenizer of this model.")
    ] = None,
    max_caption_length: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Maximum length of a caption in tokens; default: the model's, or 50."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Frames to decode of each clip.")] = 4,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that decode; default: one for each CPU core.")
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test this installation with damaged files instead of a dataset.")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0, metavar="M", help="With --self-test: how long.")] = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="With --self-test: the same seed damages the same files in the same way.")
    ] = 0,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --self-test: damage copies of the videos in this folder too."),
    ] = None,
):
    """
    Find the problems of a dataset before you train on it.

    Finds broken videos, clips outside of their video, empty, long and repeated captions, and clips in two splits. The
    exit code is 1 if a problem would break training.

    With --self-test, damaged videos, models, annotations and command lines, and the answers of a hostile server on this
    machine, must give right results or documented errors. The exit code is 1 if one does not.
    """
    if self_test:
        if dataset is not None:
            raise typer.BadParameter(f"--self-test needs no dataset: leave out {dataset}.")
        _test_installation(minutes, seed, output, clips)
    if dataset is None:
        raise typer.BadParameter("Expected a DATASET, or --self-test.")
    decoding = {"clips_per_split": clips_per_split, "num_frames": frames, "workers": workers, "output": output}
    _examine_or_exit(dataset, splits or [], model, max_caption_length, decoding)


def _examine_or_exit(
    dataset: str, splits: list[str], model: str | None, max_caption_length: int | None, decoding: dict[str, Any]
) -> None:
    """Prints what is wrong with a dataset, and ends the command with the exit code for it."""
    tokenizer, longest = None, 50
    with needs_extra("train"):
        from swinbert.training.data.doctor import examine

        if model is not None:
            name = find_model_or_exit(model)
            quiet_libraries()
            from swinbert.deployment.inspection import tokenizer_and_caption_length

            with loading_or_exit(name):
                tokenizer, longest = tokenizer_and_caption_length(name)
        try:
            report = examine(
                dataset,
                splits=[name for names in splits for name in names.split(",")],
                tokenizer=tokenizer,
                max_caption_length=max_caption_length or longest,
                **decoding,
            )
        except (ValueError, OSError) as error:
            fail(str(error))
    typer.echo(report)
    if not report.complete:
        raise typer.Exit(130)
    if report.breaks_training:
        raise typer.Exit(1)


def _test_installation(minutes: float, seed: int, output: Path | None, clips: Path | None) -> NoReturn:
    with needs_extra("train"):
        from swinbert.endurance import self_test, shown

        try:
            with shown(minutes) as announce:
                result = self_test(minutes, seed, output, clips, announce=announce)
        except (ValueError, OSError) as error:
            fail(str(error))
    typer.echo(result)
    if result.num_findings and output is None:
        say(f"With --output DIR, the same command (--seed {seed}) keeps the files that show the findings.")
    raise typer.Exit(130 if not result.complete else 1 if result.num_findings else 0)
