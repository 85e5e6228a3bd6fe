"""SPICE of captions on PTB tokens. Needs Java, pycocoevalcap and a parser that it downloads."""

from typing import Any

import evaluate

from swinbert.training.metrics import evaluate_metric

CITATION = "Anderson et al., SPICE: Semantic Propositional Image Caption Evaluation, ECCV 2016"


class Spice(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate_metric.info(__doc__ or "", CITATION)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return evaluate_metric.compute("spice", predictions, references)
