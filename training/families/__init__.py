"""Families of models that can be trained; `model_family` chooses one, and the training loop asks it for the rest."""

from transformers import AutoConfig

from swinbert.training.families.base import CardContents, TrainingFamily
from swinbert.training.families.git import GitTraining
from swinbert.training.families.swinbert import SwinBertTraining

__all__ = ["CardContents", "TrainingFamily", "GitTraining", "SwinBertTraining", "model_family"]


_FAMILIES: tuple[TrainingFamily, ...] = (SwinBertTraining(), GitTraining())


def model_family(model: str | None) -> TrainingFamily:
    """
    The family of a model; SwinBERT for a new model, and for unknown types of models, which it refuses to load.

    Args:
        model: folder or Hub id; `None` for a new model.

    Raises:
        OSError: there is no such model.
    """
    model_type = AutoConfig.from_pretrained(model).model_type if model is not None else None
    return next((family for family in _FAMILIES if family.model_type == model_type), _FAMILIES[0])
