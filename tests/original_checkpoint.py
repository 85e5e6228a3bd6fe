"""Checkpoints as the original SwinBERT writes them, with the weights of its reference runs."""

import json
from pathlib import Path

import numpy as np
import torch
from golden import recipe

FIXTURES = Path(__file__).parent / "fixtures"

# The original's args.json of the tiny model. A hidden size of 64 does not determine its four heads.
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
    """The original's buffer `relative_position_index`, computed entry by entry."""
    places = [(t, h, w) for t in range(window[0]) for h in range(window[1]) for w in range(window[2])]
    t, h, w = (np.array(axis) for axis in zip(*places, strict=True))
    rows = [axis[:, None] - axis[None, :] + side - 1 for axis, side in zip((t, h, w), window, strict=True)]
    return torch.from_numpy((rows[0] * (2 * window[1] - 1) + rows[1]) * (2 * window[2] - 1) + rows[2])


def original_tiny_state_dict(with_mask: bool = True) -> dict[str, torch.Tensor]:
    """A complete tiny checkpoint: 8 frames of 64 pixels, 16 video tokens, 200 words."""
    tensors = {}
    for name, shape in original_shapes("tiny").items():
        if name.endswith("relative_position_index"):
            tensors[name] = position_index((8, 7, 7))
        elif with_mask or name != "learn_vid_att.weight":
            tensors[name] = recipe(name, shape)
    tensors["trans_encoder.cls.predictions.bias"][102] += 2.0
    if with_mask:
        tensors["learn_vid_att.weight"][1::17] = 0.0
    return tensors


def write_vocabulary(folder: Path, size: int = 200) -> Path:
    """Writes a folder with a `vocab.txt` only, whose special tokens have the ids of bert-base-uncased."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{special.get(i, f'word{i}')}\n" for i in range(size)), encoding="utf-8")
    return folder
