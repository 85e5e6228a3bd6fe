"""A captioner without its Python: two graphs, of the encoder and of one step of decoding, and `generate` around them.

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
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from swinbert.generation_swinbert import NAME_OF_CACHE, SwinBertGenerationMixin
from swinbert.modeling_swinbert import (
    KeyValues,
    SwinBertForVideoCaptioning,
    SwinBertPreTrainedModel,
    SwinBertVideoOutput,
)

try:
    from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter
    from transformers.exporters.base import EXPORT_MANIFEST_FILE
except ImportError as error:
    raise ImportError("`swinbert.exporting` needs transformers 5.23 or newer.") from error

_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class _Encoder(nn.Module):
    def __init__(self, model: SwinBertForVideoCaptioning):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos: torch.Tensor) -> KeyValues:
        return self.model.encode_video(pixel_values_videos).video_key_values


class _DecodeStep(nn.Module):
    """From the last token (B, 1) to the logits of the next one."""

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
    Writes the graphs of a model, the configurations and the processor into a folder, for ONNX Runtime (extra `onnx`).

    The number of clips, of captions and of words is free; frames and pixels of a clip are those of the model.

    Args:
        model_name: a SwinBERT: a folder, or a name on the Hub.
        load: more for `from_pretrained`, such as `revision`.

    Raises:
        ImportError: a package that it needs is not installed.
    """
    processor = AutoProcessor.from_pretrained(model_name, **load)
    model = SwinBertForVideoCaptioning.from_pretrained(model_name, **load).eval()
    # Two clips and three words: a size of 0 or 1 would be taken for a constant.
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
        "past_key_values": _plain(cache, model.config, 2),
    }
    batch, of_words = {0: Dim.AUTO}, {0: Dim.AUTO, 2: Dim.AUTO}
    shapes = {
        "input_ids": batch,
        "position_ids": batch,
        "video_key_values": tuple((batch, batch) for _ in video),
        "past_key_values": [of_words] * (2 * len(video)),
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
    """What `export_captioner` wrote, with every mode of `generate`; captions start with `[CLS]` alone."""

    def __init__(self, exported: ExportedModel):
        super().__init__(exported.config)
        self.exported = exported
        self.generation_config = exported.generation_config

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "ExportedCaptioner":
        """
        Args:
            folder: what `export_captioner` wrote, or a repository of the Hub with these files.
            kwargs: of [`~transformers.exporters.ExportedModel.from_pretrained`].

        Raises:
            ValueError: the graphs are of another format than ONNX. Reading those of `torch.export` runs a pickle.
        """
        of_download = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if name in kwargs}
        manifest = Path(cached_file(folder, EXPORT_MANIFEST_FILE, **of_download)).read_text(encoding="utf-8")
        if (found := json.loads(manifest).get("export_format")) != "onnx":
            raise ValueError(f"Expected graphs of ONNX in {folder}, found {found!r}, which is not read.")
        return cls(ExportedModel.from_pretrained(folder, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        return self.exported.dtype

    def encode_video(self, pixel_values_videos: torch.FloatTensor | None = None, **others: Any) -> SwinBertVideoOutput:
        """
        Raises:
            ValueError: something else than pixels is given: the graph has no input for it.
        """
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"An exported captioner encodes clips alone: it takes no {', '.join(given)}.")
        encoder = self.exported.runners["encoder"]
        return SwinBertVideoOutput(video_key_values=encoder(pixel_values_videos=pixel_values_videos))

    def forward(
        self,
        input_ids: torch.LongTensor,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_key_values: KeyValues | None = None,
        cache: DynamicCache | None = None,
        past_key_values: DynamicCache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, 1, vocab_size) of the token after `input_ids` (B, 1), as [`SwinBertForVideoCaptioning`]'s.

        Raises:
            ValueError: no clip, more than one token at once, or padding.
        """
        if video_key_values is None and pixel_values_videos is not None:
            video_key_values = self.encode_video(pixel_values_videos).video_key_values
        if video_key_values is None:
            raise ValueError("An exported captioner describes clips: pass `pixel_values_videos` to `generate`.")
        if input_ids.shape[1] != 1 or (attention_mask is not None and not attention_mask.all()):
            raise ValueError(
                "An exported captioner reads one token at a time, and no padding: leave the prompt to it, which is"
                " [CLS] alone; caption with a prompt by the model that was exported."
            )
        texts, clips = input_ids.shape[0], video_key_values[0][0].shape[0]
        if texts != clips:  # beams or samples of a clip, one after the other
            video_key_values = tuple(
                (key.repeat_interleave(texts // clips, dim=0), value.repeat_interleave(texts // clips, dim=0))
                for key, value in video_key_values
            )
        past = _plain(cache if cache is not None else past_key_values, self.config, texts)
        if position_ids is None:
            position_ids = torch.full_like(input_ids, past.get_seq_length())
        outputs = self.exported.runners["decode"](
            input_ids=input_ids, position_ids=position_ids, video_key_values=video_key_values, past_key_values=past
        )
        return CausalLMOutputWithPast(logits=outputs["logits"], **{NAME_OF_CACHE: outputs["past_key_values"]})


def _plain(cache: DynamicCache | None, config: Any, texts: int) -> DynamicCache:
    """The same cache without what else it carries; of an empty one, tensors of no length, as a graph takes them."""
    plain = DynamicCache()
    empty = torch.zeros(texts, config.num_attention_heads, 0, config.hidden_size // config.num_attention_heads)
    filled = cache is not None and cache.get_seq_length() > 0
    for index in range(config.num_hidden_layers):
        key, value = (cache.layers[index].keys, cache.layers[index].values) if filled else (empty, empty)
        plain.update(key, value, index)
    return plain
