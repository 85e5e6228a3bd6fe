"""CIDEr of captions on PTB tokens, as the COCO caption tools compute it: as CIDEr-D."""

from typing import Any

import evaluate

from swinbert.training.metrics import evaluate_metric

CITATION = "Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, CVPR 2015"


class Cider(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate_metric.info(__doc__ or "", CITATION)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return evaluate_metric.compute("cider", predictions, references)
