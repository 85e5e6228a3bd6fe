"""Video Swin Transformer (arXiv:2106.13230): a hierarchical backbone with attention in shifted 3D windows.

Shapes: B clips, T frames, C channels, H and W pixels, later T, H and W tokens; windows of N tokens. Activations are
channels-last, (B, T, H, W, C), from the patch embedding on.
"""

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_swinbert import VideoSwinConfig

# Added to the score of two tokens that the cyclic shift brought into one window from different ends of the clip.
_SHIFT_PENALTY = -100.0


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


def drop_path(hidden_states: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Stochastic depth (arXiv:1603.09382): drops samples of a residual branch, scales the rest by 1 / (1 - rate)."""
    if rate == 0.0 or not training:
        return hidden_states
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    keep = torch.rand(shape, device=hidden_states.device, dtype=torch.float32) >= rate
    return hidden_states * (keep / (1.0 - rate)).to(hidden_states.dtype)


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

    def position_bias(self, num_tokens: int) -> torch.Tensor:
        """(heads, N, N). A clipped window reads the first N rows of the full window's index, as the weights expect."""
        index = self.relative_position_index[:num_tokens, :num_tokens]
        bias = self.relative_position_bias_table[index.flatten()]
        return bias.view(num_tokens, num_tokens, self.num_heads).permute(2, 0, 1)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, H, W, C) -> the same shape, and the weights (B * windows, heads, N, N) on request."""
        batch, *grid, dim = hidden_states.shape
        window, shift = clip_window(tuple(grid), self.window_size, self.shift_size)
        padding = [-size % side for size, side in zip(grid, window, strict=True)]
        if any(padding):
            hidden_states = F.pad(hidden_states, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        if any(shift):
            hidden_states = hidden_states.roll([-step for step in shift], dims=(1, 2, 3))

        num_tokens = window[0] * window[1] * window[2]
        bias = self.position_bias(num_tokens)
        windows = [
            (size + pad) // side for size, pad, side in zip(grid, padding, window, strict=True)
        ]  # along T, H and W
        # (B, windows T, T, windows H, H, windows W, W, 3, heads, D)
        qkv = self.qkv(hidden_states).view(
            batch, windows[0], window[0], windows[1], window[1], windows[2], window[2], 3, self.num_heads, self.head_dim
        )
        context = torch.empty_like(qkv[..., 0, :, :])
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        all_weights: list[tuple[tuple[slice, ...], torch.Tensor]] = []
        for (in_t, in_h, in_w), mask in window_kinds(shift, window, hidden_states.device):
            kind = qkv[:, in_t, :, in_h, :, in_w]
            grid_of_kind = (batch, kind.shape[1], kind.shape[3], kind.shape[5])
            query, key, value = kind.permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9).reshape(
                3, -1, self.num_heads, num_tokens, self.head_dim
            )
            output, kind_weights = attention_interface(
                self,
                query,
                key,
                value,
                (bias if mask is None else bias + mask.to(bias.dtype)).unsqueeze(0),
                scaling=self.scaling,
                dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            )
            output = output.view(*grid_of_kind, *window, self.num_heads, self.head_dim)
            context[:, in_t, :, in_h, :, in_w] = output.permute(0, 1, 4, 2, 5, 3, 6, 7, 8)
            if output_attentions and kind_weights is not None:
                all_weights.append(((in_t, in_h, in_w), kind_weights))

        hidden_states = self.proj_drop(self.proj(context.view(hidden_states.shape)))
        if any(shift):
            hidden_states = hidden_states.roll(shift, dims=(1, 2, 3))
        if any(padding):
            hidden_states = hidden_states[:, : grid[0], : grid[1], : grid[2]]
        return hidden_states, self._in_window_order(all_weights, (batch, *windows)) if all_weights else None

    @staticmethod
    def _in_window_order(
        all_weights: list[tuple[tuple[slice, ...], torch.Tensor]], windows: tuple[int, ...]
    ) -> torch.Tensor:
        """Weights of every kind of window -> (B * windows, heads, N, N), windows by time, row, column."""
        if len(all_weights) == 1:
            return all_weights[0][1]
        shape = all_weights[0][1].shape[1:]
        ordered = all_weights[0][1].new_empty(*windows, *shape)
        for (in_t, in_h, in_w), weights in all_weights:
            place = ordered[:, in_t, in_h, in_w]
            place.copy_(weights.view(*place.shape[:4], *shape))
        return ordered.flatten(0, 3)


class VideoSwinMLP(nn.Module):
    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(hidden_states)))))


class VideoSwinBlock(GradientCheckpointingLayer):
    def __init__(self, config: VideoSwinConfig, dim: int, num_heads: int, shifted: bool, drop_path_rate: float):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = VideoSwinWindowAttention(config, dim, num_heads, shifted)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = VideoSwinMLP(config, dim)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attn(self.norm1(hidden_states), output_attentions)
        hidden_states = hidden_states + drop_path(attended, self.drop_path_rate, self.training)
        hidden_states = hidden_states + drop_path(
            self.mlp(self.norm2(hidden_states)), self.drop_path_rate, self.training
        )
        return hidden_states, weights


class VideoSwinPatchMerging(nn.Module):
    """Four neighbours of a frame become one token of twice the channels; time is kept."""

    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, C) -> (B, T, ceil(H / 2), ceil(W / 2), 2 C)."""
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
        attentions = []
        for block in self.blocks:
            hidden_states, weights = block(hidden_states, output_attentions)
            attentions.append(weights)
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
            if not os.path.isdir(str(pretrained_model_name_or_path)):
                check_downloads(
                    str(pretrained_model_name_or_path), started, kwargs.get("cache_dir"), kwargs.get("revision")
                )


def check_downloads(
    repo_id: str, since: float, cache_dir: str | Path | None = None, revision: str | None = None
) -> None:
    """
    Compares weights in the Hub's cache with the SHA-256 that the Hub named: of a plain download, only the size is
    checked elsewhere. Damaged files leave the cache.

    Args:
        repo_id, cache_dir, revision: as for `from_pretrained`.
        since: seconds since 1970; what was in the cache before is left alone.

    Raises:
        OSError: a file is not what it should be.
    """
    try:
        config = try_to_load_from_cache(repo_id, "config.json", cache_dir, revision)
    except ValueError:  # not a name of the Hub
        return
    for link in Path(config).parent.glob("*.safetensors") if isinstance(config, str) else ():
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
                f"The download of {link.name} from {repo_id} is damaged: its SHA-256 is {digest.hexdigest()}, not"
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
