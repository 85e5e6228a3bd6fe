"""Public name of [`swinbert.deployment.quantization`]."""

from swinbert.deployment.quantization import Int8Linear, quantize_linear

__all__ = ["Int8Linear", "quantize_linear"]
