"""LoRA (arXiv:2106.09685): low-rank updates of the fusion encoder are trained and saved instead of its weights."""

from pathlib import Path
from typing import Any

from swinbert import SwinBertForVideoCaptioning

# All linear layers of the fusion encoder, and none of the backbone.
FUSION_ENCODER = r"model\.encoder\.layer\.\d+\..*(query|key|value|dense)"


def add_lora(model: SwinBertForVideoCaptioning, rank: int) -> Any:
    """
    A `PeftModel`: the model with a LoRA adapter in its fusion encoder.

    Only the adapter is trained, and the sparse mask if it is soft and not frozen; the mask is saved with the adapter.

    Args:
        rank: of the updates: a linear layer from m to n features gets `rank * (m + n)` parameters.

    Raises:
        ValueError: `peft` is not installed, or the rank is not positive.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ValueError(f"LoRA needs the package {error.name}: pip install 'swinbert[peft]'.") from error
    if rank < 1:
        raise ValueError(f"The rank of LoRA must be at least 1, got {rank}.")
    mask = model.model.sparse_mask
    trains_mask = mask is not None and model.config.sparse_mask == "soft" and mask.weight.requires_grad
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=FUSION_ENCODER,
        modules_to_save=["sparse_mask"] if trains_mask else None,
    )
    return get_peft_model(model, config)


def adapted_model(model: Any) -> str | None:
    """The name of the model that an adapter of `peft` adapts; `None` if the model has no adapter."""
    adapters = getattr(model, "peft_config", None) or {}
    return next((adapter.base_model_name_or_path for adapter in adapters.values()), None)


def refuse_local_base(model: Any) -> None:
    """
    Raises:
        ValueError: the model is an adapter of a model in a local folder, which nobody could load from the Hub.
    """
    base = adapted_model(model)
    if base is not None and Path(base).exists():
        raise ValueError(
            f"The pushed adapter would refer to the local folder {base}: push that model first (`swinbert push`), and"
            " train the adapter from its name on the Hub."
        )
