"""BLEU-1 to BLEU-4 of captions on PTB tokens, equal to those of the COCO caption tools."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = "Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002"

Bleu = metric_class("bleu", __doc__ or "", CITATION)
