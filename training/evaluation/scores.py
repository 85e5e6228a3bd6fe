"""Captions and references -> scores, in one record and as files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinbert.training.evaluation.caption_files import write_coco
from swinbert.training.metrics import METRICS, METRICS_WITHOUT_JAVA, MissingTool, check_tools, metric_name, score
from swinbert.utils.files import write_json
from swinbert.utils.text import first_names

METRIC_TOKENIZER = "Penn Treebank as in the COCO caption tools, swinbert.training.metrics.ptb_tokenize"

# From captions and references of clips to further scores; empty where it does not apply.
Scorer = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, float]]


@dataclass
class Evaluation:
    """
    Captions and their scores.

    Args:
        captions: id of a clip -> its caption.
        missing: id -> why the clip has no caption.
        references: id -> reference captions, of the clips of `captions`; `None` if there are none.
        summary: numbers of clips and references, and scores.
        left_out: metric -> why it was not computed.
        folder: where the files are.
    """

    captions: dict[str, str]
    missing: dict[str, str]
    references: Mapping[str, Sequence[str]] | None
    summary: dict[str, Any]
    left_out: dict[str, str]
    folder: Path | None


def choose_metrics(metrics: Iterable[str] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """
    The metrics to compute, by default all but SPICE that can be computed here, and why the others are left out.

    Raises:
        ValueError: an unknown metric.
        MissingTool: METEOR or SPICE is asked for by name, and something that it needs is not installed.
    """
    if metrics is not None:
        chosen = tuple(dict.fromkeys(map(metric_name, metrics)))
        unknown = [name for name in chosen if name not in METRICS]
        if unknown or not chosen:
            found = first_names(unknown) or "none"
            raise ValueError(f"Expected some of the metrics {', '.join(METRICS)}, found {found}.")
        check_tools(chosen)
        return chosen, {}
    left_out = {"spice": "which needs a download and 8 GB: ask for it by its name (--metrics)"}
    try:
        check_tools(["meteor"])
    except MissingTool as error:
        return METRICS_WITHOUT_JAVA, {"meteor": str(error), **left_out}
    return (*METRICS_WITHOUT_JAVA, "meteor"), left_out


def corpus_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of all clips, and why some metrics are missing: a failing Java program does not affect the others."""
    try:
        return score(captions, references, metrics)["corpus"], {}
    except RuntimeError as error:
        plain = [name for name in metrics if name in METRICS_WITHOUT_JAVA]
        failed = {name: str(error) for name in metrics if name not in plain}
        return (score(captions, references, plain)["corpus"] if plain else {}), failed


def score_captions(
    captions: dict[str, str],
    missing: dict[str, str],
    references: Mapping[str, Sequence[str]] | None,
    metrics: Sequence[str],
    scorers: Sequence[Scorer] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Numbers of clips and references and, where there are references, the scores of the clips that have a caption.

    Returns:
        The summary, and metric -> why it failed.
    """
    summary: dict[str, Any] = {"clips": len(captions), "missing": len(missing)}
    if not captions:
        return summary, {}
    summary["distinct_captions"] = len(set(captions.values())) / len(captions)
    if references is None:
        return summary, {}
    compared = {name: references[name] for name in captions}
    summary["references"] = sum(map(len, compared.values()))
    for scorer in scorers:
        summary |= scorer(captions, compared)
    scores, failed = corpus_scores(captions, compared, metrics)
    return summary | scores, failed


def write_scores(evaluation: Evaluation, settings: dict[str, Any], references_from: str) -> None:
    """Writes `scores.json`, with all that decides the scores, and the files for the COCO tools."""
    if evaluation.folder is None:
        return
    write_coco(evaluation.folder, evaluation.captions, evaluation.references)
    record: dict[str, Any] = {"missing_clips": evaluation.missing, "settings": settings}
    if evaluation.references is not None:
        digest = hashlib.sha256(json.dumps(sorted(evaluation.references.items())).encode()).hexdigest()
        record["references_from"] = {"name": references_from, "sha256": digest}
        record |= {"metric_tokenizer": METRIC_TOKENIZER, "left_out": evaluation.left_out}
    write_json(evaluation.folder / "scores.json", {**evaluation.summary, **record})


__all__ = ["Evaluation", "Scorer", "choose_metrics", "corpus_scores", "score_captions", "write_scores"]
