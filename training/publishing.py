"""Pushing a run to the Hub: every push is a complete model without pickles, with a card written from the run."""

import fnmatch
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, upload_folder
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from swinbert.deployment.hub import NOT_PUSHED
from swinbert.training.adapters import adapted_model
from swinbert.training.arguments import DataArguments
from swinbert.training.checkpoints import RUN_NAME, CheckpointingTrainer, RunError, print_message
from swinbert.training.families import CardContents, SwinBertTraining, TrainingFamily
from swinbert.utils.files import write_atomically

# The files of a checkpoint that belong to the model; the others are for resuming.
_MODEL_FILES = ("*.safetensors", "*.json", "*_swinbert.py")
_TRAINING_FILES = (TRAINER_STATE_NAME, RUN_NAME)
# Name of a score -> the Hub's type of the metric, and its name on the card.
_METRICS = {
    "Bleu_4": ("bleu", "BLEU-4"),
    "METEOR": ("meteor", "METEOR"),
    "ROUGE_L": ("rouge", "ROUGE-L"),
    "CIDEr": ("cider", "CIDEr"),
}
_ARGUMENTS_ON_CARD = (
    *("objective", "model", "backbone", "text_encoder", "mask", "freeze", "lora_rank", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "processes", "captions_per_clip"),
    *("learning_rate", "backbone_lr_factor", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("mask_prob", "max_masked_tokens", "random_crop", "max_shift", "bf16", "fp16", "seed"),
)


class PublishingTrainer(CheckpointingTrainer):
    """
    A `Trainer` that writes a model card, and pushes the model to the Hub if its arguments say so.

    Args:
        family: of the model; by default SwinBERT.
        data: arguments of the data, for the card.
        extra_metrics: name of a further score -> the Hub's type of the metric, and its name on the card.
    """

    def __init__(
        self,
        *args: Any,
        family: TrainingFamily | None = None,
        data: DataArguments | None = None,
        extra_metrics: Mapping[str, tuple[str, str]] | None = None,
        **kwargs: Any,
    ):
        self.push_in_progress: PushInProgress | None = None
        super().__init__(*args, **kwargs)
        self.family = family or SwinBertTraining()
        self.data = data
        self.extra_metrics = extra_metrics or {}

    def publish(self) -> None:
        """
        Writes the card, and pushes the model if the arguments say so. All processes must call it.

        Raises:
            RunError: the push failed; the model is complete in `output_dir`.
        """
        if not self.args.push_to_hub:
            self.create_model_card()
            return
        try:
            self.push_to_hub(revision=self.args.hub_revision)
        except Exception as error:
            raise RunError(
                f"The model is complete in {self.args.output_dir}, but could not be pushed: {error}\nFix the cause and"
                f" run: swinbert push {self.args.output_dir} {self.hub_model_id}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle that is not needed: the arguments are in RUN_NAME, and on the card.
            Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END and self.is_world_process_zero():
            self._push_checkpoint(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: `Trainer` calls it before the checkpoint is complete."""

    def _push_checkpoint(self, checkpoint: Path) -> None:
        """Uploads a checkpoint in the background; skips it (or waits, if `hub_always_push`) during another upload."""
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output = Path(str(self.args.output_dir))
        for file in checkpoint.iterdir():
            if file.name not in _TRAINING_FILES and any(fnmatch.fnmatch(file.name, each) for each in _MODEL_FILES):
                shutil.copy(file, output / file.name)
        self.create_model_card()
        common: dict[str, Any] = {
            "repo_id": self.hub_model_id,
            "commit_message": f"Training in progress, step {self.state.global_step}",
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "run_as_future": True,
        }
        jobs = [upload_folder(folder_path=output, ignore_patterns=list(NOT_PUSHED), **common)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if last else checkpoint.name
            jobs.append(upload_folder(folder_path=checkpoint, path_in_repo=place, **common))
        self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if self.push_in_progress is not None:
            for job in self.push_in_progress.jobs:
                if error := job.exception():
                    print_message(f"A checkpoint could not be pushed; training continues: {error}")
            self.push_in_progress = None

    def create_model_card(self, model_name: str | None = None, **_: Any) -> None:
        """Writes README.md into `output_dir`; other arguments of `Trainer` than the name are ignored."""
        if not self.is_world_process_zero():
            return
        output = Path(str(self.args.output_dir))
        name = (model_name or self.hub_model_id or output.resolve().name).split("/")[-1]
        write_atomically(output / "README.md", self._card(name))

    def _card(self, name: str) -> str:
        results, base = self._results(), adapted_model(self.model)
        contents = CardContents(
            title=name,
            training=self._procedure(),
            evaluation=self._evaluation(results),
            provenance=self._provenance(),
            datasets=self._datasets(),
            results=results,
            base_model=_shown(base) if base is not None else None,
        )
        return self.family.model_card(self.model, contents)

    def _procedure(self) -> str:
        """Markdown: the training data, and the most important arguments."""
        run = self._nonempty_arguments()
        steps = f"{self.state.global_step:,} steps ({self.state.epoch or 0:.1f} epochs) of `swinbert train`"
        if self.data is None:
            trained_on = f"{steps}."
        else:
            captions = f" (captions: {run['captions']})" if "captions" in run else ""
            trained_on = f"{steps} on the split `{self.data.train_split}` of {_shown(self.data.dataset)}{captions}."
        return "\n".join(
            [trained_on, "", *(f"- `{key}`: {_shown(run[key])}" for key in _ARGUMENTS_ON_CARD if key in run)]
        )

    def _provenance(self) -> str:
        run = self._nonempty_arguments()
        sources = [f"`{key}` {_shown(run[key])}" for key in ("model", "backbone", "text_encoder", "mask") if key in run]
        start = f"Training started from {', '.join(sources) if sources else 'scratch'}."
        return f"{start} The licence of the weights is not stated yet."

    def _nonempty_arguments(self) -> dict[str, Any]:
        return {key: value for key, value in self.run.items() if value not in (None, "", [], False)}

    def _datasets(self) -> list[str]:
        return [self.data.dataset] if self.data is not None and _is_on_hub(self.data.dataset) else []

    def _results(self) -> list[EvalResult]:
        """The scores of the last evaluation, times 100 as in papers."""
        last: dict[str, float] = next((logs for logs in reversed(self.state.log_history) if "eval_loss" in logs), {})
        if self.data is None:
            return []
        dataset = _shown(self.data.dataset)
        return [
            EvalResult(
                task_type="video-text-to-text",
                task_name="Video captioning",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=self.data.eval_split,
                metric_type=metric,
                metric_name=metric_name,
                metric_value=round(100 * last[f"eval_{score}"], 1),
            )
            for score, (metric, metric_name) in {**_METRICS, **self.extra_metrics}.items()
            if f"eval_{score}" in last
        ]

    def _evaluation(self, results: list[EvalResult]) -> str:
        if not results:
            return "Not measured yet. `swinbert evaluate` computes scores, and reports all settings that affect them."
        beams = self.model.generation_config.num_beams or 1
        num_frames = self.family.num_frames(self.model)
        frames = f"{num_frames} evenly spaced frame{'s' * (num_frames > 1)}"
        return "\n".join(
            [
                f"Measured during training, on the split `{results[0].dataset_split}` of {results[0].dataset_name},"
                f" with {frames} and {beams} beam{'s' * (beams > 1)}; times 100:",
                "",
                "| metric | value |",
                "|---|---|",
                *(f"| {result.metric_name} | {result.metric_value} |" for result in results),
                "",
                "The checkpoint may have been selected on these clips: compare models by the scores of `swinbert"
                " evaluate` on another split.",
            ]
        )


def _is_on_hub(dataset: str) -> bool:
    return not Path(dataset).exists() and dataset.count("/") == 1


def _shown(value: Any) -> str:
    """A value as the card shows it; of a path its last part, because the others are private."""
    if isinstance(value, str) and Path(value).exists():
        return Path(value).resolve().name
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
