"""
Fewer bits for linear layers, for inference on a CPU: all of them in int8, where inputs are quantised at every call, or
those of a decoding step in float16.

```python
model = quantize_linear(SwinBertForVideoCaptioning.from_pretrained(...))
model = quantize_decoding(SwinBertForVideoCaptioning.from_pretrained(...))
```
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from swinbert import SwinBertForVideoCaptioning


class Int8Linear(nn.Module):
    """A linear layer that multiplies in int8, with one scale for each row of weights and one for all inputs."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            # torch has no other way to these products yet.
            warnings.filterwarnings("ignore", ".*deprecated", UserWarning)
            weight = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(weight, bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # Without VNNI, sums of two 8-bit products overflow 16 bits, so inputs get 7 bits.
        return torch.ops.quantized.linear_dynamic(states, self.packed, reduce_range=not has_vnni())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *args: Any) -> None:
        raise TypeError(
            "An int8 model cannot be saved: save the model that it was made of, and quantise after loading."
        )


class Float16DecodingLinear(nn.Linear):
    """
    A linear layer that multiplies the tokens of a decoding step by a copy of its weight in float16, and longer inputs
    by the weight in float32. Inputs, sums and outputs are float32 in both cases.
    """

    # The last word and a [MASK].
    MAX_TOKENS = 2

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., L, I) -> (..., L, O)."""
        if states.shape[-2] > self.MAX_TOKENS or torch.is_grad_enabled():
            return super().forward(states)
        return torch.ops.quantized.linear_dynamic_fp16(states, self.packed)


def has_vnni() -> bool:
    """Whether this CPU multiplies and adds eight-bit integers in one instruction."""
    return torch.cpu._is_vnni_supported()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; a CPU that emulates it is several times slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def quantize_linear(model: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
    """
    Replaces the linear layers of a model by [`Int8Linear`], in place.

    Args:
        model: a model in float32 on a CPU.
        skip: names of layers to leave in float32.

    Returns:
        The same model.

    Raises:
        ValueError: the model is on another device or in another dtype.
    """
    _check_float32(model, "int8")
    _replace_linear(model, Int8Linear, skip)
    return model


def quantize_decoding(model: SwinBertForVideoCaptioning) -> SwinBertForVideoCaptioning:
    """
    Replaces the linear layers of the fusion encoder and of the head by [`Float16DecodingLinear`], in place.

    A decoding step is bound by reading weights, and reads half as many bytes; clips are encoded in float32 as before.
    The copy takes half the memory of these layers (217 MB for the base model). It does not follow later changes of the
    weights. The model is saved as the one in float32.

    Args:
        model: a model in float32 on a CPU, for inference.

    Returns:
        The same model.

    Raises:
        ValueError: the model is on another device or in another dtype, or this PyTorch has no products with float16
            weights (FBGEMM, on x86 only).
    """
    _check_float32(model, "Decoding with float16 weights")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ValueError("Decoding with float16 weights needs FBGEMM, which this PyTorch lacks: leave them in float32.")
    for module in (model.model.encoder, model.lm_head):
        _replace_linear(module, Float16DecodingLinear)
    return model


def _check_float32(model: nn.Module, what: str) -> None:
    if not all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters()):
        raise ValueError(f"{what} needs a model in float32 on a CPU: load it there with dtype=torch.float32.")


def _replace_linear(model: nn.Module, replacement: Callable[[nn.Linear], nn.Module], skip: Sequence[str] = ()) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in skip:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, replacement(module))
