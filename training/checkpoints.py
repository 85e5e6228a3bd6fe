"""Locking, checkpointing and resuming of training runs.

`swinbert train` with the same arguments resumes from the last checkpoint in `output_dir`. A checkpoint is written to
`_saving/` and renamed when it is complete: every folder `checkpoint-STEP` is a complete checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from swinbert.utils.files import file_lock, write_json

if TYPE_CHECKING:
    from swinbert.training.arguments import SwinBertTrainingArguments

# `Trainer` does not push files whose names begin with "_" to the Hub.
STAGING_NAME, LOCK_NAME, RUN_NAME, FINISHED_NAME = "_saving", "_lock", "run.json", "_finished.json"

# Arguments that may change when a run is resumed: they affect logging, saving, evaluation and speed, not the weights.
_MAY_CHANGE_ON_RESUME = re.compile(
    r"output_dir|start_anew|resume_from_checkpoint|restore_callback_states.*|log_.*|logging_.*|report_to|run_name|project"
    r"|disable_tqdm|include_.*|eval_.*|per_device_eval_batch_size|prediction_loss_only|batch_eval_metrics|.*_full_eval"
    r"|num_samples|metrics|save_.*|load_best_model_at_end|metric_for_best_model|greater_is_better|(hub|push|trackio)_.*"
    r"|dataloader_(?!drop_last).*|keep_frames|frame_cache|skip_unreadable|torch_threads|torch_empty_cache_steps|ddp_.*"
    r"|local_rank|debug|skip_memory_metrics|do_(train|eval|predict)|enable_jit_checkpoint"
)


class RunError(RuntimeError):
    """A run that cannot start, resume or save. The message says what to do."""


@contextlib.contextmanager
def lock_output_folder(folder: str | Path) -> Iterator[None]:
    """
    Keeps other runs out of an output folder, which is created if needed.

    Raises:
        RunError: another run uses the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            is_locked = stack.enter_context(file_lock(Path(folder, LOCK_NAME)))
        except BlockingIOError as error:
            raise RunError(
                f"{folder} is in use by another run ({error.strerror}): wait for it, end it, or give another"
                " --output_dir."
            ) from None
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error}): give another --output_dir.") from error
        if not is_locked:
            print_message(f"{folder} cannot be locked on this file system: make sure that no other run uses it.")
        yield


def describe_run(
    training: TrainingArguments, *other_arguments: Any, config: dict[str, Any], captions: Iterable[list[str]]
) -> dict[str, Any]:
    """
    Everything that decides the weights of a run, as a flat dictionary for `run.json`.

    Args:
        other_arguments: dataclasses of arguments for the model and the data.
        config: fields of the model's configuration that the command line or the recipe sets.
        captions: the captions of each training clip; empty for a stream.
    """
    run = {**training.to_dict(), "processes": training.world_size}
    for arguments in other_arguments:
        run.update(dataclasses.asdict(arguments))
    run["config"] = config
    for name in ("deepspeed", "fsdp_config", "config"):
        content = run[name]
        if isinstance(content, str):
            content = json.loads(Path(content).read_text(encoding="utf-8"))
        run.update(_flat(content or {}, f"{name}."))
        del run[name]
    if captions := list(captions):
        digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest()
        run["captions"] = f"those of {len(captions)} clips, SHA-256 {digest[:16]}"
        del run["dataset"]  # the folder may have moved
    run = {name: value for name, value in run.items() if not _MAY_CHANGE_ON_RESUME.fullmatch(name)}
    return json.loads(json.dumps(run, default=str))


def _flat(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def checkpoint_to_resume(args: "SwinBertTrainingArguments", run: dict[str, Any]) -> str | None:
    """
    The checkpoint that `--resume_from_checkpoint` names, else the last one in `output_dir`, else `None`.

    Deletes the incomplete checkpoint of a killed run, and with `--start_anew` all checkpoints.

    Args:
        run: what `describe_run` returns.

    Raises:
        RunError: the checkpoint is incomplete, or belongs to a run with other arguments.
    """
    output = Path(str(args.output_dir))
    with args.main_process_first(local=args.save_on_each_node, desc="removing incomplete checkpoints"):
        if args.should_save:
            shutil.rmtree(output / STAGING_NAME, ignore_errors=True)
            for old in output.glob("checkpoint-*") if args.start_anew else ():
                shutil.rmtree(old)
    named = args.resume_from_checkpoint
    checkpoint = named or (get_last_checkpoint(output) if output.is_dir() else None)
    if checkpoint is None:
        return None
    remedy = "give another --output_dir, or --start_anew true to delete its checkpoints"
    if named:
        remedy = "name another --resume_from_checkpoint, or omit it to resume from the last one in --output_dir"
    try:
        former = json.loads(Path(checkpoint, RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"{checkpoint} is not a complete checkpoint of `swinbert train` (no readable {RUN_NAME}): {remedy}."
        ) from None
    different = [
        f"{name}: {json.dumps(former.get(name))} in the checkpoint, {json.dumps(run.get(name))} now"
        for name in sorted(former.keys() | run.keys())
        if former.get(name) != run.get(name)
    ]
    if different:
        raise RunError(
            f"{checkpoint} belongs to a run with other arguments, and this run cannot resume from it:\n  "
            + "\n  ".join(different)
            + f"\nGive the values of the checkpoint, or {remedy}."
        )
    return checkpoint


def finished_metrics(args: "SwinBertTrainingArguments", run: dict[str, Any]) -> dict[str, float] | None:
    """
    The metrics of a run that `output_dir` already has complete; `None` if it is another run, has not finished, or its
    weights are gone, or if the arguments ask for training again.

    Args:
        run: what `describe_run` returns.
    """
    has_weights = any(Path(str(args.output_dir)).glob("*.safetensors"))
    if args.start_anew or args.resume_from_checkpoint or not has_weights:
        return None
    try:
        finished = json.loads(Path(str(args.output_dir), FINISHED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return finished["metrics"] if finished["run"] == run else None


def mark_finished(args: TrainingArguments, run: dict[str, Any], metrics: dict[str, float]) -> None:
    """Records that the run in `output_dir` is complete, with its metrics."""
    write_json(Path(str(args.output_dir), FINISHED_NAME), {"run": run, "metrics": metrics})


def unmark_finished(args: TrainingArguments) -> None:
    """Deletes the record of a finished run: another one begins to write to `output_dir`."""
    if args.should_save:
        Path(str(args.output_dir), FINISHED_NAME).unlink(missing_ok=True)


def check_space(args: TrainingArguments, model: nn.Module) -> None:
    """
    Raises:
        RunError: the disk has no space for a checkpoint.
    """
    if not args.should_save:
        return
    parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    trained = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    # Adam keeps two moments of each trained parameter.
    needed = parameters + (0 if args.save_only_model else 2 * trained)
    free = shutil.disk_usage(str(args.output_dir)).free
    if free < needed:
        raise RunError(
            f"A checkpoint takes {needed / 1e6:.1f} MB, but {args.output_dir} has {free / 1e6:.1f} MB left: free some"
            " space, or give another --output_dir."
        )


class CheckpointingTrainer(Trainer):
    """
    A `Trainer` that writes checkpoints atomically.

    Args:
        run: what `describe_run` returns; it is saved with every checkpoint.
    """

    def __init__(self, *args: Any, run: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run = run or {}
        self._staging: str | None = None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # `Trainer` makes one step too many when it resumes from the last step and this is not the end of an epoch.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # FSDP replaces the model's class by a subclass; `save_pretrained` must see the class whose code it saves.
        wrapped_class = type(self.model)
        self.model.__class__ = next(base for base in wrapped_class.__mro__ if not issubclass(base, FSDPModule))
        try:
            if self._staging is not None or not self.args.should_save:  # one process writes, the others only take part
                super()._save(output_dir, state_dict)
            else:
                self._save_whole_files(Path(output_dir or str(self.args.output_dir)), state_dict)
        finally:
            self.model.__class__ = wrapped_class

    def _save_whole_files(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Saves the model into a folder that may hold an older one; no file of it is ever cut off."""
        staging = folder / STAGING_NAME
        try:
            super()._save(str(staging), state_dict)
            _flush_to_disk(staging)
            for file in filter(Path.is_file, list(staging.rglob("*"))):
                target = folder / file.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.explaining_write_errors("The model"):
            super().save_model(output_dir, _internal_call)

    @contextlib.contextmanager
    def explaining_write_errors(self, what: str) -> Iterator[None]:
        """Turns errors of writing into a `RunError` that names the last complete checkpoint."""
        try:
            yield
        except RunError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            output = str(self.args.output_dir)
            last, free = get_last_checkpoint(output), shutil.disk_usage(output).free
            remedy = f" {last} is complete: fix the cause, and the same command resumes from it." if last else ""
            raise RunError(
                f"{what} could not be written to {output}, which has {free / 1e6:.1f} MB left: {error}.{remedy}"
            ) from error

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        final = output / f"checkpoint-{self.state.global_step}"
        staged = output / STAGING_NAME / final.name
        self._staging, what = str(staged.parent), f"The checkpoint of step {self.state.global_step}"
        try:
            with self.explaining_write_errors(what):
                super()._save_checkpoint(model, trial)
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    (staged / RUN_NAME).write_text(json.dumps(self.run, indent=1), encoding="utf-8")
                    _flush_to_disk(staged)
        except RunError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()  # the other processes write parts of it too
        if self.args.should_save:
            with self.explaining_write_errors(what):
                if final.exists():  # of a run that resumed from an earlier checkpoint
                    shutil.rmtree(final)
                staged.rename(final)
                staged.parent.rmdir()
            rotate_checkpoints(
                str(output), self.args.save_total_limit, best_model_checkpoint=self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()


def _flush_to_disk(folder: Path) -> None:
    """Returns when the contents of all files in a folder are on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


class StopOnSignal(TrainerCallback):
    """
    Stops training after the current step, with a checkpoint, on SIGTERM and on Ctrl-C; a second signal stops at once.

    Use it as a callback and as a context manager around training. When training ends early, it prints from where the
    run can be resumed.

    Raises:
        SystemExit: at the end of the context, with code 128 + the signal's number, if a signal stopped training.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.signal = 0
        self._process = os.getpid()
        self._stopped = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        with contextlib.suppress(ValueError):  # only the main thread may install handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if (error is not None or self._stopped) and not self.args.process_index:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
            rest = f"resumes from {checkpoint}" if checkpoint else "starts again: there is no checkpoint yet"
            print_message(f"Training ended early. The same command {rest}.")
        if error is None and self._stopped:
            raise SystemExit(128 + self.signal)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker: the main process ends it
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        if not self.args.process_index:
            name = signal.Signals(number).name
            print_message(f"{name}: training stops with a checkpoint after this step; send it again to stop at once.")

    def on_step_end(self, args, state, control, **kwargs):
        number = self.signal
        if args.world_size > 1:
            # Signals reach the processes at different times, but all must stop after the same step.
            received = torch.tensor(number, device=args.device)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            number = int(received)
        if number and state.global_step < state.max_steps:
            self.signal, self._stopped = number, True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._stopped and state.epoch % 1:
            # `Trainer` also calls this when training stops within an epoch: saving and evaluating by epoch must wait.
            control.should_save = control.should_evaluate = False


def print_message(message: str) -> None:
    print(f"swinbert: {message}", file=sys.stderr, flush=True)
