"""What the modules for the `evaluate` library in `evaluate_modules/` share; needs the `train` extra.

`evaluate.load` copies a module's one file to its cache and runs it there, so each imports this, by its installed name.
"""

from collections.abc import Sequence

import datasets
import evaluate

from swinbert.training.metrics.scoring import score

INPUTS = """
Args:
    predictions: a caption for each clip.
    references: for each clip a list of reference captions.
"""


def info(description: str, citation: str) -> evaluate.MetricInfo:
    text = datasets.Value("string")
    features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
    return evaluate.MetricInfo(description=description, citation=citation, inputs_description=INPUTS, features=features)


def compute(metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    clips = [str(number) for number in range(len(predictions))]
    scores = score(dict(zip(clips, predictions, strict=True)), dict(zip(clips, references, strict=True)), [metric])
    return scores["corpus"]
