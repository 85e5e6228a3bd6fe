"""Conversion of released checkpoints to folders that `from_pretrained` loads.

`files` reads tensors without running code, `names` recognises the kind of checkpoint and renames its tensors, `configs`
infers the configuration and the settings of the processor, `inflation` turns an image model into a video model, and
`convert` puts them together. Every tensor is either mapped or dropped for a reason that the report gives; any other is
an error.
"""

from swinbert.conversion.configs import parse_overrides
from swinbert.conversion.convert import (
    ConversionReport,
    MaskStatistics,
    convert,
    inflate_swin,
    mask_statistics,
)
from swinbert.conversion.files import ConversionError, read_state_dict

__all__ = [
    "ConversionError",
    "ConversionReport",
    "MaskStatistics",
    "convert",
    "inflate_swin",
    "mask_statistics",
    "parse_overrides",
    "read_state_dict",
]
