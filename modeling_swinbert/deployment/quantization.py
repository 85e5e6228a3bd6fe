"""Dynamic int8 quantisation of linear layers, for inference on a CPU: inputs are quantised at every call.

```python
model = quantize_linear(SwinBertForVideoCaptioning.from_pretrained(...))
```
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


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
    if not all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters()):
        raise ValueError("int8 needs a model in float32 on a CPU: load it there with dtype=torch.float32.")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in skip:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Int8Linear(module))
    return model
