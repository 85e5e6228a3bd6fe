"""The video encoder beside torchvision's, beside matrix products of as many operations, and in eight bits."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from swinbert.deployment.quantization import has_vnni

from .measurement import Table, fastest_product

if TYPE_CHECKING:
    from .suite import Bench

_SIDE = 2048  # of the matrices whose product is the peak
_LIMIT = (
    "attention takes a fifth of the time, below half of the peak: its products are 32 deep, softmax a quarter of it;"
    " tried: softmax between batched MKL products 0.99 and 1.05 of the encoder's time with and without AVX-512, grouped"
    " convolutions of oneDNN no faster in all than MKL, oneDNN Graph through the deprecated TorchScript 0.84 of"
    " attention's time, GELU and residuals within oneDNN's products 0.99 of the encoder's time"
)
_INT8_LIMIT = (
    "products in eight bits without VNNI are 1.8 times as fast (3.7 times with it); attention, GELU and normalisation"
    " stay in float32 and take 1.2 of the 4 seconds of the float32 encoder"
)


def encoder(bench: "Bench") -> list[Table]:
    clips = 1 if bench.device.type == "cpu" else 16  # a single clip does not fill a GPU
    pixels = bench.pixels(clips)
    calls = {"torchvision": lambda: bench.backbone(pixels), "swinbert": lambda: bench.features(pixels)}
    if (in_bfloat16 := bench.model_in_bfloat16) is not None:
        calls["swinbert, bfloat16"] = lambda: in_bfloat16.model.video_encoder(pixels)
    if (in_int8 := bench.model_in_int8) is not None:
        calls["swinbert, int8"] = lambda: in_int8.model.video_encoder(pixels)
    if (compiled := bench.compiled_encoder) is not None:
        compiled(pixels)
        calls["swinbert, compiled"] = lambda: compiled(pixels)
    rows, _ = bench.compare(calls, items=clips)
    for row in rows:
        row.flop = rows[0].flop  # the same arithmetic; the counter does not know all fused kernels
    title = "Video encoder, the same weights" + (f", {clips} clips at once" if clips > 1 else "")
    tables = [Table(title, rows, "torchvision")]
    if rows[0].flop is not None:
        fastest = "swinbert" if compiled is None else "swinbert, compiled"
        tables.append(_beside_products(bench, rows[0].flop, fastest, calls[fastest]))
    if in_int8 is not None:
        ours, in_eight_bits = rows[1], replace(rows[-1])
        if not has_vnni():
            in_eight_bits.target, in_eight_bits.limit = 1.7, _INT8_LIMIT
        tables.append(Table("Video encoder in eight bits", [ours, in_eight_bits], ours.name))
    return tables


def _beside_products(bench: "Bench", flop: int, name: str, encode: Callable[[], object]) -> Table:
    """The share of the matrix peak: how long products of large matrices take for as many operations."""
    side = min(_SIDE, round((flop / 2) ** (1 / 3)))
    product, _ = fastest_product(bench.device, bench.dtype, side)

    def products() -> None:
        for _ in range(round(flop / (2 * side**3))):
            product()

    baseline = "matrix products of as many operations"
    rows, _ = bench.compare({baseline: products, name: encode})
    if bench.device.type == "cuda":
        rows[1].target = 0.4
    elif bench.dtype == torch.float32:
        rows[1].target = 0.7 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 0.8
        rows[1].limit = _LIMIT
    for row in rows:
        row.flop = flop
    return Table("Share of the matrix peak", rows, baseline)


__all__ = ["encoder"]
