"""A training step beside the original's algorithm, and its time and memory with gradient checkpointing."""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .measurement import Row, Table
from .peers import original_training_step

if TYPE_CHECKING:
    from .suite import Bench

_MEMORY_TARGET = 0.25  # of the original's
_LIMIT = (
    "products of linear layers, at nine tenths of the peak, take more than half of the step; next are the backward"
    " pass of attention and that of GELU"
)
_CHECKPOINTING_LIMIT = (
    "the forward pass is repeated, which makes 1.3 times the operations; where freed memory is returned at once, the"
    " system fills its pages with zeros again; tried: huge pages, a seventh of the page faults in the same time"
)


def training(bench: "Bench") -> list[Table]:
    model, pixels = bench.model.train(), bench.pixels()
    backbone = bench.backbone.train()
    length = min(20, model.config.max_caption_length)
    ids = torch.full((1, length), model.config.mask_token_id, device=bench.device)
    labels = torch.randint(104, model.config.vocab_size, (1, length), device=bench.device)

    def forget() -> None:
        for parameter in itertools.chain(model.parameters(), backbone.parameters()):
            parameter.grad = None

    def ours() -> None:
        model(pixel_values_videos=pixels, input_ids=ids, labels=labels).loss.backward()
        forget()

    def checkpointed() -> None:
        model.gradient_checkpointing_enable()
        ours()
        model.gradient_checkpointing_disable()

    def original() -> None:
        original_training_step(model, backbone, pixels, ids, labels)
        forget()

    with torch.enable_grad():
        rows, _ = bench.compare(
            {"original's algorithm": original, "swinbert": ours, "swinbert, checkpointing": checkpointed}
        )
    model.eval()
    backbone.eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for row in rows:
        row.note = f"memory beyond {weights / 2**30:.2f} GiB of weights, with all gradients"
    if bench.device.type == "cpu":
        has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        rows[1].target, rows[1].limit = (3.0 if has_avx512 else 1.6), _LIMIT
    return [
        Table("Forward and backward of one clip", rows, "original's algorithm"),
        _checkpointing(rows, weights),
    ]


def _checkpointing(rows: list[Row], weights: int) -> Table:
    """Time beside our own step, and memory beside the original's, weights included."""
    original, ours, checkpointed = (replace(row, target=None, note="") for row in rows)
    if original.peak_bytes is not None and checkpointed.peak_bytes is not None:
        share = (weights + checkpointed.peak_bytes) / (weights + original.peak_bytes)
        verdict = "met" if share <= _MEMORY_TARGET else "missed"
        checkpointed.note = f"{share:.0%} of the original's memory with weights; target {_MEMORY_TARGET:.0%}: {verdict}"
    checkpointed.target, checkpointed.limit = 1 / 1.25, _CHECKPOINTING_LIMIT
    return Table("The step with checkpointing", [ours, checkpointed], ours.name)


__all__ = ["training"]
