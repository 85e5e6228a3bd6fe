"""`swinbert evaluate`."""

import functools
import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli.loading import load_captioner_or_exit
from swinbert.cli.messages import fail, going_on, needs_extra, quiet_libraries, say
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
    Segments,
    Stride,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.training.evaluation.dense import DenseEvaluation
    from swinbert.training.evaluation.scores import Evaluation


_KEPT = "The captions so far are kept, and the same command continues from there."


class Missing(StrEnum):
    zero = "zero"
    drop = "drop"


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
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Reference captions: COCO annotations, or JSON lines; with --dense a file or folder for each annotator.",
    ),
]
# After the first file, `--references` leaves the others to the command.
_FurtherReferences = Annotated[list[Path] | None, typer.Argument(metavar="REFERENCES", hidden=True)]
_Dense = Annotated[
    bool,
    typer.Option(
        "--dense", help="Score captions of parts of videos: ActivityNet's JSON, or rows with `start` and `end`."
    ),
]
_Missing = Annotated[
    Missing | None,
    typer.Option(help="With --dense: videos without predictions score 0 (default), or are left out as in VidChapters."),
]
_Unmatched = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="With --dense: what a prediction without a reference is compared with; default: a word that matches"
        " nothing. 'abc123!@#' gives METEOR as PDVC's script of 2018 does.",
    ),
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
    further_references: _FurtherReferences = None,
    dataset: _Dataset = None,
    model: Model = None,
    split: _Split = "test",
    predictions: _Predictions = None,
    references: _References = None,
    metrics: _Metrics = None,
    output: _Output = None,
    dense: _Dense = False,
    missing: _Missing = None,
    unmatched: _Unmatched = None,
    segments: Segments = None,
    stride: Stride = None,
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
    captioning: dict[str, Any] = {"model": model, "num_beams": beams, "max_length": max_length, "prompt": prompt}
    captioning |= {"num_frames": num_frames, "fps": fps, "load_in": load_in}
    reading = {"batch_size": batch_size, "num_workers": num_workers, "limit": limit}
    cutting = {"segments": segments, "stride": stride}
    unused = {"num_workers": num_workers, "limit": limit, "allow_missing": allow_missing or None}
    _check_usage(dataset, predictions, references, {**captioning, **cutting, "limit": limit})
    sources: list[Any] = [*(references or ()), *(further_references or ())]
    if dense:
        _check_dense_usage(predictions, references, further_references, {**cutting, **unused})
    else:
        _check_not_dense(sources, {"missing": missing, "unmatched": unmatched, **cutting})
    quiet_libraries()
    captioning |= {"device": device, "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
    load = functools.partial(load_captioner_or_exit, **captioning)
    scoring: dict[str, Any] = {"split": split, "metrics": metrics, "folder": output}
    if dense:
        scoring |= {"references": sources or [dataset], "drop_missing": missing == Missing.drop}
        scoring |= {} if unmatched is None else {"unmatched": unmatched}
        films = {"load_captioner": load, "dataset": dataset, "batch_size": batch_size}
        _evaluate_dense(predictions, scoring, films, cutting)
    else:
        scoring |= {"references": sources[0] if sources else None, "allow_missing": allow_missing}
        _evaluate_clips(load, dataset, predictions, scoring, reading)


def _evaluate_clips(
    load: Callable[[], Any],
    dataset: str | None,
    predictions: Path | None,
    scoring: dict[str, Any],
    reading: dict[str, Any],
) -> None:
    with needs_extra("train"):
        from swinbert.training.evaluation import evaluate as evaluation
        from swinbert.training.moving_shapes.scoring import exact_content_scores
    names = scoring["metrics"] = _metric_names(scoring["metrics"])
    scoring["scorers"] = [exact_content_scores]
    try:
        if predictions is not None:
            result = evaluation.evaluate_file(predictions, dataset, **scoring)
        else:
            with going_on(_KEPT):
                result = evaluation.evaluate_split(load, str(dataset), **scoring, **reading)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        fail(str(error))
    _report_evaluation(result)
    if result.missing or set(names or ()) & result.left_out.keys():
        raise typer.Exit(1)


def _metric_names(metrics: str | None) -> list[str] | None:
    from swinbert.training.metrics import metric_name

    return None if metrics is None else [metric_name(name.strip()) for name in metrics.split(",") if name.strip()]


def _evaluate_dense(
    predictions: Path | None, scoring: dict[str, Any], films: dict[str, Any], cutting: dict[str, Any]
) -> None:
    with needs_extra("train"):
        from swinbert.captioning.segments import Segmentation
        from swinbert.training.evaluation.dense import evaluate_dense, evaluate_films
    names = _metric_names(scoring["metrics"])
    scoring["metrics"] = None if names is None else [name.lower() for name in names]
    try:
        if predictions is not None:
            result = evaluate_dense(predictions, **scoring)
        else:
            segments = Segmentation.of(**{name: value for name, value in cutting.items() if value is not None})
            with going_on(_KEPT):
                result = evaluate_films(**films, **scoring, segments=segments)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        fail(str(error))
    _say_left_out(result)
    if result.folder is not None:
        say(f"The scores of each video are in {result.folder / 'scores.json'}.")
    typer.echo(json.dumps(result.summary))
    if result.failed or set(scoring["metrics"] or ()) & result.left_out.keys():
        raise typer.Exit(1)


def _check_usage(
    dataset: str | None, predictions: Path | None, references: list[Path] | None, captioning: dict[str, Any]
) -> None:
    if dataset is None and (predictions is None or not references):
        raise typer.BadParameter("Expected --dataset, or --predictions with --references (or with --dataset).")
    options = {"num_beams": "beams"}
    used = [options.get(name, name.replace("_", "-")) for name, value in captioning.items() if value is not None]
    if predictions is not None and used:
        raise typer.BadParameter(f"--predictions needs no captioning: leave out --{used[0]}.")


def _check_dense_usage(
    predictions: Path | None, references: list[Path] | None, further: list[Path] | None, options: dict[str, Any]
) -> None:
    if predictions is None and options["segments"] is None:
        raise typer.BadParameter("--dense needs --predictions, or --segments to caption the films of --dataset.")
    if options["stride"] is not None and options["segments"] is None:
        raise typer.BadParameter("--stride needs --segments.")
    if used := [name for name in ("num_workers", "limit", "allow_missing") if options[name] is not None]:
        raise typer.BadParameter(f"--{used[0].replace('_', '-')} does not belong to --dense.")
    if further and not references:
        raise typer.BadParameter(f"Unexpected argument {further[0]}: name files of references after --references.")


def _check_not_dense(references: list[Path], options: dict[str, Any]) -> None:
    used = [name for name, value in options.items() if value is not None]
    if used:
        raise typer.BadParameter(f"--{used[0]} belongs to --dense.")
    if len(references) > 1:
        raise typer.BadParameter(f"Expected one file of references, found {references[1]} too: several need --dense.")


def _say_left_out(result: "Evaluation | DenseEvaluation") -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in result.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        say(f"Left out: {', '.join(names)}, {reason.rstrip('.')}.")


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
        _say_left_out(result)
    if result.missing:
        num_clips = len(result.captions) + len(result.missing)
        say(
            f"{len(result.missing)} of {num_clips} clips could not be captioned; scores are of the other"
            f" {len(result.captions)}."
        )
    if result.folder is not None:
        say(f"Predictions and scores are in {result.folder}.")
