"""What lets a run be stopped and gone on with: one run in a folder, checkpoints that are whole, arguments that fit.

`swinbert train` with the same arguments goes on from the last checkpoint in `output_dir` by itself. A checkpoint is
written to `_saving/` and gets its place and name once it is whole, so what is named `checkpoint-STEP` can be relied on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import socket
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

if TYPE_CHECKING:
    from swinbert.training.arguments import SwinBertTrainingArguments

try:
    import fcntl
except ImportError:  # Windows: folders are not locked
    fcntl = None  # type: ignore[assignment]

# What begins with "_" is left out where `Trainer` pushes its folder to the Hub.
STAGING_NAME, LOCK_NAME, RUN_NAME = "_saving", "_lock", "run.json"

# Arguments that may change when a run goes on: they decide what is shown and kept, where and how fast.
_FREE = re.compile(
    r"output_dir|start_anew|resume_from_checkpoint|restore_callback_states.*|log_.*|logging_.*|report_to|run_name|project"
    r"|disable_tqdm|include_.*|eval_.*|per_device_eval_batch_size|prediction_loss_only|batch_eval_metrics|.*_full_eval"
    r"|num_samples|metrics|save_.*|load_best_model_at_end|metric_for_best_model|greater_is_better|(hub|push|trackio)_.*"
    r"|dataloader_(?!drop_last).*|keep_frames|frame_cache|skip_unreadable|torch_threads|torch_empty_cache_steps|ddp_.*"
    r"|local_rank|debug|skip_memory_metrics|do_(train|eval|predict)|enable_jit_checkpoint"
)


class RunError(RuntimeError):
    """A run that cannot begin, go on or save; the message says what to do."""


@contextlib.contextmanager
def locked(args: TrainingArguments) -> Iterator[None]:
    """
    Keeps other runs out of `output_dir` until it ends, however it ends: the system unlocks what a dead process locked.

    Raises:
        RunError: another run uses the folder.
    """
    if fcntl is None or args.process_index:
        yield
        return
    path = Path(str(args.output_dir), LOCK_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            # A record lock: other than that of `flock`, data loader workers do not inherit it and outlive their parent.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise RunError(
                f"{args.output_dir} is in use by another run ({file.read().strip() or 'just started'}): wait for it,"
                " end it, or give another --output_dir."
            ) from None
        except OSError as error:
            say(f"{args.output_dir} cannot be locked ({error.strerror}): make sure that no other run uses it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def describe_run(
    training: TrainingArguments, *others: Any, config: dict[str, Any], captions: Iterable[list[str]]
) -> dict[str, Any]:
    """All that decides what a run learns, flat, as JSON holds it: arguments, fields of the model, the training data."""
    run = {**training.to_dict(), "processes": training.world_size}
    for each in others:
        run.update(dataclasses.asdict(each))
    run["config"] = config
    for name in ("deepspeed", "fsdp_config", "config"):
        content = run[name]
        if isinstance(content, str):
            content = json.loads(Path(content).read_text(encoding="utf-8"))
        run.update(_flat(content or {}, f"{name}."))
        del run[name]
    if captions := list(captions):  # not known of a stream
        digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest()
        run["captions"] = f"those of {len(captions)} clips, SHA-256 {digest[:16]}"
        del run["dataset"]  # may have moved
    run = {name: value for name, value in run.items() if not _FREE.fullmatch(name)}
    return json.loads(json.dumps(run, default=str))


def _flat(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def checkpoint_to_resume(args: "SwinBertTrainingArguments", run: dict[str, Any]) -> str | None:
    """
    The checkpoint that was named, or else the last one in `output_dir`, or `None`. Removes what a dead process left.

    Args:
        run: what `describe_run` returns.

    Raises:
        RunError: the checkpoint is not whole, or of a run with other arguments.
    """
    output = Path(str(args.output_dir))
    with args.main_process_first(local=args.save_on_each_node, desc="tidying the output folder"):
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
        remedy = "name another --resume_from_checkpoint, or leave it out to go on from the last one in --output_dir"
    try:
        former = json.loads(Path(checkpoint, RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"{checkpoint} is no whole checkpoint of `swinbert train` (it has no readable {RUN_NAME}): {remedy}."
        ) from None
    different = [
        f"{name}: {json.dumps(former.get(name))} there, {json.dumps(run.get(name))} now"
        for name in sorted(former.keys() | run.keys())
        if former.get(name) != run.get(name)
    ]
    if different:
        raise RunError(
            f"{checkpoint} is of a run with other arguments, from which this one cannot go on:\n  "
            + "\n  ".join(different)
            + f"\nGive the former values, or {remedy}."
        )
    return checkpoint


def check_space(args: TrainingArguments, model: nn.Module) -> None:
    """
    Raises:
        RunError: no room for one checkpoint.
    """
    if not args.should_save:
        return
    parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    trained = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    # Adam keeps two numbers for each parameter that is trained.
    needed = parameters + (0 if args.save_only_model else 2 * trained)
    free = shutil.disk_usage(str(args.output_dir)).free
    if free < needed:
        raise RunError(
            f"A checkpoint takes {needed / 1e6:.1f} MB, but {args.output_dir} has {free / 1e6:.1f} MB left: make room,"
            " or give another --output_dir."
        )


class CheckpointingTrainer(Trainer):
    """
    `Trainer` whose checkpoints appear whole or not at all.

    Args:
        run: what `describe_run` returns, kept in every checkpoint.
    """

    def __init__(self, *args: Any, run: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run = run or {}
        self._staging: str | None = None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Going on from the last step of all, in the midst of an epoch, `Trainer` would make one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # FSDP mixes a class of its own in; the name and the code of the model's class belong into the folder.
        kind = type(self.model)
        self.model.__class__ = next(each for each in kind.__mro__ if not issubclass(each, FSDPModule))
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = kind

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._told("The model"):
            super().save_model(output_dir, _internal_call)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Says what could not be written, and what is left."""
        try:
            yield
        except RunError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            output = str(self.args.output_dir)
            last, free = get_last_checkpoint(output), shutil.disk_usage(output).free
            rest = f" {last} is whole: set right what is wrong, and the same command goes on from it." if last else ""
            raise RunError(
                f"{what} could not be written to {output}, which has {free / 1e6:.1f} MB left: {error}.{rest}"
            ) from error

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        place = output / f"checkpoint-{self.state.global_step}"
        staged = output / STAGING_NAME / place.name
        self._staging = str(staged.parent)
        try:
            with self._told(f"The checkpoint of step {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(place)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    (staged / RUN_NAME).write_text(json.dumps(self.run, indent=1), encoding="utf-8")
                    _flush(staged)
        except RunError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()  # others write parts of it too
        if self.args.should_save:
            if place.exists():  # of a run that went on from an earlier one, or of the same step
                shutil.rmtree(place)
            staged.rename(place)
            staged.parent.rmdir()
            rotate_checkpoints(
                str(output), self.args.save_total_limit, best_model_checkpoint=self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()


def _flush(folder: Path) -> None:
    """Returns when the files have reached the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


class StopOnSignal(TrainerCallback):
    """
    SIGTERM and Ctrl-C end training after the step under way, with a checkpoint. The second one ends it at once.

    As a context manager around training, it listens, and says where a run that ends early can go on.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.signal = 0
        self._process = os.getpid()
        self._stopped = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        with contextlib.suppress(ValueError):  # not in the main thread, which alone may listen
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if (error is not None or self._stopped) and not self.args.process_index:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
            rest = f"goes on from {checkpoint}" if checkpoint else "begins anew: there is no checkpoint yet"
            say(f"Training ended early. The same command {rest}.")
        if error is None and self._stopped:
            raise SystemExit(128 + self.signal)

    def _hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker, which its parent ends
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        if not self.args.process_index:
            say(f"{signal.Signals(number).name}: saving and stopping after this step; once more to stop at once.")

    def on_step_end(self, args, state, control, **kwargs):
        number = self.signal
        if args.world_size > 1:
            # The processes hear it at different times, and must stop after the same step.
            heard = torch.tensor(number, device=args.device)
            dist.all_reduce(heard, dist.ReduceOp.MAX)
            number = int(heard)
        if number and state.global_step < state.max_steps:
            self.signal, self._stopped = number, True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._stopped and state.epoch % 1:
            # What belongs to the end of an epoch is done when it ends.
            control.should_save = control.should_evaluate = False


def say(message: str) -> None:
    print(f"swinbert: {message}", file=sys.stderr, flush=True)
