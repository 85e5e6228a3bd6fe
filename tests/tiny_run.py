"""A run of `swinbert train` that takes seconds: a small world, a small model, everything that is drawn at random."""

from pathlib import Path
from typing import Any

from swinbert.training import moving_shapes, train

RECIPE = Path(train.__file__).parent / "recipes" / "moving_shapes.yaml"


def make_shapes(folder: Path, **changes: int) -> Path:
    return moving_shapes.make_shapes(folder / "shapes", **{"train": 6, "validation": 3, "test": 1, **changes})


def arguments(dataset: Path, output_dir: Path, **changes: Any) -> list[str]:
    """Eight steps of two clips, three an epoch; evaluates after 3 and 6, saves after 2, 4, 6 and 8."""
    values = {
        "dataset": dataset,
        "output_dir": output_dir,
        "config.hidden_size": 32,
        "config.num_attention_heads": 2,
        "config.num_hidden_layers": 2,
        "config.intermediate_size": 32,
        "config.projection_dim": 32,
        "config.hidden_dropout_prob": 0.1,
        "config.vision_config.image_size": 32,
        "config.vision_config.embed_dim": 16,
        "config.vision_config.num_frames": 4,
        "config.vision_config.drop_path_rate": 0.2,
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "eval_steps": 3,
        "save_steps": 2,
        "save_total_limit": 10,
        "logging_steps": 1,
        "disable_tqdm": True,
        "metrics": "cider",
        **changes,
    }
    return [str(RECIPE), *(word for name, value in values.items() for word in (f"--{name}", str(value)))]
