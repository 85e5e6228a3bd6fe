"""Scores of captions, equal to those of the COCO caption tools.

    from swinbert.training.metrics import score

    scores = score({"a.mp4": "a man rides a horse"}, {"a.mp4": ["a man is riding a horse", "someone rides a horse"]})
    scores["corpus"]["CIDEr"], scores["clips"]["a.mp4"]["CIDEr"]

`scoring` checks and scores; `ptb_tokenizer` makes tokens, `ngrams` and `java_metrics` numbers;
`evaluate_modules` holds the metrics for the `evaluate` library.
"""

from pathlib import Path

from swinbert.training.metrics.java_metrics import MissingTool, check_tools
from swinbert.training.metrics.ngrams import CiderD
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize
from swinbert.training.metrics.scoring import METRICS, METRICS_WITHOUT_JAVA, Scores, score

__all__ = [
    "METRICS",
    "METRICS_WITHOUT_JAVA",
    "CiderD",
    "MissingTool",
    "Scores",
    "check_tools",
    "evaluate_path",
    "ptb_tokenize",
    "score",
]


def evaluate_path(metric: str) -> str:
    """What `evaluate.load` takes to load one of `METRICS`, offline.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"Expected one of the metrics {', '.join(METRICS)}, found {metric!r}.")
    return str(Path(__file__).parent / "evaluate_modules" / metric)
