"""
Models that SwinBERT is measured against.

The original's algorithm is written in plain torch, with the same weights and results as ours: for every word, all
positions, `[CLS] w1 ... wt [MASK]` and then the video tokens, pass through all layers of one BERT, with naive attention
under one additive mask; nothing is cached between words. Its backbone is torchvision's, which computes the same.

Shapes: B clips, T frames, N video tokens, L text tokens, C channels of the backbone.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.video.swin_transformer import SwinTransformer3d
from transformers import GitConfig, GitForCausalLM

from swinbert import SwinBertForVideoCaptioning, VideoSwinModel


class TorchvisionSwin(nn.Module):
    """torchvision's backbone with the weights of ours: (B, T, 3, H, W) -> (B, N, C)."""

    def __init__(self, ours: VideoSwinModel):
        super().__init__()
        config = ours.config
        self.swin = SwinTransformer3d(
            list(config.patch_size),
            config.embed_dim,
            list(config.depths),
            list(config.num_heads),
            list(config.window_size),
            mlp_ratio=config.mlp_ratio,
            stochastic_depth_prob=config.drop_path_rate,
        )
        weights = {name_in_torchvision(name): value for name, value in ours.named_parameters()}
        missing, unexpected = self.swin.load_state_dict(weights, strict=False)
        if unexpected or any("relative_position_index" not in name and "head" not in name for name in missing):
            raise ValueError(f"torchvision's backbone differs: {unexpected} are unknown to it, {missing} are missing.")
        self.swin.head = nn.Identity()
        self.to(device=ours.device, dtype=ours.dtype).train(ours.training)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        swin = self.swin
        hidden_states = swin.pos_drop(swin.patch_embed(pixel_values_videos.transpose(1, 2)))
        return swin.norm(swin.features(hidden_states)).flatten(1, 3)


def name_in_torchvision(name: str) -> str:
    """Our parameter's name in `SwinTransformer3d`, which numbers stages and mergings in one list."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name
    stage = 2 * int(parts[1])
    if parts[2] == "downsample":
        return ".".join(["features", str(stage + 1), *parts[3:]])
    leaf = ".".join(parts[4:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{stage}.{parts[3]}.{leaf}"


def mask_values(model: SwinBertForVideoCaptioning) -> torch.Tensor:
    """(N, N) the learned mask among video tokens, float32."""
    sparse, size = model.model.sparse_mask, model.config.num_video_tokens
    if sparse is None:
        return torch.ones(size, size, device=model.device)
    diagonal = torch.eye(size, device=model.device)
    values = diagonal + (1.0 - diagonal) * torch.sigmoid(sparse.weight.float())
    return (values >= 0.5).float() if model.config.sparse_mask == "hard" else values


def original_bias(values: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """
    (L + N, L + N) to add to scores: text is causal and sees all video, video sees video through `values` and no text.
    """
    size = length + len(values)
    seen = torch.zeros(size, size, device=values.device)
    seen[:length, :length] = torch.ones(length, length, device=values.device).tril()
    seen[:length, length:] = 1.0
    seen[length:, length:] = values
    return ((1.0 - seen) * -10000.0).to(dtype)


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    return F.linear(states, layer.weight, layer.bias)


def _naive_attention(attention: nn.Module, hidden: torch.Tensor, bias: torch.Tensor, dropout: float) -> torch.Tensor:
    """(B, L + N, hidden_size) -> the same shape; scores, their softmax and permuted copies are stored in memory."""
    batch, length, size = hidden.shape

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.view(batch, length, attention.num_heads, -1).permute(0, 2, 1, 3)

    query, key, value = (split(_linear(layer, hidden)) for layer in (attention.query, attention.key, attention.value))
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    weights = F.dropout(F.softmax(scores + bias, dim=-1), dropout)
    return torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous().view(batch, length, size)


def original_logits(
    model: SwinBertForVideoCaptioning, ids: torch.Tensor, features: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Logits (B, L, vocab_size) of tokens (B, L) and the backbone's output (B, N, C), without any cache."""
    config, core = model.config, model.model
    hidden_dropout, attention_dropout = (
        (config.hidden_dropout_prob, config.attention_probs_dropout_prob) if model.training else (0.0, 0.0)
    )
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    text = core.embeddings.word_embeddings(ids) + core.embeddings.position_embeddings(positions)
    text = core.embeddings.LayerNorm(text + core.embeddings.token_type_embeddings(torch.zeros_like(positions)))
    video = _linear(core.projector.linear_2, _linear(core.projector.linear_1, features))
    hidden = F.dropout(torch.cat([text, video], dim=1), hidden_dropout)
    for layer in core.encoder.layer:
        context = _naive_attention(layer.attention.self, hidden, bias, attention_dropout)
        output = F.dropout(_linear(layer.attention.output.dense, context), hidden_dropout)
        hidden = layer.attention.output.LayerNorm(output + hidden)
        inner = F.gelu(_linear(layer.intermediate.dense, hidden))
        hidden = layer.output.LayerNorm(F.dropout(_linear(layer.output.dense, inner), hidden_dropout) + hidden)
    transform = model.lm_head.transform
    hidden = transform.LayerNorm(F.gelu(_linear(transform.dense, hidden[:, : ids.shape[1]])))
    return _linear(model.lm_head.decoder, hidden)


@torch.no_grad()
def original_caption(model: SwinBertForVideoCaptioning, features: torch.Tensor, words: int) -> torch.Tensor:
    """
    Greedy captions (B, 1 + words), `[CLS]` first and never ended early, from the backbone's output (B, N, C).

    Args:
        model: in evaluation mode, with `sparse_mask_form` "penalty"; only its weights are used.
    """
    values = mask_values(model)
    ids = torch.full((len(features), 1), model.config.bos_token_id, device=features.device)
    for _ in range(words):
        ids = F.pad(ids, (0, 1), value=model.config.mask_token_id)
        bias = original_bias(values, ids.shape[1], model.dtype)
        ids[:, -1] = original_logits(model, ids, features, bias)[:, -1].argmax(dim=-1)
    return ids


def original_training_step(
    model: SwinBertForVideoCaptioning,
    backbone: nn.Module,
    pixels: torch.Tensor,
    ids: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Forward and backward pass of the masked language model and of the sparsity loss; returns the loss."""
    bias = original_bias(mask_values(model), ids.shape[1], model.dtype)
    logits = original_logits(model, ids, backbone(pixels), bias)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    if model.model.sparse_mask is not None:
        loss = loss + model.config.sparsity_loss_weight * model.model.sparse_mask.sparsity_loss()
    loss.backward()
    return loss.detach()


def git_model(**config) -> GitForCausalLM:
    """GIT with random weights; by default at the size of GIT-base (ViT-B/16, six layers), for six frames."""
    return GitForCausalLM(GitConfig(num_image_with_embedding=6, **config)).eval()
