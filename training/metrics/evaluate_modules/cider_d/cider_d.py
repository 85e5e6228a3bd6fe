"""CIDEr-D of captions on PTB tokens, equal to that of the COCO caption tools."""

from swinbert.training.metrics.evaluate_metric import metric_class

CITATION = "Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, CVPR 2015"

CiderD = metric_class("cider_d", __doc__ or "", CITATION)
