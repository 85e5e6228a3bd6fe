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
from .cpu_swinbert import (
    BiasedAttention,
    Part,
    bias_of_part,
    can_fuse_learned_bias,
    is_eager_tensor,
    worth_splitting,
)

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


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """
    The same part of several windows: the tokens in it attend to each other.

    Args:
        part: slices along T, H and W of a window.
        mask: (n, n) to add to the scores of the part's n tokens, or `None`.
        windows: number of each window, counted by clip, time, row and column.
    """

    part: Part
    mask: torch.Tensor | None
    windows: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the part of a window, n."""
        return math.prod([side.stop - side.start for side in self.part])

    @property
    def num_rows(self) -> int:
        return self.windows.shape[0] * self.num_tokens


def parts_of_windows(
    window: tuple[int, ...], shift: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], tuple[Part, ...]]]:
    """
    The parts of the windows of a cyclically shifted grid whose tokens attend to each other. The last window along a
    shifted axis joins two ends of the clip, each a part: so there are at most eight kinds of windows, and each kind is
    a block of the grid of windows.

    Yields:
        Slices of the grid of windows along T, H and W, and the parts of these windows.
    """
    whole = [slice(0, side) for side in window]
    halves = [(slice(0, side - step), slice(side - step, side)) for side, step in zip(window, shift, strict=True)]
    choices = [((slice(None), False),) if not step else ((slice(-1), False), (slice(-1, None), True)) for step in shift]
    for choice in itertools.product(*choices):
        sides = [halves[axis] if is_last else (whole[axis],) for axis, (_, is_last) in enumerate(choice)]
        yield tuple(block for block, _ in choice), tuple(itertools.product(*sides))  # type: ignore[misc]


def shift_mask(window: tuple[int, ...], parts: tuple[Part, ...], device: torch.device) -> torch.Tensor | None:
    """(N, N) additive mask of a window whose parts attend to themselves; `None` for a single part."""
    if len(parts) == 1:
        return None
    region = torch.empty(window, dtype=torch.long, device=device)
    for number, part in enumerate(parts):
        region[part] = number
    region = region.flatten()
    return (region[:, None] != region[None, :]) * _SHIFT_PENALTY


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """
    The order in which the tokens of B grids stand in windows: by group of windows, then by window, then by clip.

    Args:
        batch: B.
        window: size of a window along (T, H, W).
        shift: cyclic shift along (T, H, W).
        order: (R,) the token, counted through (B, T, H, W), of each row.
        inverse: (R,) the row of each token.
        places: (R,) the place of each row among the places of all windows, or `None` if no window holds padding.
        groups: which parts of which windows attend to themselves, in the order of their rows.
    """

    batch: int
    window: tuple[int, ...]
    shift: tuple[int, ...]
    order: torch.Tensor
    inverse: torch.Tensor
    places: torch.Tensor | None
    groups: tuple[WindowGroup, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of a window, N."""
        return math.prod(self.window)

    @property
    def clip_of_row(self) -> torch.Tensor:
        """(R,) index of the clip that each row belongs to."""
        return self.order // (self.order.shape[0] // self.batch)

    def join_weights(self, weights: list[torch.Tensor]) -> torch.Tensor:
        """Weights (windows, heads, n, n) of each group -> (B * windows, heads, N, N) by clip, time, row and column."""
        heads = weights[0].shape[1]
        # Each window has one part that begins at its first token.
        num_windows = sum(group.windows.shape[0] for group in self.groups if not any(side.start for side in group.part))
        joined = weights[0].new_zeros(num_windows, heads, *self.window, *self.window)
        for group, each in zip(self.groups, weights, strict=True):
            box = (group.windows, slice(None), *group.part, *group.part)
            joined[box] = each.view(joined[box].shape)
        return joined.flatten(5).flatten(2, 4)

    def chunks(self, num_rows: int) -> Iterator[tuple[slice, "WindowPlan"]]:
        """Slices of at most `num_rows` rows, or of one window, each with its plan as of one clip without padding."""
        pending, start = list(self.groups), 0
        while pending:
            chunk: list[WindowGroup] = []
            stop = start
            while pending:
                group = pending[0]
                count = (start + num_rows - stop) // group.num_tokens
                if count < 1 and chunk:
                    break
                some, others = group.windows.tensor_split([max(1, count)])
                chunk.append(replace(group, windows=some))
                stop += chunk[-1].num_rows
                pending[:1] = [replace(group, windows=others)] if len(others) else []
            order = torch.arange(stop - start, device=self.order.device)
            yield slice(start, stop), replace(self, batch=1, order=order, inverse=order, groups=tuple(chunk))
            start = stop


def inverse_permutation(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).index_copy(0, order, torch.arange(order.shape[0], device=order.device))


def make_window_plan(
    batch: int,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
    split: bool = False,
) -> WindowPlan:
    """
    Plan for `batch` grids (T, H, W) of tokens; window and shift as [`clip_window`] gives them.

    Args:
        split: whether the parts of a window that joins two ends of a clip are groups of their own, or are kept apart by
            a mask.
    """
    padding = [-size % side for size, side in zip(grid, window, strict=True)]
    windows = [(size + pad) // side for size, pad, side in zip(grid, padding, window, strict=True)]
    tokens_of_clip = math.prod(grid)
    # The token at each place of the padded and shifted grid, (windows T, windows H, windows W, *window).
    token = torch.arange(tokens_of_clip, device=device).view(grid)
    token = F.pad(token, (0, padding[2], 0, padding[1], 0, padding[0]), value=tokens_of_clip)
    token = token.roll([-step for step in shift], dims=(0, 1, 2))
    token = token.view(windows[0], window[0], windows[1], window[1], windows[2], window[2]).permute(0, 2, 4, 1, 3, 5)
    number = torch.arange(math.prod(windows), device=device).view(windows)
    clip = torch.arange(batch, device=device)

    groups, tokens, places, num_places = [], [], [], 0
    for block, parts in parts_of_windows(window, shift):
        whole = _whole(window), shift_mask(window, parts, device)
        for part, mask in [(part, None) for part in parts] if split else [whole]:
            tokens.append(token[block].flatten(0, 2)[(slice(None), *part)].flatten(1))  # (windows, n)
            count, size = tokens[-1].shape
            place = torch.arange(num_places, num_places + batch * count * size, device=device)
            places.append(place.view(count, batch, size))
            num_places += batch * count * size
            numbers = number[block].flatten()[:, None] + clip * number.numel()  # (windows, B)
            groups.append(WindowGroup(part, mask, numbers.flatten()))
    if any(padding):
        # A stable sort keeps the order of the places that hold tokens, and puts padding last.
        token = torch.cat([each.flatten() for each in tokens])
        is_padding = (token == tokens_of_clip).to(torch.uint8)
        is_token = torch.argsort(is_padding, stable=True)[:tokens_of_clip]
        order = (token[is_token, None] + clip * tokens_of_clip).flatten()
        place = torch.cat([each.transpose(1, 2).flatten(0, 1) for each in places])[is_token].flatten()
    else:
        order = torch.cat([(each[:, None] + clip[:, None] * tokens_of_clip).flatten() for each in tokens])
        place = None
    return WindowPlan(batch, window, shift, order, inverse_permutation(order), place, tuple(groups))


def _whole(window: tuple[int, ...]) -> Part:
    time, height, width = window
    return slice(0, time), slice(0, height), slice(0, width)


_cached_window_plan = functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make_window_plan))


def window_plan(hidden_states: torch.Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> WindowPlan:
    """Plan for hidden states (B, T, H, W, C), with window and shift of a configuration; cached for each shape."""
    batch, *grid = hidden_states.shape[:4]
    window, shift = clip_window(tuple(grid), window, shift)
    # Tensors that are made while compiling, exporting or tracing must not be cached.
    make = _cached_window_plan if is_eager_tensor(hidden_states) else make_window_plan
    split = worth_splitting(hidden_states, math.prod(window))
    return make(batch, tuple(grid), window, shift, hidden_states.device, split)


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
        # Unlike `table[index]`, this has a fast gradient.
        bias = table.index_select(0, index.flatten()).view(num_tokens, num_tokens, self.num_heads)
        bias = bias.permute(2, 0, 1).contiguous()
        if is_cached:
            self._cached_bias = (table.detach().clone(), bias)
        return bias

    def forward(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows (R, C) in the order of the plan -> the same shape, and weights (windows, heads, N, N) on request."""
        dim = hidden_states.shape[1]
        if plan.places is not None:
            num_places = sum(group.num_rows for group in plan.groups)
            hidden_states = hidden_states.new_zeros(num_places, dim).index_copy(0, plan.places, hidden_states)
        bias = self.position_bias(plan.num_tokens)

        qkv = self.qkv(hidden_states)
        weights = None
        if not output_attentions and self._fuses_learned_bias(qkv, bias):
            groups = tuple((group.part, group.mask, group.windows.shape[0]) for group in plan.groups)
            windows = qkv.view(-1, 3, self.num_heads, self.head_dim)
            hidden_states = BiasedAttention.apply(
                windows, bias.to(qkv.dtype), self.scaling, plan.window, groups
            ).flatten(1)
        else:
            contexts, weights_of_groups = [], []
            for group, rows in zip(plan.groups, qkv.split([group.num_rows for group in plan.groups]), strict=True):
                group_bias = bias_of_part(bias, plan.window, group.part, group.mask)
                context, group_weights = self.attend_windows(rows, group_bias)
                contexts.append(context)
                weights_of_groups.append(group_weights)
            hidden_states = torch.cat(contexts) if len(contexts) > 1 else contexts[0]
            if output_attentions and weights_of_groups[0] is not None:
                weights = plan.join_weights(weights_of_groups)
        hidden_states = self.proj(hidden_states)
        if plan.places is not None:
            hidden_states = hidden_states.index_select(0, plan.places)
        return self.proj_drop(hidden_states), weights

    def attend_windows(self, qkv: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attention in windows of n tokens, rows (windows * n, 3 C), with one bias (heads, n, n).

        Returns:
            Rows (windows * n, C), and weights (windows, heads, n, n) if the implementation computes them.
        """
        qkv = qkv.view(-1, bias.shape[-1], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (windows, heads, n, D)
        output, weights = attend(self, query, key, value, bias.unsqueeze(0), self._dropout())
        return output.flatten(2).flatten(0, 1), weights

    def _dropout(self) -> float:
        return self.config.attention_probs_dropout_prob if self.training else 0.0

    def _fuses_learned_bias(self, qkv: torch.Tensor, bias: torch.Tensor) -> bool:
        return (
            self.config._attn_implementation == "sdpa"
            and not self._dropout()
            and can_fuse_learned_bias(qkv, bias, self.head_dim)
        )


__all__ = ["VideoSwinWindowAttention", "WindowPlan", "make_window_plan", "relative_position_index", "window_plan"]
