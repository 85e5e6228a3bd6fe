"""Released checkpoints -> folders that `from_pretrained` loads.

In the order of the data: `files` reads tensors without running code, `names` tells what they are and what we call them,
`configs` infers the configuration and the processor's settings, `inflation` makes a video model of an image model,
`convert` puts it together. Every tensor is mapped, dropped for a reason that the report gives, or an error.
"""

from swinbert.conversion.configs import parse_overrides
from swinbert.conversion.convert import (
    ConversionReport,
    MaskStatistics,
    convert,
    convert_checkpoint,
    convert_swin_2d,
    convert_video_swin,
    inflate_swin,
    mask_statistics,
)
from swinbert.conversion.files import ConversionError, read_state_dict

__all__ = [
    "ConversionError",
    "ConversionReport",
    "MaskStatistics",
    "convert",
    "convert_checkpoint",
    "convert_swin_2d",
    "convert_video_swin",
    "inflate_swin",
    "mask_statistics",
    "parse_overrides",
    "read_state_dict",
]
