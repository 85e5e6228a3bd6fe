"""Two processes on CPUs: DDP, DeepSpeed and FSDP train, save, resume and evaluate like a single process."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from swinbert import bundled_model
from swinbert.training import process_group, train
from swinbert.training.arguments import parse_arguments
from swinbert.training.checkpoints import RunError
from swinbert.training.process_group import check_process_group

LAUNCHED = Path(__file__).with_name("launched.py")
RECIPES = Path(train.__file__).parent / "recipes"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--redirects", "3"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
]
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")

# Three clips to evaluate, one at a time: two processes cannot share them evenly.
CHANGES = {"max_steps": 4, "eval_steps": 4, "per_device_eval_batch_size": 1, "per_device_train_batch_size": 1}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tiny_run.make_shapes(tmp_path_factory.mktemp("shapes"))


def launch(shapes, output, launcher=TORCHRUN, environment=None, **changes):
    """The finished launcher; the output of the second process is in `output.parent / "logs"`."""
    if launcher is TORCHRUN:
        launcher = [*launcher, "--log-dir", str(output.parent / "logs")]
    command = [*launcher, str(LAUNCHED), *tiny_run.arguments(shapes, output, **CHANGES, **changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def failure_report(done, output):
    logs = [path.read_text()[-3000:] for path in sorted(output.parent.glob("logs/**/stderr.log"))]
    return "\n".join([done.stdout, done.stderr[-3000:], *logs])


@pytest.fixture(scope="module")
def ddp(shapes, tmp_path_factory):
    """The folder of a finished run of two processes."""
    output = tmp_path_factory.mktemp("ddp") / "run"
    done = launch(shapes, output)
    assert done.returncode == 0, failure_report(done, output)
    return output


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(shapes, ddp):
    assert sorted(json.loads((ddp / "evaluated.json").read_text())) == [0, 1, 2]
    results = json.loads((ddp / "all_results.json").read_text())
    alone = train.build_trainer(tiny_run.arguments(shapes, ddp.parent / "alone", model=ddp)).evaluate()
    scores = [name for name in alone if name.startswith(("eval_CIDEr", "eval_distinct", "eval_exact", "eval_mask"))]
    assert len(scores) == 5
    assert {name: results[name] for name in scores} == {name: pytest.approx(alone[name], abs=1e-6) for name in scores}


@pytest.mark.slow
def test_only_the_first_process_prints(ddp):
    first, second = sorted(ddp.parent.glob("logs/**/[01]"))
    assert "'loss'" in (first / "stdout.log").read_text() and "generated:" in (first / "stderr.log").read_text()
    assert "{" not in (second / "stdout.log").read_text() and "generated:" not in (second / "stderr.log").read_text()


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch_size(shapes, ddp, tmp_path):
    """Losses are averaged over the tokens of all processes, and the sparsity loss counts once."""
    changes = {**CHANGES, "per_device_train_batch_size": 2, "max_steps": 1}
    train.main(tiny_run.arguments(shapes, tmp_path, **changes))
    one, two = (json.loads((each / "trainer_state.json").read_text())["log_history"][0] for each in (tmp_path, ddp))
    # Dropout differs.
    assert two["loss"] == pytest.approx(one["loss"], rel=0.03)
    assert two["caption_loss"] == pytest.approx(one["caption_loss"], rel=0.03)
    assert two["loss"] - two["caption_loss"] == pytest.approx(one["loss"] - one["caption_loss"], abs=2e-4)


@pytest.mark.slow
def test_a_killed_process_stops_all_and_another_launcher_resumes(shapes, ddp, tmp_path):
    output = tmp_path / "run"
    done = launch(shapes, output, environment={"DIE_AT": "4"})
    assert done.returncode != 0 and sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2"]
    done = launch(shapes, output, launcher=ACCELERATE)
    assert done.returncode == 0, failure_report(done, output)
    assert (output / "model.safetensors").read_bytes() == (ddp / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_shared_stream_is_resumed(shapes, tmp_path):
    """Each process takes every other batch of the stream; a killed and resumed run has the same weights."""
    stream = {"streaming": True, "tokenizer": bundled_model(), "keep_frames": False}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = launch(shapes, whole, **stream)
    assert done.returncode == 0, failure_report(done, whole)
    assert launch(shapes, parts, environment={"DIE_AT": "4"}, **stream).returncode != 0
    done = launch(shapes, parts, **stream)
    assert done.returncode == 0, failure_report(done, parts)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


PARTED = {
    **{
        f"zero{stage}": ({"DS_ACCELERATOR": "cpu"}, {"deepspeed": RECIPES / f"deepspeed_zero{stage}.json"})
        for stage in (1, 2, 3)
    },
    "fsdp": ({"ACCELERATE_TORCH_DEVICE": "cpu"}, {"fsdp": True, "fsdp_config": RECIPES / "fsdp.json"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param(how, marks=needs_deepspeed if "zero" in how else ()) for how in PARTED])
def test_sharded_parameters(shapes, ddp, tmp_path, how):
    """DeepSpeed and FSDP have the weights and scores of DDP, also when resumed, and save an ordinary folder."""
    environment, changes = PARTED[how]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = launch(shapes, whole, environment=environment, **changes)
    assert done.returncode == 0, failure_report(done, whole)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    done = launch(shapes, resumed, environment=environment, **changes)
    assert done.returncode == 0, failure_report(done, resumed)
    assert (resumed / "checkpoint-4").is_dir()
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()

    expected, weights = load_file(ddp / "model.safetensors"), load_file(whole / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        # Adam amplifies rounding errors of gradients that are almost zero.
        torch.testing.assert_close(weights[name], tensor, atol=2e-3, rtol=0, msg=name)
    apart = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert apart.median() < 1e-6
    assert sorted(json.loads((whole / "evaluated.json").read_text())) == [0, 1, 2]
    results, wanted = (json.loads((each / "all_results.json").read_text()) for each in (whole, ddp))
    assert results["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-3)
    assert results["eval_sparsity_loss"] == wanted["eval_sparsity_loss"]

    assert {path.name for path in whole.glob("*.py")} == {path.name for path in ddp.glob("*.py")}
    assert json.loads((whole / "config.json").read_text()) == json.loads((ddp / "config.json").read_text())
    model, processor = AutoModelForImageTextToText.from_pretrained(whole), AutoProcessor.from_pretrained(whole)
    inputs = processor(videos=str(next(shapes.rglob("*.mp4"))), return_tensors="pt")
    assert processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]


# -------------------------------------------------------------------------------------- a single process


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},  # torchrun without --use_cpu
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},  # accelerate launch --cpu --num_processes 2
    ],
)
def test_processes_without_a_group_are_an_error(shapes, tmp_path, monkeypatch, environment):
    training = parse_arguments(tiny_run.arguments(shapes, tmp_path))[2]
    check_process_group(training)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="each would train a model of its own"):
        check_process_group(training)


def test_fsdp_without_gpus_is_an_error(shapes, tmp_path, monkeypatch):
    training = parse_arguments(tiny_run.arguments(shapes, tmp_path))[2]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RunError, match="FSDP needs GPUs"):
        check_process_group(training)


def test_scst_with_sharded_parameters_is_an_error(shapes, tmp_path, monkeypatch):
    training = parse_arguments(tiny_run.arguments(shapes, tmp_path))[2]
    check_process_group(training, "scst")
    monkeypatch.setattr(process_group, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(RunError, match="use ZeRO-2"):
        check_process_group(training, "scst")


@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
@pytest.mark.parametrize("sparse_mask", ["none", "soft", "hard"])
def test_every_parameter_gets_a_gradient(shapes, tmp_path, objective, sparse_mask):
    """Otherwise DDP would hang, or would have to search for unused parameters in every step."""
    changes = {"objective": objective, "config.sparse_mask": sparse_mask, "config.vision_config.drop_path_rate": 0}
    trainer = train.build_trainer(tiny_run.arguments(shapes, tmp_path, **changes))
    model = trainer.model.train()
    trainer.compute_loss(model, next(iter(trainer.get_train_dataloader()))).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_checkpointed_gradients_are_the_same_and_bf16_runs(shapes, tmp_path):
    gradients = []
    common = {"max_steps": 1, "eval_split": "none", "eval_strategy": "no"}
    for changes in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "bf16": True}):
        output = tmp_path / str(len(gradients))
        trainer = train.build_trainer(tiny_run.arguments(shapes, output, **common, **changes))
        kept = []
        step = trainer.training_step

        def keep(model, *args, step=step, kept=kept, **kwargs):
            loss = step(model, *args, **kwargs)
            kept.append(torch.cat([each.grad.float().flatten() for each in model.parameters()]))
            return loss

        trainer.training_step = keep
        train.run(trainer)
        gradients += kept
    plain, checkpointed, bf16 = gradients
    torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(bf16, plain, dim=0) > 0.95
