"""ROUGE-L of captions on PTB tokens, equal to that of the COCO caption tools."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004"

RougeL = metric_class("rouge_l", __doc__ or "", CITATION)
