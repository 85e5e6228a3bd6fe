"""Export of a captioner to ONNX: a graph of the encoder, one of a decoding step, and `generate` around them.

```python
export_captioner(swinbert.bundled_model(), "captioner-onnx")
captioner = ExportedCaptioner.from_pretrained("captioner-onnx")
ids = captioner.generate(pixel_values_videos=pixels, num_beams=4)
```
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AutoProcessor, DynamicCache
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter
from transformers.exporters.base import EXPORT_MANIFEST_FILE
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file
from transformers.utils.deprecation import deprecate_kwarg

from swinbert.generation_swinbert import SwinBertGenerationMixin
from swinbert.modeling_swinbert import (
    KeyValues,
    SwinBertForVideoCaptioning,
    SwinBertPreTrainedModel,
    SwinBertVideoOutput,
)

_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class _Encoder(nn.Module):
    def __init__(self, model: SwinBertForVideoCaptioning):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos: torch.Tensor) -> KeyValues:
        key_values = self.model.encode_video(pixel_values_videos).video_key_values
        assert key_values is not None
        return key_values


class _DecodeStep(nn.Module):
    """One step: the last token (B, 1) -> logits of the next one."""

    def __init__(self, model: SwinBertForVideoCaptioning):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        video_key_values: KeyValues,
        past_key_values: DynamicCache,
    ) -> dict[str, Any]:
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            video_key_values=video_key_values,
            cache=past_key_values,
            use_cache=True,
            predict_next=True,
        )
        return {"logits": outputs.logits, "past_key_values": outputs.cache}


def export_captioner(model_name: str | Path, folder: str | Path, **load: Any) -> None:
    """
    Writes the graphs, configurations and processor of a model into a folder, for ONNX Runtime (extra `onnx`).

    The graphs take any number of clips, captions and words. Frames and their size are fixed, as the model configures
    them.

    Args:
        model_name: folder or Hub id of a SwinBERT.
        load: further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ImportError: a package of the extra `onnx` is not installed.
    """
    processor = AutoProcessor.from_pretrained(model_name, **load)
    model = SwinBertForVideoCaptioning.from_pretrained(model_name, **load).eval()
    # Two clips and three words, because export takes sizes of 0 and 1 for constants.
    vision = model.config.vision_config
    pixels = torch.zeros(2, vision.num_frames, vision.num_channels, *vision.frame_size)
    with torch.no_grad():
        video = model.encode_video(pixels).video_key_values
        tokens = torch.ones(2, 3, dtype=torch.long)
        cache = model(input_ids=tokens, video_key_values=video, use_cache=True).cache
    step = {
        "input_ids": torch.ones(2, 1, dtype=torch.long),
        "position_ids": torch.full((2, 1), 3),
        "video_key_values": video,
        "past_key_values": text_only_cache(cache, model.config, 2),
    }
    batch, batch_and_words = {0: Dim.AUTO}, {0: Dim.AUTO, 2: Dim.AUTO}
    shapes = {
        "input_ids": batch,
        "position_ids": batch,
        "video_key_values": tuple((batch, batch) for _ in video),
        "past_key_values": [batch_and_words] * (2 * len(video)),
    }
    encoder = OnnxExporter().export(
        _Encoder(model), {"pixel_values_videos": pixels}, OnnxConfig(dynamic_shapes={"pixel_values_videos": batch})
    )
    decode_step = OnnxExporter().export(_DecodeStep(model), step, OnnxConfig(dynamic_shapes=shapes))
    exported = ExportedModel(
        {"encoder": encoder.components["model"], "decode": decode_step.components["model"]},
        encoder.export_format,
        config=model.config,
        generation_config=model.generation_config,
    )
    exported.save_pretrained(folder)
    processor.save_pretrained(folder)


class ExportedCaptioner(SwinBertPreTrainedModel, SwinBertGenerationMixin):
    """An exported captioner, with every mode of `generate` but prompts: captions start with `[CLS]` alone."""

    def __init__(self, exported: ExportedModel):
        super().__init__(exported.config)
        self.exported = exported
        self.generation_config = exported.generation_config

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "ExportedCaptioner":  # type: ignore[override]
        """
        Args:
            folder: written by `export_captioner`, or a repository on the Hub with these files.
            kwargs: see [`~transformers.exporters.ExportedModel.from_pretrained`].

        Raises:
            ValueError: the graphs have another format than ONNX; loading that of `torch.export` would run a pickle.
        """
        download_options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if name in kwargs}
        manifest = Path(cached_file(folder, EXPORT_MANIFEST_FILE, **download_options)).read_text(encoding="utf-8")
        if (found := json.loads(manifest).get("export_format")) != "onnx":
            raise ValueError(f"Expected ONNX graphs in {folder}, found the format {found!r}: export the model again.")
        return cls(ExportedModel.from_pretrained(folder, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        return self.exported.dtype

    def encode_video(self, pixel_values_videos: torch.FloatTensor | None = None, **kwargs: Any) -> SwinBertVideoOutput:
        """
        Raises:
            ValueError: there is an argument besides the pixels, which the graph has no input for.
        """
        if unsupported := [name for name, value in kwargs.items() if value is not None]:
            raise ValueError(f"An exported captioner encodes pixels only: leave out {', '.join(unsupported)}.")
        encoder = self.exported.runners["encoder"]
        return SwinBertVideoOutput(video_key_values=encoder(pixel_values_videos=pixel_values_videos))

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.LongTensor,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_key_values: KeyValues | None = None,
        cache: DynamicCache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, 1, vocab_size) of the token after `input_ids` (B, 1), as [`SwinBertForVideoCaptioning`]'s.

        Raises:
            ValueError: there is no clip, more than one token for each text, or padding.
        """
        if video_key_values is None and pixel_values_videos is not None:
            video_key_values = self.encode_video(pixel_values_videos).video_key_values
        if video_key_values is None:
            raise ValueError("An exported captioner describes clips: pass `pixel_values_videos` to `generate`.")
        if input_ids.shape[1] != 1 or (attention_mask is not None and not attention_mask.all()):
            raise ValueError(
                "An exported captioner reads one token at a time, without padding: leave out the prompt, or use the"
                " model that was exported."
            )
        texts, clips = input_ids.shape[0], video_key_values[0][0].shape[0]
        if texts != clips:  # consecutive texts are beams or samples of one clip
            video_key_values = tuple(
                (key.repeat_interleave(texts // clips, dim=0), value.repeat_interleave(texts // clips, dim=0))
                for key, value in video_key_values
            )
        past = text_only_cache(cache, self.config, texts)
        if position_ids is None:
            position_ids = torch.full_like(input_ids, past.get_seq_length())
        outputs = self.exported.runners["decode"](
            input_ids=input_ids, position_ids=position_ids, video_key_values=video_key_values, past_key_values=past
        )
        return CausalLMOutputWithPast(logits=outputs["logits"], cache=outputs["past_key_values"])


def text_only_cache(cache: DynamicCache | None, config: Any, texts: int) -> DynamicCache:
    """
    A copy of a cache without the clip that `generate` attaches to it; tensors of length 0 for an empty cache, since
    graphs take no missing inputs.
    """
    copied = DynamicCache()
    empty = torch.zeros(texts, config.num_attention_heads, 0, config.hidden_size // config.num_attention_heads)
    layers = cache.layers if cache is not None and cache.get_seq_length() > 0 else None
    for index in range(config.num_hidden_layers):
        key, value = (layers[index].keys, layers[index].values) if layers else (empty, empty)
        copied.update(key, value, index)
    return copied
