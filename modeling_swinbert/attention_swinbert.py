"""Attention by the implementation that a model's configuration names: SDPA, eager, or one registered by the user.

Shapes: B sequences (or windows), N tokens, D channels of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention without a causal mask: softmax(scaling q k' + bias) v.

    Args:
        module: an attention layer with `config` and `scaling`.
        query, key, value: (B, heads, N, D).
        bias: (B or 1, heads or 1, N, N), added to the scores.
        dropout: probability of dropping an attention weight.

    Returns:
        Output (B, N, heads, D), and attention weights (B, heads, N, N) if the implementation computes them.
    """
    attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    return attention_interface(
        module, query, key, value, bias, scaling=module.scaling, dropout=dropout, is_causal=False
    )


__all__ = ["attend", "eager_attention_forward"]
