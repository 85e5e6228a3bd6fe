"""METEOR 1.5 of captions on PTB tokens. Needs Java and pycocoevalcap."""

from typing import Any

import evaluate

from swinbert.training.metrics import evaluate_metric

CITATION = (
    "Denkowski and Lavie, Meteor Universal: Language Specific Translation Evaluation for Any Target Language, 2014"
)


class Meteor(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate_metric.info(__doc__ or "", CITATION)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return evaluate_metric.compute("meteor", predictions, references)
