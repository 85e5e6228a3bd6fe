"""`swinbert train`: arguments, data, model, trainer, run.

swinbert train RECIPE.yaml [--name value ...]        # or python -m swinbert.training.train
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from swinbert.processing import VideoDecodeError
from swinbert.training.adapters import refuse_local_base
from swinbert.training.arguments import DataArguments, ModelArguments, SwinBertTrainingArguments, parse_arguments
from swinbert.training.checkpoints import (
    RunError,
    StopOnSignal,
    check_space,
    checkpoint_to_resume,
    describe_run,
    finished_metrics,
    lock_output_folder,
    mark_finished,
    print_message,
    unmark_finished,
)
from swinbert.training.data.clip_datasets import (
    ClipDataset,
    ClipStream,
    UnreadableClipsError,
    captions_of,
    load_clips,
    refuse_missing,
)
from swinbert.training.data.frame_cache import FrameCache
from swinbert.training.families import model_family
from swinbert.training.metrics import MissingTool
from swinbert.training.monitoring import CaptionMetrics, plot_history
from swinbert.training.moving_shapes.scoring import CARD_METRICS, exact_content_scores
from swinbert.training.process_group import check_process_group, destroy_process_group, unsharded_initialization
from swinbert.training.scst import SelfCriticalTrainer
from swinbert.training.tokenization import CAPTIONS_TOKENIZER
from swinbert.training.trainer import VideoCaptioningTrainer
from swinbert.utils.files import no_such_folder, refuse_missing_folder
from swinbert.utils.memory import keep_freed_memory

# Names of errors of `ClipDataset` and `ClipStream`.
_UNREADABLE = (VideoDecodeError.__name__, UnreadableClipsError.__name__)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains with command-line arguments, saves model and processor to `output_dir`, and returns the last metrics."""
    metrics = run(build_trainer(sys.argv[1:] if argv is None else argv))
    destroy_process_group()
    return metrics


def train_or_exit(argv: Sequence[str]) -> None:
    """Trains with command-line arguments; what the user has to mend ends the process with one message."""
    with _ending_with_message(ValueError, OSError, RunError, MissingTool):
        trainer = build_trainer(argv)
    with _ending_with_message(FloatingPointError, RunError):
        run(trainer)


@contextlib.contextmanager
def _ending_with_message(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        print_message(str(error))
        sys.exit(1)


def build_trainer(argv: Sequence[str]) -> VideoCaptioningTrainer:
    """
    The trainer of a run, ready for `run`.

    Raises:
        RunError: the processes cannot train together.
        ValueError, OSError: an argument, the data or a checkpoint cannot be used; the message says what to do.
    """
    model_args, data_args, training_args, config = parse_arguments(argv)
    check_process_group(training_args, model_args.objective)
    set_seed(training_args.seed)
    if training_args.torch_threads:
        torch.set_num_threads(training_args.torch_threads)

    train_clips, eval_clips = _load_training_clips(model_args, data_args, training_args), None
    if data_args.eval_split:
        eval_clips = _load_evaluation_clips(data_args.dataset, data_args.eval_split)

    with _naming_missing_models(model_args), unsharded_initialization(training_args):
        family = model_family(model_args.model)
        model, processor, report = family.load(model_args, config, captions_of(train_clips))
    if training_args.push_to_hub:
        refuse_local_base(model)
    if training_args.should_log:
        clips = "a stream of" if data_args.streaming else len(train_clips)
        report.append(f"{model.num_parameters() / 1e6:.2f} M parameters, {clips} clips to train on")
        print("\n".join(report), file=sys.stderr)

    reader = family.frame_reader(model, processor)
    train_dataset, eval_dataset = _build_datasets(reader, train_clips, eval_clips, data_args, training_args)
    trainer_class, specific = VideoCaptioningTrainer, {}
    if model_args.objective == "scst":
        trainer_class, specific = SelfCriticalTrainer, {"references": train_clips["captions"]}
    captions = [] if data_args.streaming else train_clips["captions"]
    return trainer_class(
        model=model,
        args=training_args,
        family=family,
        data_collator=family.collator(model, processor, data_args),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=_caption_metrics(processor, eval_clips, data_args, training_args),
        data=data_args,
        extra_metrics=CARD_METRICS,
        run=describe_run(training_args, model_args, data_args, config=config, captions=captions),
        **specific,
    )


@contextlib.contextmanager
def _naming_missing_models(args: ModelArguments) -> Iterator[None]:
    """
    Raises:
        FileNotFoundError: an argument names neither a folder nor a model on the Hub; the message names the argument.
    """
    names = ("model", "backbone", "text_encoder", "mask", "tokenizer")
    given = {name: value for name in names if (value := getattr(args, name)) not in (None, CAPTIONS_TOKENIZER)}
    missing = {name: value for name, value in given.items() if not Path(value).expanduser().exists()}
    for name, value in missing.items():
        try:
            refuse_missing_folder(value)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--{name}: {error}") from None
    try:
        yield
    except OSError as error:
        if blamed := {name: value for name, value in missing.items() if value in str(error)} or missing:
            folders = " ".join(f"--{name}: {no_such_folder(value)}" for name, value in blamed.items())
            raise FileNotFoundError(f"{folders} On the Hub: {' '.join(str(error).split())}") from error
        raise


def _load_training_clips(
    model_args: ModelArguments, data_args: DataArguments, training_args: SwinBertTrainingArguments
) -> Any:
    """
    The clips to train on, a `datasets.Dataset` or `IterableDataset`.

    Raises:
        FileNotFoundError: videos are missing, and unreadable ones are not to be skipped.
        ValueError: an argument cannot be used with a streamed dataset.
    """
    clips = load_clips(data_args.dataset, data_args.train_split, streaming=data_args.streaming)
    if not data_args.streaming:
        if not data_args.skip_unreadable:
            refuse_missing(clips)
    elif training_args.max_steps <= 0:
        raise ValueError("A streamed dataset has no length: set the length of training by --max_steps.")
    elif "epoch" in (training_args.eval_strategy, training_args.save_strategy):
        raise ValueError("A streamed dataset has no epochs: use --eval_strategy steps and --save_strategy steps.")
    elif data_args.keep_frames:
        raise ValueError("Frames of a streamed dataset cannot be kept in memory: omit --keep_frames.")
    elif model_args.objective == "scst":
        raise ValueError(
            "The rewards of --objective scst need the captions of all clips, which a streamed dataset does not give:"
            " omit --streaming."
        )
    return clips


def _load_evaluation_clips(dataset: str, split: str) -> Any:
    """
    Raises:
        FileNotFoundError: videos are missing.
        ValueError: there is no such split.
    """
    try:
        clips = load_clips(dataset, split)
    except ValueError as error:
        raise ValueError(f"{error} --eval_split names another; --eval_split none trains without evaluation.") from error
    refuse_missing(clips)
    return clips


def _build_datasets(
    reader: Any, train_clips: Any, eval_clips: Any, data_args: DataArguments, training_args: SwinBertTrainingArguments
) -> tuple[ClipDataset | ClipStream, ClipDataset | None]:
    """The datasets to train and to evaluate on; the latter is `None` without `eval_clips`."""
    common: dict[str, Any] = {"video_processor": reader, "seed": training_args.seed}
    if data_args.frame_cache:
        common["frame_cache"] = FrameCache(data_args.frame_cache, reader, data_args.frame_cache_format)
    for_training: dict[str, Any] = {"max_shift": data_args.max_shift, "skip_unreadable": data_args.skip_unreadable}
    train_dataset: ClipDataset | ClipStream
    if data_args.streaming:
        # Otherwise one process would read the stream and send every process its part of a batch, which fails where
        # captions differ in length from batch to batch.
        training_args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        train_dataset = ClipStream(train_clips, shuffle_buffer=data_args.shuffle_buffer, **for_training, **common)
    else:
        common["keep_frames"] = data_args.keep_frames
        train_dataset = ClipDataset(train_clips, **for_training, **common)
    return train_dataset, ClipDataset(eval_clips, **common) if eval_clips else None


def _caption_metrics(
    processor: Any, eval_clips: Any, data_args: DataArguments, training_args: SwinBertTrainingArguments
) -> CaptionMetrics | None:
    if not eval_clips:
        return None
    return CaptionMetrics(
        processor,
        eval_clips,
        data_args.metrics,
        num_samples=data_args.num_samples,
        quiet=not training_args.should_log,
        extra_scorers=[exact_content_scores],
    )


def run(trainer: VideoCaptioningTrainer) -> dict[str, float]:
    """
    Trains, evaluates and saves; draws the curves of the run beside the model. A finished run is left as it is.

    Returns:
        The metrics of training and of the last evaluation.

    Raises:
        RunError: the output folder is in use or has checkpoints of another run, a checkpoint cannot be saved, or a clip
            cannot be read.
        SystemExit: a signal stopped training.
    """
    args = trainer.args
    if (metrics := finished_metrics(args, trainer.run)) is not None:
        if args.should_log:
            print_message(
                f"{args.output_dir} has this run, and it is finished: nothing was written. To use its model, name"
                f" --model {args.output_dir}; to train again, --start_anew true or another --output_dir."
            )
        return metrics
    if args.device.type == "cpu":
        keep_freed_memory(not args.gradient_checkpointing)
    # One process locks the folder for all.
    with contextlib.nullcontext() if args.process_index else lock_output_folder(str(args.output_dir)):
        checkpoint = checkpoint_to_resume(args, trainer.run)
        check_space(args, trainer.model)
        unmark_finished(args)
        with _naming_unreadable_clips():
            with StopOnSignal(args) as stop:
                trainer.add_callback(stop)
                result = trainer.train(resume_from_checkpoint=checkpoint)
            try:
                return _finish(trainer, result.metrics)
            except KeyboardInterrupt:
                print_message("Stopped. Training is complete, and the same command writes the rest.")
                raise


@contextlib.contextmanager
def _naming_unreadable_clips() -> Iterator[None]:
    """
    Raises:
        RunError: a clip cannot be read, here or in a worker of the data loader; the message is one line.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        # A worker's error arrives as its traceback in text, which ends in the message of the error.
        of_worker = re.search(rf"^Caught .* in DataLoader worker.*(?:{'|'.join(_UNREADABLE)}): (.*)", str(error), re.S)
        if of_worker is None and type(error).__name__ not in _UNREADABLE:
            raise
        message = " ".join((of_worker[1] if of_worker else str(error)).split()).rstrip(".")
        raise RunError(
            f"{message}. To train without unreadable clips, give --skip_unreadable true (evaluation never skips any);"
            " `swinbert doctor` lists them all."
        ) from error


def _finish(trainer: VideoCaptioningTrainer, metrics: dict[str, float]) -> dict[str, float]:
    """Saves and publishes the trained model; returns its metrics."""
    trainer.save_model(_internal_call=True)  # without a push: `publish` pushes the model with its card
    metrics = {**metrics, **(trainer.evaluate() if trainer.eval_dataset is not None else {})}
    with trainer.explaining_write_errors("The results"):
        trainer.save_metrics("all", metrics)
        trainer.save_state()
        if trainer.is_world_process_zero():
            path = Path(str(trainer.args.output_dir)) / "training.png"
            plot_history(trainer.state.log_history, path, extra_scores=trainer.extra_metrics)
        trainer.publish()
        if trainer.is_world_process_zero():
            mark_finished(trainer.args, trainer.run, metrics)
    return metrics


if __name__ == "__main__":
    train_or_exit(sys.argv[1:])
    destroy_process_group()
