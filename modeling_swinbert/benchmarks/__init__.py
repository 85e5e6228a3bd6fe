"""`swinbert bench`: the cost of captioning, stage by stage, against the original's algorithm and other models."""

from . import report
from .measurement import Table
from .suite import PARTS, run

__all__ = ["PARTS", "Table", "report", "run"]
