"""Families of models that the installed package serves beside SwinBERT; importing this adds them to the known ones."""

from swinbert.captioning.families.chat import ChatFamily, has_video_chat
from swinbert.captioning.families.git import GitFamily
from swinbert.processing.clip_reading_swinbert import FAMILIES, FAMILIES_BY_PROCESSOR

FAMILIES[GitFamily.model_type] = GitFamily
FAMILIES_BY_PROCESSOR["a chat template for videos"] = (has_video_chat, ChatFamily)

__all__ = ["ChatFamily", "GitFamily"]
