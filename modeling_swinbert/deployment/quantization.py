"""Linear layers in eight bits, for speed on a CPU: weights once for each output, inputs anew at every call.

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
    """A linear layer whose product is computed in int8: one scale for each row of weights, one for all inputs."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            # Nothing else leads to these products yet.
            warnings.filterwarnings("ignore", ".*deprecated", UserWarning)
            weight = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(weight, bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # Without these instructions, sums of two products of 8 by 8 bits overflow 16 bits: inputs get 7.
        return torch.ops.quantized.linear_dynamic(states, self.packed, reduce_range=not has_vnni())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *args: Any) -> None:
        raise TypeError("A model in eight bits is not saved: save the model that it was made of, and quantise again.")


def has_vnni() -> bool:
    """Whether this CPU multiplies and adds eight-bit integers in one instruction."""
    return torch.cpu._is_vnni_supported()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does; without it a CPU emulates bfloat16, several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def quantize_linear(model: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
    """
    Puts layers in eight bits into the place of a model's linear ones, for inference on a CPU.

    Args:
        model: in float32 on a CPU; changed in place, and returned.
        skip: names of layers to leave as they are.

    Raises:
        ValueError: the model is elsewhere or not in float32.
    """
    if not all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters()):
        raise ValueError("Eight bits are for a model in float32 on a CPU: load it with dtype=torch.float32, there.")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in skip:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Int8Linear(module))
    return model
