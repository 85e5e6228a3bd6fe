"""What a saved model is: its description, its tokenizer and the length of its captions."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer

from swinbert.conversion import mask_statistics


def describe_model(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> str:
    """
    Class, number of parameters, data type and configuration of a model and, for SwinBERT, how sparse its mask is.

    Args:
        model: a folder or a name on the Hub.
        trust_remote_code, revision: as for `from_pretrained`.
    """
    loading = {"trust_remote_code": trust_remote_code, "revision": revision}
    config = AutoConfig.from_pretrained(model, **loading)
    is_captioner = type(config) in AutoModelForImageTextToText._model_mapping
    loaded = (AutoModelForImageTextToText if is_captioner else AutoModel).from_pretrained(model, **loading)
    lines = [f"{model}: {type(loaded).__name__}, {loaded.num_parameters():,} parameters, {loaded.dtype}"]
    if config.model_type == "swinbert":
        lines.append(f"sparse mask ({config.sparse_mask}): {mask_statistics(loaded) or 'none'}")
        if loaded.model.sparse_mask is not None:
            lines.append(f"attention among video tokens: {loaded.model.sparse_mask.plan()}")
    return "\n".join([*lines, config.to_json_string()])


def tokenizer_and_caption_length(model: str) -> tuple[Any, int]:
    """The tokenizer of a model, and the maximum length of its captions in tokens."""
    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return tokenizer, getattr(config, "max_caption_length", 50)
