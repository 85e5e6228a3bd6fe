"""BLEU-1 to BLEU-4 of captions on PTB tokens, as the COCO caption tools compute them."""

from typing import Any

import evaluate

from swinbert.training.metrics import evaluate_metric

CITATION = "Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002"


class Bleu(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate_metric.info(__doc__ or "", CITATION)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return evaluate_metric.compute("bleu", predictions, references)
