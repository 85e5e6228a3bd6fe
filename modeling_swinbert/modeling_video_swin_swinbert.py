"""Video Swin Transformer (arXiv:2106.13230): a hierarchical backbone with attention in shifted 3D windows.

Shapes: B clips, T frames, C channels, H and W pixels, after patch embedding T, H and W tokens; N tokens of the clip, or
of a window. Between stages activations are channels-last, (B, T, H, W, C). Inside a stage they are rows (R, C), one for
each of the R tokens of all clips, in the order of the block's windows: see windows_swinbert.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention_swinbert import attend  # noqa: F401 - named here, so that save_pretrained ships its file
from .configuration_swinbert import VideoSwinConfig
from .cpu_swinbert import (
    RecomputedMLP,
    can_recompute_mlp,
    fast_linear,
    items_per_chunk,
    keep_saved_tensors,
    map_frame_chunks,
    recompute_in_backward,
    worth_chunking,
)
from .loading_swinbert import SafetensorsModel
from .windows_swinbert import VideoSwinWindowAttention, WindowPlan, relative_position_index, window_plan


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


def drop_path(hidden_states: torch.Tensor, rate: float, training: bool, plan: WindowPlan | None = None) -> torch.Tensor:
    """
    Stochastic depth (arXiv:1603.09382): drops a residual branch for whole clips, scales the rest by 1 / (1 - rate).

    Args:
        hidden_states: (B, ...), or rows (R, C) in the order of a plan.
    """
    if rate == 0.0 or not training:
        return hidden_states
    samples = hidden_states.shape[0] if plan is None else plan.batch
    shape = (samples,) + (1,) * (hidden_states.ndim - 1)
    keep = torch.rand(shape, device=hidden_states.device, dtype=torch.float32) >= rate
    scale = (keep / (1.0 - rate)).to(hidden_states.dtype)
    return hidden_states * (scale if plan is None else scale[plan.clip_of_row])


class VideoSwinPatchEmbed(nn.Module):
    def __init__(self, config: VideoSwinConfig):
        super().__init__()
        self.patch_size = tuple(config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.patch_norm else nn.Identity()

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Pixels (B, T, C, H, W) -> tokens (B, T, H, W, C); sides that patches do not divide are padded with zeros."""
        return map_frame_chunks(self.embed, pixel_values_videos, multiple=self.patch_size[0])

    def embed(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """As `forward`, without chunks."""
        pixels = pixel_values_videos.transpose(1, 2)  # (B, C, T, H, W)
        pad_t, pad_h, pad_w = (-size % patch for size, patch in zip(pixels.shape[2:], self.patch_size, strict=True))
        if pad_t or pad_h or pad_w:
            pixels = F.pad(pixels, (0, pad_w, 0, pad_h, 0, pad_t))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 4, 1))


class VideoSwinMLP(nn.Module):
    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, keep_activations: bool = True) -> torch.Tensor:
        """
        (R, C) -> the same shape.

        Args:
            keep_activations: whether to store the activation function's output for the backward pass, or recompute it.
        """
        inner = self.fc1(hidden_states)
        activations = self.act(inner)
        dropped = self.drop(activations)
        if keep_activations:
            return self.drop(self.fc2(dropped))
        with recompute_in_backward(activations, lambda: self.act(inner)):
            return self.drop(self.fc2(dropped))

    def can_recompute(self, rows: torch.Tensor, norm: nn.Module) -> bool:
        return torch.is_grad_enabled() and self.drop.p == 0.0 and can_recompute_mlp(rows, norm, self.fc1, self.fc2)

    def recompute(self, rows: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """As `self(norm(rows))`, of which only `rows` (R, C) are stored for the backward pass."""
        parameters = (*norm.parameters(), *self.fc1.parameters(), *self.fc2.parameters())
        return RecomputedMLP.apply(rows, lambda chunk: self.act(self.fc1(norm(chunk))), self.fc2, *parameters)


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
        """Rows (R, C) in the order of the plan -> the same shape, and attention weights on request."""
        # Training needs all rows at once, also without gradients in reentrant checkpointing: drop path takes clips.
        if self.training or output_attentions or plan.places is not None or not worth_chunking(hidden_states):
            return self.mix(hidden_states, plan, output_attentions)
        bytes_of_row = hidden_states.shape[1] * hidden_states.element_size()
        output = torch.empty_like(hidden_states)
        for rows, chunk in plan.chunks(items_per_chunk(bytes_of_row)):
            output[rows], _ = self.mix(hidden_states[rows], chunk)
        return output, None

    def mix(
        self, hidden_states: torch.Tensor, plan: WindowPlan, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `forward`, without chunks: attention within windows, then the MLP, each with a residual connection."""
        attended, weights = self.attn(self.norm1(hidden_states), plan, output_attentions)
        hidden_states = hidden_states + drop_path(attended, self.drop_path_rate, self.training, plan)
        if self.gradient_checkpointing and self.mlp.can_recompute(hidden_states, self.norm2):
            with keep_saved_tensors():
                mixed = self.mlp.recompute(hidden_states, self.norm2)
                return hidden_states + drop_path(mixed, self.drop_path_rate, self.training, plan), weights
        # Checkpointing stores no activations in any case, and its hooks on saved tensors must not be overridden.
        mixed = self.mlp(self.norm2(hidden_states), keep_activations=self.gradient_checkpointing)
        return hidden_states + drop_path(mixed, self.drop_path_rate, self.training, plan), weights


class VideoSwinPatchMerging(nn.Module):
    """Merges 2 x 2 neighbouring tokens of a frame into one token of twice the channels."""

    def __init__(self, config: VideoSwinConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    @fast_linear
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, C) -> (B, T, ceil(H / 2), ceil(W / 2), 2 C)."""
        return map_frame_chunks(self.merge, hidden_states)

    def merge(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As `forward`, without chunks."""
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
        """
        (B, T, H, W, C) -> the same shape, or (B, T, ceil(H / 2), ceil(W / 2), 2 C) with patch merging; and the
        attention weights of each block on request.
        """
        shape = hidden_states.shape
        rows = hidden_states.flatten(0, 3)  # (R, C)
        plan, attentions = None, []
        for block in self.blocks:
            attn = block.attn
            next_plan = window_plan(hidden_states, attn.window_size, attn.shift_size)
            if plan is None:
                rows = rows.index_select(0, next_plan.order)
            elif plan.shift != next_plan.shift:
                rows = rows.index_select(0, plan.inverse.index_select(0, next_plan.order))
            plan = next_plan
            rows, weights = block(rows, plan, output_attentions)
            attentions.append(weights)
        if plan is not None:
            rows = rows.index_select(0, plan.inverse)
        hidden_states = rows.view(shape)
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states)
        return hidden_states, tuple(attentions)


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
    """Video Swin backbone: pixels of a clip -> tokens, without a classification head."""

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


__all__ = ["VideoSwinModel", "VideoSwinModelOutput", "VideoSwinPreTrainedModel"]
