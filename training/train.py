"""`swinbert train`: arguments, data, model, `Trainer`, run.

swinbert train RECIPE.yaml [--name value ...]        # or python -m swinbert.training.train
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from swinbert.training.adapters import add_lora, refuse_local_base
from swinbert.training.arguments import DataArguments, ModelArguments, SwinBertTrainingArguments, parse_arguments
from swinbert.training.checkpoints import (
    RunError,
    StopOnSignal,
    check_space,
    checkpoint_to_resume,
    describe_run,
    locked,
)
from swinbert.training.data.clip_datasets import ClipDataset, ClipStream, captions_of, load_clips, refuse_missing
from swinbert.training.data.collators import CaptionCollator
from swinbert.training.data.frame_cache import FrameCache
from swinbert.training.git import GitTrainer, frame_reader, git_collator, is_git, load_git
from swinbert.training.initialization import load_model
from swinbert.training.monitoring import CaptionMetrics, plot_history
from swinbert.training.process_group import check_world, keep_freed_memory, leave_world, loaded_whole, read_by_all
from swinbert.training.scst import SelfCriticalTrainer
from swinbert.training.trainer import VideoCaptioningTrainer


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains as `argv` says, writes model and processor into `output_dir`, and returns the last metrics."""
    metrics = run(build_trainer(sys.argv[1:] if argv is None else argv))
    leave_world()
    return metrics


def build_trainer(argv: Sequence[str]) -> VideoCaptioningTrainer:
    """All that comes before the first step.

    Raises:
        ValueError, OSError: an argument, the data or a checkpoint cannot be used; the message says what to do.
    """
    model_args, data_args, training_args, config = parse_arguments(argv)
    check_world(training_args, model_args.objective)
    set_seed(training_args.seed)
    if training_args.torch_threads:
        torch.set_num_threads(training_args.torch_threads)

    train_clips = _load_training_clips(model_args, data_args, training_args)
    eval_clips = load_clips(data_args.dataset, data_args.eval_split) if data_args.eval_split else None
    if eval_clips:
        refuse_missing(eval_clips)
    git = is_git(model_args.model)
    with loaded_whole(training_args):
        if git:
            model, processor, report = load_git(model_args, config)
        else:
            model, processor, report = load_model(model_args, config, captions_of(train_clips))
    if model_args.lora_rank is not None:
        if git or not model_args.model:
            raise ValueError("--lora_rank adapts a trained SwinBERT: name one as --model.")
        model = add_lora(model, model_args.lora_rank)
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        report.append(f"LoRA: {trained / 1e6:.2f} M parameters train")
        if training_args.push_to_hub:
            refuse_local_base(model)
    if training_args.should_log:
        clips = "a stream of" if data_args.streaming else len(train_clips)
        report.append(f"{model.num_parameters() / 1e6:.2f} M parameters, {clips} clips to train on")
        print("\n".join(report), file=sys.stderr)

    reader = frame_reader(model, processor) if git else processor.video_processor
    dataset: dict[str, Any] = {"video_processor": reader, "seed": training_args.seed}
    if data_args.frame_cache:
        dataset["frame_cache"] = FrameCache(data_args.frame_cache, reader, data_args.frame_cache_format)
    changed = {"max_shift": data_args.max_shift, "skip_unreadable": data_args.skip_unreadable}
    train_dataset: ClipDataset | ClipStream
    if data_args.streaming:
        read_by_all(training_args)
        train_dataset = ClipStream(train_clips, shuffle_buffer=data_args.shuffle_buffer, **changed, **dataset)
    else:
        dataset["keep_frames"] = data_args.keep_frames
        train_dataset = ClipDataset(train_clips, **changed, **dataset)
    metrics = None
    if eval_clips:
        quiet = not training_args.should_log
        metrics = CaptionMetrics(processor, eval_clips, data_args.metrics, data_args.num_samples, quiet)
    drawn: dict[str, Any] = {"captions_per_clip": data_args.captions_per_clip, "random_crop": data_args.random_crop}
    collator = (
        git_collator(model, processor, **drawn)
        if git
        else CaptionCollator(
            processor,
            objective=model.config.objective,
            max_caption_length=model.config.max_caption_length,
            mask_prob=data_args.mask_prob,
            max_masked_tokens=data_args.max_masked_tokens,
            **drawn,
        )
    )
    common = {
        "model": model,
        "args": training_args,
        "data_collator": collator,
        "train_dataset": train_dataset,
        "eval_dataset": ClipDataset(eval_clips, **dataset) if eval_clips else None,
        "processing_class": processor,
        "compute_metrics": metrics,
        "data": data_args,
        "run": describe_run(
            training_args,
            model_args,
            data_args,
            config=config,
            captions=[] if data_args.streaming else train_clips["captions"],
        ),
    }
    if model_args.objective == "scst":
        return SelfCriticalTrainer(**common, references=train_clips["captions"])
    return (GitTrainer if git else VideoCaptioningTrainer)(**common)


def _load_training_clips(
    model_args: ModelArguments, data_args: DataArguments, training_args: SwinBertTrainingArguments
) -> Any:
    """
    The clips to train on, a `datasets.Dataset` or `IterableDataset`.

    Raises:
        FileNotFoundError: some of their videos are missing, and unreadable ones are not to be skipped.
        ValueError: of a stream something is asked that no stream can do.
    """
    clips = load_clips(data_args.dataset, data_args.train_split, streaming=data_args.streaming)
    if not data_args.streaming:
        if not data_args.skip_unreadable:
            refuse_missing(clips)
    elif training_args.max_steps <= 0:
        raise ValueError("A streamed dataset has no length: say by --max_steps how long to train.")
    elif "epoch" in (training_args.eval_strategy, training_args.save_strategy):
        raise ValueError("A streamed dataset has no epochs: use --eval_strategy steps and --save_strategy steps.")
    elif data_args.keep_frames:
        raise ValueError("Frames of a streamed dataset cannot be kept in memory: leave out --keep_frames.")
    elif model_args.objective == "scst":
        raise ValueError(
            "scst rewards by the captions of all clips, which a stream does not have: leave out --streaming."
        )
    return clips


def run(trainer: VideoCaptioningTrainer) -> dict[str, float]:
    """Trains, evaluates and saves; leaves a picture of the run beside the model.

    Raises:
        RunError: the folder is in use, or holds checkpoints of another run; a checkpoint cannot be saved.
        SystemExit: training was stopped by a signal.
    """
    if trainer.args.device.type == "cpu":
        keep_freed_memory(not trainer.args.gradient_checkpointing)
    with locked(trainer.args):
        checkpoint = checkpoint_to_resume(trainer.args, trainer.run)
        check_space(trainer.args, trainer.model)
        with StopOnSignal(trainer.args) as stop:
            trainer.add_callback(stop)
            result = trainer.train(resume_from_checkpoint=checkpoint)
        return finish(trainer, result.metrics)


def finish(trainer: VideoCaptioningTrainer, metrics: dict[str, float]) -> dict[str, float]:
    trainer.save_model(_internal_call=True)  # pushed below, with its card
    metrics = {**metrics, **(trainer.evaluate() if trainer.eval_dataset is not None else {})}
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_history(trainer.state.log_history, Path(str(trainer.args.output_dir)) / "training.png")
    trainer.publish()
    return metrics


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"swinbert: {error}")
