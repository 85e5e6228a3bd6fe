"""SwinBERT (arXiv:2111.13196): video captioning with a Video Swin backbone, a BERT encoder over text and video tokens,
and a learned sparse attention mask among the video tokens.

Video rows never see the caption, so one set of weights runs two streams. The *prefix* stream holds the video tokens
(after an optional context, a second text segment) and leaves the keys and values of every layer. The *text* stream,
B captions of L tokens, reads them. It is the arithmetic of one concatenated sequence under the paper's seq2seq mask,
but a clip is encoded once however many captions, beams or words read it.

Shapes: B texts, V clips (B is a multiple of V: caption i reads clip i // (B / V)), T frames, L text tokens, K appended
[MASK] tokens, N video tokens, P prefix tokens (context and video), D channels of a head.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_swinbert import SwinBertConfig
from .generation_swinbert import SwinBertGenerationMixin
from .modeling_video_swin_swinbert import SafetensorsModel, VideoSwinModel, eager_attention_forward
from .onednn_swinbert import fast_linear
from .sparse_attention_swinbert import AttentionPlan, plan_attention, planned_attention, score_range

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]

# Added to the score of a masked pair in the released code, and the factor of (1 - M) in the penalty form.
_PENALTY = -10000.0
_CUSTOM_PIPELINES = {
    "video-captioning": {
        "impl": "pipeline_swinbert.VideoCaptioningPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}
# Initial mean of the mask's logits: M starts near 1, where the caption loss has a gradient in both forms.
_INITIAL_MASK_LOGIT = 6.0


@dataclass
class SwinBertVideoOutput(ModelOutput):
    r"""
    video_key_values (`tuple` of `(key, value)` for every layer, each `(V, heads, P, D)`):
        All that a text reads of its clip.
    hidden_states, attentions (`tuple`, on request):
        Of the prefix stream: `(V, P, hidden_size)` and `(V, heads, P, P)`.
    """

    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class _CachingOutput(ModelOutput):
    @property
    def past_key_values(self) -> Cache | None:
        """What the `cache` of every output was called before transformers 5.24."""
        return self.cache


@dataclass
class SwinBertModelOutput(_CachingOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(B, L, hidden_size)`):
        Text states of the last layer; with appended `[MASK]` tokens, `(B, L + K, hidden_size)`.
    cache (`Cache`):
        Keys and values of the text tokens; those of `[MASK]` tokens appended for prediction are never stored.
    video_key_values (`tuple` of `(key, value)` for every layer, each `(V, heads, P, D)`):
        What the text reads of the clips.
    hidden_states, attentions (`tuple`, on request):
        Of the text stream, `[MASK]` rows last: `(B, L + K, hidden_size)`, and `(B, heads, L + K, P + L + K)` over
        prefix, text and `[MASK]` keys.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cache: Cache | None = None
    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SwinBertCaptioningOutput(_CachingOutput):
    r"""
    loss (`torch.FloatTensor`): `caption_loss + sparsity_loss_weight * sparsity_loss`, with `labels`.
    caption_loss (`torch.FloatTensor`): mean over the predicted tokens.
    sparsity_loss (`torch.FloatTensor`): mean off-diagonal value of the sparse mask, where there is one.
    logits (`torch.FloatTensor` of shape `(B, L, vocab_size)`).
    The other fields are those of [`SwinBertModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    caption_loss: torch.FloatTensor | None = None
    sparsity_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: Cache | None = None
    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class _PreparedMask:
    """A plan of the attention under a mask, the bias of what it executes, and what both were made of."""

    weight: torch.Tensor
    kind: tuple[str, str]
    plan: AttentionPlan
    bias: torch.Tensor


class SparseVideoMask(nn.Module):
    """
    The learned attention mask M among N video tokens (section 3.2): sigmoid of a free matrix, diagonal of ones.

    Attributes:
        skips_dead_entries: set to `False`, on a mask or on the class, every entry of the attention is executed. By
            default those are skipped whose weight is 0 in any case, where that is cheaper: see [`AttentionPlan`].
    """

    skips_dead_entries = True

    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_video_tokens, config.num_video_tokens))
        self._prepared: _PreparedMask | None = None

    def soft_values(self) -> torch.Tensor:
        """(N, N) sigmoid of the weights in float32, with a diagonal of zeros."""
        return torch.sigmoid(self.weight.float()).masked_fill(self._diagonal(), 0.0)

    def values(self) -> torch.Tensor:
        """(N, N) M, float32: in [0, 1], or 0 and 1 for a hard mask, with a diagonal of ones."""
        return self._values(self.weight, self._diagonal())

    def _values(self, weight: torch.Tensor, is_diagonal: torch.Tensor) -> torch.Tensor:
        mask = torch.sigmoid(weight.float()).masked_fill(is_diagonal, 1.0)
        return (mask >= 0.5).float() if self.config.sparse_mask == "hard" else mask

    def _diagonal(self) -> torch.Tensor:
        return torch.eye(len(self.weight), dtype=torch.bool, device=self.weight.device)

    def forward(self, dense: bool = False) -> tuple[torch.Tensor, AttentionPlan]:
        """
        How to execute the attention among the tokens, by the call before which ZeRO-3 and FSDP collect parameters.

        Args:
            dense: whether every entry is to be executed.

        Returns:
            The bias of the entries that are executed, `(1, 1, N, N)` or in the order of the plan, and the plan.
        """
        # A compiled graph, a shard or a tensor without values cannot be looked at.
        known = type(self.weight) is nn.Parameter and not self.weight.is_meta
        if dense or not self.skips_dead_entries or torch.compiler.is_compiling() or not known:
            return self.bias()[None, None], AttentionPlan(len(self.weight), is_dense=True)
        prepared = self._prepare()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._bias_of(prepared.plan), prepared.plan
        return prepared.bias, prepared.plan

    @torch.no_grad()
    def plan(self) -> AttentionPlan:
        """How the attention among the video tokens is executed; `str()` of it says so in a line."""
        return self()[1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _prepare(self) -> _PreparedMask:
        """
        The plan for the weights as they are. A comparison of all of them finds every change, however it was made, and
        costs nothing beside a layer.
        """
        kind = (self.config.sparse_mask, self.config.sparse_mask_form)
        prepared, weight = self._prepared, self.weight.detach()
        if (
            prepared is None
            or prepared.kind != kind
            or (prepared.weight.dtype, prepared.weight.device) != (weight.dtype, weight.device)
            or not torch.equal(prepared.weight, weight)
        ):
            plan = plan_attention(self._bias_of_rows, len(weight), weight.device)
            prepared = _PreparedMask(weight.clone(), kind, plan, self._bias_of(plan))
            self._prepared = prepared  # at once, for threads
        return prepared

    def bias(self) -> torch.Tensor:
        """(N, N) float32 to add to attention scores: (1 - M) * -10000 as penalty, log M as gate."""
        return self._bias(self.weight, self._diagonal())

    def _bias_of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (R, N) of the bias."""
        columns = torch.arange(len(self.weight), device=rows.device)
        return self._bias(self.weight[rows], rows[:, None] == columns)

    def _bias_of(self, plan: AttentionPlan) -> torch.Tensor:
        if plan.is_dense:
            return self.bias()[None, None]
        if not plan.blocks:
            return self.weight[:0].flatten().float()
        blocks = [
            self._bias(self.weight[rows[:, None], columns], rows[:, None] == columns) for rows, columns in plan.blocks
        ]
        return torch.cat([block.flatten() for block in blocks])

    def _bias(self, weight: torch.Tensor, is_diagonal: torch.Tensor) -> torch.Tensor:
        if self.config.sparse_mask_form == "penalty":
            return (1.0 - self._values(weight, is_diagonal)) * _PENALTY
        if self.config.sparse_mask == "hard":
            return self._values(weight, is_diagonal).log()  # 0 and -inf; the diagonal keeps every row alive
        return F.logsigmoid(weight.float()).masked_fill(is_diagonal, 0.0)

    def sparsity_loss(self) -> torch.Tensor:
        """Mean over all N * N entries of the soft mask with a diagonal of zeros (equation 2)."""
        return self.soft_values().mean()

    def live_entries(self) -> torch.Tensor:
        """(N, N) bool: where, at equal scores, an entry's weight beside the diagonal's is not zero in float32."""
        return self.bias().exp() > 0

    @torch.no_grad()
    def statistics(self) -> tuple[int, int]:
        """Of the N * (N - 1) off-diagonal entries, how many are below one half, and how many are alive."""
        off_diagonal = ~self._diagonal()
        below_half = (self.soft_values()[off_diagonal] < 0.5).sum()
        return int(below_half), int(self.live_entries()[off_diagonal].sum())


class SwinBertProjector(nn.Module):
    """Video features to the width of the fusion encoder. Video tokens get no position, token type or normalisation."""

    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.linear_2 = nn.Linear(config.projection_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @fast_linear
    def forward(self, video_features: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear_2(self.linear_1(video_features)))


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

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, heads * D) -> (B, heads, L, D)."""
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def key_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, heads, L, D)."""
        return self._heads(self.key(hidden_states)), self._heads(self.value(hidden_states))

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
        Attention of the text stream: (B, L + K, hidden_size) -> the same, and weights (B, heads, L + K, P + S + K).

        One softmax over two parts of scores, so that nothing copies the keys and values of the prefix: not a word, and
        not the texts of a clip, whose rows read it together. The last `num_masks` (K) rows are read by themselves alone
        and are not stored in the cache.

        Args:
            attention_mask: additive, (B, 1, L + K, S + K) for the S tokens of cache and text and the [MASK] tokens.
            prefix_mask: additive, (B, 1, 1, P); `None` where all is seen.
        """
        batch, length = hidden_states.shape[:2]
        query = self._heads(self.query(hidden_states)) * self.scaling
        key, value = self.key_values(hidden_states)
        if cache is not None:
            tokens = length - num_masks
            cached_key, cached_value = cache.update(key[:, :, :tokens], value[:, :, :tokens], self.layer_idx)
            key = torch.cat([cached_key, key[:, :, tokens:]], dim=2) if num_masks else cached_key
            value = torch.cat([cached_value, value[:, :, tokens:]], dim=2) if num_masks else cached_value

        scores = query @ key.transpose(-1, -2) + attention_mask
        prefix = 0
        if prefix_key is not None:
            clips, _, prefix, _ = prefix_key.shape
            of_prefix = _by_text(_by_clip(query, clips) @ prefix_key.transpose(-1, -2), batch)
            if prefix_mask is not None:
                of_prefix = of_prefix + prefix_mask
            scores = torch.cat([of_prefix, scores], dim=-1)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        dropped = F.dropout(weights, p=self.config.attention_probs_dropout_prob, training=self.training)
        output = dropped[..., prefix:] @ value
        if prefix_value is not None:
            output = output + _by_text(_by_clip(dropped[..., :prefix], clips) @ prefix_value, batch)
        return output.transpose(1, 2).reshape(batch, length, -1), weights

    def attend_video(
        self, hidden_states: torch.Tensor, bias: torch.Tensor | None, plan: AttentionPlan
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Attention of the prefix stream, (V, P, hidden_size) -> the same shape, as the plan says.

        Returns:
            Output, attention weights if computed, keys and values `(V, heads, P, D)`, and the range of the scores of a
            row if the plan has to compare it.
        """
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        key, value = self.key_values(hidden_states)
        query = self._heads(self.query(hidden_states)) if plan.is_dense or plan.needs_queries else None
        if bias is not None and not plan.is_dense:
            queries = None if query is None else query.transpose(1, 2)  # (V, N, heads, D), as all three
            keys, values = key.transpose(1, 2), value.transpose(1, 2)
            scores = None
            if queries is not None and plan.compares_scores:
                scores = score_range(queries, keys, self.scaling)
            output = planned_attention(plan, queries, keys, values, bias, self.scaling, dropout)
            return output.flatten(2), None, key, value, scores
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self, query, key, value, bias, scaling=self.scaling, dropout=dropout, is_causal=False
        )
        return output.flatten(2), weights, key, value, None


def _by_clip(states: torch.Tensor, clips: int) -> torch.Tensor:
    """(B, heads, L, X) -> (V, heads, B / V * L, X): the rows of the texts of one clip, one after the other."""
    batch = states.shape[0]
    if batch == clips:
        return states
    return states.unflatten(0, (clips, batch // clips)).transpose(1, 2).flatten(2, 3)


def _by_text(states: torch.Tensor, batch: int) -> torch.Tensor:
    """(V, heads, B / V * L, X) -> (B, heads, L, X): undoes [`_by_clip`]."""
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
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


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
        return self.act(self.dense(hidden_states))


class SwinBertLayer(GradientCheckpointingLayer):
    """A BERT layer that serves both streams."""

    def __init__(self, config: SwinBertConfig, layer_idx: int):
        super().__init__()
        self.attention = SwinBertAttention(config, layer_idx)
        self.intermediate = SwinBertIntermediate(config)
        self.output = SwinBertSelfOutput(config, config.intermediate_size)

    @fast_linear
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
        With a plan as [`SwinBertSelfAttention.attend_video`], where `key_values_only` leaves out the output that nobody
        reads; else as its `forward`.
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
        return self.LayerNorm(self.act(self.dense(hidden_states)))


class SwinBertLMHead(nn.Module):
    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.transform = SwinBertPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    @fast_linear
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))


class SwinBertPreTrainedModel(SafetensorsModel):
    config: SwinBertConfig
    config_class = SwinBertConfig
    base_model_prefix = "model"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SwinBertLayer", "VideoSwinBlock"]
    _skip_keys_device_placement = ["cache", "past_key_values", "video_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # Auto classes that load this class from a saved folder.
    _auto_classes: tuple[str, ...] = ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SparseVideoMask):
            init.normal_(module.weight, mean=_INITIAL_MASK_LOGIT, std=1.0)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """As the library's, and the classes and the pipeline that `trust_remote_code=True` finds in the folder."""
        if self.is_remote_code():
            auto_map = {name: f"modeling_swinbert.{type(self).__name__}" for name in self._auto_classes}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map}
            self.config.custom_pipelines = _CUSTOM_PIPELINES
        # As loading sets it, so that a model of a configuration and one of a folder write the same.
        self.config.vision_config.dtype = self.dtype
        return super().save_pretrained(save_directory, **kwargs)


class SwinBertModel(SwinBertPreTrainedModel):
    """Clips and text in, fused text states out: backbone, projection, sparse mask, fusion encoder, without a head."""

    _auto_classes = ("AutoModel",)

    def __init__(self, config: SwinBertConfig):
        super().__init__(config)
        self.video_encoder = VideoSwinModel._from_config(config.vision_config)
        self.projector = SwinBertProjector(config)
        self.sparse_mask = SparseVideoMask(config) if config.sparse_mask != "none" else None
        self.embeddings = SwinBertEmbeddings(config)
        self.encoder = SwinBertEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        Video tokens as the fusion encoder reads them.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(V, T, C, H, W)`): normalised pixels.

        Returns:
            The backbone's output, with `pooler_output` the projected tokens `(V, N, hidden_size)`.
        """
        features = self.video_encoder(pixel_values_videos, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=features.last_hidden_state,
            pooler_output=self.projector(features.last_hidden_state),
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )

    def encode_video(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        context_ids: torch.LongTensor | None = None,
        context_attention_mask: torch.Tensor | None = None,
        context_token_type_ids: torch.LongTensor | None = None,
        video_features: torch.FloatTensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> SwinBertVideoOutput:
        r"""
        Runs the prefix stream: everything of a clip that does not depend on its caption.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(V, T, C, H, W)`): normalised pixels.
            context_ids (`torch.LongTensor` of shape `(V, S)`, *optional*): a second text segment, such as speech or
                object labels, at the positions after `max_caption_length`. Video and context see each other, and the
                caption sees both.
            context_attention_mask, context_token_type_ids (`(V, S)`, *optional*): 0 for padding (default: all 1); token
                types (default: 1).
            video_features (`torch.FloatTensor` of shape `(V, N, hidden_size)`, *optional*): the `pooler_output` of
                `get_video_features`, instead of pixels.

        Raises:
            ValueError: the clip has another number of tokens than the sparse mask.
        """
        if video_features is None:
            video_features = self.get_video_features(pixel_values_videos, return_dict=True).pooler_output
        hidden_states = video_features
        num_video_tokens = hidden_states.shape[1]
        if self.sparse_mask is not None and num_video_tokens != self.config.num_video_tokens:
            raise ValueError(
                f"The sparse mask is for {self.config.num_video_tokens} video tokens, but these clips have"
                f" {num_video_tokens}: sample {self.config.num_frames} frames of {self.config.image_size} pixels, as"
                " the model's processor does."
            )
        keeps_all = output_hidden_states or output_attentions
        # What is asked for in full, or by another implementation of attention, is executed in full.
        dense = context_ids is not None or output_attentions or self.config._attn_implementation != "sdpa"
        bias, plan = self._video_attention(hidden_states, dense)
        if context_ids is not None:
            context, bias = self._prepend_context(
                hidden_states, bias, context_ids, context_attention_mask, context_token_type_ids
            )
            hidden_states = torch.cat([context, hidden_states], dim=1)  # (V, P, hidden_size)
        if bias is not None and not bias.numel():
            hidden_states = hidden_states + bias.sum()  # 0: where no entry is executed, the mask still has a gradient
        outputs, scores = self._run_prefix(hidden_states, bias, plan, keeps_all)
        if scores and not torch.stack(scores).max() <= plan.room:
            outputs, _ = self._run_prefix(hidden_states, *self._video_attention(hidden_states, True), keeps_all)
        return SwinBertVideoOutput(
            video_key_values=outputs.video_key_values,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions if output_attentions else None,
        )

    def _video_attention(self, video: torch.Tensor, dense: bool) -> tuple[torch.Tensor | None, AttentionPlan]:
        """What is added to the scores of the video tokens, and which of them are executed."""
        if self.sparse_mask is None:
            return None, AttentionPlan(video.shape[1], is_dense=True)
        bias, plan = self.sparse_mask(dense)
        return bias.to(video.dtype), plan

    def _run_prefix(
        self, hidden_states: torch.Tensor, bias: torch.Tensor | None, plan: AttentionPlan, keeps_all: bool
    ) -> tuple[SwinBertVideoOutput, list[torch.Tensor]]:
        """The layers of the prefix stream, and the range of scores in each where the plan has to compare them."""
        all_hidden_states, all_attentions, key_values, all_scores = [hidden_states], [], [], []
        for index, layer in enumerate(self.encoder.layer):
            # The last layer's output is read by nobody: keys and values suffice, unless all states are asked for.
            is_last = index + 1 == len(self.encoder.layer)
            hidden_states, weights, key, value, scores = layer(
                hidden_states, bias, plan=plan, key_values_only=is_last and not keeps_all
            )
            # With strides, products with the heads of several clips would copy them for every word.
            key_values.append((key.contiguous(), value.contiguous()))
            all_hidden_states.append(hidden_states)
            all_attentions.append(weights)
            if scores is not None:
                all_scores.append(scores.detach())
        return SwinBertVideoOutput(tuple(key_values), tuple(all_hidden_states), tuple(all_attentions)), all_scores

    def _prepend_context(
        self,
        video: torch.Tensor,
        bias: torch.Tensor | None,
        context_ids: torch.LongTensor,
        context_attention_mask: torch.Tensor | None,
        context_token_type_ids: torch.LongTensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Context embeddings (V, S, hidden_size), and the prefix bias (V, 1, S + N, S + N) that hides its padding."""
        clips, length = context_ids.shape
        first = self.config.max_caption_length
        if first + length > self.config.max_position_embeddings:
            raise ValueError(
                f"A context of {length} tokens after {first} caption positions exceeds the"
                f" {self.config.max_position_embeddings} positions of the model: shorten the context."
            )
        if context_token_type_ids is None:
            context_token_type_ids = torch.ones_like(context_ids)
        position_ids = torch.arange(first, first + length, device=context_ids.device)[None]
        context = self.embeddings(self.get_input_embeddings()(context_ids), position_ids, context_token_type_ids)

        if context_attention_mask is None:
            context_attention_mask = torch.ones_like(context_ids)
        num_video_tokens = video.shape[1]
        if bias is None:
            bias = video.new_zeros(1, 1, num_video_tokens, num_video_tokens)
        columns = (1.0 - context_attention_mask.to(bias.dtype))[:, None, None] * _PENALTY  # (V, 1, 1, S)
        rows = length + num_video_tokens
        bias = F.pad(bias, (0, 0, length, 0)).expand(clips, 1, rows, num_video_tokens)
        return context, torch.cat([columns.expand(clips, 1, rows, length), bias], dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_key_values: KeyValues | None = None,
        context_ids: torch.LongTensor | None = None,
        context_attention_mask: torch.Tensor | None = None,
        context_token_type_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        num_masks: int = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> SwinBertModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): text tokens; or `inputs_embeds` `(B, L, hidden_size)`.
            attention_mask (`(B, L)`, or `(B, 1, L, L)` in full, *optional*): 0 for padding. Text is causal in any case.
            token_type_ids, position_ids (`(B, L)`, *optional*): default to zeros, and to counting on from the cache.
            pixel_values_videos (`torch.FloatTensor` of shape `(V, T, C, H, W)`, *optional*): normalised pixels. B is a
                multiple of V. Without video the model is a text-only language model.
            video_key_values (*optional*): of an earlier call or of `encode_video`, instead of pixels.
            context_ids, context_attention_mask, context_token_type_ids (`(V, S)`, *optional*): see `encode_video`.
            cache (`Cache`, *optional*), use_cache (`bool`, *optional*): text tokens of earlier calls.
            past_key_values: what transformers before 5.24 calls `cache`.
            num_masks (`int`, defaults to 0): how many `[MASK]` tokens (K) to append after the text, the last of them
                one position after the last token, each seen by itself alone.
        """
        self._validate_input(input_ids, inputs_embeds, pixel_values_videos, video_key_values, context_ids, kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training

        if video_key_values is None and pixel_values_videos is not None:
            video_key_values = self.encode_video(
                pixel_values_videos, context_ids, context_attention_mask, context_token_type_ids
            ).video_key_values

        if cache is None:
            cache = past_key_values
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        batch, length = inputs_embeds.shape[:2]
        packed_position_ids = position_ids  # the mask separates packed texts, whose given positions start again at 0
        if position_ids is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(length, device=inputs_embeds.device)[None] + past_length
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        causal_mask = create_causal_mask(
            self.config, inputs_embeds, attention_mask, cache, packed_position_ids, allow_is_causal_skip=False
        )
        text_mask = self._text_mask(causal_mask, inputs_embeds.dtype, num_masks)
        prefix_mask = None
        if video_key_values is not None and context_attention_mask is not None:
            prefix_mask = self._prefix_mask(context_attention_mask, batch, video_key_values[0][0])
        if num_masks:
            mask_ids = torch.full((batch, num_masks), self.config.mask_token_id, device=inputs_embeds.device)
            inputs_embeds = torch.cat([inputs_embeds, self.get_input_embeddings()(mask_ids)], dim=1)
            position_ids = torch.cat([position_ids, position_ids[:, -num_masks:] + 1], dim=1)
            token_type_ids = torch.cat([token_type_ids, token_type_ids[:, -num_masks:]], dim=1)
        hidden_states = self.embeddings(inputs_embeds, position_ids, token_type_ids)

        all_hidden_states, all_attentions = [hidden_states], []
        for index, layer in enumerate(self.encoder.layer):
            prefix_key, prefix_value = video_key_values[index] if video_key_values is not None else (None, None)
            hidden_states, weights = layer(
                hidden_states,
                text_mask,
                prefix_key,
                prefix_value,
                prefix_mask=prefix_mask,
                cache=cache,
                num_masks=num_masks,
            )
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            all_attentions.append(weights)
        return SwinBertModelOutput(
            last_hidden_state=hidden_states,
            cache=cache if use_cache else None,
            video_key_values=video_key_values if use_cache else None,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _validate_input(self, input_ids, inputs_embeds, pixel_values_videos, video_key_values, context_ids, others):
        # Arguments without a use are accepted, as everywhere in the library; but no clip may get lost.
        if lost := [name for name in ("pixel_values", "video_features") if others.get(name) is not None]:
            raise ValueError(
                f"`{lost[0]}` would not be read: pass pixels as `pixel_values_videos`, or what `encode_video` made of"
                " them as `video_key_values`."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Pass either `input_ids` or `inputs_embeds`: the forward pass predicts tokens of a text. To caption a"
                " clip, call `generate(pixel_values_videos=...)`."
            )
        if context_ids is not None and pixel_values_videos is None:
            raise ValueError("`context_ids` is encoded with the clip: pass `pixel_values_videos` too.")
        texts, length = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"A text of {length} tokens exceeds the {self.config.max_position_embeddings} positions of the model"
                " (`max_position_embeddings`): shorten it."
            )
        clips = texts
        if video_key_values is not None:
            clips = video_key_values[0][0].shape[0]
        elif pixel_values_videos is not None:
            clips = pixel_values_videos.shape[0]
        if clips == 0 or texts % clips:
            raise ValueError(f"{texts} texts cannot be shared out over {clips} clips: B must be a multiple of V.")

    @staticmethod
    def _text_mask(causal_mask: torch.Tensor, dtype: torch.dtype, num_masks: int) -> torch.Tensor:
        """
        The causal mask (B, 1, L, S), boolean or additive, as additive mask (B, 1, L + K, S + K): a [MASK] sees what the
        token before it sees, and itself; no token sees a [MASK].
        """
        hidden = torch.finfo(dtype).min
        mask = causal_mask.to(dtype)
        if causal_mask.dtype == torch.bool:
            mask = (1.0 - mask) * hidden
        if not num_masks:
            return mask
        mask = torch.cat([mask, mask[:, :, -num_masks:]], dim=2)
        others = ~torch.eye(num_masks, dtype=torch.bool, device=mask.device)
        others = F.pad(others, (0, 0, mask.shape[2] - num_masks, 0), value=True)  # (L + K, K)
        return torch.cat([mask, (others.to(dtype) * hidden).expand(mask.shape[0], 1, -1, -1)], dim=3)

    @staticmethod
    def _prefix_mask(context_attention_mask: torch.Tensor, batch: int, prefix_key: torch.Tensor) -> torch.Tensor:
        """Additive mask (B, 1, 1, P) that hides the padding of contexts (V, S)."""
        mask = prefix_key.new_zeros(batch, 1, 1, prefix_key.shape[2])
        padding = ~context_attention_mask.bool().repeat_interleave(batch // context_attention_mask.shape[0], dim=0)
        mask[:, 0, 0, : padding.shape[1]].masked_fill_(padding, torch.finfo(mask.dtype).min)
        return mask


class SwinBertForVideoCaptioning(SwinBertPreTrainedModel, SwinBertGenerationMixin):
    """SwinBERT with its language-modelling head: `forward` for training and scoring, `generate` for captions."""

    _auto_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    # Untied as released; with `tie_word_embeddings` the head reads the word embeddings.
    _tied_weights_keys = {"lm_head.decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: SwinBertConfig):
        super().__init__(config)
        self.model = SwinBertModel(config)
        self.lm_head = SwinBertLMHead(config)
        self.add_model_tags(["video-captioning", "swinbert", "video-swin", "custom_code"])
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        self.lm_head.decoder = new_embeddings

    def get_video_features(self, pixel_values_videos: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """See [`SwinBertModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def encode_video(self, pixel_values_videos: torch.FloatTensor | None = None, **kwargs: Any) -> SwinBertVideoOutput:
        """See [`SwinBertModel.encode_video`]; pass its `video_key_values` to `forward` or `generate`."""
        return self.model.encode_video(pixel_values_videos, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_key_values: KeyValues | None = None,
        context_ids: torch.LongTensor | None = None,
        context_attention_mask: torch.Tensor | None = None,
        context_token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        predict_next: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> SwinBertCaptioningOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): -100 where nothing is predicted. For `masked_lm`
                the token at the same position, where `input_ids` has a `[MASK]`; for `causal_lm` the tokens of the text
                themselves, which are shifted here.
            shift_labels (`torch.LongTensor` of shape `(B, L)`, *optional*): for `causal_lm`, labels that are shifted
                already, as training with a sequence spread over devices passes them; they replace `labels` in the loss.
            predict_next (`bool`, defaults to `False`): logits of the *next* token at each of the last `logits_to_keep`
                positions, as generation needs them. Under `masked_lm` this appends a `[MASK]` after each.
            logits_to_keep (`int` or `torch.LongTensor`, defaults to 0): the last positions that need logits, 0 for all;
                or the indices of these positions.
            num_items_in_batch (`int`, *optional*): predicted tokens of all micro-batches of an optimisation step, which
                the losses are then a share of.
            Others: see [`SwinBertModel.forward`].
        """
        num_masks = 0
        if predict_next and self.config.objective == "masked_lm":
            length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
            num_masks = length if logits_to_keep == 0 else min(logits_to_keep, length)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_key_values=video_key_values,
            context_ids=context_ids,
            context_attention_mask=context_attention_mask,
            context_token_type_ids=context_token_type_ids,
            cache=cache,
            past_key_values=past_key_values,
            use_cache=use_cache,
            num_masks=num_masks,
            return_dict=True,
            **kwargs,
        )
        if num_masks:
            kept = slice(-num_masks, None)
        elif isinstance(logits_to_keep, int):
            kept = slice(-logits_to_keep, None)
        else:
            kept = logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])

        loss = caption_loss = sparsity_loss = None
        if self.model.sparse_mask is not None and pixel_values_videos is not None and labels is not None:
            sparsity_loss = self.model.sparse_mask.sparsity_loss()
        if labels is not None:
            logits_of_labels = logits
            if self.config.objective == "causal_lm":
                if shift_labels is not None:
                    labels = shift_labels
                else:
                    logits_of_labels, labels = logits[:, :-1], labels[:, 1:]
            loss, caption_loss = self._loss(logits_of_labels, labels, sparsity_loss, num_items_in_batch)
        return SwinBertCaptioningOutput(
            loss=loss,
            caption_loss=caption_loss,
            sparsity_loss=sparsity_loss,
            logits=logits,
            cache=outputs.cache,
            video_key_values=outputs.video_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.LongTensor,
        sparsity_loss: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Total loss and caption loss: the divergence of the smoothed one-hot target, 1 - eps at the label and
        eps / (vocab_size - 1) elsewhere, from the prediction, as the original does it; cross entropy for eps = 0.

        `Trainer` adds the losses of an accumulation step's micro-batches, so each is a share of `num_items_in_batch`.
        """
        labels = labels.to(logits.device)
        predicted = labels != -100
        log_probs = F.log_softmax(logits[predicted].float(), dim=-1)  # (predicted tokens, vocab_size)
        of_label = log_probs.gather(1, labels[predicted][:, None]).squeeze(1)
        losses = -of_label
        if smoothing := self.config.label_smoothing:
            other = torch.tensor(smoothing / (logits.shape[-1] - 1), dtype=torch.float64).log().item()
            of_others = log_probs.sum(dim=-1) - of_label
            negative_entropy = (1 - smoothing) * torch.tensor(1 - smoothing, dtype=torch.float64).log().item()
            negative_entropy += smoothing * other
            losses = negative_entropy - (1 - smoothing) * of_label - smoothing / (logits.shape[-1] - 1) * of_others
        count = predicted.sum()
        share = 1.0
        if num_items_in_batch is None:
            caption_loss = losses.sum() / count.clamp_min(1)
        else:
            caption_loss = losses.sum() / num_items_in_batch
            share = count / num_items_in_batch
        if sparsity_loss is None:
            return caption_loss, caption_loss
        return caption_loss + self.config.sparsity_loss_weight * share * sparsity_loss, caption_loss


__all__ = ["SwinBertModel", "SwinBertForVideoCaptioning", "SwinBertPreTrainedModel", "SparseVideoMask"]
