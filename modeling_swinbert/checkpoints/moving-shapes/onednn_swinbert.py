"""Linear layers by the faster of torch's two libraries.

On x86, torch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors of AMD; its other library,
oneDNN, does not. With the same weights, in the same layout, it is twice as fast there, and three times where there are
few rows, as in a step of decoding.

Shapes: R rows (all axes but the last), I features in, O features out.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


@functools.cache
def has_faster_onednn() -> bool:
    """Whether this is a processor on which oneDNN's products in float32 were measured to be faster: AMD, AVX-512."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False


def onednn_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., I) x (O, I) -> (..., O), without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`F.linear` and its gradients, as products of oneDNN."""

    @staticmethod
    def forward(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., I), (O, I) and (O,) -> (..., O)."""
        return onednn_product(states, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        states, weight, _ = inputs
        ctx.save_for_backward(states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad
        rows = grad_output.flatten(0, -2)  # (R, O)
        return (
            onednn_product(grad_output, weight.t()) if of_states else None,
            onednn_product(rows.t(), states.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


class OneDNNLinearMode(TorchFunctionMode):
    """
    Within it, `F.linear` is [`OneDNNLinear`] for plain float32 tensors on a CPU. A mode, not a layer: whoever replaces
    or wraps layers, to quantise or adapt them, looks for `nn.Linear` and nothing else.

    Attributes:
        is_used: whether models enter it; by default where F.linear is known to be slower. Results are the same to
            float32 rounding.
    """

    is_used: bool | None = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _is_plain(*args[:2]):
            return OneDNNLinear.apply(*args, *([None] if len(args) == 2 else []))
        return func(*args, **(kwargs or {}))


def _is_plain(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Neither traced nor sharded nor quantised, and not to be cast."""
    return (
        type(states) in (torch.Tensor, nn.Parameter)
        and type(weight) in (torch.Tensor, nn.Parameter)
        and type(weight.data) is torch.Tensor
        and states.device.type == weight.device.type == "cpu"
        and states.dtype == weight.dtype == torch.float32
        and states.ndim > 1
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def fast_linear(forward: Callable) -> Callable:
    """Runs a forward pass, also when checkpointing repeats it, in [`OneDNNLinearMode`] where that is faster."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_wanted():
            return forward(*args, **kwargs)
        with OneDNNLinearMode():
            return forward(*args, **kwargs)

    return run


def _is_wanted() -> bool:
    return has_faster_onednn() if OneDNNLinearMode.is_used is None else OneDNNLinearMode.is_used


__all__ = ["fast_linear"]
