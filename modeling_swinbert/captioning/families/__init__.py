"""Families of models that the installed package serves beside SwinBERT; importing this adds them to `FAMILIES`."""

from swinbert.captioning.families.git import GitFamily
from swinbert.processing.clip_reading_swinbert import FAMILIES

FAMILIES[GitFamily.model_type] = GitFamily

__all__ = ["GitFamily"]
