"""METEOR 1.5 of captions on PTB tokens, computed by its authors' program. Needs Java and pycocoevalcap."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = (
    "Denkowski and Lavie, Meteor Universal: Language Specific Translation Evaluation for Any Target Language, 2014"
)

Meteor = metric_class("meteor", __doc__ or "", CITATION)
