"""
Datasets in the house format (`swinbert.training.data`) from the published annotation files of benchmarks, with their
standard splits and without copying videos:

    prepare("youcook2", ["youcookii_annotations_trainval.json"], videos="raw_videos", output="youcook2")

`annotations` and `tsv` read annotation files, `videos` finds and checks videos, `dataset` matches both and writes the
dataset, and `report` describes what is wrong with it.
"""

from swinbert.training.prepare.dataset import READERS, prepare
from swinbert.training.prepare.documents import AnnotationError
from swinbert.training.prepare.report import IncompleteDataset, Report, SplitReport

__all__ = ["READERS", "AnnotationError", "IncompleteDataset", "Report", "SplitReport", "prepare"]
