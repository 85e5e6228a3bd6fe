"""Arguments of a training run: a YAML recipe, changed by the command line.

swinbert train recipe.yaml --learning_rate 1e-4 --config.hidden_size 256
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from swinbert.training.metrics import METRICS

# What a recipe says of a new model gives way to a model that the command line names.
_OF_A_NEW_MODEL = ("backbone", "config", "mask", "objective", "text_encoder", "tokenizer")


@dataclass
class ModelArguments:
    model: str | None = field(
        default=None, metadata={"help": "SwinBERT to fine-tune, folder or Hub id; by default a new one of `config`."}
    )
    config: str | None = field(
        default=None,
        metadata={
            "help": "JSON of fields of SwinBertConfig, for a new model or to change `model`; or --config.NAME VALUE."
        },
    )
    objective: str | None = field(
        default=None,
        metadata={
            "help": "masked_lm (SwinBERT) or causal_lm (GIT) for a new model; scst trains `model` on its own samples.",
            "choices": ["masked_lm", "causal_lm", "scst"],
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer, folder or Hub id, or `captions`: the words of the training captions. By default that of"
            " `model` or `text_encoder`, else `captions`."
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "Video Swin for a new model: a folder of `swinbert convert`, or a Hub id."},
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "BERT from which a new model's fusion encoder starts; by default from scratch."}
    )
    mask: str | None = field(default=None, metadata={"help": "SwinBERT of which the sparse mask alone is taken."})
    mask_expansion: str = field(
        default="interpolate",
        metadata={
            "help": "How a mask gets to other numbers of frames: interpolate, or diagonal (repeated part by part).",
            "choices": ["interpolate", "diagonal"],
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; parameters with one in their name do not train (video_encoder)."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train a LoRA adapter of this rank in the fusion encoder of `model`, and the sparse mask."},
    )
    generation_max_length: int | None = field(
        default=None, metadata={"help": "Longest generated caption in tokens, [CLS] and [SEP] included."}
    )


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Folder with metadata.jsonl, .parquet files or .tar shards; or Hub id."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split to evaluate on, or none."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read parquet or the Hub as training goes on; needs max_steps and a tokenizer."},
    )
    shuffle_buffer: int = field(default=100, metadata={"help": "Clips in memory among which a stream is shuffled."})
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Train on another clip in the place of an unreadable one, with a warning."}
    )
    keep_frames: bool = field(
        default=False, metadata={"help": "Decode each clip once and keep its sampled frames in memory, for this run."}
    )
    frame_cache: str | None = field(
        default=None, metadata={"help": "Folder in which sampled frames are kept, for later runs too."}
    )
    frame_cache_format: str = field(
        default="jpeg", metadata={"help": "jpeg, or raw for the exact pixels.", "choices": ["jpeg", "raw"]}
    )
    max_shift: int = field(default=0, metadata={"help": "Augmentation: shift clips by up to so many pixels."})
    random_crop: bool = field(
        default=False, metadata={"help": "Augmentation: cut clips at a random place, not at their centre."}
    )
    captions_per_clip: int = field(
        default=1, metadata={"help": "Captions (under scst samples) that share one encoded clip in a step."}
    )
    mask_prob: float = field(default=0.5, metadata={"help": "Share of a caption's tokens that is masked."})
    max_masked_tokens: int = field(default=45, metadata={"help": "At most so many masked tokens in a caption."})
    num_samples: int = field(default=4, metadata={"help": "Captions to print at every evaluation."})
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge_l", "cider"],
        metadata={"help": f"Scores of every evaluation: {', '.join(METRICS)}."},
    )

    def __post_init__(self):
        if self.eval_split == "none":
            self.eval_split = None
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ValueError(f"No metric {unknown[0]!r}; there are {', '.join(METRICS)}.")


@dataclass
class SwinBertTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the original's schedule and decay as defaults."""

    output_dir: str | None = field(default="outputs", metadata={"help": "Where checkpoints and the model go."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of all but the backbone."})
    backbone_lr_factor: float = field(default=0.05, metadata={"help": "The backbone's learning rate over the rest's."})
    mask_lr_factor: float = field(default=1.0, metadata={"help": "The sparse mask's learning rate over the rest's."})
    weight_decay: float = field(default=0.2, metadata={"help": "Weight decay of matrices (see trainer.py)."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warm-up, or below 1 a share of all."})
    seed: int = field(default=88, metadata={"help": "Seed of the whole run."})
    start_anew: bool = field(
        default=False, metadata={"help": "Delete the checkpoints in `output_dir` instead of going on from the last."}
    )
    torch_threads: int | None = field(default=None, metadata={"help": "Threads of a CPU run; by default torch's."})
    # The collator needs what the model's forward pass does not.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave this as it is."})

    def __post_init__(self):
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # a text too is valid there, which the parser prefers
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor would replace the model's own loss: write"
                f" --config.label_smoothing {self.label_smoothing_factor} instead."
            )


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, SwinBertTrainingArguments, dict]:
    """
    Args:
        argv: perhaps the path of a recipe, then `--name value` for any argument, `--config.name value` for any field of
            the model's configuration (`--config.vision_config.name value` for its backbone). With `--model` all that
            the recipe says of a new model is left out.

    Returns:
        The arguments of model, data and training, and the fields of the model's configuration.

    Raises:
        ValueError: an argument does not exist.
        SystemExit: an argument's value is not of its type, or one is missing; argparse has printed which.
    """
    argv, recipe = list(argv), dict[str, Any]()
    if argv and argv[0].endswith((".yaml", ".yml")):
        with open(argv.pop(0), encoding="utf-8") as file:
            recipe = yaml.safe_load(file) or {}
    if any(word.partition("=")[0] == "--model" for word in argv):
        recipe = {name: value for name, value in recipe.items() if name not in _OF_A_NEW_MODEL}
    argv, changes = _split_config(argv)
    config = recipe.pop("config", None) or {}
    parser = HfArgumentParser((ModelArguments, DataArguments, SwinBertTrainingArguments))
    unknown = sorted(set(recipe) - {action.dest for action in parser._actions})
    if unknown:
        raise ValueError(f"The recipe has unknown arguments {unknown}; `swinbert train --help` lists all.")
    model, data, training = parser.parse_args_into_dataclasses([*_as_argv(recipe), *argv], look_for_args_file=False)
    if model.config:
        config = json.loads(model.config)
    for path, value in changes:
        _set(config, path, value)
    return model, data, training, config


def _as_argv(recipe: dict[str, Any]) -> list[str]:
    """The recipe as a command line, so that both are read by the same rules and the later one wins."""
    argv: list[str] = []
    for name, value in recipe.items():
        if value is None:
            continue  # as if it were not there
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        argv += [f"--{name}", *map(str, values)]
    return argv


def _split_config(argv: list[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    rest, changes = [], []
    words = iter(argv)
    for word in words:
        if word.startswith("--config."):
            name, equals, inline = word.removeprefix("--config.").partition("=")
            value = inline if equals else next(words, None)
            if value is None:
                raise ValueError(f"{word} needs a value.")
            changes.append((name.split("."), yaml.safe_load(value)))
        else:
            rest.append(word)
    return rest, changes


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        config = config.setdefault(name, {})
    config[path[-1]] = value
