"""ROUGE-L of captions on PTB tokens, as the COCO caption tools compute it."""

from typing import Any

import evaluate

from swinbert.training.metrics import evaluate_metric

CITATION = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004"


class RougeL(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate_metric.info(__doc__ or "", CITATION)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return evaluate_metric.compute("rouge_l", predictions, references)
