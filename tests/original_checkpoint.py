"""Checkpoints as the original SwinBERT writes them, with weights that anybody can make again from the tensors' names.

`fixtures/original_tiny_logits.safetensors` holds what the unmodified original computes from these weights and this clip
on CPU in float32.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"

# What the original's args.json says of the tiny model; four heads cannot be read off a hidden size of 64.
TINY_ARGS = {
    "max_num_frames": 8,
    "img_res": 64,
    "max_img_seq_length": 16,
    "img_feature_dim": 48,
    "max_seq_a_length": 24,
    "max_gen_length": 20,
    "learn_mask_enabled": True,
    "sparse_mask_soft2hard": False,
    "num_attention_heads": 4,
    "num_hidden_layers": -1,
    "loss_sparse_w": 0.1,
    "drop_out": 0.1,
}


def original_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the original's state dict, `"tiny"` or `"base"`, buffers included."""
    shapes = json.loads((FIXTURES / "original_state_dicts.json").read_text())[size]
    return {name: tuple(shape) for name, shape in shapes.items()}


def position_index(window: tuple[int, int, int]) -> torch.Tensor:
    """The buffer `relative_position_index` of the original, entry by entry."""
    places = [(t, h, w) for t in range(window[0]) for h in range(window[1]) for w in range(window[2])]
    t, h, w = (np.array(axis) for axis in zip(*places, strict=True))
    rows = [axis[:, None] - axis[None, :] + side - 1 for axis, side in zip((t, h, w), window, strict=True)]
    return torch.from_numpy((rows[0] * (2 * window[1] - 1) + rows[1]) * (2 * window[2] - 1) + rows[2])


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name == "learn_vid_att.weight":
        mask = random.uniform(-8.0, 16.0, int(np.prod(shape))).astype(np.float32).reshape(shape)
        mask[1::17] = 0.0  # exactly one half: the hard mask keeps it
        return mask
    values = random.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
    if name.endswith("relative_position_bias_table"):
        return np.float32(0.5) * values
    if len(shape) == 1:
        values = 1 + np.float32(0.1) * values if name.endswith(".weight") else np.float32(0.05) * values
        if name == "trans_encoder.cls.predictions.bias":
            values[102] += 2.0  # [SEP]
        return values
    if "embeddings." in name:
        return np.float32(0.1) * values
    steep = any(part in name for part in (".attention.self.query.", ".attention.self.key.", ".attn.qkv."))
    gain = 1.5 if steep else 2.0 if name.endswith("cls.predictions.decoder.weight") else 1.0
    return values * np.float32(gain / np.sqrt(np.prod(shape[1:])))


def original_tiny_state_dict(with_mask: bool = True) -> dict[str, torch.Tensor]:
    """A whole tiny checkpoint: 8 frames of 64 pixels, 16 video tokens, 200 words."""
    tensors = {}
    for name, shape in original_shapes("tiny").items():
        if name.endswith("relative_position_index"):
            tensors[name] = position_index((8, 7, 7))
        elif with_mask or name != "learn_vid_att.weight":
            tensors[name] = torch.from_numpy(_weight(name, shape))
    return tensors


def original_clip(seed: int = 0, frames: int = 8, side: int = 64) -> torch.Tensor:
    """(1, T, 3, H, W) normalised pixels of the clip that the fixture's logits were computed from."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 192, (frames // 2, 3, side // 16, side // 16))
    noise = random.randint(0, 64, (frames, 3, side, side))
    pixels = torch.from_numpy(coarse.repeat(2, 0).repeat(16, 2).repeat(16, 3) + noise).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((pixels - mean) / std)[None]


def write_vocabulary(folder: Path, size: int = 200) -> Path:
    """A folder with a bare `vocab.txt`, special tokens where bert-base-uncased has them."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{special.get(i, f'word{i}')}\n" for i in range(size)), encoding="utf-8")
    return folder
