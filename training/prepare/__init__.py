"""
From a benchmark's own annotation files to a data set in the house format (`swinbert.training.data`), with its standard
splits and without copying a video:

    prepare("youcook2", ["youcookii_annotations_trainval.json"], videos="raw_videos", output="youcook2")

`annotations` and `tsv` read; `videos` finds and checks; `dataset` puts both together and writes; `report` tells.
"""

from swinbert.training.prepare.dataset import READERS, prepare
from swinbert.training.prepare.documents import AnnotationError
from swinbert.training.prepare.report import IncompleteDataset, Report, SplitReport

__all__ = ["READERS", "AnnotationError", "IncompleteDataset", "Report", "SplitReport", "prepare"]
