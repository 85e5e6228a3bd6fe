"""What a saved model is: its description, its tokenizer and the length of its captions."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer

from swinbert.captioning.explaining.masks import mask_figure
from swinbert.captioning.explaining.pictures import as_png
from swinbert.conversion import mask_statistics


def load_model(model: str, **loading: Any) -> Any:
    """
    A captioning model, or else the model of the class that its configuration names.

    Args:
        model: a folder or a name on the Hub.
        loading: arguments of `from_pretrained`.
    """
    is_captioner = type(AutoConfig.from_pretrained(model, **loading)) in AutoModelForImageTextToText._model_mapping
    return (AutoModelForImageTextToText if is_captioner else AutoModel).from_pretrained(model, **loading)


def describe_model(model: Any, name: str) -> str:
    """Class, number of parameters, data type and configuration of a model and, for SwinBERT, how sparse its mask is."""
    config = model.config
    lines = [f"{name}: {type(model).__name__}, {model.num_parameters():,} parameters, {model.dtype}"]
    if config.model_type == "swinbert":
        lines.append(f"sparse mask ({config.sparse_mask}): {mask_statistics(model) or 'none'}")
        if model.model.sparse_mask is not None:
            lines.append(f"attention among video tokens: {model.model.sparse_mask.plan()}")
    return "\n".join([*lines, config.to_json_string()])


def mask_picture(model: Any, run: Path) -> bytes:
    """
    The sparse mask of a SwinBERT as a picture (PNG).

    Args:
        run: the folder of the model; of an output folder of `swinbert train` the picture also shows the mask over the
            steps.

    Raises:
        ValueError: the model has no sparse mask.
    """
    mask = getattr(getattr(model, "model", model), "sparse_mask", None)
    if mask is None:
        raise ValueError("it has no sparse mask, of which the picture would be.")
    return as_png(mask_figure(mask, model.config.vision_config.output_grid, run=run))


def tokenizer_and_caption_length(model: str) -> tuple[Any, int]:
    """The tokenizer of a model, and the maximum length of its captions in tokens."""
    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return tokenizer, getattr(config, "max_caption_length", 50)
