"""Public name of [`swinbert.deployment.quantization`]."""

from swinbert.deployment.quantization import Float16DecodingLinear, Int8Linear, quantize_decoding, quantize_linear

__all__ = ["Float16DecodingLinear", "Int8Linear", "quantize_decoding", "quantize_linear"]
