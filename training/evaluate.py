"""Public name of [`swinbert.training.evaluation`]."""

from swinbert.training.evaluation.evaluate import evaluate, evaluate_predictions

__all__ = ["evaluate", "evaluate_predictions"]
