"""`swinbert evaluate --dense`: captions the films of a split, and scores captions of parts of videos."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinbert.captioning import Clip, captions
from swinbert.captioning.labelling import Destination, Labelling
from swinbert.captioning.segments import Segmentation
from swinbert.captioning.writers import check_video_ids
from swinbert.processing import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import describe_source
from swinbert.training.data.sources import clip_source, load_clips
from swinbert.training.evaluation.dense_files import read_dense_predictions, read_dense_references
from swinbert.training.evaluation.evaluate import default_folder
from swinbert.training.evaluation.scores import METRIC_TOKENIZER
from swinbert.training.metrics import MissingTool, check_tools
from swinbert.training.metrics.dense import DENSE_METRICS, UNMATCHED, DenseScores, Events, dense_score
from swinbert.training.prepare.videos import stem
from swinbert.utils.files import write_json
from swinbert.utils.text import first_names

_JAVA_METRICS = ("meteor", "soda_c")


@dataclass
class DenseEvaluation:
    """
    Scores of dense captions.

    Args:
        summary: numbers of videos, events and annotators, and scores: means over the thresholds, and under `tIoU` those
            of each threshold.
        videos: the scores of each video, see [`DenseScores`].
        missing: videos with references, but without predictions.
        left_out: metric -> why it was not computed.
        folder: where `scores.json` is.
        failed: films and segments that could not be captioned.
    """

    summary: dict[str, Any]
    videos: dict[str, dict[str, Any]]
    missing: list[str]
    left_out: dict[str, str]
    folder: Path | None = None
    failed: set[str] = field(default_factory=set)


def evaluate_dense(
    predictions: str | Path,
    references: Sequence[str | Path],
    folder: Path | None = None,
    *,
    split: str | None = None,
    metrics: Iterable[str] | None = None,
    drop_missing: bool = False,
    unmatched: str = UNMATCHED,
) -> DenseEvaluation:
    """
    Scores a file of predictions by [`dense_score`]; a warning names the videos that only one side has.

    Args:
        predictions: see `read_dense_predictions`.
        references, split: see `read_dense_references`.
        folder: gets `scores.json`, with the scores of each video and all that decides them.
        metrics: some of `DENSE_METRICS`; by default all that can be computed here.
        drop_missing, unmatched: see [`dense_score`].

    Raises:
        ValueError: something is wrong with a file, no video is in both, or a metric is unknown.
        FileNotFoundError: no such file.
        MissingTool: METEOR or SODA_c is asked for, and something that it needs is not installed.
    """
    chosen, left_out = choose_dense_metrics(metrics)
    found, annotators = read_dense_predictions(predictions), read_dense_references(references, split)
    missing = _check_names(found, list(annotators.values()), str(predictions), drop_missing)
    options: dict[str, Any] = {"drop_missing": drop_missing, "unmatched": unmatched}
    scores, failed = _scores(found, list(annotators.values()), chosen, options)
    left_out |= failed
    names = scores["videos"].keys()
    summary = {
        "videos": len(names),
        "missing": len(missing),
        "predictions": sum(len(found.get(name, ())) for name in names),
        "references": sum(len(events.get(name, ())) for events in annotators.values() for name in names),
        "annotators": len(annotators),
        **scores["mean"],
        "tIoU": scores["tIoU"],
    }
    if folder is not None:
        settings = {
            "predictions": {"name": str(predictions), "sha256": _digest(sorted(found.items()))},
            "references": {name: _digest(sorted(events.items())) for name, events in annotators.items()},
            **options,
            "metric_tokenizer": METRIC_TOKENIZER,
            **_made_with(Path(predictions)),
        }
        folder.mkdir(parents=True, exist_ok=True)
        record = {"videos": scores["videos"], "missing_videos": missing, "left_out": left_out, "settings": settings}
        write_json(folder / "scores.json", {"summary": summary, **record})
    return DenseEvaluation(summary, scores["videos"], missing, left_out, folder)


def evaluate_films(
    load_captioner: Callable[[], VideoCaptioningPipeline],
    dataset: str,
    split: str,
    segments: Segmentation,
    references: Sequence[str | Path] = (),
    folder: Path | None = None,
    *,
    batch_size: int = 8,
    metrics: Iterable[str] | None = None,
    **scoring: Any,
) -> DenseEvaluation:
    """
    Captions the segments of each film of a split, without sampling, into `predictions.jsonl`, and scores them by
    `evaluate_dense`. Neighbours with the same caption become one. A call with the same settings continues an
    interrupted one. A film that cannot be captioned scores 0, and a warning says why.

    Args:
        load_captioner: called once films, references and metrics are known to be usable.
        dataset, split: see `load_clips`.
        references: by default the rows of the split.
        folder: by default one in `outputs/evaluation/`, named after model, data and settings.
        batch_size: segments in one forward pass.
        metrics, scoring: see `evaluate_dense`.

    Raises:
        ValueError: videos are not files of their own; `folder` belongs to a run with other settings; see
            `evaluate_dense`.
        OSError: no such dataset; a file cannot be written.
    """
    references = references or [dataset]
    choose_dense_metrics(metrics)
    read_dense_references(references, split)
    sources = [clip_source(row) for row in load_clips(dataset, split, need_captions=False)]
    if strange := [source for source in sources if not isinstance(source, str)]:
        raise ValueError(f"{dataset}: expected films in files of their own, found {describe_source(strange[0])}.")
    films = [Clip(source) for source in dict.fromkeys(sources)]
    check_video_ids(film.name for film in films)
    captioner = load_captioner()
    if folder is None:
        settings = captions((), captioner, segments=segments, do_sample=False).settings
        folder = default_folder({"dataset": {"name": dataset, "split": split}, **settings})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "predictions.jsonl"
    labelling = Labelling(films, Destination("jsonl", file), report=warnings.warn, segments=segments)
    summary = labelling.run(captioner, batch_size=batch_size, do_sample=False)
    result = evaluate_dense(file, references, folder, split=split, metrics=metrics, **scoring)
    result.failed |= summary.failed
    return result


def choose_dense_metrics(metrics: Iterable[str] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """
    The metrics to compute, by default all that can be computed here, and why the others are left out.

    Raises:
        ValueError: an unknown metric.
        MissingTool: METEOR or SODA_c is asked for by name, and something that it needs is not installed.
    """
    chosen = DENSE_METRICS if metrics is None else tuple(dict.fromkeys(metrics))
    if not chosen or set(chosen) - set(DENSE_METRICS):
        unknown = first_names([name for name in chosen if name not in DENSE_METRICS]) or "none"
        raise ValueError(f"Expected some of the metrics {', '.join(DENSE_METRICS)}, found {unknown}.")
    left_out = {name: "not asked for" for name in DENSE_METRICS if name not in chosen}
    try:
        check_tools(["meteor"] if set(_JAVA_METRICS) & set(chosen) else [])
    except MissingTool as error:
        if metrics is not None:
            raise
        return _without_java(chosen), dict.fromkeys(_JAVA_METRICS, str(error))
    return chosen, left_out


def _without_java(metrics: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in metrics if name not in _JAVA_METRICS)


def _scores(
    predictions: Events, references: Sequence[Events], metrics: Sequence[str], options: dict[str, Any]
) -> tuple[DenseScores, dict[str, str]]:
    """The scores, and why some metrics are missing: a failing Java program does not affect the others."""
    try:
        return dense_score(predictions, references, metrics, **options), {}
    except RuntimeError as error:
        failed = {name: str(error) for name in _JAVA_METRICS if name in metrics}
        return dense_score(predictions, references, _without_java(metrics), **options), failed


def _check_names(predictions: Events, references: Sequence[Events], file: str, drop_missing: bool) -> list[str]:
    """
    Warns of videos that only one side has.

    Returns:
        The videos without predictions.

    Raises:
        ValueError: no video is on both sides.
    """
    names = dict.fromkeys(name for events in references for name in events)
    unknown = [name for name in predictions if name not in names]
    missing = [name for name in names if name not in predictions]
    hint = _hint(unknown, missing)
    if len(missing) == len(names):
        raise ValueError(
            f"{file}: expected predictions for videos with references, such as {first_names(list(names), 3)}; found"
            f" {first_names(unknown, 3)}.{hint}"
        )
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(predictions)} videos with predictions have no references, and are not scored:"
            f" {first_names(unknown)}.{hint}",
            stacklevel=3,
        )
    if missing:
        treated = "are left out" if drop_missing else "score 0"
        warnings.warn(
            f"{len(missing)} of {len(names)} videos with references have no predictions, and {treated}:"
            f" {first_names(missing)}.",
            stacklevel=3,
        )
    return missing


def _hint(unknown: Sequence[str], missing: Sequence[str]) -> str:
    """What to do about names that differ in a prefix `v_`, a suffix or case alone."""
    plain = {_plain(name): name for name in missing}
    alike = next(((name, plain[_plain(name)]) for name in unknown if _plain(name) in plain), None)
    return f" {alike[0]} may be {alike[1]}: rename the videos of one file." if alike else ""


def _plain(name: str) -> str:
    return stem(name).lower().removeprefix("v_")


def _made_with(predictions: Path) -> dict[str, Any]:
    """The settings that predictions were made with, if this package made them."""
    journal = Destination("jsonl", predictions).journal
    file = predictions if journal is None else journal / "settings.json"
    try:
        return {"made_with": json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


__all__ = ["DenseEvaluation", "choose_dense_metrics", "evaluate_dense", "evaluate_films"]
