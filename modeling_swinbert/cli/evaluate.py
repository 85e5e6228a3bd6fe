"""`swinbert evaluate`."""

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli.loading import load_captioner_or_exit
from swinbert.cli.messages import fail, needs_extra, quiet_libraries, say
from swinbert.cli.options import (
    Beams,
    ComputeDType,
    Device,
    DType,
    FramesPerSecond,
    LoadIn,
    MaxLength,
    Model,
    NumFrames,
    Prompt,
    Revision,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.training.evaluation.scores import Evaluation

_Dataset = Annotated[
    str | None, typer.Option(metavar="DIR|ID", help="Clips, with captions unless --references has them.")
]
_Split = Annotated[
    str, typer.Option(metavar="NAME", help="Split of the dataset, and of the JSON lines that name their split.")
]
_Predictions = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Score these captions: COCO results, or JSON lines.")
]
_References = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Reference captions: COCO annotations, or JSON lines.")
]
_Metrics = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Metrics, separated by commas; default: all but SPICE.")
]
_Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for the results; default: one in outputs/evaluation for these settings."),
]
_Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Evaluate only the first N clips.")]
_AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Score the other clips where clips with references are missing.")
]
_BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Clips in one forward pass.")]
_NumWorkers = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Processes that decode; default: up to four.")
]


def evaluate(
    dataset: _Dataset = None,
    model: Model = None,
    split: _Split = "test",
    predictions: _Predictions = None,
    references: _References = None,
    metrics: _Metrics = None,
    output: _Output = None,
    beams: Beams = None,
    max_length: MaxLength = None,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    prompt: Prompt = None,
    load_in: LoadIn = None,
    limit: _Limit = None,
    allow_missing: _AllowMissing = False,
    batch_size: _BatchSize = 8,
    num_workers: _NumWorkers = None,
    device: Device = "auto",
    dtype: ComputeDType = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Caption the clips of a split and score the captions, or score a file of captions.

    Predictions are written line by line; after an interruption, the same command continues. The scores are printed as
    one line of JSON, and written to the output folder with the settings that they depend on. A clip that cannot be
    read is reported, the others are captioned, and the exit code is 1.
    """
    captioning: dict[str, Any] = {
        "model": model,
        "num_beams": beams,
        "max_length": max_length,
        "num_frames": num_frames,
        "fps": fps,
        "prompt": prompt,
        "load_in": load_in,
    }
    _check_usage(dataset, predictions, references, {**captioning, "limit": limit})
    loading: dict[str, Any] = {"device": device, "revision": revision, "trust_remote_code": trust_remote_code}
    quiet_libraries()
    with needs_extra("train"):
        from swinbert.training.evaluation import evaluate as evaluation
        from swinbert.training.metrics import metric_name
        from swinbert.training.moving_shapes.scoring import exact_content_scores
    names = None if metrics is None else [metric_name(name) for name in metrics.split(",") if name.strip()]
    scoring: dict[str, Any] = {"metrics": names, "scorers": [exact_content_scores], "allow_missing": allow_missing}
    try:
        if predictions is not None:
            result = evaluation.evaluate_file(predictions, dataset, split, references, output, **scoring)
        else:
            load = functools.partial(load_captioner_or_exit, **captioning, **loading, dtype=dtype)
            reading: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "num_workers": num_workers}
            result = evaluation.evaluate_split(load, str(dataset), split, references, output, **reading, **scoring)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        fail(str(error))
    _report_evaluation(result)
    if result.missing or set(names or ()) & result.left_out.keys():
        raise typer.Exit(1)


def _check_usage(
    dataset: str | None, predictions: Path | None, references: Path | None, captioning: dict[str, Any]
) -> None:
    if dataset is None and (predictions is None or references is None):
        raise typer.BadParameter("Expected --dataset, or --predictions with --references (or with --dataset).")
    options = {"num_beams": "beams"}
    used = [options.get(name, name.replace("_", "-")) for name, value in captioning.items() if value is not None]
    if predictions is not None and used:
        raise typer.BadParameter(f"--predictions needs no captioning: leave out --{used[0]}.")


def _report_evaluation(result: "Evaluation") -> None:
    """Prints the scores on stdout, and says on stderr what they do not show."""
    typer.echo(json.dumps(result.summary))
    if "exact" in result.summary and result.references is not None:
        from swinbert.training.moving_shapes.scoring import exact_content

        for name, caption in result.captions.items():
            reference = result.references[name][0]
            if exact_content([caption], [reference]) == [False]:
                print(f"{name}\n  generated: {caption}\n  reference: {reference}", file=sys.stderr)
    if len(result.captions) > 3 and len(set(result.captions.values())) == 1:
        say(f"All clips have one and the same caption, {next(iter(result.captions.values()))!r}.")
    if result.references is None:
        say("These clips have no reference captions: there are predictions, but no scores.")
    else:
        for name, reason in result.left_out.items():
            say(f"Left out: {name}, {reason}.")
    if result.missing:
        num_clips = len(result.captions) + len(result.missing)
        say(
            f"{len(result.missing)} of {num_clips} clips could not be captioned; scores are of the other"
            f" {len(result.captions)}."
        )
    if result.folder is not None:
        say(f"Predictions and scores are in {result.folder}.")
