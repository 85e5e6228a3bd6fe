"""A training step beside the original's algorithm, and its time and memory with gradient checkpointing."""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from swinbert.utils.memory import keep_freed_memory

from .measurement import Row, Table, peak_memory, seconds_of
from .peers import original_training_step

if TYPE_CHECKING:
    from .suite import Bench

_MEMORY_TARGET = 0.25  # of the original's
_LIMIT = (
    "products of linear layers, at nine tenths of the peak, take more than half of the step; next are the backward"
    " pass of attention and that of GELU"
)
_CHECKPOINTING_LIMIT = (
    "half of the forward pass is repeated; where freed memory is returned at once, the system fills its pages with"
    " zeros again; tried: huge pages, a seventh of the page faults in the same time"
)
_ORIGINAL, _OURS, _CHECKPOINTED = "original's algorithm", "swinbert", "swinbert, checkpointing"
_RETURNING = "the same, freed memory returned at once"


class _Steps:
    """Forward and backward passes of one clip."""

    def __init__(self, bench: "Bench"):
        self._model, self._pixels, self._backbone = bench.model.train(), bench.pixels(), bench.backbone.train()
        config = self._model.config
        length = min(20, config.max_caption_length)
        self._ids = torch.full((1, length), config.mask_token_id, device=bench.device)
        self._labels = torch.randint(104, config.vocab_size, (1, length), device=bench.device)
        self.calls = {_ORIGINAL: self.original, _OURS: self.ours, _CHECKPOINTED: self.checkpointed}

    def original(self) -> None:
        original_training_step(self._model, self._backbone, self._pixels, self._ids, self._labels)
        self._forget()

    def ours(self) -> None:
        self._model(pixel_values_videos=self._pixels, input_ids=self._ids, labels=self._labels).loss.backward()
        self._forget()

    def checkpointed(self) -> None:
        self._model.activation_checkpointing_enable()
        self.ours()
        self._model.activation_checkpointing_disable()

    def _forget(self) -> None:
        for parameter in itertools.chain(self._model.parameters(), self._backbone.parameters()):
            parameter.grad = None


def training(bench: "Bench") -> list[Table]:
    steps = _Steps(bench)
    with torch.enable_grad():
        rows, _ = bench.compare(steps.calls)
    bench.model.eval()
    bench.backbone.eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in bench.model.parameters())
    checkpointed = rows
    if bench.device.type == "cpu":
        for row in rows:
            row.peak_bytes, _ = _in_new_process(bench, row.name, False)
        peak_bytes, seconds = _in_new_process(bench, _CHECKPOINTED, True)
        note = "as `swinbert train` does; timed once, in a process of its own"
        checkpointed = [*rows, Row(_RETURNING, [seconds] * len(rows[0].seconds), peak_bytes=peak_bytes, note=note)]
    of_checkpointing = _checkpointing(checkpointed, weights)
    for row in rows:
        row.note = f"memory beyond {weights / 2**30:.2f} GiB of weights, with all gradients"
    if bench.device.type == "cpu":
        has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        rows[1].target, rows[1].limit = (3.0 if has_avx512 else 1.6), _LIMIT
    return [Table("Forward and backward of one clip", rows, _ORIGINAL), of_checkpointing]


def _checkpointing(rows: list[Row], weights: int) -> Table:
    """Time beside our own step, and memory beside the original's, weights included."""
    original, ours, *checkpointed = (replace(row) for row in rows)
    for row in checkpointed:
        if original.peak_bytes is not None and row.peak_bytes is not None:
            share = (weights + row.peak_bytes) / (weights + original.peak_bytes)
            verdict = "met" if share <= _MEMORY_TARGET else "missed"
            memory = f"{share:.0%} of the original's memory with weights; target {_MEMORY_TARGET:.0%}: {verdict}"
            row.note = "; ".join(filter(None, (memory, row.note)))
        row.target, row.limit = 1 / 1.25, _CHECKPOINTING_LIMIT
    return Table("The step with checkpointing", [ours, *checkpointed], ours.name)


def _in_new_process(bench: "Bench", name: str, returns_memory: bool) -> tuple[int | None, float]:
    """
    Peak memory of the first step in a process, where no earlier one has left free memory, and seconds of the second.

    Args:
        name: of the step.
        returns_memory: whether freed memory is returned to the system at once.
    """
    bench.progress(f"{name}, memory in a process of its own")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, bench.size_name, bench.dtype, name, returns_memory).result()


def _measure(size: str, dtype: torch.dtype, name: str, returns_memory: bool) -> tuple[int | None, float]:
    from .suite import Bench

    if returns_memory:
        keep_freed_memory(False)
    device = torch.device("cpu")
    step = _Steps(Bench(size, 1, device, dtype, (), Path(), lambda message: None)).calls[name]
    peak_bytes, _ = peak_memory(step, device)
    return peak_bytes, seconds_of(step, device)


__all__ = ["training"]
