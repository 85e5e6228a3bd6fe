"""The fusion encoder: BERT over text and video tokens, as two streams with one set of weights (see modeling_swinbert).

Shapes: B texts, V clips (B is a multiple of V: text i reads clip i // (B / V)), L text tokens, K appended [MASK]
tokens, M cached and new text tokens, S context tokens, N video tokens, P = S + N prefix tokens, C channels of the
backbone, D channels of a head.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .attention_swinbert import attend
from .configuration_swinbert import SwinBertConfig
from .cpu_swinbert import apply_linear
from .sparse_attention_swinbert import AttentionPlan, planned_attention, score_range

logger = logging.get_logger(__name__)

# A collator may keep a selected token as it is (10% of them): fewer equal tokens than these can be chance.
_MIN_UNMASKED_LABELS = 6


class SwinBertProjector(nn.Module):
    """Video features to the width of the fusion encoder. Video tokens get no position, token type or normalisation."""

    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.projection_dim)  # type: ignore[union-attr]
        self.linear_2 = nn.Linear(config.projection_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, video_features: torch.Tensor) -> torch.Tensor:
        """(V, N, C) features of the backbone -> (V, N, hidden_size)."""
        return self.dropout(apply_linear(self.linear_2, apply_linear(self.linear_1, video_features)))


class SwinBertEmbeddings(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """(B, L, hidden_size) word embeddings, positions and types (B or 1, L) -> (B, L, hidden_size)."""
        embeddings = inputs_embeds + self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embeddings))


def extend_causal_mask(causal_mask: torch.Tensor, dtype: torch.dtype, num_masks: int) -> torch.Tensor:
    """
    Extends a causal mask (B, 1, L, M), boolean or additive, to an additive mask (B, 1, L + K, M + K): a [MASK] sees
    what the token before it sees, and itself; no token sees a [MASK].
    """
    hidden = torch.finfo(dtype).min
    mask = causal_mask.to(dtype)
    if causal_mask.dtype == torch.bool:
        mask = (1.0 - mask) * hidden
    if not num_masks:
        return mask
    mask = torch.cat([mask, mask[:, :, -num_masks:]], dim=2)
    is_hidden = ~torch.eye(num_masks, dtype=torch.bool, device=mask.device)
    is_hidden = F.pad(is_hidden, (0, 0, mask.shape[2] - num_masks, 0), value=True)  # (L + K, K)
    return torch.cat([mask, (is_hidden.to(dtype) * hidden).expand(mask.shape[0], 1, -1, -1)], dim=3)


def context_padding_mask(context_attention_mask: torch.Tensor, batch: int, prefix_key: torch.Tensor) -> torch.Tensor:
    """Additive mask (B, 1, 1, P) that hides the padding of contexts (V, S)."""
    mask = prefix_key.new_zeros(batch, 1, 1, prefix_key.shape[2])
    padding = ~context_attention_mask.bool().repeat_interleave(batch // context_attention_mask.shape[0], dim=0)
    mask[:, 0, 0, : padding.shape[1]].masked_fill_(padding, torch.finfo(mask.dtype).min)
    return mask


class SwinBertSelfAttention(nn.Module):
    def __init__(self, config: SwinBertConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, heads * D) -> (B, heads, L, D)."""
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def key_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, heads, L, D)."""
        return self._split_heads(apply_linear(self.key, hidden_states)), self._split_heads(
            apply_linear(self.value, hidden_states)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        prefix_key: torch.Tensor | None = None,
        prefix_value: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        num_masks: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Attention of the text stream.

        One softmax over two products of scores, because concatenating keys and values would copy those of the prefix
        for every word and every text of a clip. The last `num_masks` (K) rows are seen by themselves only and do not
        enter the cache.

        Args:
            hidden_states: (B, L + K, hidden_size).
            attention_mask: additive, (B, 1, L + K, M + K).
            prefix_key, prefix_value: (V, heads, P, D) of the clips.
            prefix_mask: additive, (B, 1, 1, P); `None` if the texts see all of the prefix.

        Returns:
            Output (B, L + K, hidden_size) and attention weights (B, heads, L + K, P + M + K).
        """
        batch, length = hidden_states.shape[:2]
        query = self._split_heads(apply_linear(self.query, hidden_states)) * self.scaling
        key, value = self.key_values(hidden_states)
        if cache is not None:
            tokens = length - num_masks
            cached_key, cached_value = cache.update(key[:, :, :tokens], value[:, :, :tokens], self.layer_idx)
            key = torch.cat([cached_key, key[:, :, tokens:]], dim=2) if num_masks else cached_key
            value = torch.cat([cached_value, value[:, :, tokens:]], dim=2) if num_masks else cached_value

        scores = query @ key.transpose(-1, -2) + attention_mask
        prefix_length = 0
        if prefix_key is not None:
            clips, _, prefix_length, _ = prefix_key.shape
            prefix_scores = _split_by_text(_merge_by_clip(query, clips) @ prefix_key.transpose(-1, -2), batch)
            if prefix_mask is not None:
                prefix_scores = prefix_scores + prefix_mask
            scores = torch.cat([prefix_scores, scores], dim=-1)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        dropped = F.dropout(weights, p=self.config.attention_probs_dropout_prob, training=self.training)
        output = dropped[..., prefix_length:] @ value
        if prefix_value is not None:
            prefix_weights = _merge_by_clip(dropped[..., :prefix_length], clips)
            output = output + _split_by_text(prefix_weights @ prefix_value, batch)
        return output.transpose(1, 2).reshape(batch, length, -1), weights

    def attend_video(
        self, hidden_states: torch.Tensor, bias: torch.Tensor | None, plan: AttentionPlan
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Attention of the prefix stream, (V, P, hidden_size) -> the same shape, executed by the plan.

        Returns:
            Output, attention weights if computed, keys and values `(V, heads, P, D)`, and the range of the scores of a
            row if the plan has to compare it.
        """
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        key, value = self.key_values(hidden_states)
        query = self._split_heads(apply_linear(self.query, hidden_states)) if plan.needs_queries else None
        if bias is None or plan.is_dense:
            output, weights = attend(self, query, key, value, bias, dropout)
            return output.flatten(2), weights, key, value, None
        # (V, heads, N, D) -> (V, N, heads, D)
        queries = None if query is None else query.transpose(1, 2)
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        scores = None
        if queries is not None and plan.compares_scores:
            scores = score_range(queries, keys, self.scaling)
        output = planned_attention(plan, queries, keys, values, bias, self.scaling, dropout)
        return output.flatten(2), None, key, value, scores


def _merge_by_clip(states: torch.Tensor, clips: int) -> torch.Tensor:
    """(B, heads, L, X) -> (V, heads, B / V * L, X): the rows of all texts of a clip, one text after the other."""
    batch = states.shape[0]
    if batch == clips:
        return states
    return states.unflatten(0, (clips, batch // clips)).transpose(1, 2).flatten(2, 3)


def _split_by_text(states: torch.Tensor, batch: int) -> torch.Tensor:
    """(V, heads, B / V * L, X) -> (B, heads, L, X): the inverse of [`_merge_by_clip`]."""
    clips = states.shape[0]
    if batch == clips:
        return states
    return states.unflatten(2, (batch // clips, -1)).transpose(1, 2).flatten(0, 1)


class SwinBertSelfOutput(nn.Module):
    """Projection, dropout, residual and normalisation, as after BERT's attention and its feed-forward layer."""

    def __init__(self, config: SwinBertConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(apply_linear(self.dense, hidden_states)) + residual)


class SwinBertAttention(nn.Module):
    def __init__(self, config: SwinBertConfig, layer_idx: int):
        super().__init__()
        self.self = SwinBertSelfAttention(config, layer_idx)
        self.output = SwinBertSelfOutput(config, config.hidden_size)


class SwinBertIntermediate(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.act(apply_linear(self.dense, hidden_states))


class SwinBertLayer(GradientCheckpointingLayer):
    """A BERT layer that serves both streams."""

    def __init__(self, config: SwinBertConfig, layer_idx: int):
        super().__init__()
        self.attention = SwinBertAttention(config, layer_idx)
        self.intermediate = SwinBertIntermediate(config)
        self.output = SwinBertSelfOutput(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        prefix_key: torch.Tensor | None = None,
        prefix_value: torch.Tensor | None = None,
        plan: AttentionPlan | None = None,
        key_values_only: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        One layer of the prefix stream if there is a `plan`, else of the text stream.

        Args:
            hidden_states: (V, P, hidden_size) or (B, L + K, hidden_size).
            attention_mask: the bias of [`SwinBertSelfAttention.attend_video`], or the mask of its `forward`. It is
                passed by position, because reentrant checkpointing gives no gradient to keyword arguments.
            prefix_key, prefix_value, kwargs: see [`SwinBertSelfAttention.forward`].
            plan: see [`SwinBertSelfAttention.attend_video`].
            key_values_only: compute the keys and values of the prefix stream and no output.

        Returns:
            Hidden states, and what the attention returns beside its output.
        """
        attention = self.attention.self
        if key_values_only:
            return None, None, *attention.key_values(hidden_states), None
        if plan is not None:
            context, *others = attention.attend_video(hidden_states, attention_mask, plan)
        else:
            context, *others = attention(hidden_states, attention_mask, prefix_key, prefix_value, **kwargs)
        hidden_states = self.attention.output(context, hidden_states)
        return self.output(self.intermediate(hidden_states), hidden_states), *others


class SwinBertEncoder(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(SwinBertLayer(config, index) for index in range(config.num_hidden_layers))


class SwinBertPredictionTransform(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.act(apply_linear(self.dense, hidden_states)))


def caption_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """
    Losses (M,) of M predicted tokens: logits (M, vocab_size), labels (M,).

    The Kullback-Leibler divergence of the prediction from the smoothed target, 1 - eps at the label and
    eps / (vocab_size - 1) elsewhere, as in the released code; it is the cross entropy for eps = 0.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    label_log_probs = log_probs.gather(1, labels[:, None]).squeeze(1)
    if not label_smoothing:
        return -label_log_probs
    share_of_other = label_smoothing / (logits.shape[-1] - 1)
    negative_entropy = (1 - label_smoothing) * math.log(1 - label_smoothing) + label_smoothing * math.log(
        share_of_other
    )
    other_log_probs = log_probs.sum(dim=-1) - label_log_probs
    return negative_entropy - (1 - label_smoothing) * label_log_probs - share_of_other * other_log_probs


def warn_if_unmasked(input_ids: torch.Tensor, labels: torch.Tensor) -> None:
    """
    Warns, once in a process, if no predicted token is masked: input_ids and labels (B, L), -100 where nothing is
    predicted. A masked language model then learns to copy its input, with a low loss, and cannot caption.
    """
    if torch.compiler.is_compiling() or input_ids.shape != labels.shape:
        return
    labels = labels.to(input_ids.device)
    predicted = labels != -100
    if predicted.sum() >= _MIN_UNMASKED_LABELS and bool((input_ids == labels)[predicted].all()):
        logger.warning_once(
            "The labels equal `input_ids` at every predicted position: nothing is masked, so that the model learns to"
            ' copy its input and not to caption, although the loss falls. With objective="masked_lm", make batches'
            ' with `swinbert.training.data.collators.CaptionCollator`, or train a model with objective="causal_lm".'
        )


class SwinBertLMHead(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.transform = SwinBertPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return apply_linear(self.decoder, self.transform(hidden_states))


__all__ = [
    "SwinBertEmbeddings",
    "SwinBertEncoder",
    "SwinBertLMHead",
    "SwinBertProjector",
    "caption_losses",
    "context_padding_mask",
    "extend_causal_mask",
    "warn_if_unmasked",
]
