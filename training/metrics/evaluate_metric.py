"""What the modules for the `evaluate` library in `evaluate_modules/` share; needs the `train` extra.

`evaluate.load` copies a module's only file to its cache and imports it there, so the file imports this module by its
installed name.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from swinbert.training.metrics.scoring import score

INPUTS = """
Args:
    predictions: one caption per clip.
    references: for each clip a list of reference captions.
"""


def metric_class(metric: str, description: str, citation: str) -> type[Any]:
    """
    A class for `evaluate.load`, which takes it from the module that it loads.

    Args:
        metric: a key of `METRICS`.
        description: shown by `evaluate`.
        citation: the paper that defines the metric.
    """

    class CaptionMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
            return evaluate.MetricInfo(
                description=description, citation=citation, inputs_description=INPUTS, features=features
            )

        def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
            clips = [str(number) for number in range(len(predictions))]
            by_clip = dict(zip(clips, predictions, strict=True)), dict(zip(clips, references, strict=True))
            return score(*by_clip, [metric])["corpus"]

    return CaptionMetric
