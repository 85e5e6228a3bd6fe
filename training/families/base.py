"""The interface between the training loop and a family of models."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult
from transformers import PreTrainedModel

from swinbert.processing import SwinBertVideoProcessor
from swinbert.training.arguments import DataArguments, ModelArguments
from swinbert.training.data.collators import CaptionCollator


@dataclass
class CardContents:
    """
    What a model card says about a training run, whatever the family of the model.

    Args:
        title: the model's name.
        training, evaluation, provenance: Markdown.
        datasets: names of the training data on the Hub.
        results: scores of the last evaluation.
        base_model: the model that an adapter adapts.
    """

    title: str
    training: str
    evaluation: str
    provenance: str
    datasets: Sequence[str]
    results: Sequence[EvalResult]
    base_model: str | None = None


class TrainingFamily(ABC):
    """
    How models of one architecture are loaded, fed and described.

    Attributes:
        model_type: of the models' configuration.
        backbone_name: the submodule that encodes clips; it has a learning rate of its own.
        pixels_name: the argument of the model's `forward` and `generate` that takes clips.
    """

    model_type: str
    backbone_name: str
    pixels_name: str

    @abstractmethod
    def load(
        self, args: ModelArguments, config: Mapping[str, Any], captions: Iterable[str]
    ) -> tuple[PreTrainedModel, Any, list[str]]:
        """
        The model to train in float32, its processor, and lines that report where its weights come from.

        Args:
            config: fields of the model's configuration to change.
            captions: the training captions, for a tokenizer of their words.

        Raises:
            ValueError: an argument does not apply, a checkpoint has another architecture, or tensors do not fit.
            OSError: a checkpoint cannot be found or read.
        """

    @abstractmethod
    def frame_reader(self, model: Any, processor: Any) -> SwinBertVideoProcessor:
        """The video processor that decodes and samples the frames of a clip for the model."""

    @abstractmethod
    def collator(self, model: Any, processor: Any, data: DataArguments) -> CaptionCollator:
        """Makes batches of clips and captions."""

    @abstractmethod
    def num_frames(self, model: Any) -> int:
        """The number of frames that the model takes of a clip."""

    @abstractmethod
    def model_card(self, model: Any, contents: CardContents) -> str:
        """The text of the README.md of a trained model."""
