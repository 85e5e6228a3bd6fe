"""`swinbert bench`: what captioning costs, in stages, beside a plain re-statement of the original and other peers."""

from . import report
from .suite import PARTS, run

__all__ = ["PARTS", "report", "run"]
