"""SwinBERT (arXiv:2111.13196): video captioning with a Video Swin backbone, a BERT encoder over text and video tokens,
and a learned sparse attention mask among the video tokens.

Video tokens never see the caption, so the fusion encoder runs as two streams with one set of weights. The *prefix*
stream encodes the video tokens, after an optional context (a second text segment), and leaves the keys and values of
every layer. The *text* stream, B captions of L tokens, reads them. The result equals that of one concatenated sequence
under the paper's seq2seq mask (section 3.1), but a clip is encoded once for all its captions, beams and words.

Shapes: B texts, V clips (B is a multiple of V: text i reads clip i // (B / V)), T frames, C channels, H and W pixels;
L text tokens, K appended [MASK] tokens, S context tokens, N video tokens, P = S + N prefix tokens, D channels of a
head.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MultimodalModelOutput
from transformers.utils import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from .attention_swinbert import attend  # noqa: F401 - named here, so that save_pretrained ships its file
from .configuration_swinbert import SwinBertConfig
from .cpu_swinbert import fast_linear  # noqa: F401 - the same
from .fusion_swinbert import (
    SwinBertEmbeddings,
    SwinBertEncoder,
    SwinBertLMHead,
    SwinBertProjector,
    caption_losses,
    context_padding_mask,
    extend_causal_mask,
    warn_if_unmasked,
)
from .generation_swinbert import SwinBertGenerationMixin
from .loading_swinbert import SafetensorsModel
from .modeling_video_swin_swinbert import VideoSwinModel
from .sparse_attention_swinbert import AttentionPlan
from .sparse_mask_swinbert import INITIAL_MASK_LOGIT, MASK_PENALTY, SparseVideoMask
from .windows_swinbert import WindowPlan  # noqa: F401 - the same

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]

_CUSTOM_PIPELINES = {
    "video-captioning": {
        "impl": "pipeline_swinbert.VideoCaptioningPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@dataclass
class SwinBertVideoOutput(ModelOutput):
    r"""
    video_key_values (`tuple` of `(key, value)` for every layer, each `(V, heads, P, D)`):
        Keys and values of the prefix stream: all that a text reads of its clip.
    hidden_states, attentions (`tuple`, on request):
        Of the prefix stream: `(V, P, hidden_size)` and `(V, heads, P, P)`.
    """

    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SwinBertModelOutput(MultimodalModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(B, L, hidden_size)`):
        Text states of the last layer; with appended `[MASK]` tokens, `(B, L + K, hidden_size)`.
    cache (`Cache`):
        Keys and values of the text tokens; those of `[MASK]` tokens appended for prediction are never stored.
    video_outputs (`BaseModelOutputWithPooling`, where `pixel_values_videos` were encoded in this call):
        The result of `get_video_features`.
    video_key_values (`tuple` of `(key, value)` for every layer, each `(V, heads, P, D)`):
        Keys and values of the prefix stream, which the text reads.
    hidden_states, attentions (`tuple`, on request):
        Of the text stream, `[MASK]` rows last: `(B, L + K, hidden_size)`, and `(B, heads, L + K, P + L + K)` over
        prefix, text and `[MASK]` keys.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cache: Cache | None = None
    video_outputs: BaseModelOutputWithPooling | None = None
    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SwinBertCaptioningOutput(MultimodalModelOutput):
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
    video_outputs: BaseModelOutputWithPooling | None = None
    video_key_values: KeyValues | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SwinBertPreTrainedModel(SafetensorsModel):
    config: SwinBertConfig
    config_class = SwinBertConfig
    base_model_prefix = "model"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SwinBertLayer", "VideoSwinBlock"]
    _skip_keys_device_placement = ["cache", "video_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # Auto classes that load this class from a saved folder.
    _auto_classes: tuple[str, ...] = ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SparseVideoMask):
            init.normal_(module.weight, mean=INITIAL_MASK_LOGIT, std=1.0)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """As the library's; names in the configuration what `trust_remote_code=True` loads: classes and pipeline."""
        if self.is_remote_code():
            auto_map = {name: f"modeling_swinbert.{type(self).__name__}" for name in self._auto_classes}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map}
            self.config.custom_pipelines = _CUSTOM_PIPELINES
        # As loading sets it, so that a model made from a configuration and one loaded from a folder save the same.
        self.config.vision_config.dtype = self.dtype  # type: ignore[union-attr]
        return super().save_pretrained(save_directory, **kwargs)


class SwinBertModel(SwinBertPreTrainedModel):
    """Backbone, projection, sparse mask and fusion encoder, without a head: clips and text -> text states."""

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
        Runs the prefix stream, which does not depend on the caption of a clip.

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
        needs_last_layer = output_hidden_states or output_attentions
        # Only the attention among video tokens alone, by SDPA and without weights to return, skips dead entries.
        dense = context_ids is not None or output_attentions or self.config._attn_implementation != "sdpa"
        bias, plan = self._video_attention(hidden_states, dense)
        if context_ids is not None:
            context, bias = self._prepend_context(
                hidden_states, bias, context_ids, context_attention_mask, context_token_type_ids
            )
            hidden_states = torch.cat([context, hidden_states], dim=1)  # (V, P, hidden_size)
        if bias is not None and not bias.numel():
            hidden_states = hidden_states + bias.sum()  # 0, and a gradient for a mask of which no entry is executed
        outputs, scores = self._run_prefix(hidden_states, bias, plan, needs_last_layer)
        if scores and not torch.stack(scores).max() <= plan.score_margin:
            outputs, _ = self._run_prefix(hidden_states, *self._video_attention(hidden_states, True), needs_last_layer)
        return SwinBertVideoOutput(
            video_key_values=outputs.video_key_values,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions if output_attentions else None,
        )

    def _video_attention(self, video: torch.Tensor, dense: bool) -> tuple[torch.Tensor | None, AttentionPlan]:
        """Bias of the attention scores among the video tokens, and the plan that executes them."""
        if self.sparse_mask is None:
            return None, AttentionPlan(video.shape[1], is_dense=True)
        bias, plan = self.sparse_mask(dense)
        return bias.to(video.dtype), plan

    def _run_prefix(
        self, hidden_states: torch.Tensor, bias: torch.Tensor | None, plan: AttentionPlan, needs_last_layer: bool
    ) -> tuple[SwinBertVideoOutput, list[torch.Tensor]]:
        """Runs the layers; also returns the range of scores in each layer if the plan has to compare it."""
        all_hidden_states, all_attentions, key_values, all_scores = [hidden_states], [], [], []
        for index, layer in enumerate(self.encoder.layer):
            # Texts read keys and values only, so the output of the last layer is not computed unless requested.
            is_last = index + 1 == len(self.encoder.layer)
            hidden_states, weights, key, value, scores = layer(
                hidden_states, bias, plan=plan, key_values_only=is_last and not needs_last_layer
            )
            # Contiguous, or products with the heads of several clips would copy them for every word.
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
        """Context embeddings (V, S, hidden_size), and the bias (V, 1, S + N, S + N) that also hides their padding."""
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
        columns = (1.0 - context_attention_mask.to(bias.dtype))[:, None, None] * MASK_PENALTY  # (V, 1, 1, S)
        rows = length + num_video_tokens
        bias = F.pad(bias, (0, 0, length, 0)).expand(clips, 1, rows, num_video_tokens)
        return context, torch.cat([columns.expand(clips, 1, rows, length), bias], dim=-1)

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
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
            token_type_ids, position_ids (`(B, L)`, *optional*): by default zeros, and positions after those in the
                cache.
            pixel_values_videos (`torch.FloatTensor` of shape `(V, T, C, H, W)`, *optional*): normalised pixels. B is a
                multiple of V. Without video the model is a text-only language model.
            video_key_values (*optional*): of an earlier call or of `encode_video`, instead of pixels.
            context_ids, context_attention_mask, context_token_type_ids (`(V, S)`, *optional*): see `encode_video`.
            cache (`Cache`, *optional*): keys and values of the text tokens of earlier calls.
            use_cache (`bool`, *optional*): whether to return the cache; by default in inference, as configured.
            num_masks (`int`, defaults to 0): how many `[MASK]` tokens (K) to append after the text, the last of them
                one position after the last token, each seen by itself only.
        """
        self._validate_input(input_ids, inputs_embeds, pixel_values_videos, video_key_values, context_ids, kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training

        video_outputs = None
        if video_key_values is None and pixel_values_videos is not None:
            video_outputs = self.get_video_features(pixel_values_videos, return_dict=True)
            video_key_values = self.encode_video(
                video_features=video_outputs.pooler_output,
                context_ids=context_ids,
                context_attention_mask=context_attention_mask,
                context_token_type_ids=context_token_type_ids,
            ).video_key_values

        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        batch, length = inputs_embeds.shape[:2]
        # Positions that restart at 0 tell the mask where packed texts begin; default positions must not.
        packed_position_ids = position_ids
        if position_ids is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(length, device=inputs_embeds.device)[None] + past_length
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        causal_mask = create_causal_mask(
            self.config, inputs_embeds, attention_mask, cache, packed_position_ids, allow_is_causal_skip=False
        )
        text_mask = extend_causal_mask(causal_mask, inputs_embeds.dtype, num_masks)
        prefix_mask = None
        if video_key_values is not None and context_attention_mask is not None:
            prefix_mask = context_padding_mask(context_attention_mask, batch, video_key_values[0][0])
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
            video_outputs=video_outputs,
            video_key_values=video_key_values if use_cache else None,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _validate_input(self, input_ids, inputs_embeds, pixel_values_videos, video_key_values, context_ids, kwargs):
        # Unknown arguments are ignored, as in all models of the library, but not a clip under another name.
        if misnamed := [name for name in ("pixel_values", "video_features") if kwargs.get(name) is not None]:
            raise ValueError(
                f"`{misnamed[0]}` would not be read: pass pixels as `pixel_values_videos`, or the `video_key_values`"
                " that `encode_video` made of them."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Pass either `input_ids` or `inputs_embeds`: the forward pass predicts the tokens of a text. To caption"
                " a clip, call `generate(pixel_values_videos=...)`."
            )
        if context_ids is not None and pixel_values_videos is None:
            raise ValueError("`context_ids` are encoded together with the clip: pass `pixel_values_videos` too.")
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
            raise ValueError(
                f"{texts} texts cannot be divided among {clips} clips: their number must be a multiple of the clips."
            )


class SwinBertForVideoCaptioning(SwinBertPreTrainedModel, SwinBertGenerationMixin):
    """SwinBERT with its language-modelling head: `forward` for training and scoring, `generate` for captions."""

    _auto_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    # Only with `tie_word_embeddings`; the released weights are not tied.
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
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
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
        cache: Cache | None = None,
        use_cache: bool | None = None,
        predict_next: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> SwinBertCaptioningOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): -100 where nothing is predicted. For `masked_lm`
                the token at each position where `input_ids` has a `[MASK]`; for `causal_lm` the tokens of the text,
                which are shifted here.
            shift_labels (`torch.LongTensor` of shape `(B, L)`, *optional*): for `causal_lm`, labels that are already
                shifted, as sequence parallelism passes them; they replace `labels` in the loss.
            predict_next (`bool`, defaults to `False`): logits of the *next* token at each of the last `logits_to_keep`
                positions, as generation needs them. Under `masked_lm` this appends a `[MASK]` after each.
            logits_to_keep (`int` or `torch.LongTensor`, defaults to 0): the last positions that need logits, 0 for all;
                or the indices of these positions.
            num_items_in_batch (`int`, *optional*): number of predicted tokens in all micro-batches of an optimisation
                step; the losses are then divided by it, for summing over micro-batches.
            Others: see [`SwinBertModel.forward`].
        """
        # Not in the signature, where `Trainer` would take it for labels that every batch must have.
        shift_labels = kwargs.pop("shift_labels", None)
        num_masks = 0
        if predict_next and self.config.objective == "masked_lm":
            length = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
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
            if self.config.objective == "masked_lm" and self.training and input_ids is not None:
                warn_if_unmasked(input_ids, labels)
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
            video_outputs=outputs.video_outputs,
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
        Total loss and caption loss of logits (B, L, vocab_size) and labels (B, L), -100 where nothing is predicted.

        `Trainer` sums the losses of micro-batches, so each is divided by `num_items_in_batch`.
        """
        labels = labels.to(logits.device)
        predicted = labels != -100
        losses = caption_losses(logits[predicted], labels[predicted], self.config.label_smoothing)
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


__all__ = ["SwinBertForVideoCaptioning", "SwinBertModel", "SwinBertPreTrainedModel"]
