"""The trainer of captioning models: parameter groups, evaluation by generation, logging of the parts of the loss."""

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import unwrap_peft_model

from swinbert.training.process_group import gather_parameters
from swinbert.training.publishing import PublishingTrainer
from swinbert.utils.text import first_names

# Parameters with one of these in their name have no weight decay. As in the original, the backbone's normalisations
# (`norm1`, ...) and the sparse mask have weight decay, and the table of relative positions (`..._bias_table`) has none.
_NO_DECAY = ("bias", "LayerNorm.weight")


class VideoCaptioningTrainer(PublishingTrainer):
    """
    Trains and evaluates a captioning model on batches of a [`CaptionCollator`].

    Evaluation generates captions: `compute_metrics` receives their token ids as `predictions` and the indices of the
    clips as `label_ids`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_SetEpoch())
        self._caption_losses: list[torch.Tensor] = []

    def captioner(self, model: nn.Module) -> Any:
        """The captioning model without the wrappers of parallel training and of `peft`; adapters stay active in it."""
        return unwrap_peft_model(self.accelerator.unwrap_model(model))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on the groups of `parameter_groups`."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer: torch.optim.Optimizer = cls(self.parameter_groups(model or self.model), **kwargs)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """
        The trained parameters for an optimiser, grouped by learning rate and by whether they have weight decay: the
        backbone, the sparse mask if it has a learning rate of its own, and the others.
        """
        groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                backbone, factor = f"{self.family.backbone_name}." in name, 1.0
                if backbone:
                    factor = self.args.backbone_lr_factor
                elif "sparse_mask." in name:
                    factor = self.args.mask_lr_factor
                key = (backbone, factor, not any(part in name for part in _NO_DECAY))
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.args.learning_rate * factor,
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for (_, factor, decays), parameters in groups.items()
        ]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "index"}
        if model.training:
            backbone = self.captioner(model).get_submodule(self.family.backbone_name)
            if not any(parameter.requires_grad for parameter in backbone.parameters()):
                backbone.eval()  # no stochastic depth or dropout in a frozen backbone
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._stop_unless_finite(loss, model)
            caption_loss = outputs["caption_loss" if "caption_loss" in outputs else "loss"]
            self._caption_losses.append(caption_loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _stop_unless_finite(self, loss: torch.Tensor, model: nn.Module) -> None:
        """
        Stops before the optimiser's step: `Trainer` would replace the loss in its log, and step nevertheless.

        Raises:
            FloatingPointError: the loss is infinite or NaN.
        """
        if torch.isfinite(loss).all():
            return
        broken = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
        state = f"not finite: {first_names(broken, 1)}" if broken else "all parameters are finite"
        raise FloatingPointError(
            f"The loss is {loss.item()} at step {self.state.global_step + 1}; {state}. The step was not made, and"
            " checkpoints of earlier steps are unchanged. Start from the last one (as --model) with a lower"
            " --learning_rate, more --warmup_steps or a smaller --max_grad_norm; with --fp16, use --bf16 or neither."
        )

    def get_eval_dataloader(self, eval_dataset=None):
        """
        As `Trainer`'s, with one caption of each clip and without augmentation.

        The epoch of these clips is always 0, so that every evaluation masks the same tokens.
        """
        collator = self.data_collator
        self.data_collator = dataclasses.replace(collator, captions_per_clip=1, random_crop=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of the reference captions, ids (V, L) generated from the clips, indices of the clips (V,)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            if prediction_loss_only:
                return loss.detach(), None, None
            generated = self.captioner(model).generate(**{self.family.pixels_name: inputs[self.family.pixels_name]})
        return loss.detach(), generated, inputs["index"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss of the captions, the sparsity loss, and statistics of the sparse mask."""
        if self._caption_losses and "loss" in logs:
            # Every entry is the part of the step's loss that a micro-batch contributes.
            loss = torch.stack(self._caption_losses).mean() * self.args.gradient_accumulation_steps
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
            logs["caption_loss"] = round(self.accelerator.gather(loss).mean().item(), 4)
            self._caption_losses.clear()
        mask = getattr(self.captioner(self.model).base_model, "sparse_mask", None)
        if mask is not None and ("loss" in logs or "eval_loss" in logs):
            mask = gather_parameters(mask)
            statistics = mask.statistics()
            prefix = "eval_" if "eval_loss" in logs else ""
            logs[f"{prefix}sparsity_loss"] = round(mask.sparsity_loss().item(), 4)
            logs[f"{prefix}mask_below_half"] = round(statistics.share_below_half, 4)
            logs[f"{prefix}mask_alive"] = round(statistics.share_alive, 4)
            if prefix:
                weighted = self.model.config.sparsity_loss_weight * logs["eval_sparsity_loss"]
                logs["eval_caption_loss"] = round(logs["eval_loss"] - weighted, 4)
        super().log(logs, start_time)


class _SetEpoch(TrainerCallback):
    """Sets the epoch of the training clips, on which their random augmentations depend."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))
