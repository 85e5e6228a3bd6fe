"""Weights and clips of the original implementation's reference runs, generated from their recipes.

`fixtures/golden/` holds the outputs only: inputs and weights are functions of names and seeds.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning, VideoSwinConfig

FOLDER = Path(__file__).parent / "fixtures" / "golden"
TINY = json.loads((FOLDER / "tiny.json").read_text())
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

# Prefixes of the original's parameter names, and ours.
PREFIXES = {
    "swin.backbone.": "model.video_encoder.",
    "fc.": "model.projector.linear_1.",
    "trans_encoder.bert.img_embedding.": "model.projector.linear_2.",
    "trans_encoder.bert.embeddings.": "model.embeddings.",
    "trans_encoder.bert.encoder.": "model.encoder.",
    "learn_vid_att.weight": "model.sparse_mask.weight",
    "trans_encoder.cls.predictions.bias": "lm_head.decoder.bias",
    "trans_encoder.cls.predictions.": "lm_head.",
}


def rename(name: str, prefixes: dict[str, str]) -> str:
    old = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[old] + name[len(old) :]


def original_name(name: str) -> str:
    backwards = {new: old for old, new in PREFIXES.items()}
    return rename(name, dict(sorted(backwards.items(), key=lambda item: -len(item[0]))))


def recipe(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference weights of a parameter, determined by its original name."""
    stream, count = np.random.RandomState(zlib.crc32(name.encode())), math.prod(shape)
    if name == "learn_vid_att.weight":
        values = stream.uniform(-8.0, 16.0, count).astype(np.float32)
    else:
        values = stream.standard_normal(count).astype(np.float32)
        if name.endswith("relative_position_bias_table"):
            values *= np.float32(0.5)
        elif len(shape) == 1:
            values = 1 + np.float32(0.1) * values if name.endswith(".weight") else np.float32(0.05) * values
        elif "embeddings." in name:
            values *= np.float32(0.1)
        else:
            gain = 1.0
            if any(part in name for part in (".attention.self.query.", ".attention.self.key.", ".attn.qkv.")):
                gain = 1.5
            elif name.endswith("cls.predictions.decoder.weight"):
                gain = 2.0
            values *= np.float32(gain / np.sqrt(math.prod(shape[1:])))
    return torch.from_numpy(values).view(shape)


def load_recipe(model: torch.nn.Module, prefix: str = "", tiny: bool = True) -> torch.nn.Module:
    """Fills a model with the reference weights; `prefix` is its place in the captioning model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = original_name(prefix + name)
            shape = (parameter.numel(), 1) if name == "learn_vid_att.weight" else tuple(parameter.shape)
            values = recipe(name, shape)
            if tiny and name == "trans_encoder.cls.predictions.bias":
                values[102] += 2.0
            if tiny and name == "learn_vid_att.weight":
                values[1::17] = 0
            parameter.copy_(values.view(parameter.shape))
    return model.eval()


def tiny_vision_config(**overrides) -> VideoSwinConfig:
    return VideoSwinConfig(**{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], **overrides})


def tiny_model(clip: str, sparse_mask: str, **overrides) -> SwinBertForVideoCaptioning:
    """The tiny reference model for the clips `e8` (8 frames of 64 x 64) or `e16` (16 frames of 96 x 96)."""
    frames, size = {"e8": (8, 64), "e16": (16, 96)}[clip]
    config = SwinBertConfig(
        vision_config=tiny_vision_config(num_frames=frames, image_size=size),
        projection_dim=48,
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_caption_length=24,
        sparse_mask=sparse_mask,
        **overrides,
    )
    return load_recipe(SwinBertForVideoCaptioning(config))


def make_clip(seed: int, frames: int, height: int, width: int) -> torch.Tensor:
    """(T, 3, H, W) uint8: blocks of 2 x 16 x 16 pixels, with noise."""
    stream = np.random.RandomState(seed)
    blocks = stream.randint(0, 192, (-(-frames // 2), 3, -(-height // 16), -(-width // 16)))
    noise = stream.randint(0, 64, (frames, 3, height, width))
    blocks = blocks.repeat(2, 0).repeat(16, 2).repeat(16, 3)[:frames, :, :height, :width]
    return torch.from_numpy((blocks + noise).astype(np.uint8))


def pixels(*clips: torch.Tensor) -> torch.Tensor:
    """uint8 clips -> (B, T, 3, H, W) float32, normalised."""
    return (torch.stack(clips) / 255 - MEAN) / STD


def tiny_pixels(clip: str) -> torch.Tensor:
    if clip == "e16":
        return pixels(make_clip(50, 16, 96, 96))
    return pixels(*(make_clip(seed, 8, 64, 64) for seed in (0, 1, 2)))


def tiny_text(name: str) -> dict[str, torch.Tensor]:
    """Token ids, masks and labels of a reference text batch."""
    return {key: torch.tensor(value) for key, value in TINY["texts"][name].items()}


def arrays(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")
