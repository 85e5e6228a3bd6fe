"""Inflation of a 2D Swin to a Video Swin whose features of a still clip equal those of the image.

As in Liu et al., "Video Swin Transformer", CVPR 2022, section 3.4, and its code: the patch embedding is divided by the
number of frames of a patch and repeated for each, and the relative position bias is repeated for each distance in time.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from swinbert.configuration_swinbert import VideoSwinConfig
from swinbert.conversion.configs import infer_video_swin_config
from swinbert.conversion.files import ConversionError, Tensors

_TABLE = "relative_position_bias_table"
_PATCH_LENGTH, _WINDOW_LENGTH = 2, 8  # of every released Video Swin


def inflate(tensors: Tensors, overrides: Mapping[str, Any] | None = None) -> tuple[Tensors, VideoSwinConfig, list[str]]:
    """
    Inflates the weights of a 2D Swin.

    Args:
        tensors: the weights under our names.
        overrides: fields of the configuration. `window_size` and `patch_size` set the size in time; by default patches
            have 2 frames and windows are 8 x S x S, where S is the side of the 2D windows.

    Returns:
        The weights of a Video Swin, its configuration, and notes on what was assumed.

    Raises:
        ConversionError: a window is not square, or a tensor is missing.
    """
    overrides = dict(overrides or {})
    sides = {name: _side(tensor.shape[0], name) for name, tensor in tensors.items() if name.endswith(_TABLE)}
    if not sides:
        raise ConversionError(f"The checkpoint has no {_TABLE}: expected a Swin with relative position biases.")
    # In some implementations, a stage whose feature map is smaller than the window has a smaller table.
    window = overrides.setdefault("window_size", [_WINDOW_LENGTH, max(sides.values()), max(sides.values())])
    patch_length = overrides["patch_size"][0] if "patch_size" in overrides else _PATCH_LENGTH

    inflated = dict(tensors)
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is not None:  # (C_out, C, H, W) -> (C_out, C, T, H, W)
        inflated["patch_embed.proj.weight"] = kernel[:, :, None].repeat(1, 1, patch_length, 1, 1) / patch_length
    notes = []
    for name, side in sides.items():
        table = tensors[name].float()  # ((2S - 1)^2, heads)
        target = (2 * window[1] - 1, 2 * window[2] - 1)
        if target != (2 * side - 1, 2 * side - 1):
            square = table.T.reshape(1, -1, 2 * side - 1, 2 * side - 1)
            square = F.interpolate(square, size=target, mode="bicubic", align_corners=False)
            table = square.reshape(square.shape[1], -1).T
            notes.append(f"{name}: interpolated from a window of {side} x {side} to {window[1]} x {window[2]}")
        inflated[name] = table.repeat(2 * window[0] - 1, 1)
    config, assumed = infer_video_swin_config(inflated, overrides)
    return inflated, config, assumed + notes


def _side(rows: int, name: str) -> int:
    """The side S of a square window with (2S - 1)^2 relative positions."""
    positions = math.isqrt(rows)
    if positions**2 != rows or positions % 2 == 0:
        raise ConversionError(
            f"{name} has {rows} rows, which is not (2S - 1)^2 for any S: only square 2D windows can be inflated."
        )
    return (positions + 1) // 2
