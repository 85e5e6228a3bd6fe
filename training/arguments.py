"""Arguments of a training run, from a YAML recipe and the command line, which takes precedence.

swinbert train recipe.yaml --learning_rate 1e-4 --config.hidden_size 256
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from swinbert.captioning.loading import BUNDLED_MODEL, find_model
from swinbert.training.metrics import METRICS, metric_name

# Arguments of a recipe that initialise a new model; they are ignored if the command line names a `--model`.
_NEW_MODEL_ARGUMENTS = ("backbone", "config", "mask", "objective", "text_encoder", "tokenizer")


@dataclass
class ModelArguments:
    _argument_group_name = "Model"

    model: str | None = field(
        default=None,
        metadata={"help": "Model to fine-tune, folder, Hub id or moving-shapes; by default a new SwinBERT."},
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
            "help": "masked_lm or causal_lm (as GIT) for a new model; scst trains `model` on captions that it samples.",
            "choices": ["masked_lm", "causal_lm", "scst"],
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer, folder or Hub id; or `captions`, a new one of the words of the training captions. By"
            " default that of `model` or `text_encoder`, else `captions`."
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "Video Swin of a new model: a folder from `swinbert convert`, or a Hub id."},
    )
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "BERT that initialises the fusion encoder of a new model; by default from scratch."},
    )
    mask: str | None = field(default=None, metadata={"help": "SwinBERT from which only the sparse mask is copied."})
    mask_expansion: str = field(
        default="interpolate",
        metadata={
            "help": "How a sparse mask is resized for another number of frames: interpolate, or diagonal (repeated).",
            "choices": ["interpolate", "diagonal"],
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Regular expressions; parameters whose names match one are not trained (e.g. video_encoder)."
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train a LoRA adapter of this rank in the fusion encoder of `model`, and the sparse mask."},
    )
    generation_max_length: int | None = field(
        default=None, metadata={"help": "Maximum length of generated captions in tokens, with [CLS] and [SEP]."}
    )


@dataclass
class DataArguments:
    _argument_group_name = "Data"

    dataset: str = field(
        metadata={
            "help": "Folder with metadata (jsonl, csv, parquet), with a .txt beside each video, with .parquet files or"
            " .tar shards; or Hub id."
        }
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split to evaluate on, or none."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read parquet or the Hub during training; needs max_steps and a tokenizer."},
    )
    shuffle_buffer: int = field(
        default=100, metadata={"help": "Size of the buffer in which a stream is shuffled, in clips."}
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Replace unreadable clips by others, with a warning."}
    )
    keep_frames: bool = field(
        default=False, metadata={"help": "Decode each clip once and keep its sampled frames in memory during the run."}
    )
    frame_cache: str | None = field(
        default=None, metadata={"help": "Folder in which sampled frames are kept, also for later runs."}
    )
    frame_cache_format: str = field(
        default="jpeg", metadata={"help": "jpeg, or raw for the exact pixels.", "choices": ["jpeg", "raw"]}
    )
    max_shift: int = field(default=0, metadata={"help": "Augmentation: shift clips by up to this many pixels."})
    random_crop: bool = field(
        default=False, metadata={"help": "Augmentation: crop clips at a random place instead of the centre."}
    )
    captions_per_clip: int = field(
        default=1, metadata={"help": "Captions (with scst, samples) that share one encoded clip in a step."}
    )
    mask_prob: float = field(default=0.5, metadata={"help": "Share of the tokens of a caption that are masked."})
    max_masked_tokens: int = field(default=45, metadata={"help": "Maximum number of masked tokens of a caption."})
    num_samples: int = field(default=4, metadata={"help": "Generated captions to print at every evaluation."})
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge_l", "cider"],
        metadata={"help": f"Metrics of every evaluation: {', '.join(METRICS)}."},
    )

    def __post_init__(self):
        if self.eval_split == "none":
            self.eval_split = None
        self.metrics = list(dict.fromkeys(map(metric_name, self.metrics)))
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ValueError(f"Unknown metric {unknown[0]!r}; expected some of {', '.join(METRICS)}.")


@dataclass
class SwinBertTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the learning rate schedule and weight decay of the original as defaults."""

    _argument_group_name = "Training, further arguments: those of transformers' Trainer"

    output_dir: str | None = field(default="outputs", metadata={"help": "Folder for checkpoints and the model."})
    learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate of all parameters but the backbone's."}
    )
    backbone_lr_factor: float = field(default=0.05, metadata={"help": "Factor of the backbone's learning rate."})
    mask_lr_factor: float = field(default=1.0, metadata={"help": "Factor of the sparse mask's learning rate."})
    weight_decay: float = field(default=0.2, metadata={"help": "Weight decay of matrices (see trainer.py)."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, a share of all steps."}
    )
    seed: int = field(default=88, metadata={"help": "Seed of the whole run."})
    start_anew: bool = field(
        default=False, metadata={"help": "Delete the checkpoints in `output_dir` instead of resuming from the last."}
    )
    torch_threads: int | None = field(default=None, metadata={"help": "Number of CPU threads; by default torch's."})
    # The collator needs columns that are not inputs of the model.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})

    def __post_init__(self):
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # the parser reads this bool or str as a str
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                "--label_smoothing_factor would replace the model's own loss: use"
                f" --config.label_smoothing {self.label_smoothing_factor} instead."
            )


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, SwinBertTrainingArguments, dict]:
    """
    Args:
        argv: optionally the path of a recipe, then `--name value` for any argument and `--config.name value` for any
            field of the model's configuration (`--config.vision_config.name value` for its backbone). With `--model`,
            arguments of the recipe that initialise a new model are ignored.

    Returns:
        The arguments of model, data and training, and the fields of the model's configuration that are set.

    Raises:
        ValueError: an argument does not exist; the message names similar ones.
        SystemExit: a value has the wrong type, or a required argument is missing; one line on stderr says which.
    """
    argv, recipe = list(argv), dict[str, Any]()
    if argv and argv[0].endswith((".yaml", ".yml")):
        with open(argv.pop(0), encoding="utf-8") as file:
            recipe = yaml.safe_load(file) or {}
    if any(word.partition("=")[0] == "--model" for word in argv):
        recipe = {name: value for name, value in recipe.items() if name not in _NEW_MODEL_ARGUMENTS}
    argv, changes = _split_config(argv)
    config = recipe.pop("config", None) or {}
    parser = _Parser()
    names = {action.dest for action in parser._actions}
    if unknown := sorted(set(recipe) - names):
        raise ValueError(_unknown("the recipe", unknown, names))
    model, data, training, rest = parser.parse_args_into_dataclasses(
        [*_as_argv(recipe), *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
        if not unknown:
            raise ValueError(f"Unexpected {' '.join(rest)}: arguments are `--name value`, after the recipe (.yaml).")
        raise ValueError(_unknown("the command", unknown, [f"--{name}" for name in names]))
    for name in ("model", "backbone", "mask"):
        if getattr(model, name) == BUNDLED_MODEL:
            setattr(model, name, find_model(BUNDLED_MODEL))
    if model.config:
        config = json.loads(model.config)
    for path, value in changes:
        _set_field(config, path, value)
    return model, data, training, config


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option once: not its second spelling with hyphens, and its value not after each spelling."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


class _Parser(HfArgumentParser):
    """All arguments, in groups. What is wrong with a value is one line on stderr, with exit code 2."""

    def __init__(self):
        super().__init__(
            (ModelArguments, DataArguments, SwinBertTrainingArguments),
            prog="swinbert train",
            usage="swinbert train [RECIPE.yaml] [--name value ...]",
            description="Train a captioning model. The command line takes precedence over the recipe."
            " --config.NAME VALUE sets a field of the model's configuration, --config.vision_config.NAME VALUE a field"
            " of its backbone's.",
            formatter_class=_HelpFormatter,
        )
        library = self._action_groups[-1]
        ours = self.add_argument_group("Training")
        names = SwinBertTrainingArguments.__annotations__
        ours._group_actions = [action for action in library._group_actions if action.dest in names]
        library._group_actions = [action for action in library._group_actions if action.dest not in names]
        self._action_groups[-2:] = [ours, library]
        for action in self._actions:
            if action.option_strings[0].startswith("--no_"):
                action.help = argparse.SUPPRESS  # the same as `--name false`

    def error(self, message: str) -> NoReturn:
        print(f"swinbert: {message}. `swinbert train --help` lists all arguments.", file=sys.stderr)
        sys.exit(2)


def _unknown(where: str, unknown: Sequence[str], names: Iterable[str]) -> str:
    known = list(names)
    parts = []
    for name in unknown:
        head, dot, field_name = name.partition(".")  # of `--config.NAME`
        near = difflib.get_close_matches(head, known, 1)
        parts.append(f"{name} (did you mean {near[0]}{dot}{field_name}?)" if near else name)
    return f"Unknown arguments in {where}: {', '.join(parts)}. `swinbert train --help` lists all."


def _as_argv(recipe: dict[str, Any]) -> list[str]:
    """A recipe as command-line words, so that the parser reads both alike, and later words take precedence."""
    argv: list[str] = []
    for name, value in recipe.items():
        if value is None:
            continue  # the default
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        argv += [f"--{name}", *map(str, values)]
    return argv


def _split_config(argv: list[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """The words without `--config.NAME VALUE`, and the (path of the field, value) pairs of these."""
    others, changes = [], []
    words = iter(argv)
    for word in words:
        if word.startswith("--config."):
            name, equals, inline = word.removeprefix("--config.").partition("=")
            value = inline if equals else next(words, None)
            if value is None:
                raise ValueError(f"{word} needs a value.")
            changes.append((name.split("."), yaml.safe_load(value)))
        else:
            others.append(word)
    return others, changes


def _set_field(config: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        config = config.setdefault(name, {})
    config[path[-1]] = value
