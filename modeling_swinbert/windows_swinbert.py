"""Shifted 3D windows (arXiv:2106.13230, sections 3.2 and 3.3): which tokens share a window, and attention in windows.

Shapes: B clips, T frames, H rows and W columns of tokens, C channels; N tokens of a window, D channels of a head.
Tokens stand as rows (R, C), the R tokens of all clips in the order of the windows that hold them: shifting and
partitioning is one permutation of rows, and all layers work on contiguous memory.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .attention_swinbert import attend
from .configuration_swinbert import VideoSwinConfig
from .cpu_swinbert import BiasedAttention, can_fuse_learned_bias, is_eager_tensor

# Added to the score of two tokens that the cyclic shift brought into one window from different ends of the clip.
_SHIFT_PENALTY = -100.0


def relative_position_index(window: tuple[int, ...]) -> torch.Tensor:
    """(N, N) row of the bias table for every pair of tokens of a window, by their distance along T, H and W."""
    axes = [torch.arange(size) for size in window]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, N)
    distance = position[:, :, None] - position[:, None, :]  # (3, N, N)
    index = torch.zeros_like(distance[0])
    for axis_distance, size in zip(distance, window, strict=True):
        index = index * (2 * size - 1) + axis_distance + size - 1
    return index


def clip_window(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift along each axis of a grid of tokens; an axis that one window covers is not shifted."""
    exceeds = [side > size for side, size in zip(grid, window, strict=True)]
    clipped = tuple(size if larger else side for size, side, larger in zip(window, grid, exceeds, strict=True))
    return clipped, tuple(step if larger else 0 for step, larger in zip(shift, exceeds, strict=True))


def mask_groups(
    shift: tuple[int, ...], window: tuple[int, ...], device: torch.device
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor | None]]:
    """
    Groups the windows of a cyclically shifted grid by their attention mask: only the last window along a shifted axis
    joins two ends of the clip, so there are at most eight groups and each is a block of the grid of windows.

    Yields:
        Slices of the grid of windows along T, H and W, and the additive mask (N, N) of these windows, or `None`.
    """
    choices = [((slice(None), False),) if not step else ((slice(-1), False), (slice(-1, None), True)) for step in shift]
    for choice in itertools.product(*choices):
        region = torch.zeros((), dtype=torch.long, device=device)
        for axis, (_, is_last) in enumerate(choice):
            if is_last:
                wrapped = torch.arange(window[axis], device=device) >= window[axis] - shift[axis]
                sizes = [1, 1, 1]
                sizes[axis] = -1
                region = region * 2 + wrapped.long().view(sizes)
        mask = None
        if region.ndim:
            region = region.expand(window).flatten()  # (N,)
            mask = (region[:, None] != region[None, :]) * _SHIFT_PENALTY
        yield tuple(block for block, _ in choice), mask


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """
    The order in which the tokens of B grids stand in windows: grouped by attention mask, then by window, then by clip.

    Args:
        batch: B.
        shift: cyclic shift along (T, H, W).
        num_tokens: N.
        order: (R,) the token, counted through (B, T, H, W), of each row.
        inverse: (R,) the row of each token.
        places: (R,) the place of each row among the N places of every window, or `None` if no window holds padding.
        groups: the additive mask, (N, N) or `None`, and the number of windows of a clip for each group of windows.
        rank: (B * windows,) position of each window, counted by clip, time, row and column, in the order of the plan.
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
        """(R,) index of the clip that each row belongs to."""
        return self.order // (self.order.shape[0] // self.batch)

    @property
    def masks(self) -> torch.Tensor:
        """(B * windows, N, N) additive mask of each window, by clip, time, row and column."""
        side = self.num_tokens
        none = torch.zeros(side, side, device=self.order.device)
        masks = [(none if mask is None else mask).expand(self.batch * count, side, side) for mask, count in self.groups]
        return torch.cat(masks).index_select(0, self.rank)

    def chunks(self, windows: int) -> Iterator[tuple[slice, "WindowPlan"]]:
        """Slices of rows that hold at most `windows` windows, each with its plan as of one clip without padding."""
        masks = [mask for mask, count in self.groups for _ in range(self.batch * count)]
        for first in range(0, len(masks), windows):
            chunk = masks[first : first + windows]
            runs = [list(run) for _, run in itertools.groupby(chunk, key=id)]
            rows = slice(first * self.num_tokens, (first + len(chunk)) * self.num_tokens)
            order = torch.arange(rows.stop - rows.start, device=self.order.device)
            groups = tuple((run[0], len(run)) for run in runs)
            yield rows, replace(self, batch=1, order=order, inverse=order, groups=groups, rank=order[: len(chunk)])


def inverse_permutation(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).index_copy(0, order, torch.arange(order.shape[0], device=order.device))


def make_window_plan(
    batch: int,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
) -> WindowPlan:
    """Plan for `batch` grids (T, H, W) of tokens; window and shift as [`clip_window`] gives them."""
    padding = [-size % side for size, side in zip(grid, window, strict=True)]
    windows = [(size + pad) // side for size, pad, side in zip(grid, padding, window, strict=True)]
    num_tokens, tokens_of_clip = math.prod(window), math.prod(grid)
    # The token at each place of the padded and shifted grid, (windows T, windows H, windows W, N).
    token = torch.arange(tokens_of_clip, device=device).view(grid)
    token = F.pad(token, (0, padding[2], 0, padding[1], 0, padding[0]), value=tokens_of_clip)
    token = token.roll([-step for step in shift], dims=(0, 1, 2))
    token = token.view(windows[0], window[0], windows[1], window[1], windows[2], window[2])
    token = token.permute(0, 2, 4, 1, 3, 5).flatten(3)
    number = torch.arange(math.prod(windows), device=device).view(windows)

    blocks = list(mask_groups(shift, window, device))
    token = torch.cat([token[block].flatten(0, 2) for block, _ in blocks])  # (windows, N)
    numbers = [number[block].flatten() for block, _ in blocks]
    clip = torch.arange(batch, device=device)
    places = None
    if any(padding):
        # A stable sort keeps the order of the places that hold tokens, and puts padding last.
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
        groups=tuple((mask, windows.shape[0]) for (_, mask), windows in zip(blocks, numbers, strict=True)),
        rank=(inverse_permutation(torch.cat(numbers)) * batch + clip[:, None]).flatten(),
    )


_cached_window_plan = functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make_window_plan))


def window_plan(hidden_states: torch.Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> WindowPlan:
    """Plan for hidden states (B, T, H, W, C), with window and shift of a configuration; cached for each shape."""
    batch, *grid = hidden_states.shape[:4]
    window, shift = clip_window(tuple(grid), window, shift)
    # Tensors that are made while compiling, exporting or tracing must not be cached.
    make = _cached_window_plan if is_eager_tensor(hidden_states) else make_window_plan
    return make(batch, tuple(grid), window, shift, hidden_states.device)


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
        self._cached_bias: tuple[torch.Tensor, torch.Tensor] | None = None

    def train(self, mode: bool = True):
        self._cached_bias = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached_bias": None}

    def position_bias(self, num_tokens: int) -> torch.Tensor:
        """(heads, N, N). A clipped window reads the first N rows of the full window's index, as the weights expect."""
        table = self.relative_position_bias_table
        # On a CPU this is an eighth of the attention's time. On a GPU, comparing tables would wait for the device.
        is_cached = (
            not (self.training or torch.is_grad_enabled())
            and is_eager_tensor(table.data)
            and table.device.type == "cpu"
        )
        if is_cached and self._cached_bias is not None:
            # The table itself is compared, because weights can change in ways that no hook or version counter sees.
            cached_table, bias = self._cached_bias
            if bias.shape[-1] == num_tokens and cached_table.dtype == table.dtype and torch.equal(cached_table, table):
                return bias
        index = self.relative_position_index[:num_tokens, :num_tokens]
        bias = table[index.flatten()].view(num_tokens, num_tokens, self.num_heads).permute(2, 0, 1).contiguous()
        if is_cached:
            self._cached_bias = (table.detach().clone(), bias)
        return bias

    def forward(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows (R, C) in the order of the plan -> the same shape, and weights (windows, heads, N, N) on request."""
        dim = hidden_states.shape[1]
        if plan.places is not None:
            padded = hidden_states.new_zeros(plan.rank.shape[0] * plan.num_tokens, dim)
            hidden_states = padded.index_copy(0, plan.places, hidden_states)
        bias = self.position_bias(plan.num_tokens)

        qkv = self.qkv(hidden_states)
        weights = None
        if output_attentions:
            # Windows go by clip, time, row and column, so that the output is made of the weights that are returned.
            windows = qkv.view(-1, plan.num_tokens, 3 * dim).index_select(0, plan.rank)
            context, weights = self.attend_windows(windows, bias + plan.masks.to(bias.dtype).unsqueeze(1))
            context = context.view(-1, plan.num_tokens, dim).index_select(0, inverse_permutation(plan.rank))
            hidden_states = context.flatten(0, 1)
        elif self._fuses_learned_bias(qkv, bias):
            windows = self._split_heads(qkv, plan.num_tokens)
            groups = tuple((mask, plan.batch * count) for mask, count in plan.groups)
            hidden_states = BiasedAttention.apply(windows, bias, self.scaling, groups)[0].view(-1, dim)
        else:
            masks, counts = zip(*plan.groups, strict=True)
            # (windows of a clip, B * N, 3 C), split by mask
            groups = qkv.view(sum(counts), -1, 3 * dim).split(counts)
            contexts = [
                self.attend_windows(windows, (bias if mask is None else bias + mask.to(bias.dtype)).unsqueeze(0))[0]
                for windows, mask in zip(groups, masks, strict=True)
            ]
            hidden_states = torch.cat(contexts) if len(contexts) > 1 else contexts[0]
        hidden_states = self.proj(hidden_states)
        if plan.places is not None:
            hidden_states = hidden_states.index_select(0, plan.places)
        return self.proj_drop(hidden_states), weights

    def attend_windows(self, qkv: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attention in windows (..., 3 C), with one bias for all, (1, heads, N, N), or one each, (windows, heads, N, N).

        Returns:
            Rows (windows * N, C), and the attention weights if the implementation computes them.
        """
        qkv = self._split_heads(qkv, bias.shape[-1])
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (windows, heads, N, D)
        output, weights = attend(self, query, key, value, bias, self._dropout())
        return output.flatten(2).flatten(0, 1), weights

    def _split_heads(self, qkv: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """(..., 3 C) -> (windows, N, 3, heads, D)."""
        return qkv.view(-1, num_tokens, 3, self.num_heads, self.head_dim)

    def _dropout(self) -> float:
        return self.config.attention_probs_dropout_prob if self.training else 0.0

    def _fuses_learned_bias(self, qkv: torch.Tensor, bias: torch.Tensor) -> bool:
        return (
            self.config._attn_implementation == "sdpa"
            and not self._dropout()
            and can_fuse_learned_bias(qkv, bias, self.head_dim)
        )


__all__ = ["VideoSwinWindowAttention", "WindowPlan", "make_window_plan", "relative_position_index", "window_plan"]
