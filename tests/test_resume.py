"""Runs that are killed, stopped or hindered: what is left behind, and that going on ends with the very same weights."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from swinbert.training import checkpoints, train
from swinbert.training.checkpoints import RunError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tiny_run.make_shapes(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    train.main(tiny_run.arguments(shapes, output))
    return (output / "model.safetensors").read_bytes()


class _Fail(TrainerCallback):
    """Ends a run after a step, without a warning."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyError("failed")


def fail_after(step, arguments):
    trainer = train.build_trainer(arguments)
    trainer.add_callback(_Fail(step))
    with pytest.raises(KeyError, match="failed"):
        train.run(trainer)


def names(output):
    return sorted(path.name for path in Path(output).glob("checkpoint-*"))


# -------------------------------------------------------------------------------------------------------- same weights


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_failed_goes_on_to_the_same_weights(shapes, uninterrupted, tmp_path, capfd, workers):
    """Dropout, dropped paths, shifts, captions and masks are drawn as if nothing had happened: in the midst of an epoch
    (3 steps), with an evaluation on the way, and once more at its end."""
    arguments = tiny_run.arguments(shapes, tmp_path, dataloader_num_workers=workers)
    fail_after(3, arguments)
    assert names(tmp_path) == ["checkpoint-2"]
    assert "goes on from" in capfd.readouterr().err
    fail_after(7, arguments)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    train.main(arguments)
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted


def test_accumulated_steps_and_scst_go_on_to_the_same_weights(shapes, tmp_path):
    model = tmp_path / "model"
    train.main(tiny_run.arguments(shapes, model, max_steps=1))
    common = {"model": model, "objective": "scst", "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 1}
    train.main(tiny_run.arguments(shapes, tmp_path / "whole", **common))
    fail_after(2, tiny_run.arguments(shapes, tmp_path / "parts", **common))
    train.main(tiny_run.arguments(shapes, tmp_path / "parts", **common))
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_the_same_command_after_the_end_trains_nothing(shapes, uninterrupted, tmp_path):
    arguments = tiny_run.arguments(shapes, tmp_path)
    train.main(arguments)
    metrics = train.main(arguments)
    assert metrics["train_loss"] == 0
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted


def test_a_named_checkpoint_and_a_new_beginning(shapes, uninterrupted, tmp_path):
    arguments = tiny_run.arguments(shapes, tmp_path / "a")
    fail_after(5, arguments)
    elsewhere = tiny_run.arguments(shapes, tmp_path / "b", resume_from_checkpoint=tmp_path / "a" / "checkpoint-2")
    train.main(elsewhere)
    assert names(tmp_path / "b") == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == uninterrupted

    fail_after(3, [*arguments, "--start_anew", "true"])
    assert names(tmp_path / "a") == ["checkpoint-2"]


DRIVER = """
    import os, signal, sys
    from swinbert.training import checkpoints, train

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    {patch}
    train.main(sys.argv[1:])
"""
KILLED = {
    # While files are being written, and when all are there but not yet in their place.
    "in the midst of saving": """
        from transformers import Trainer
        save = Trainer._save_scaler
        Trainer._save_scaler = lambda self, folder: die() if self.state.global_step == 4 else save(self, folder)
    """,
    "before a checkpoint got its place": """
        flush = checkpoints._flush
        checkpoints._flush = lambda folder: die() if folder.name == "checkpoint-4" else flush(folder)
    """,
}


@pytest.mark.parametrize("when", KILLED)
def test_killed_while_saving(shapes, uninterrupted, tmp_path, when):
    code = textwrap.dedent(DRIVER).format(patch=textwrap.dedent(KILLED[when]))
    arguments = tiny_run.arguments(shapes, tmp_path, save_total_limit=1)
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert names(tmp_path) == ["checkpoint-2"]
    assert (tmp_path / "_saving" / "checkpoint-4" / "model.safetensors").is_file()
    train.main(arguments)
    assert names(tmp_path) == ["checkpoint-8"]
    assert not (tmp_path / "_saving").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted
