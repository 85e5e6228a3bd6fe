"""Autoregressive generation with a masked language model.

Word t is predicted at a `[MASK]` in its place, from the clip and the words before it. A decoding step therefore feeds
the last word, whose keys and values enter the cache, and a `[MASK]`, whose keys and values do not. The clip is encoded
once; all beams and samples share its keys and values, which stay outside the cache, because the library assumes that a
cache holds text alone. A causal language model (GIT's objective) generates in the same way without the `[MASK]`.

Shapes: B texts, V clips, L text tokens, T frames, C channels, H and W pixels.
"""

from typing import Any

import torch
from transformers.generation import (
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
)

# Arguments of `generate`, each of which brings the clips.
_CLIPS = ("pixel_values_videos", "video_key_values", "mm_encoder_outputs")
# What a collator makes of the reference captions, and the numbers of their clips.
_TEXT_OF_BATCH = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "index")


class LastWordToEOSLogitsProcessor(ForcedEOSTokenLogitsProcessor):
    """
    Ends a caption at `max_length` as the released code does: `[SEP]` replaces the best word of the last position and
    takes its score, so that a truncated caption does not rank above one that ended by itself.
    """

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[-1] != self.max_length - 1:
            return scores
        best = scores.max(dim=-1, keepdim=True).values
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.eos_token_id] = best
        return ended


class SwinBertGenerationMixin(GenerationMixin):
    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any):
        r"""
        Captions clips: [`GenerationMixin.generate`] with the clip in `pixel_values_videos`.

        Args:
            inputs (`torch.Tensor`, *optional*): prompt tokens `(B, L)`, or pixels `(V, T, C, H, W)`.
            pixel_values_videos (`torch.FloatTensor` of shape `(V, T, C, H, W)`): normalised pixels.
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): a prompt that starts with `[CLS]`; by default
                `[CLS]` alone. Captions start with the prompt.
            video_key_values (*optional*): what `encode_video` returned, instead of pixels.
            context_ids, context_attention_mask, context_token_type_ids (*optional*): see `encode_video`.
            cache (`Cache`, *optional*): of an earlier caption, which `input_ids` holds, to continue it.
            labels (`torch.LongTensor`, *optional*): mark a batch for training, as `Seq2SeqTrainer` passes it with
                `predict_with_generate`: its text is the reference, not a prompt, and is ignored if there is a clip. A
                prompt for such a batch goes into `inputs`.
            Others: see [`GenerationMixin.generate`]; a token has the score that its `[MASK]` predicts.

        Returns:
            Token ids `(B, length)` with `[CLS]` first, or a `ModelOutput` with `return_dict_in_generate=True`.
        """
        if inputs is not None and inputs.ndim == 5:
            kwargs["pixel_values_videos"], inputs = inputs, None
        if kwargs.pop("labels", None) is not None and any(kwargs.get(name) is not None for name in _CLIPS):
            kwargs = {name: value for name, value in kwargs.items() if name not in _TEXT_OF_BATCH}
        return super().generate(inputs, *args, **kwargs)

    def _maybe_initialize_input_ids_for_generation(self, inputs, bos_token_id, model_kwargs: dict[str, Any]):
        """`[CLS]` for every clip. The library infers the batch size from tensors; encoded clips are tuples of them."""
        if inputs is None and model_kwargs.get("inputs_embeds") is None and bos_token_id is not None:
            clips = 0
            if model_kwargs.get("video_key_values") is not None:
                clips = model_kwargs["video_key_values"][0][0].shape[0]
            elif model_kwargs.get("mm_encoder_outputs"):
                clips = model_kwargs["mm_encoder_outputs"]["video"].pooler_output.shape[0]
            if clips:
                return torch.ones((clips, 1), dtype=torch.long, device=self.device) * bos_token_id
        return super()._maybe_initialize_input_ids_for_generation(inputs, bos_token_id, model_kwargs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Encodes the clips before beams or samples repeat the texts."""
        pixels = model_kwargs.pop("pixel_values_videos", None)
        features = (model_kwargs.pop("mm_encoder_outputs", None) or {}).get("video")
        context = {name: model_kwargs.pop(name, None) for name in ("context_ids", "context_token_type_ids")}
        if pixels is not None and features is not None:
            raise ValueError(
                "You cannot pass both `pixel_values_videos` and `mm_encoder_outputs` of the clips: pass one of them."
            )
        if model_kwargs.get("video_key_values") is None and (pixels is not None or features is not None):
            encoded = self.encode_video(
                pixels.to(self.device) if pixels is not None else None,
                video_features=features.pooler_output if features is not None else None,
                context_attention_mask=model_kwargs.get("context_attention_mask"),
                **context,
            )
            model_kwargs["video_key_values"] = encoded.video_key_values
        return model_kwargs

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Attaches the encoded clip to the cache, so that a caption can be continued from its cache alone."""
        earlier = model_kwargs.get("cache")
        if model_kwargs.get("video_key_values") is None and earlier is not None:
            model_kwargs["video_key_values"] = getattr(earlier, "video_key_values", None)
        prepared = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if (cache := model_kwargs.get("cache")) is not None:
            cache.video_key_values = model_kwargs.get("video_key_values")
        return prepared

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, inputs_embeds: torch.FloatTensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        return {**model_inputs, "predict_next": True}

    def _get_logits_processor(self, generation_config: GenerationConfig, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, **kwargs)
        return LogitsProcessorList(
            LastWordToEOSLogitsProcessor(processor.max_length, processor.eos_token_id)
            if type(processor) is ForcedEOSTokenLogitsProcessor
            else processor
            for processor in processors
        )

    def _beam_search(self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any):
        """Pads ended beams as the other modes do; the library fills them with `[SEP]` where the id of `[PAD]` is 0."""
        outputs = super()._beam_search(input_ids, *args, **kwargs)
        generation_config = kwargs["generation_config"]
        eos, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        if eos is not None and pad is not None:
            words = (outputs if isinstance(outputs, torch.Tensor) else outputs.sequences)[:, input_ids.shape[1] :]
            is_eos = torch.isin(words, eos).long()
            words[is_eos.cumsum(dim=1) - is_eos > 0] = pad
        return outputs


__all__ = ["SwinBertGenerationMixin"]
