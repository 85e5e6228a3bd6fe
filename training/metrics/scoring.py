"""Scoring of captions against references, with the results of the COCO caption tools."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from swinbert.training.metrics.java_metrics import check_tools, meteor, spice
from swinbert.training.metrics.ngrams import MAX_N, CiderD, bleu, rouge_l
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize
from swinbert.utils.text import first_names

# The metrics that `score` computes -> the names of their scores in the COCO tools.
METRICS = {
    "bleu": tuple(f"Bleu_{n}" for n in range(1, MAX_N + 1)),
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "cider_d": ("CIDEr-D",),
    "meteor": ("METEOR",),
    "spice": ("SPICE",),
}
METRICS_WITHOUT_JAVA = ("bleu", "rouge_l", "cider", "cider_d")


def metric_name(name: str) -> str:
    """
    The key of `METRICS` for a metric, also by the name of its score and in any case: `"cider"` for `"CIDEr"`,
    `"cider_d"` for `"CIDEr-D"`, `"bleu"` for `"Bleu_4"`. An unknown name as it is.
    """
    keys = {_letters(each): key for key, names in METRICS.items() for each in (key, *names)}
    return keys.get(_letters(name), name)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


class Scores(TypedDict):
    """The result of `score`, which can be written as JSON."""

    corpus: dict[str, float]  # name of the score -> score of the whole set
    clips: dict[str, dict[str, float]]  # clip -> name of the score -> score of the clip


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Iterable[str] = METRICS_WITHOUT_JAVA,
) -> Scores:
    """Scores captions against references. Results equal those of pycocoevalcap 1.2 to 1e-6.

    Args:
        predictions: clip -> caption. An empty caption has the score 0.
        references: clip -> its reference captions, for exactly the same clips.
        metrics: keys of `METRICS`: `bleu` (`Bleu_1` to `Bleu_4`), `rouge_l`, `cider`, `cider_d`, and `meteor` and
            `spice`, which need Java; or the names of their scores. What the COCO tools, and the papers that use them,
            call CIDEr is CIDEr-D, so `cider` and `cider_d` give the same number.

    Returns:
        The scores of the whole set and of each clip: `{"corpus": {"CIDEr": 0.53, ...}, "clips": {clip: {"CIDEr": 0.6,
        ...}, ...}}`. They lie between 0 and 1, CIDEr between 0 and 10. The CIDEr of a clip depends on all clips, whose
        references give the document frequencies, and is 0 if there is a single clip.

    Raises:
        ValueError: there is nothing to score, a clip has no prediction or no reference, or a metric is unknown.
        TypeError: a caption is not a string.
        MissingTool: Java or another requirement of METEOR or SPICE is missing; nothing was scored.
        RuntimeError: the program of METEOR or SPICE failed.
    """
    metrics = tuple(dict.fromkeys(map(metric_name, metrics)))
    _check(predictions, references, metrics)
    check_tools(metrics)
    clips = list(references)
    candidates = ptb_tokenize(predictions[clip] for clip in clips)
    flat = iter(ptb_tokenize(caption for clip in clips for caption in references[clip]))
    tokenised = {clip: [next(flat) for _ in references[clip]] for clip in clips}

    listed = list(tokenised.values())
    corpus: dict[str, float] = {}
    columns: dict[str, Sequence[float]] = {}
    for metric in metrics:
        name, *_ = names = METRICS[metric]
        if metric == "bleu":
            scores, rows = bleu(candidates, listed)
            corpus.update(zip(names, scores, strict=True))
            columns.update(zip(names, zip(*rows, strict=True), strict=True))
        elif metric == "meteor":
            corpus[name], columns[name] = meteor(candidates, listed)
        elif metric == "spice":
            corpus[name], columns[name] = spice(candidates, listed)
        else:
            columns[name] = rouge_l(candidates, listed) if metric == "rouge_l" else CiderD(tokenised)(candidates, clips)
            corpus[name] = sum(columns[name]) / len(clips)
    return {
        "corpus": corpus,
        "clips": {clip: {name: columns[name][row] for name in columns} for row, clip in enumerate(clips)},
    }


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> None:
    if not metrics or set(metrics) - METRICS.keys():
        unknown = [metric for metric in metrics if metric not in METRICS]
        raise ValueError(f"Expected metrics among {', '.join(METRICS)}, found {_quoted(unknown) or 'none'}.")
    if not predictions or not references:
        raise ValueError(f"Nothing to score: {len(predictions)} predictions, {len(references)} clips with references.")
    if missing := [clip for clip in references if clip not in predictions]:
        raise ValueError(
            f"{len(missing)} of {len(references)} clips have no prediction: {_quoted(missing)}. Caption "
            "them, or leave their references out."
        )
    if unexpected := [clip for clip in predictions if clip not in references]:
        raise ValueError(
            f"{len(unexpected)} of {len(predictions)} predictions have no references: {_quoted(unexpected)}. Are they "
            "of another split, or are the clips named differently?"
        )
    for clip, caption in predictions.items():
        if not isinstance(caption, str):
            raise TypeError(f"Expected a string as the caption of clip {clip!r}, found {caption!r}.")
    for clip, captions in references.items():
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise TypeError(f"Expected a list of strings as the references of clip {clip!r}, found {captions!r}.")
        if not any(caption.strip() for caption in captions):
            raise ValueError(f"Clip {clip!r} has no references, or only empty ones: {list(captions)!r}.")


def _quoted(names: Sequence[object]) -> str:
    return first_names([repr(name) for name in names])
