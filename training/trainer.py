"""`Trainer`, but for what differs: the optimiser's groups, evaluation by generation, and the losses that are logged."""

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import unwrap_peft_model

from swinbert.training.process_group import whole
from swinbert.training.publishing import PublishingTrainer

# Any part of a name that keeps a parameter from weight decay. As in the original, the normalisations of the backbone
# (`norm1`, ...) and the sparse mask decay, its table of relative positions (`..._bias_table`) does not.
_NO_DECAY = ("bias", "LayerNorm.weight")


class VideoCaptioningTrainer(PublishingTrainer):
    """
    Trains and evaluates a [`SwinBertForVideoCaptioning`] on batches of a [`CaptionCollator`].

    At evaluation, captions are generated: `compute_metrics` gets their ids as `predictions` and the numbers of the
    clips as `label_ids`.
    """

    # What the encoder of clips, and the input that it takes, are called.
    backbone_name, clips_name = "model.video_encoder", "pixel_values_videos"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_TellEpoch())
        self._caption_losses: list[torch.Tensor] = []

    def captioner(self, model: nn.Module) -> Any:
        """The model itself, out of what parallelism and `peft` wrap around it; an adapter stays at work in it."""
        return unwrap_peft_model(self.accelerator.unwrap_model(model))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on groups, each with and without weight decay: backbone, sparse mask (where it has a rate of its own),
        and the rest."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer: torch.optim.Optimizer = cls(self.parameter_groups(model or self.model), **kwargs)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                backbone, factor = f"{self.backbone_name}." in name, 1.0
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
            backbone = self.captioner(model).get_submodule(self.backbone_name)
            if not any(parameter.requires_grad for parameter in backbone.parameters()):
                backbone.eval()  # what does not train drops no paths either
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._stop_unless_finite(loss, model)
            caption_loss = outputs["caption_loss" if "caption_loss" in outputs else "loss"]
            self._caption_losses.append(caption_loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _stop_unless_finite(self, loss: torch.Tensor, model: nn.Module) -> None:
        """Before the step that would spoil the weights: the next log would be too late, and `Trainer` hides it."""
        if torch.isfinite(loss).all():
            return
        broken = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
        state = f"{broken[0]} and {len(broken) - 1} more weights are not finite" if broken else "all weights are finite"
        raise FloatingPointError(
            f"The loss is {loss.item()} at step {self.state.global_step + 1}; {state}. No step was made with it, and"
            " checkpoints of earlier steps are untouched. Start again from the last one (as --model) with a lower"
            " --learning_rate, more --warmup_steps or a smaller --max_grad_norm; with --fp16, use --bf16 or neither."
        )

    def get_eval_dataloader(self, eval_dataset=None):
        """As `Trainer`'s, with one caption of each clip (masked alike every time: the epoch of these clips is 0)."""
        collator = self.data_collator
        self.data_collator = dataclasses.replace(collator, captions_per_clip=1, random_crop=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of the masked captions, ids generated from the clips alone (V, L), numbers of the clips (V,)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            if prediction_loss_only:
                return loss.detach(), None, None
            generated = self.captioner(model).generate(**{self.clips_name: inputs[self.clips_name]})
        return loss.detach(), generated, inputs["index"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the total loss is made of, and how sparse the mask is."""
        if self._caption_losses and "loss" in logs:
            # Of each micro-batch and process, a share of the step's.
            loss = torch.stack(self._caption_losses).mean() * self.args.gradient_accumulation_steps
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
            logs["caption_loss"] = round(self.accelerator.gather(loss).mean().item(), 4)
            self._caption_losses.clear()
        mask = getattr(self.captioner(self.model).base_model, "sparse_mask", None)
        if mask is not None and ("loss" in logs or "eval_loss" in logs):
            mask = whole(mask)
            statistics = mask.statistics()
            prefix = "eval_" if "eval_loss" in logs else ""
            logs[f"{prefix}sparsity_loss"] = round(mask.sparsity_loss().item(), 4)
            logs[f"{prefix}mask_below_half"] = round(statistics.share_below_half, 4)
            logs[f"{prefix}mask_alive"] = round(statistics.share_alive, 4)
            if prefix:
                weighted = self.model.config.sparsity_loss_weight * logs["eval_sparsity_loss"]
                logs["eval_caption_loss"] = round(logs["eval_loss"] - weighted, 4)
        super().log(logs, start_time)


class _TellEpoch(TrainerCallback):
    """Tells the training clips which epoch it is: their random draws depend on it."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))
