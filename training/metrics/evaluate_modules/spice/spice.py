"""SPICE of captions on PTB tokens, computed by its authors' program. Needs Java, pycocoevalcap and a parser."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = "Anderson et al., SPICE: Semantic Propositional Image Caption Evaluation, ECCV 2016"

Spice = metric_class("spice", __doc__ or "", CITATION)
