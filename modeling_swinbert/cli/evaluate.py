"""`swinbert evaluate`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli import loading
from swinbert.cli.messages import fail, needs_extra, quiet_libraries, say
from swinbert.cli.options import (
    Beams,
    ComputeDType,
    Device,
    DType,
    MaxLength,
    Model,
    NumFrames,
    Revision,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.training.evaluation.evaluate import Evaluation


def evaluate(
    dataset: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Clips, with captions unless --references has them.")
    ] = None,
    model: Model = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split of the dataset, and of the JSON lines that name their split.")
    ] = "test",
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score these captions: COCO results, or JSON lines.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reference captions: COCO annotations, or JSON lines.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Metrics, separated by commas; default: all but SPICE.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the results; default: one in outputs/evaluation for these settings."
        ),
    ] = None,
    beams: Beams = None,
    max_length: MaxLength = None,
    num_frames: NumFrames = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Evaluate only the first N clips.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score the other clips where clips with references are missing.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Clips in one forward pass.")] = 8,
    num_workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that decode; default: up to four.")
    ] = None,
    device: Device = "auto",
    dtype: ComputeDType = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
) -> dict[str, Any]:
    """
    Caption the clips of a split and score the captions, or score a file of captions.

    Predictions are written line by line; after an interruption, the same command continues. The scores are printed as
    one line of JSON, and written to the output folder together with the settings that they depend on. A clip that
    cannot be read is reported, the other clips are captioned, and the exit code is 1.
    """
    if dataset is None and (predictions is None or references is None):
        raise typer.BadParameter("Expected --dataset, or --predictions with --references (or with --dataset).")
    of_captioning = {"model": model, "beams": beams, "max-length": max_length, "num-frames": num_frames, "limit": limit}
    if predictions is not None and (given := [name for name, value in of_captioning.items() if value is not None]):
        raise typer.BadParameter(f"--predictions is scored as it is: leave out --{given[0]}.")
    quiet_libraries()
    with needs_extra("train"):
        from swinbert.training.evaluation import evaluate as evaluation
    try:
        asked = None if metrics is None else metrics.split(",")
        evaluation.choose_metrics(asked)  # before a model is loaded
        if predictions is not None:
            if references is None:
                wanted = evaluation.load_evaluation_clips(str(dataset), split).references
            else:
                wanted = evaluation.read_references(references, split)
            if wanted is None:
                raise ValueError(f"{dataset} has no captions in split {split!r}: name a file of --references.")
            result = evaluation.evaluate_predictions(
                predictions,
                wanted,
                output,
                references_from=str(references or f"{dataset}, split {split!r}"),
                metrics=asked,
                allow_missing=allow_missing,
            )
        else:
            clips = evaluation.load_evaluation_clips(
                str(dataset), split, references, limit=limit, allow_missing=allow_missing
            )
            generation = {"num_beams": beams, "max_length": max_length}
            pipe = loading.load_pipeline(
                model,
                device=loading.choose_device(device),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                revision=revision,
                num_frames=num_frames,
                **{name: value for name, value in generation.items() if value is not None},
            )
            result = evaluation.evaluate(
                pipe,
                clips,
                output,
                metrics=asked,
                batch_size=batch_size,
                num_workers=min(4, (os.cpu_count() or 1) - 1) if num_workers is None else num_workers,
                revision=revision,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        fail(str(error))
    _report_evaluation(result)
    typer.echo(json.dumps(result.summary))
    if result.missing or set(asked or ()) & result.left_out.keys():
        raise typer.Exit(1)
    return result.summary


def _report_evaluation(result: "Evaluation") -> None:
    """Says on stderr what the scores do not show."""
    if "exact" in result.summary and result.references is not None:
        from swinbert.training.evaluation.evaluate import exact_content

        for name, caption in result.captions.items():
            reference = result.references[name][0]
            if exact_content([caption], [reference]) == [False]:
                print(f"{name}\n  generated: {caption}\n  reference: {reference}", file=sys.stderr)
    if len(result.captions) > 3 and len(set(result.captions.values())) == 1:
        say(f"All clips have one and the same caption, {next(iter(result.captions.values()))!r}.")
    if result.references is None:
        say("These clips have no captions to compare with: predictions, and no scores.")
    else:
        for name, reason in result.left_out.items():
            say(f"Left out: {name}, {reason}.")
    if result.missing:
        num_clips = len(result.captions) + len(result.missing)
        say(
            f"{len(result.missing)} of {num_clips} clips have no caption; scores are of the other"
            f" {len(result.captions)}."
        )
    if result.folder is not None:
        say(f"Predictions and scores are in {result.folder}.")
