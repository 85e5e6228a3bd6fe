"""Runs that fail, are killed or stopped: their checkpoints are complete, and resuming leads to the same weights."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_run
from transformers import TrainerCallback

from swinbert import bundled_model
from swinbert.training import checkpoints, train
from swinbert.training.checkpoints import RunError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tiny_run.make_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    train.main(tiny_run.arguments(shapes, output))
    return (output / "model.safetensors").read_bytes()


class _Fail(TrainerCallback):
    """Raises an error after a step."""

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
def test_a_resumed_run_has_the_same_weights(shapes, uninterrupted, tmp_path, capfd, workers):
    """
    All random numbers (dropout, stochastic depth, shifts, captions, masks) are those of an uninterrupted run. The run
    fails within an epoch of 3 steps, after an evaluation, and again at the end of an epoch.
    """
    arguments = tiny_run.arguments(shapes, tmp_path, dataloader_num_workers=workers)
    fail_after(3, arguments)
    assert names(tmp_path) == ["checkpoint-2"]
    assert "resumes from" in capfd.readouterr().err
    fail_after(7, arguments)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    train.main(arguments)
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_on_a_stream_has_the_same_weights(shapes, tmp_path, workers):
    """The run fails in its second pass over the stream, whose length is not a multiple of the batch size."""
    stream = {"streaming": True, "tokenizer": bundled_model(), "keep_frames": False, "dataloader_num_workers": workers}
    changes = {**stream, "per_device_train_batch_size": 4, "max_steps": 5, "save_steps": 1, "eval_steps": 5}
    train.main(tiny_run.arguments(shapes, tmp_path / "whole", **changes))
    parts = tiny_run.arguments(shapes, tmp_path / "parts", **changes)
    fail_after(3, parts)
    assert names(tmp_path / "parts") == ["checkpoint-1", "checkpoint-2"]
    train.main(parts)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.slow
def test_a_resumed_run_of_scst_with_gradient_accumulation_has_the_same_weights(shapes, tmp_path):
    model = tmp_path / "model"
    train.main(tiny_run.arguments(shapes, model, max_steps=1))
    common = {"model": model, "objective": "scst", "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 1}
    train.main(tiny_run.arguments(shapes, tmp_path / "whole", **common))
    fail_after(2, tiny_run.arguments(shapes, tmp_path / "parts", **common))
    train.main(tiny_run.arguments(shapes, tmp_path / "parts", **common))
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_finished_run_says_so_and_writes_nothing(shapes, uninterrupted, tmp_path, capsys):
    arguments = tiny_run.arguments(shapes, tmp_path / "run")
    metrics = train.main(arguments)
    files = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(tmp_path.rglob("*"))}
    capsys.readouterr()
    assert train.main(arguments) == pytest.approx(metrics)
    assert "it is finished" in capsys.readouterr().err
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(tmp_path.rglob("*"))} == files
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == uninterrupted

    with pytest.raises(RunError, match="learning_rate"):
        train.main([*arguments, "--learning_rate", "1"])
    assert train.main(arguments) == pytest.approx(metrics)  # the refused run has not changed anything
    # A run that was killed before its end has no such record: the rest of it is done.
    fail_after(3, [*arguments, "--start_anew", "true"])
    assert train.main(arguments)["train_loss"] > 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == uninterrupted


def test_a_named_checkpoint_and_start_anew(shapes, uninterrupted, tmp_path):
    arguments = tiny_run.arguments(shapes, tmp_path / "a")
    fail_after(5, arguments)
    elsewhere = tiny_run.arguments(shapes, tmp_path / "b", resume_from_checkpoint=tmp_path / "a" / "checkpoint-2")
    train.main(elsewhere)
    assert names(tmp_path / "b") == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == uninterrupted

    fail_after(3, [*arguments, "--start_anew", "true"])
    assert names(tmp_path / "a") == ["checkpoint-2"]


def test_the_best_checkpoint_has_its_final_path(shapes, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = train.build_trainer(tiny_run.arguments(shapes, tmp_path, max_steps=4, eval_steps=2, **best))
    train.run(trainer)
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    chosen = Path(trainer.state.best_model_checkpoint)
    assert chosen.parent == tmp_path
    assert (chosen / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


DRIVER = """
    import os, signal, sys
    from swinbert.training import checkpoints, train

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    {patch}
    train.main(sys.argv[1:])
"""
KILLED = {
    # While files are written; and after that, before the folder is renamed.
    "while saving": """
        from transformers import Trainer
        save = Trainer._save_scaler
        Trainer._save_scaler = lambda self, folder: die() if self.state.global_step == 4 else save(self, folder)
    """,
    "before renaming": """
        flush = checkpoints._flush_to_disk
        checkpoints._flush_to_disk = lambda folder: die() if folder.name == "checkpoint-4" else flush(folder)
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


# ------------------------------------------------------------------------------------------------------ rejected runs


def test_other_arguments_are_reported_by_name(shapes, tmp_path):
    arguments = tiny_run.arguments(shapes, tmp_path)
    fail_after(3, arguments)
    before = sorted(tmp_path.rglob("*"))
    other = tiny_run.make_shapes(tmp_path.parent / f"{tmp_path.name}-other", seed=1)
    changes = {"seed": 3, "per_device_train_batch_size": 3, "config.vision_config.embed_dim": 32}
    with pytest.raises(RunError) as error:
        train.main(tiny_run.arguments(other, tmp_path, objective="causal_lm", **changes))
    lines = str(error.value).splitlines()[1:-1]
    assert [line.split(":")[0].strip() for line in lines] == [
        "captions",
        "config.vision_config.embed_dim",
        "objective",
        "per_device_train_batch_size",
        "seed",
    ]
    assert "seed: 88 in the checkpoint, 3 now" in str(error.value) and "--start_anew" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    # Arguments that do not affect the weights may change.
    free = {"dataloader_num_workers": 1, "logging_steps": 2, "save_steps": 3, "num_samples": 0, "keep_frames": False}
    train.main(tiny_run.arguments(shapes, tmp_path, **free))


@pytest.mark.parametrize("content", [None, "{"])
def test_an_incomplete_checkpoint_is_an_error(shapes, tmp_path, content):
    (tmp_path / "checkpoint-3").mkdir()
    if content is not None:
        (tmp_path / "checkpoint-3" / "run.json").write_text(content)
    with pytest.raises(RunError, match="checkpoint-3 is not a complete checkpoint"):
        train.main(tiny_run.arguments(shapes, tmp_path))


def test_two_runs_in_one_folder(shapes, tmp_path):
    code = "import sys; from swinbert.training import checkpoints\n"
    code += "with checkpoints.lock_output_folder(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"in use by another run \\(process {other.pid} on "):
            train.main(tiny_run.arguments(shapes, tmp_path))
        other.kill()
    train.main(tiny_run.arguments(shapes, tmp_path, max_steps=1))  # the lock of a killed process is released


# ------------------------------------------------------------------------------------------------------ full disks


def test_space_for_a_checkpoint_is_checked_before_training(shapes, tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"[\d.]+ MB, but .* has 0.1 MB left"):
        train.main(tiny_run.arguments(shapes, tmp_path))


def test_the_last_checkpoint_survives_a_full_disk(shapes, uninterrupted, tmp_path):
    """A limit on the size of files: weights can be written, the state of the optimiser cannot."""
    resource = pytest.importorskip("resource")
    arguments = tiny_run.arguments(shapes, tmp_path, save_total_limit=1)
    fail_after(3, arguments)
    weights = (tmp_path / "checkpoint-2" / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.2 * weights), limits[1]))
    try:
        with pytest.raises(RunError, match="could not be written.*checkpoint-2 is complete"):
            train.main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["checkpoint-2"] and not list((tmp_path / "_saving").glob("*"))
    train.main(arguments)
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted


# -------------------------------------------------------------------------------------------------------------- signals


class _Send(TrainerCallback):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_with_a_checkpoint(shapes, uninterrupted, tmp_path, capsys, number):
    arguments = tiny_run.arguments(shapes, tmp_path)
    trainer = train.build_trainer(arguments)
    trainer.add_callback(_Send(number, step=5))
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        train.run(trainer)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert not (tmp_path / "model.safetensors").exists()
    assert f"resumes from {tmp_path / 'checkpoint-5'}" in capsys.readouterr().err
    train.main(arguments)
    assert (tmp_path / "model.safetensors").read_bytes() == uninterrupted


def test_the_second_signal_stops_a_run_at_once(shapes, tmp_path):
    trainer = train.build_trainer(tiny_run.arguments(shapes, tmp_path))
    for _ in range(2):
        trainer.add_callback(_Send(signal.SIGINT, step=3))
    with pytest.raises(KeyboardInterrupt):
        train.run(trainer)
    assert names(tmp_path) == ["checkpoint-2"]
