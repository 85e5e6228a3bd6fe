"""What a saved model is: its description, its tokenizer and the length of its captions."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer

from swinbert.captioning.explaining.masks import mask_figure
from swinbert.captioning.explaining.pictures import as_png
from swinbert.conversion import mask_statistics


def describe_model(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> str:
    """
    Class, number of parameters, data type and configuration of a model and, for SwinBERT, how sparse its mask is.

    Args:
        model: a folder or a name on the Hub.
        trust_remote_code, revision: as for `from_pretrained`.
    """
    loaded = _load(model, trust_remote_code=trust_remote_code, revision=revision)
    config = loaded.config
    lines = [f"{model}: {type(loaded).__name__}, {loaded.num_parameters():,} parameters, {loaded.dtype}"]
    if config.model_type == "swinbert":
        lines.append(f"sparse mask ({config.sparse_mask}): {mask_statistics(loaded) or 'none'}")
        if loaded.model.sparse_mask is not None:
            lines.append(f"attention among video tokens: {loaded.model.sparse_mask.plan()}")
    return "\n".join([*lines, config.to_json_string()])


def mask_picture(model: str, **loading: Any) -> bytes:
    """
    The sparse mask of a SwinBERT as a picture (PNG); of an output folder of `swinbert train` also over its steps.

    Args:
        model, loading: as for `describe_model`.

    Raises:
        ValueError: the model has no sparse mask.
    """
    loaded = _load(model, **loading)
    mask = getattr(getattr(loaded, "model", loaded), "sparse_mask", None)
    if mask is None:
        raise ValueError("it has no sparse mask, of which the picture would be.")
    return as_png(mask_figure(mask, loaded.config.vision_config.output_grid, run=Path(model)))


def _load(model: str, **loading: Any) -> Any:
    is_captioner = type(AutoConfig.from_pretrained(model, **loading)) in AutoModelForImageTextToText._model_mapping
    return (AutoModelForImageTextToText if is_captioner else AutoModel).from_pretrained(model, **loading)


def tokenizer_and_caption_length(model: str) -> tuple[Any, int]:
    """The tokenizer of a model, and the maximum length of its captions in tokens."""
    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return tokenizer, getattr(config, "max_caption_length", 50)
