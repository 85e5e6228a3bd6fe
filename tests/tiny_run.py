"""A run of `swinbert train` that takes seconds: a small dataset and model, with all random augmentations."""

from pathlib import Path
from typing import Any

from swinbert.training import moving_shapes


def make_shapes(folder: Path, **changes: int) -> Path:
    return moving_shapes.make_shapes(folder / "shapes", **{"train": 6, "validation": 3, "test": 1, **changes})


def arguments(dataset: Path, output_dir: Path, **changes: Any) -> list[str]:
    """Eight steps of two clips, three in an epoch; evaluation after steps 3 and 6, checkpoints after 2, 4, 6 and 8."""
    values = {
        "dataset": dataset,
        "output_dir": output_dir,
        "keep_frames": True,
        "max_shift": 4,
        "captions_per_clip": 2,
        "config.hidden_size": 32,
        "config.num_attention_heads": 2,
        "config.num_hidden_layers": 2,
        "config.intermediate_size": 32,
        "config.projection_dim": 32,
        "config.hidden_dropout_prob": 0.1,
        "config.max_position_embeddings": 24,
        "config.max_caption_length": 24,
        "config.sparse_mask": "soft",
        "config.vision_config.num_frames": 4,
        "config.vision_config.image_size": 32,
        "config.vision_config.patch_size": [2, 8, 8],
        "config.vision_config.window_size": [2, 2, 2],
        "config.vision_config.embed_dim": 16,
        "config.vision_config.depths": [2, 2],
        "config.vision_config.num_heads": [2, 4],
        "config.vision_config.drop_path_rate": 0.2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "metrics": "cider",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
