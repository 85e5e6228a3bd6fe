"""Video Swin Transformer (arXiv:2106.13230): a hierarchical backbone with attention in shifted 3D windows.

Shapes: B clips, T frames, C channels, H and W pixels, later T, H and W tokens; windows of N tokens. Between stages
activations are channels-last, (B, T, H, W, C). Inside a stage they are rows (R, C), one for each of the R tokens of all
clips, in the order in which the windows of a block hold them: shift and partition are one permutation of rows, and
everything else works on neighbours.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_swinbert import VideoSwinConfig
from .onednn_swinbert import fast_linear

# Added to the score of two tokens that the cyclic shift brought into one window from different ends of the clip.
_SHIFT_PENALTY = -100.0
# Attention scores that training computes at once: 4 MB.
_SCORES_AT_ONCE = 1 << 20
# Bytes of input that a layer computes at once in inference on a CPU; within an MLP they become 16 MB. These stay in the
# cache, and malloc keeps memory of this size for the next, while it gets more than 32 MB anew, page by page.
_BYTES_AT_ONCE = 4 << 20


@dataclass
class VideoSwinModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(B, N, hidden_size)`):
        Normalised tokens of the last stage, ordered by time, row, column.
    hidden_states (`tuple`, with `output_hidden_states=True`):
        Patch embeddings and the output of every stage (after its patch merging), each `(B, T * H * W, C)`.
    attentions (`tuple`, with `output_attentions=True`):
        Weights of every block, `(B * windows, heads, tokens of a window, tokens of a window)`; windows by time, row,
        column.
    reshaped_hidden_states (`tuple`, with `output_hidden_states=True`):
        The same as `hidden_states`, each `(B, C, T, H, W)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None


def drop_path(
    hidden_states: torch.Tensor, rate: float, training: bool, plan: "WindowPlan | None" = None
) -> torch.Tensor:
    """
    Stochastic depth (arXiv:1603.09382): drops samples of a residual branch, scales the rest by 1 / (1 - rate).
    (B, ...), or the rows of a plan.
    """
    if rate == 0.0 or not training:
        return hidden_states
    samples = hidden_states.shape[0] if plan is None else plan.batch
    shape = (samples,) + (1,) * (hidden_states.ndim - 1)
    keep = torch.rand(shape, device=hidden_states.device, dtype=torch.float32) >= rate
    scale = (keep / (1.0 - rate)).to(hidden_states.dtype)
    return hidden_states * (scale if plan is None else scale[plan.clip_of_row])


def relative_position_index(window: tuple[int, ...]) -> torch.Tensor:
    """(N, N) row of the bias table for every pair of tokens of a window, by their distance along T, H and W."""
    axes = [torch.arange(size) for size in window]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, N)
    distance = position[:, :, None] - position[:, None, :]  # (3, N, N)
    index = torch.zeros_like(distance[0])
    for along, size in zip(distance, window, strict=True):
        index = index * (2 * size - 1) + along + size - 1
    return index


def clip_window(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift along each axis; an axis that one window covers is neither padded nor shifted."""
    covered = [size <= side for size, side in zip(grid, window, strict=True)]
    clipped = tuple(size if fits else side for size, side, fits in zip(grid, window, covered, strict=True))
    return clipped, tuple(0 if fits else step for step, fits in zip(shift, covered, strict=True))


def window_kinds(
    shift: tuple[int, ...], window: tuple[int, ...], device: torch.device
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor | None]]:
    """
    Groups the windows of a cyclically shifted grid by their attention mask: only the last window along a shifted axis
    joins two ends of the clip, so there are at most eight kinds and each is a block of the grid of windows.

    Yields:
        Slices of the grid of windows along T, H and W, and the additive mask (N, N) of these windows, or `None`.
    """
    choices = [((slice(None), False),) if not step else ((slice(-1), False), (slice(-1, None), True)) for step in shift]
    for kind in itertools.product(*choices):
        region = torch.zeros((), dtype=torch.long, device=device)
        for axis, (_, is_last) in enumerate(kind):
            if is_last:
                wrapped = torch.arange(window[axis], device=device) >= window[axis] - shift[axis]
                sizes = [1, 1, 1]
                sizes[axis] = -1
                region = region * 2 + wrapped.long().view(sizes)
        mask = None
        if region.ndim:
            region = region.expand(window).flatten()  # (N,)
            mask = (region[:, None] != region[None, :]) * _SHIFT_PENALTY
        yield tuple(block for block, _ in kind), mask


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """
    How the tokens of B grids stand in windows: one window of every clip after the other, windows of one mask together.

    Attributes:
        num_tokens: N.
        order: (R,) the token, counted through (B, T, H, W), of each row.
        inverse: (R,) the row of each token.
        places: (R,) of each row, among the places of all windows, or `None` where windows hold no padding.
        groups: mask, (N, N) or `None`, of windows that follow each other, and their number in one clip.
        rank: (B * windows,) where the windows, counted by clip, time, row and column, stand.
    """

    batch: int
    shift: tuple[int, ...]
    num_tokens: int
    order: torch.Tensor
    inverse: torch.Tensor
    places: torch.Tensor | None
    groups: tuple[tuple[torch.Tensor | None, int], ...]
    rank: torch.Tensor

    @property
    def clip_of_row(self) -> torch.Tensor:
        return self.order // (self.order.shape[0] // self.batch)

    @property
    def masks(self) -> torch.Tensor:
        """(B * windows, N, N) additive mask of each window, by clip, time, row and column."""
        side = self.num_tokens
        none = torch.zeros(side, side, device=self.order.device)
        masks = [(none if mask is None else mask).expand(self.batch * count, side, side) for mask, count in self.groups]
        return torch.cat(masks).index_select(0, self.rank)

    def parts(self, windows: int) -> Iterator[tuple[slice, "WindowPlan"]]:
        """Rows of at most so many windows, and their plan, that of a clip whose tokens already stand in windows."""
        masks = [mask for mask, count in self.groups for _ in range(self.batch * count)]
        for first in range(0, len(masks), windows):
            some = masks[first : first + windows]
            runs = [list(run) for _, run in itertools.groupby(some, key=id)]
            rows = slice(first * self.num_tokens, (first + len(some)) * self.num_tokens)
            order = torch.arange(rows.stop - rows.start, device=self.order.device)
            groups = tuple((run[0], len(run)) for run in runs)
            yield rows, replace(self, batch=1, order=order, inverse=order, groups=groups, rank=order[: len(some)])


def inverse_permutation(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).index_copy(0, order, torch.arange(order.shape[0], device=order.device))


def make_window_plan(
    batch: int,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
) -> WindowPlan:
    """Plan for grids (T, H, W) and windows that [`clip_window`] clipped."""
    padding = [-size % side for size, side in zip(grid, window, strict=True)]
    windows = [(size + pad) // side for size, pad, side in zip(grid, padding, window, strict=True)]
    num_tokens, tokens_of_clip = math.prod(window), math.prod(grid)
    # Each place of the padded and shifted grid, in windows (windows T, windows H, windows W, N), knows its token.
    token = torch.arange(tokens_of_clip, device=device).view(grid)
    token = F.pad(token, (0, padding[2], 0, padding[1], 0, padding[0]), value=tokens_of_clip)
    token = token.roll([-step for step in shift], dims=(0, 1, 2))
    token = token.view(windows[0], window[0], windows[1], window[1], windows[2], window[2])
    token = token.permute(0, 2, 4, 1, 3, 5).flatten(3)
    number = torch.arange(math.prod(windows), device=device).view(windows)

    kinds = list(window_kinds(shift, window, device))
    token = torch.cat([token[block].flatten(0, 2) for block, _ in kinds])  # (windows, N)
    numbers = [number[block].flatten() for block, _ in kinds]
    clip = torch.arange(batch, device=device)
    places = None
    if any(padding):
        # Stable: the places of tokens, in their order, then padding.
        is_padding = (token.flatten() == tokens_of_clip).to(torch.uint8)
        place = torch.argsort(is_padding, stable=True)[:tokens_of_clip, None]
        order = token.flatten()[place] + clip * tokens_of_clip
        places = ((place // num_tokens * batch + clip) * num_tokens + place % num_tokens).flatten()
    else:
        order = token[:, None] + clip[:, None] * tokens_of_clip
    order = order.flatten()
    return WindowPlan(
        batch=batch,
        shift=shift,
        num_tokens=num_tokens,
        order=order,
        inverse=inverse_permutation(order),
        places=places,
        groups=tuple((mask, of_kind.shape[0]) for (_, mask), of_kind in zip(kinds, numbers, strict=True)),
        rank=(inverse_permutation(torch.cat(numbers)) * batch + clip[:, None]).flatten(),
    )


_kept_window_plan = functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make_window_plan))


def window_plan(hidden_states: torch.Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> WindowPlan:
    """The plan for hidden states (B, T, H, W, C), window and shift of a configuration; made once for each shape."""
    batch, *grid = hidden_states.shape[:4]
    window, shift = clip_window(tuple(grid), window, shift)
    make = _kept_window_plan if is_plain(hidden_states) else make_window_plan
    return make(batch, tuple(grid), window, shift, hidden_states.device)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is the real thing: nothing may be kept of compiling, exporting and tracing with fake tensors."""
    return not torch.compiler.is_compiling() and type(tensor) is torch.Tensor


def gains_by_parts(tensor: torch.Tensor) -> bool:
    """Whether to compute a part at a time: much, on a CPU, where no gradient keeps all activations anyway."""
    if torch.is_grad_enabled() or tensor.device.type != "cpu" or not is_plain(tensor):
        return False
    return tensor.nbytes > _BYTES_AT_ONCE


def frames_by_parts(
    compute: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor, step: int = 1
) -> torch.Tensor:
    """`compute(frames)` for (B, T, ...), a part at a time where that gains; every `step` frames go by themselves."""
    if not gains_by_parts(frames):
        return compute(frames)
    steps = max(1, _BYTES_AT_ONCE // frames[:, :step].nbytes)
    return torch.cat([compute(some) for some in frames.split(steps * step, dim=1)], dim=1)


def computed_again(
    result: torch.Tensor, compute: Callable[[], torch.Tensor]
) -> contextlib.AbstractContextManager[None]:
    """What runs within reads `result`, yet does not keep it for backward, which computes it again: for results that are
    cheap and large."""

    def pack(tensor: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        # Sharded and quantised weights are saved too, and may have no address.
        is_result = type(tensor) is torch.Tensor and tensor.numel() == num_elements and tensor.data_ptr() == result_at
        if not (is_result and tensor.is_contiguous()):
            return tensor
        shape = tensor.shape
        return lambda: compute().view(shape)

    def unpack(packed: torch.Tensor | Callable[[], torch.Tensor]) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else packed()

    if not (torch.is_grad_enabled() and result.requires_grad and is_plain(result)):
        return contextlib.nullcontext()
    result_at, num_elements = result.data_ptr(), result.numel()
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class BiasedAttention(torch.autograd.Function):
    """
    softmax(q k' scaling + bias + mask) v on a CPU, with a gradient for the bias too. The library's fused kernel has
    none and would keep the weights of all windows; here backward computes them again, some at a time.
    """

    @staticmethod
    def forward(
        qkv: torch.Tensor, bias: torch.Tensor, scaling: float, groups: tuple[tuple[torch.Tensor | None, int], ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        (windows, N, 3, heads, D), (heads, N, N), and of windows that follow each other the mask, (N, N) or `None`, and
        their number -> (windows, N, heads, D), logs of sums (windows, heads, N).
        """
        windows, num_tokens, _, heads, dim = qkv.shape
        output = qkv.new_empty(windows, num_tokens, heads, dim)
        log_sums = qkv.new_empty(windows, heads, num_tokens)
        for mask, some in _slices(groups):
            query, key, value = qkv[some].permute(2, 0, 3, 1, 4)
            context, log_sums[some] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, False, attn_mask=(bias if mask is None else bias + mask)[None], scale=scaling
            )
            output[some] = context.transpose(1, 2)
        return output, log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        qkv, bias, ctx.scaling, ctx.groups = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(qkv, bias, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        qkv, bias, output, log_sums = ctx.saved_tensors
        heads, num_tokens = bias.shape[:2]
        grad_qkv = torch.empty_like(qkv)
        grad_bias = torch.zeros_like(bias)
        at_once = max(1, _SCORES_AT_ONCE // num_tokens**2)
        for (mask, group), head in itertools.product(_slices(ctx.groups), range(heads)):
            added = bias[head] if mask is None else bias[head] + mask
            for first in range(group.start, group.stop, at_once):
                some = slice(first, min(first + at_once, group.stop))
                query, key, value = qkv[some, :, :, head].unbind(2)  # (some windows, N, D)
                of_query, of_key, of_value = grad_qkv[some, :, :, head].unbind(2)
                of_output = grad_output[some, :, head]
                weights = torch.baddbmm(added, query, key.transpose(1, 2), alpha=ctx.scaling)
                weights.sub_(log_sums[some, head, :, None]).exp_()
                # Gradients of softmax: P * (dP - sum of P * dP over a row), where that sum is dO . O.
                shift = (of_output * output[some, :, head]).sum(-1, keepdim=True)
                of_scores = torch.bmm(of_output, value.transpose(1, 2)).sub_(shift).mul_(weights)
                grad_bias[head] += of_scores.sum(0)
                of_query.copy_(torch.bmm(of_scores, key)).mul_(ctx.scaling)
                of_key.copy_(torch.bmm(of_scores.transpose(1, 2), query)).mul_(ctx.scaling)
                of_value.copy_(torch.bmm(weights.transpose(1, 2), of_output))
        return grad_qkv, grad_bias, None, None


def _slices(groups: Iterable[tuple[torch.Tensor | None, int]]) -> Iterator[tuple[torch.Tensor | None, slice]]:
    """Each group's mask, and where its windows are."""
    start = 0
    for mask, count in groups:
        yield mask, slice(start, start + count)
        start += count


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, heads, N, D) queries, keys and values -> output (B, N, heads, D) and attention weights (B, heads, N, N)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


class VideoSwinPatchEmbed(nn.Module):
    def __init__(self, config: VideoSwinConfig):
        super().__init__()
        self.patch_size = tuple(config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.patch_norm else nn.Identity()

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) pixels -> (B, T, H, W, C) tokens; sides that patches do not divide are padded with zeros."""
        return frames_by_parts(self.embed, pixel_values_videos, self.patch_size[0])

    def embed(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        pixels = pixel_values_videos.transpose(1, 2)  # (B, C, T, H, W)
        pad_t, pad_h, pad_w = (-size % patch for size, patch in zip(pixels.shape[2:], self.patch_size, strict=True))
        if pad_t or pad_h or pad_w:
            pixels = F.pad(pixels, (0, pad_w, 0, pad_h, 0, pad_t))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 4, 1))


class VideoSwinWindowAttention(nn.Module):
    """Attention inside windows, with a learned bias for the relative position of two tokens."""

    def __init__(self, config: VideoSwinConfig, dim: int, num_heads: int, shifted: bool):
        super().__init__()
        self.config = config
        self.window_size = tuple(config.window_size)
        self.shift_size = tuple(side // 2 if shifted else 0 for side in self.window_size)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.hidden_dropout_prob)
        distances = [2 * side - 1 for side in self.window_size]
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(distances[0] * distances[1] * distances[2], num_heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(self.window_size), persistent=False)
        self._kept_bias: tuple[torch.Tensor, torch.Tensor] | None = None

    def train(self, mode: bool = True):
        self._kept_bias = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept_bias": None}

    def position_bias(self, num_tokens: int) -> torch.Tensor:
        """(heads, N, N). A clipped window reads the first N rows of the full window's index, as the weights expect."""
        table = self.relative_position_bias_table
        # On a CPU it is an eighth of the attention's time; on a GPU, comparing would wait for the device.
        keeps = not (self.training or torch.is_grad_enabled()) and is_plain(table.data) and table.device.type == "cpu"
        if keeps and self._kept_bias is not None:
            # The table itself is compared: weights change in many ways, and none of them announces itself.
            kept_table, bias = self._kept_bias
            if bias.shape[-1] == num_tokens and kept_table.dtype == table.dtype and torch.equal(kept_table, table):
                return bias
        index = self.relative_position_index[:num_tokens, :num_tokens]
        bias = table[index.flatten()].view(num_tokens, num_tokens, self.num_heads).permute(2, 0, 1).contiguous()
        if keeps:
            self._kept_bias = (table.detach().clone(), bias)
        return bias

    def forward(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(R, C) rows of the plan -> the same shape, and the weights (windows, heads, N, N) on request."""
        dim = hidden_states.shape[1]
        if plan.places is not None:
            padded = hidden_states.new_zeros(plan.rank.shape[0] * plan.num_tokens, dim)
            hidden_states = padded.index_copy(0, plan.places, hidden_states)
        bias = self.position_bias(plan.num_tokens)

        qkv = self.qkv(hidden_states)
        weights = None
        if output_attentions:
            # In the order of the answer: weights that are returned are those that the output is made of.
            windows = qkv.view(-1, plan.num_tokens, 3 * dim).index_select(0, plan.rank)
            context, weights = self.attend(windows, bias + plan.masks.to(bias.dtype).unsqueeze(1))
            context = context.view(-1, plan.num_tokens, dim).index_select(0, inverse_permutation(plan.rank))
            hidden_states = context.flatten(0, 1)
        elif self._learns_bias_fused(qkv, bias):
            windows = qkv.view(-1, plan.num_tokens, 3, self.num_heads, self.head_dim)
            groups = tuple((mask, plan.batch * count) for mask, count in plan.groups)
            hidden_states = BiasedAttention.apply(windows, bias, self.scaling, groups)[0].view(-1, dim)
        else:
            masks, counts = zip(*plan.groups, strict=True)
            # (windows of a clip, B * N, 3 C), cut into those of one mask
            groups = qkv.view(sum(counts), -1, 3 * dim).split(counts)
            contexts = [
                self.attend(windows, (bias if mask is None else bias + mask.to(bias.dtype)).unsqueeze(0))[0]
                for windows, mask in zip(groups, masks, strict=True)
            ]
            hidden_states = torch.cat(contexts) if len(contexts) > 1 else contexts[0]
        hidden_states = self.proj(hidden_states)
        if plan.places is not None:
            hidden_states = hidden_states.index_select(0, plan.places)
        return self.proj_drop(hidden_states), weights

    def attend(self, qkv: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Windows (., ., 3 * C), and a bias for all (1, heads, N, N) or for each of them (windows, heads, N, N) -> rows
        (windows * N, C), and weights if the attention computes them.
        """
        qkv = qkv.view(-1, bias.shape[-1], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self, query, key, value, bias, scaling=self.scaling, dropout=self._dropout()
        )
        return output.flatten(2).flatten(0, 1), weights

    def _dropout(self) -> float:
        return self.config.attention_probs_dropout_prob if self.training else 0.0

    def _learns_bias_fused(self, qkv: torch.Tensor, bias: torch.Tensor) -> bool:
        """Whether [`BiasedAttention`] can train this, and weights would take more memory than queries, keys, values."""
        return (
            bias.shape[-1] > 3 * self.head_dim
            and self.config._attn_implementation == "sdpa"
            and bias.requires_grad
            and qkv.device.type == "cpu"
            and qkv.dtype == bias.dtype == torch.float32
            and not self._dropout()
            and is_plain(qkv)
        )


class VideoSwinMLP(nn.Module):
    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, keep_all: bool = True) -> torch.Tensor:
        """`keep_all`: for backward, whether what the activation function gives is kept, or computed again."""
        inner = self.fc1(hidden_states)
        active = self.act(inner)
        dropped = self.drop(active)
        with contextlib.nullcontext() if keep_all else computed_again(active, lambda: self.act(inner)):
            return self.drop(self.fc2(dropped))


class VideoSwinBlock(GradientCheckpointingLayer):
    def __init__(self, config: VideoSwinConfig, dim: int, num_heads: int, shifted: bool, drop_path_rate: float):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = VideoSwinWindowAttention(config, dim, num_heads, shifted)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = VideoSwinMLP(config, dim)

    @fast_linear
    def forward(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(R, C) rows of the plan -> the same shape, and attention weights on request."""
        # Training drops whole clips, and checkpointing runs without gradients what it repeats with them.
        if self.training or output_attentions or plan.places is not None or not gains_by_parts(hidden_states):
            return self.mix(hidden_states, plan, output_attentions)
        bytes_of_window = plan.num_tokens * hidden_states.shape[1] * hidden_states.element_size()
        output = torch.empty_like(hidden_states)
        for rows, part in plan.parts(max(1, _BYTES_AT_ONCE // bytes_of_window)):
            output[rows], _ = self.mix(hidden_states[rows], part)
        return output, None

    def mix(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention within windows, then the MLP."""
        attended, weights = self.attn(self.norm1(hidden_states), plan, output_attentions)
        hidden_states = hidden_states + drop_path(attended, self.drop_path_rate, self.training, plan)
        # Checkpointing has hooks of its own, which these would take the place of.
        mixed = self.mlp(self.norm2(hidden_states), keep_all=self.gradient_checkpointing)
        return hidden_states + drop_path(mixed, self.drop_path_rate, self.training, plan), weights


class VideoSwinPatchMerging(nn.Module):
    """Four neighbours of a frame become one token of twice the channels; time is kept."""

    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    @fast_linear
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, C) -> (B, T, ceil(H / 2), ceil(W / 2), 2 C)."""
        return frames_by_parts(self.merge, hidden_states)

    def merge(self, hidden_states: torch.Tensor) -> torch.Tensor:
        height, width = hidden_states.shape[2:4]
        if height % 2 or width % 2:
            hidden_states = F.pad(hidden_states, (0, 0, 0, width % 2, 0, height % 2))
        neighbours = [hidden_states[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class VideoSwinStage(nn.Module):
    def __init__(self, config: VideoSwinConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        dim = config.embed_dim * 2**stage
        self.blocks = nn.ModuleList(
            VideoSwinBlock(config, dim, config.num_heads[stage], shifted=index % 2 == 1, drop_path_rate=rate)
            for index, rate in enumerate(drop_path_rates)
        )
        is_last = stage == config.num_layers - 1
        self.downsample = None if is_last else VideoSwinPatchMerging(config, dim)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """(B, T, H, W, C) -> the same, after patch merging if the stage has it, and each block's attention weights."""
        shape = hidden_states.shape
        rows = hidden_states.flatten(0, 3)
        plan, attentions = None, []
        for block in self.blocks:
            attn = block.attn
            wanted = window_plan(hidden_states, attn.window_size, attn.shift_size)
            if plan is None:
                rows = rows.index_select(0, wanted.order)
            elif plan.shift != wanted.shift:
                rows = rows.index_select(0, plan.inverse.index_select(0, wanted.order))
            plan = wanted
            rows, weights = block(rows, plan, output_attentions)
            attentions.append(weights)
        if plan is not None:
            rows = rows.index_select(0, plan.inverse)
        hidden_states = rows.view(shape)
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states)
        return hidden_states, tuple(attentions)


class SafetensorsModel(PreTrainedModel):
    """A model whose weights are never read from a pickle, which could run code, and are those that the Hub names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any):
        """
        The library's, from `.safetensors` only.

        Raises:
            ValueError: `use_safetensors=False` asks for a pickle.
            OSError: the folder or repository has no safetensors, their download is not what the Hub has, and whatever
                else the library raises.
        """
        started = time.time()
        mend = (
            "pytorch_model.bin and other pickles are never opened, since they can run code. Released weights become"
            " safetensors by `swinbert convert --checkpoint FILE --output DIR`; of your own model, `save_pretrained`"
            " writes them."
        )
        if kwargs.get("use_safetensors") is False:
            raise ValueError(f"`use_safetensors=False` is refused: {mend}")
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, **{**kwargs, "use_safetensors": True}
            )
        except OSError as error:
            # The library's advice would be to turn safetensors off.
            if not any(found in str(error) for found in ("no file named", "not appear to have a file named model")):
                raise
            raise OSError(f"{pretrained_model_name_or_path} has no model.safetensors. {mend}") from error
        finally:
            # The auto classes name an adapter beside its base.
            adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
            for source in filter(None, (pretrained_model_name_or_path, adapter)):
                check_downloads(str(source), started, kwargs.get("cache_dir"), kwargs.get("revision"))

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args: Any, **kwargs: Any):
        # Whatever way leads here: of an adapter of `peft`, the library takes a pickle where there are no safetensors.
        if refused := [str(file) for file in checkpoint_files or () if not str(file).endswith(".safetensors")]:
            raise OSError(
                f"{', '.join(refused)} is not opened: pickles can run code. Save the adapter again, as safetensors."
            )
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)


def check_downloads(
    source: str, since: float, cache_dir: str | Path | None = None, revision: str | None = None
) -> None:
    """
    Compares weights in the Hub's cache with the SHA-256 that the Hub named: of a plain download, only the size is
    checked elsewhere. Damaged files leave the cache.

    Args:
        source: repository of a model, or repository or folder of an adapter, whose base is looked at too.
        cache_dir, revision: as for `from_pretrained`.
        since: seconds since 1970; what was in the cache before is left alone.

    Raises:
        OSError: a file is not what it should be.
    """
    is_local = os.path.isdir(source)
    folder = Path(source)
    if not is_local:
        try:
            names = ("config.json", "adapter_config.json")
            cached = [try_to_load_from_cache(source, name, cache_dir, revision) for name in names]
        except ValueError:  # not a name of the Hub
            return
        folder = next((Path(path).parent for path in cached if isinstance(path, str)), folder)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and base != source:
            check_downloads(base, since, cache_dir)
    for link in () if is_local else folder.glob("*.safetensors"):
        file = link.resolve()  # named by its SHA-256
        # Clocks of file systems are coarse.
        if not re.fullmatch(r"[0-9a-f]{64}", file.name) or file.stat().st_ctime < since - 2:
            continue
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != file.name:
            link.unlink()
            file.unlink()
            raise OSError(
                f"The download of {link.name} from {source} is damaged: its SHA-256 is {digest.hexdigest()}, not"
                f" {file.name}. It is removed from the cache: load it again."
            )


class VideoSwinPreTrainedModel(SafetensorsModel):
    config: VideoSwinConfig
    config_class = VideoSwinConfig
    base_model_prefix = "video_encoder"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VideoSwinBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VideoSwinWindowAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
            init.copy_(module.relative_position_index, relative_position_index(module.window_size))


class VideoSwinModel(VideoSwinPreTrainedModel):
    """Video Swin backbone: a clip in, a grid of tokens out."""

    def __init__(self, config: VideoSwinConfig):
        super().__init__(config)
        self.patch_embed = VideoSwinPatchEmbed(config)
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        self.layers = nn.ModuleList(
            VideoSwinStage(config, stage, rates[sum(config.depths[:stage]) :][:depth])
            for stage, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> VideoSwinModelOutput:
        r"""
        pixel_values_videos (`torch.FloatTensor` of shape `(B, T, C, H, W)`):
            Normalised pixels; any T, H and W.

        Raises:
            ValueError: the tensor has another number of dimensions or channels.
        """
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values_videos` must be (batch, frames, {self.config.num_channels} channels, height, width),"
                f" got {tuple(pixel_values_videos.shape)}: the processor makes this layout."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions

        grid = self.pos_drop(self.patch_embed(pixel_values_videos.to(self.patch_embed.proj.weight.dtype)))
        tokens = grid.flatten(1, 3)  # (B, T, H, W, C) -> (B, N, C)
        hidden_states, reshaped, attentions = [], [], ()

        def record():
            if output_hidden_states:
                hidden_states.append(tokens)
                reshaped.append(tokens.view(grid.shape).permute(0, 4, 1, 2, 3))  # (B, C, T, H, W)

        record()
        for stage in self.layers:
            grid, weights = stage(tokens.view(grid.shape), output_attentions)
            tokens = grid.flatten(1, 3)
            attentions += weights
            record()

        return VideoSwinModelOutput(
            last_hidden_state=self.norm(tokens),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            reshaped_hidden_states=tuple(reshaped) if output_hidden_states else None,
        )


__all__ = ["SafetensorsModel", "VideoSwinModel", "VideoSwinModelOutput", "VideoSwinPreTrainedModel"]
