"""`swinbert bench`: what captioning costs, in stages, beside a plain re-statement of the original and other peers."""

from . import report
from .suite import PARTS, Table, run

__all__ = ["PARTS", "Table", "report", "run"]
