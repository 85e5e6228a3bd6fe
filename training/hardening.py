"""Converts a soft sparse mask into a binary one; the model then needs a few more training steps."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from swinbert import SparseVideoMask
from swinbert.training.initialization import load_captioner
from swinbert.utils.files import check_new_folder, new_folder


def harden(model: str, output: str | Path, threshold: float = 0.5) -> str:
    """
    Writes a copy of a model with a binary sparse mask: 1 where the soft mask M >= `threshold`, else 0.

    Args:
        model: a SwinBERT with a soft mask, folder or Hub id.
        output: a folder that does not exist or is empty.

    Returns:
        A report with the numbers of entries before and after.

    Raises:
        ValueError: the model has no soft mask, or the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"The threshold must be between 0 and 1, got {threshold}.")
    output = Path(output)
    check_new_folder(output)
    captioner = load_captioner(model)
    if captioner.config.sparse_mask != "soft":
        kind = {"none": "no sparse mask", "hard": "a binary mask already"}[captioner.config.sparse_mask]
        raise ValueError(f"{model} has {kind} (`sparse_mask` {captioner.config.sparse_mask}); expected a soft one.")
    processor = AutoProcessor.from_pretrained(model)

    mask: Any = captioner.model.sparse_mask
    before = mask.statistics()
    _binarise(mask, threshold)
    captioner.config.sparse_mask = "hard"
    after = mask.statistics()
    with new_folder(output) as staging:
        captioner.save_pretrained(staging)
        processor.save_pretrained(staging)
    lines = [
        f"{model} -> {output}: {after.size} x {after.size} sparse mask, binary from {threshold:g} on",
        f"  before: {before.alive:,} of {before.entries:,} off-diagonal entries alive in float32"
        f" ({before.share_alive:.2%}), {1 - before.share_below_half:.2%} at one half or above",
        f"  after: {after.alive:,} ({after.share_alive:.2%})",
    ]
    if not after.alive:
        lines.append("  Only the diagonal is left: every video token attends to itself alone.")
    return "\n".join([*lines, f"  Next: swinbert train --model {output} ..., a few steps at a low learning rate."])


@torch.no_grad()
def _binarise(mask: SparseVideoMask, threshold: float) -> None:
    """Shifts the logits so that the threshold comes to 0.5, from which on a hard mask is 1."""
    is_kept = mask.soft_values() >= threshold
    logits = mask.weight.float() - math.log(threshold / (1 - threshold))
    # Keeps entries on their side of the threshold despite rounding.
    mask.weight.copy_(torch.where(is_kept, logits.clamp(min=0.0), logits.clamp(max=-1e-3)))
