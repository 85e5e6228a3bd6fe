"""CIDEr of captions on PTB tokens, equal to that of the COCO caption tools, which compute CIDEr-D."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = "Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, CVPR 2015"

Cider = metric_class("cider", __doc__ or "", CITATION)
