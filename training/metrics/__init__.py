"""Scores of captions, equal to those of the COCO caption tools (`pycocoevalcap`).

    from swinbert.training.metrics import score

    scores = score({"a.mp4": "a man rides a horse"}, {"a.mp4": ["a man is riding a horse", "someone rides a horse"]})
    scores["corpus"]["CIDEr"], scores["clips"]["a.mp4"]["CIDEr"]

`scoring` holds `score`; `ptb_tokenizer` tokenises; `ngrams` computes BLEU, ROUGE-L and CIDEr-D; `java_metrics` runs
METEOR and SPICE; `evaluate_modules` holds the metrics for the `evaluate` library.
"""

from pathlib import Path

from swinbert.training.metrics.java_metrics import MissingTool, check_tools
from swinbert.training.metrics.ngrams import CiderD
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize
from swinbert.training.metrics.scoring import METRICS, METRICS_WITHOUT_JAVA, Scores, metric_name, score

__all__ = [
    "METRICS",
    "METRICS_WITHOUT_JAVA",
    "CiderD",
    "MissingTool",
    "Scores",
    "check_tools",
    "evaluate_path",
    "metric_name",
    "ptb_tokenize",
    "score",
]


def evaluate_path(metric: str) -> str:
    """The path to pass to `evaluate.load` to load one of `METRICS`, offline.

    Raises:
        ValueError: the metric is not a key of `METRICS`.
    """
    if metric not in METRICS:
        raise ValueError(f"Expected one of the metrics {', '.join(METRICS)}, found {metric!r}.")
    return str(Path(__file__).parent / "evaluate_modules" / metric)
