"""Inflation: a Swin trained on images becomes a Video Swin that sees a still clip as that image.

As in the Video Swin code: the patch embedding is spread evenly over the frames of a patch, and the bias of two
positions is the same however far apart in time they are.
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
    Weights of a 2D Swin (our names) -> those of a Video Swin, its configuration, and what had to be assumed.

    Args:
        overrides: fields of the configuration; `window_size` and `patch_size` decide what is inflated to. By default
            patches of 2 frames and windows of 8 x S x S, with S the side of the 2D windows.

    Raises:
        ConversionError: a window is not square, or a tensor is missing.
    """
    overrides = dict(overrides or {})
    sides = {name: _side(tensor.shape[0], name) for name, tensor in tensors.items() if name.endswith(_TABLE)}
    if not sides:
        raise ConversionError(f"The checkpoint lacks every {_TABLE}: it is no Swin with relative position biases.")
    # A stage whose feature map is smaller than the window has a smaller table in some codes.
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
    """Side S of a square window with (2S - 1)^2 relative positions."""
    positions = math.isqrt(rows)
    if positions**2 != rows or positions % 2 == 0:
        raise ConversionError(
            f"{name} has {rows} rows, which is no (2S - 1)^2: only square 2D windows can be inflated."
        )
    return (positions + 1) // 2
