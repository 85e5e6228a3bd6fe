"""LoRA: low-rank changes of the fusion encoder are trained in the place of its weights, and saved alone."""

from pathlib import Path
from typing import Any

from swinbert import SwinBertForVideoCaptioning

# Queries, keys, values and all other linear layers of every layer of the fusion encoder; nothing of the backbone.
FUSION_ENCODER = r"model\.encoder\.layer\.\d+\..*(query|key|value|dense)"


def add_lora(model: SwinBertForVideoCaptioning, rank: int) -> Any:
    """
    A `PeftModel`: the model with an adapter of `peft` in its fusion encoder. Nothing else trains but the sparse mask,
    which is saved with the adapter: unless there is none, it is hard, or it was frozen.

    Args:
        rank: of the changes: a layer from m to n gets `rank * (m + n)` parameters.

    Raises:
        ValueError: `peft` is not installed, or the rank is not positive.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ValueError(f"LoRA needs {error.name}, which is not installed: pip install 'swinbert[peft]'.") from error
    if rank < 1:
        raise ValueError(f"The rank of LoRA must be at least 1, got {rank}.")
    mask = model.model.sparse_mask
    learns = mask is not None and model.config.sparse_mask == "soft" and mask.weight.requires_grad
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=FUSION_ENCODER,
        modules_to_save=["sparse_mask"] if learns else None,
    )
    return get_peft_model(model, config)


def adapted_model(model: Any) -> str | None:
    """The name of what an adapter of `peft` adapts; `None` if the model has none."""
    adapters = getattr(model, "peft_config", None) or {}
    return next((adapter.base_model_name_or_path for adapter in adapters.values()), None)


def refuse_local_base(model: Any) -> None:
    """
    Raises:
        ValueError: an adapter is to be pushed that only this machine could use.
    """
    base = adapted_model(model)
    if base is not None and Path(base).exists():
        raise ValueError(
            f"The adapter would name {base}, a folder of this machine, as what it adapts: push that model first"
            " (`swinbert push`), and start from its name on the Hub."
        )
