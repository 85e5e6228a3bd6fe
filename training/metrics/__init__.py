"""Scores of captions, equal to those of the COCO caption tools.

from swinbert.training.metrics import score

score({"a.mp4": "a man rides a horse"}, {"a.mp4": ["a man is riding a horse", "someone rides a horse"]})
"""

from swinbert.training.metrics.ngrams import CiderD
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize
from swinbert.training.metrics.scoring import METRICS, METRICS_WITHOUT_JAVA, Scores, score

__all__ = ["METRICS", "METRICS_WITHOUT_JAVA", "CiderD", "Scores", "ptb_tokenize", "score"]
