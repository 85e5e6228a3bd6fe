"""Scores of dense captions: when something happens in a video, and what.

    from swinbert.training.metrics.dense import Event, dense_score

    predictions = {"film": [Event(0, 9.5, "a man opens a door"), Event(9.5, 20, "he walks out")]}
    annotator = {"film": [Event(0, 10, "a man opens the door"), Event(10, 21, "he leaves the house")]}
    scores = dense_score(predictions, [annotator], ["bleu", "cider"])
    scores["mean"]["F1"], scores["tIoU"]["0.5"]["Bleu_4"]

Localisation and captions as `densevid_eval` scores them (Krishna et al., "Dense-Captioning Events in Videos", ICCV
2017); SODA_c by its paper (Fujita et al., "SODA: Story Oriented Dense Video Captioning Evaluation Framework", ECCV
2020). Where `densevid_eval` draws a random word, a constant stands here: the scores are deterministic and equal to its.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np

from swinbert.training.metrics.java_metrics import Meteor, check_tools
from swinbert.training.metrics.ngrams import CiderD, bleu, rouge_l
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize
from swinbert.training.metrics.scoring import METRICS
from swinbert.utils.progress import progress
from swinbert.utils.text import first_names

# The least temporal intersection over union (tIoU) of a prediction and a reference that belong together.
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
# What `dense_score` can compute beside precision, recall and F1.
DENSE_METRICS = ("bleu", "rouge_l", "cider", "meteor", "soda_c")
# What a prediction without a reference is compared with: one token, which no caption contains.
UNMATCHED = "qwertyuiopas"


class Event(NamedTuple):
    """A caption of a part of a video; `start` and `end` in seconds."""

    start: float
    end: float
    caption: str


Events = Mapping[str, Sequence[Event]]  # video -> its events
Pair = tuple[str, str]  # a candidate and its only reference, tokenised


class DenseScores(TypedDict):
    """The result of `dense_score`, which can be written as JSON."""

    mean: dict[str, float]  # name of the score -> mean over the thresholds; and SODA_c, which has none
    tIoU: dict[str, dict[str, float]]  # threshold -> name -> mean over the videos
    videos: dict[str, dict[str, Any]]  # video -> `tIoU` and `SODA_c` of it alone


# --- Time ------------------------------------------------------------------------------------------------------------


def temporal_iou(first: Any, second: Any) -> np.ndarray:
    """
    Intersection over union of spans, as `densevid_eval` computes it: a little below the exact value.

    Args:
        first, second: (N, 2) and (M, 2) starts and ends in seconds.

    Returns:
        (N, M)
    """
    starts, ends = np.asarray(first, dtype=float).reshape(-1, 1, 2).transpose(2, 0, 1)
    other_starts, other_ends = np.asarray(second, dtype=float).reshape(1, -1, 2).transpose(2, 0, 1)
    shared = np.maximum(0, np.minimum(ends, other_ends) - np.maximum(starts, other_starts))
    hull = np.maximum(ends, other_ends) - np.minimum(starts, other_starts)
    return shared / (np.minimum(hull, ends - starts + other_ends - other_starts) + 1e-8)


def best_alignment(scores: np.ndarray) -> float:
    """The largest sum of entries of an (N, M) matrix of which each is below and right of the one before (SODA, 3.2)."""
    best = np.zeros(scores.shape[1] + 1)
    for row in scores:
        best[1:] = np.maximum.accumulate(np.maximum(best[1:], best[:-1] + row))
    return float(best[-1])


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# --- One video --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Video:
    """
    The events of a video.

    Args:
        predictions, references: tokenised captions; references of one annotator after those of another.
        owners: (references,) the number of each reference's annotator.
        iou: (predictions, references).
    """

    predictions: list[str]
    references: list[str]
    owners: np.ndarray
    iou: np.ndarray

    def localisation(self, threshold: float) -> dict[str, float]:
        """The best precision and the best recall over the annotators; several events may share a counterpart."""
        if not self.predictions:
            return {"precision": 0.0, "recall": 0.0}
        hits = [self.iou[:, self.owners == owner] > threshold for owner in np.unique(self.owners)]
        return {
            "precision": max(float(each.any(axis=1).mean()) for each in hits),
            "recall": max(float(each.any(axis=0).mean()) for each in hits),
        }

    def pairs(self, threshold: float, unmatched: str) -> list[Pair]:
        """Each prediction with every reference that it overlaps with, or with `unmatched`."""
        return [
            (prediction, reference)
            for prediction, hits in zip(self.predictions, self.iou >= threshold, strict=True)
            for reference in ([self.references[each] for each in np.flatnonzero(hits)] or [unmatched])
        ]

    def soda_pairs(self) -> list[Pair]:
        """References, as candidates, with the predictions that they overlap with: SODA's own code swaps the roles."""
        return [(self.references[j], self.predictions[i]) for i, j in zip(*np.nonzero(self.iou), strict=True)]

    def soda_c(self, owner: int, meteor: Mapping[Pair, float]) -> float:
        """SODA_c against one annotator; events are in order of time."""
        columns = np.flatnonzero(self.owners == owner)
        matrix = self.iou[:, columns].T.copy()
        for i, j in zip(*np.nonzero(matrix), strict=True):
            matrix[i, j] *= meteor[self.references[columns[i]], self.predictions[j]]
        if not matrix.any():
            return 0.0
        total = best_alignment(matrix)
        return f1(total / matrix.shape[1], total / matrix.shape[0])


def _videos(predictions: Events, references: Sequence[Events], names: Iterable[str]) -> dict[str, _Video]:
    """The videos with these names, tokenised all at once."""
    events = [*predictions.values(), *(each for annotator in references for each in annotator.values())]
    captions = list(dict.fromkeys(event.caption for its_events in events for event in its_events))
    tokens = dict(zip(captions, ptb_tokenize(captions), strict=True))
    videos = {}
    for name in names:
        found = _in_order(predictions.get(name, ()))
        owned = [(owner, event) for owner, each in enumerate(references) for event in _in_order(each.get(name, ()))]
        videos[name] = _Video(
            [tokens[event.caption] for event in found],
            [tokens[event.caption] for _, event in owned],
            np.array([owner for owner, _ in owned]),
            temporal_iou([event[:2] for event in found], [event[:2] for _, event in owned]),
        )
    return videos


def _in_order(events: Sequence[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.start)


# --- Captions ---------------------------------------------------------------------------------------------------------


def _caption_scores(pairs: Sequence[tuple[str, str]], metrics: Sequence[str]) -> dict[str, float]:
    """Scores of the corpus that consists of pairs of a candidate and a reference; 0 without pairs."""
    names = [name for metric in metrics for name in METRICS[metric]]
    if not pairs:
        return dict.fromkeys(names, 0.0)
    candidates, references = [candidate for candidate, _ in pairs], [[reference] for _, reference in pairs]
    scores: list[float] = []
    for metric in metrics:
        if metric == "bleu":
            scores += bleu(candidates, references)[0]
        elif metric == "rouge_l":
            scores.append(_mean(rouge_l(candidates, references)))
        else:
            documents = {str(number): each for number, each in enumerate(references)}
            scores.append(_mean(CiderD(documents)(candidates, list(documents))))
    return dict(zip(names, scores, strict=True))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class _MeteorScores:
    """METEOR of a video: of the matched pairs at each threshold, and SODA_c against each annotator."""

    corpora: list[float]
    soda_c: dict[int, float]


def _meteor_scores(video: _Video, unmatched: str, program: Meteor) -> _MeteorScores:
    corpora, crossed = [video.pairs(threshold, unmatched) for threshold in THRESHOLDS], video.soda_pairs()
    pairs = list(dict.fromkeys([*(pair for corpus in corpora for pair in corpus), *crossed]))
    found = program.statistics([candidate for candidate, _ in pairs], [[reference] for _, reference in pairs])
    statistics = dict(zip(pairs, found, strict=True))
    meteor = (
        dict(zip(crossed, program.scores([statistics[pair] for pair in crossed])[1], strict=True)) if crossed else {}
    )
    return _MeteorScores(
        [program.scores([statistics[pair] for pair in corpus])[0] if corpus else 0.0 for corpus in corpora],
        {int(owner): video.soda_c(owner, meteor) for owner in np.unique(video.owners)},
    )


# --- All videos -------------------------------------------------------------------------------------------------------


def dense_score(
    predictions: Events,
    references: Sequence[Events],
    metrics: Iterable[str] = DENSE_METRICS,
    *,
    drop_missing: bool = False,
    unmatched: str = UNMATCHED,
) -> DenseScores:
    """
    Scores events against those of one or several annotators.

    With the tIoU of [`temporal_iou`], at each threshold and of each video:

    - `precision` is the share of predictions with a tIoU above the threshold to some reference, `recall` the share of
      references with one to some prediction; of several annotators, the best of each counts. `F1` is that of the means
      over all videos.
    - BLEU, METEOR, ROUGE-L and CIDEr are those of the corpus of all pairs of a prediction and a reference, of any
      annotator, with at least the threshold. A prediction without a reference makes one pair, which matches nothing.
      CIDEr's document frequencies are those of this video, so a single pair has 0.

    `SODA_c` aligns predictions and references in order of time, one to one, such that the sum of tIoU times METEOR is
    largest; it is the F-measure of that sum over the numbers of predictions and references, the mean over an
    annotator's videos, then over annotators. METEOR takes the prediction for the reference, as SODA's own code does.

    Args:
        predictions: video -> events. Videos without references are ignored.
        references: for each annotator video -> events, at least one for each video.
        metrics: some of `DENSE_METRICS`; `meteor` and `soda_c` need Java.
        drop_missing: leave out videos that are not in `predictions`, as VidChapters does; otherwise they score 0 in
            every mean, as in `densevid_eval`. A video with an empty list always scores 0.
        unmatched: the text that a prediction without a reference is compared with. PDVC's script of 2018 has
            `abc123!@#`, which METEOR counts as three tokens: its METEOR is lower.

    Raises:
        ValueError: unknown metrics, or no video has both predictions and references.
        MissingTool: METEOR or SODA_c is asked for without Java or pycocoevalcap.
        RuntimeError: METEOR's program failed.
    """
    metrics = tuple(dict.fromkeys(metrics))
    if unknown := set(metrics) - set(DENSE_METRICS):
        raise ValueError(
            f"Expected some of the metrics {', '.join(DENSE_METRICS)}, found {first_names(sorted(unknown))}."
        )
    names = list(dict.fromkeys(name for annotator in references for name in annotator))
    if not predictions.keys() & names:
        raise ValueError("Expected predictions for a video with references, found none.")
    if drop_missing:
        names = [name for name in names if name in predictions]
    needs_meteor = bool({"meteor", "soda_c"} & set(metrics))
    check_tools(["meteor"] if needs_meteor else [])
    videos = _videos(predictions, references, names)
    (unmatched,) = ptb_tokenize([unmatched])
    of_videos, soda_c = {}, {}
    with Meteor() if needs_meteor else nullcontext() as program:
        for name, video in progress(videos.items(), "Scoring", len(videos)):
            meteor = _meteor_scores(video, unmatched, program) if program else None
            of_videos[name] = _of_thresholds(video, metrics, unmatched, meteor)
            soda_c[name] = meteor.soda_c if meteor else {}
    return _summary(of_videos, soda_c if "soda_c" in metrics else {}, len(references))


def _of_thresholds(
    video: _Video, metrics: Sequence[str], unmatched: str, meteor: _MeteorScores | None
) -> dict[str, dict[str, float]]:
    """Threshold -> name of the score -> score."""
    plain = [metric for metric in metrics if metric not in ("meteor", "soda_c")]
    scores = {}
    for number, threshold in enumerate(THRESHOLDS):
        its_scores = _caption_scores(video.pairs(threshold, unmatched), plain)
        if meteor and "meteor" in metrics:
            its_scores["METEOR"] = meteor.corpora[number]
        scores[str(threshold)] = {**its_scores, **video.localisation(threshold)}
    return scores


def _summary(
    of_videos: dict[str, dict[str, dict[str, float]]], soda_c: dict[str, dict[int, float]], num_annotators: int
) -> DenseScores:
    of_thresholds = {}
    for threshold in map(str, THRESHOLDS):
        rows = [scores[threshold] for scores in of_videos.values()]
        means = {name: _mean(row[name] for row in rows) for name in rows[0]}
        of_thresholds[threshold] = {**means, "F1": f1(means["precision"], means["recall"])}
    mean = {name: _mean(row[name] for row in of_thresholds.values()) for name in of_thresholds[str(THRESHOLDS[0])]}
    videos: dict[str, dict[str, Any]] = {name: {"tIoU": scores} for name, scores in of_videos.items()}
    if soda_c:
        of_annotators = [[each[owner] for each in soda_c.values() if owner in each] for owner in range(num_annotators)]
        mean["SODA_c"] = _mean(_mean(each) for each in of_annotators if each)
        for name, each in soda_c.items():
            videos[name]["SODA_c"] = _mean(each.values())
    return {"mean": mean, "tIoU": of_thresholds, "videos": videos}


__all__ = ["DENSE_METRICS", "THRESHOLDS", "UNMATCHED", "DenseScores", "Event", "Events", "best_alignment"]
__all__ += ["dense_score", "f1", "temporal_iou"]
