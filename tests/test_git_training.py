"""`swinbert train --model GIT`: batches equal to those of the pipeline, and a run from clips to captions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from captioning import write_clip, write_git_folder
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline
from typer.testing import CliRunner

from swinbert import bundled_model
from swinbert.cli import app
from swinbert.training import train
from swinbert.training.arguments import DataArguments, ModelArguments
from swinbert.training.data.clip_datasets import ClipDataset, load_clips
from swinbert.training.families import GitTraining, SwinBertTraining, model_family

CAPTIONS = [["a man runs", "the man turns left and runs", "a man"], ["a red car is in grass", "the car", "a blue car"]]


@pytest.fixture(scope="module", params=["VideoMAEImageProcessor", "CLIPImageProcessor"], ids=["video", "image"])
def folder(request, tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"), image_processor_type=request.param)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("clips"), []
    for number, split in enumerate(["train"] * 4 + ["validation"] * 3):
        name = write_clip(folder / f"{number}.mp4", number).name
        lines.append({"file_name": name, "split": split, "captions": CAPTIONS[number % 2]})
    lines[1] |= {"start": 1.0, "end": 2.0}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def loaded(folder, config=None, **arguments):
    return GitTraining().load(ModelArguments(model=str(folder), **arguments), config or {})


def batch_of(folder, dataset, indices, model=None, **arguments):
    source, processor, _ = loaded(folder)
    model = model or source
    clips = ClipDataset(load_clips(dataset, "train"), GitTraining().frame_reader(model, processor))
    data = DataArguments(str(dataset), **arguments)
    return GitTraining().collator(model, processor, data)([clips[index] for index in indices]), processor


# ------------------------------------------------------------------------------------------------------------- batches


def test_pixels_are_those_of_the_pipeline(folder, dataset):
    batch, _ = batch_of(folder, dataset, [0, 1])
    pipe = pipeline("video-captioning", model=str(folder), device="cpu")
    assert batch["pixel_values"].shape == (2, 6, 3, 32, 32) and next(iter(batch)) == "pixel_values"
    for row, clip in enumerate(load_clips(dataset, "train").select([0, 1])):
        wanted = {"video": clip["video"]["path"], "start": clip["start"], "end": clip["end"]}
        assert torch.equal(batch["pixel_values"][row : row + 1], pipe.preprocess(wanted)["pixel_values"])
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


def test_captions_are_aligned_with_their_clips(folder, dataset):
    """The model repeats clips as a whole, (a, b, a, b): the loss is that of each caption with its own clip."""
    batch, processor = batch_of(folder, dataset, [2, 1], captions_per_clip=2)
    assert batch["index"].tolist() == [2, 1] and batch["pixel_values"].shape[0] == 2
    captions = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for row, caption in enumerate(captions):
        assert caption in CAPTIONS[(2, 1)[row % 2] % 2]
    assert len(set(captions)) == 4
    assert (batch["labels"] == -100).equal(
        (batch["attention_mask"] == 0) | (torch.arange(batch["labels"].shape[1]) == 0)
    )

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    index = batch.pop("index")
    with torch.no_grad():
        together = model(**batch).loss
        total, count = 0.0, 0
        for row in range(4):
            alone = {name: rows[row : row + 1] for name, rows in batch.items() if name != "pixel_values"}
            words = int((alone["labels"] != -100).sum())
            clip = row % len(index)
            total += words * model(pixel_values=batch["pixel_values"][clip : clip + 1], **alone).loss
            count += words
    assert together.item() == pytest.approx((total / count).item(), rel=1e-4)


def test_random_crops_are_those_of_the_whole_clip(folder, dataset):
    first, _ = batch_of(folder, dataset, [0], random_crop=True)
    again, _ = batch_of(folder, dataset, [0], random_crop=True)
    centre, _ = batch_of(folder, dataset, [0])
    assert first["pixel_values"].shape == centre["pixel_values"].shape
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    # Resized clips are 48 x 32: one of the 17 places is the centre.
    places = [batch_of(folder, dataset, [index], random_crop=True)[0]["pixel_values"] for index in range(3)]
    centres = [batch_of(folder, dataset, [index])[0]["pixel_values"] for index in range(3)]
    assert not all(torch.allclose(*pair, atol=0.1) for pair in zip(places, centres, strict=True))


def test_rows_of_any_dataset(folder, dataset):
    clip = load_clips(dataset, "train")[0]
    ours, _ = batch_of(folder, dataset, [0], captions_per_clip=2)
    model, processor, _ = loaded(folder)
    collator = GitTraining().collator(model, processor, DataArguments(str(dataset), captions_per_clip=2))
    theirs = collator([{"video": clip["video"]["path"], "caption": clip["captions"]}])
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], rtol=0, atol=0)
    assert set(ours) - set(theirs) == {"index"} and len(theirs["labels"]) == 2


def test_a_model_of_single_images(tmp_path, dataset):
    folder = write_git_folder(tmp_path, num_image_with_embedding=None, image_processor_type="CLIPImageProcessor")
    batch, _ = batch_of(folder, dataset, [0])
    pipe = pipeline("video-captioning", model=str(folder), device="cpu")
    wanted = pipe.preprocess(load_clips(dataset, "train")[0]["video"]["path"])["pixel_values"]
    assert torch.equal(batch["pixel_values"], wanted) and wanted.shape == (1, 3, 32, 32)
    assert "middle frame" in loaded(folder)[2][1]

    # With temporal embeddings it takes clips; they start at zero, and all other weights are kept.
    model, _, report = loaded(folder, {"num_image_with_embedding": 4})
    assert any("4 tensors" in line and "git.img_temporal_embedding (4)" in line for line in report)
    weights, before = model.state_dict(), AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert all(not tensor.any() for name, tensor in weights.items() if name not in before)
    batch, _ = batch_of(folder, dataset, [0, 1], model=model)
    assert batch["pixel_values"].shape == (2, 4, 3, 32, 32)
    batch.pop("index")
    assert model(**batch).loss.isfinite()


def test_the_type_of_a_model_decides_its_family(folder):
    assert isinstance(model_family(str(folder)), GitTraining)
    for model in (None, bundled_model()):
        assert isinstance(model_family(model), SwinBertTraining)


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ({"lora_rank": 2}, {}, "no --lora_rank"),
        ({"objective": "scst"}, {}, "no --objective scst"),
        ({"objective": "masked_lm"}, {}, "no --objective masked_lm"),
        ({"tokenizer": "captions"}, {}, "no --tokenizer"),
        ({"mask": "there"}, {}, "no --mask"),
        ({}, {"num_frames": 8}, "no --config.num_frames.*--config.num_image_with_embedding"),
        ({}, {"num_image_with_embedding": 4}, "does not fit"),
        ({"freeze": ["bert"]}, {}, "--freeze bert .*git.image_encoder"),
    ],
)
def test_inapplicable_arguments_are_an_error(tmp_path, arguments, config, message):
    folder = write_git_folder(tmp_path / "git")
    with pytest.raises(ValueError, match=message):
        loaded(folder, config, **arguments)


# --------------------------------------------------------------------------------------------------------------- a run


def arguments(dataset, model, output_dir, **changes):
    values = {
        "dataset": dataset,
        "model": model,
        "output_dir": output_dir,
        "max_steps": 3,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "captions_per_clip": 2,
        "per_device_train_batch_size": 2,
        "freeze": "image_encoder",
        "generation_max_length": 12,
        "metrics": "cider",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_from_clips_to_captions(dataset, tmp_path, capsys):
    """Trains, evaluates by generation and saves; resumes to the same weights; captions a clip."""
    model = write_git_folder(tmp_path / "git")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = train.main(arguments(dataset, model, whole))
    assert {"train_loss", "eval_loss", "eval_CIDEr", "eval_distinct_captions"} <= set(metrics)
    assert "generated: " in capsys.readouterr().err
    history = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses == pytest.approx([row["caption_loss"] for row in history if "loss" in row], abs=1e-3)
    assert losses[-1] < losses[0]

    train.main(arguments(dataset, model, parts, resume_from_checkpoint=whole / "checkpoint-1"))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()

    before, after = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (model, whole))
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same and all(("image_encoder" in name) == (name in same) for name in before if "embedding" not in name)
    assert (
        AutoProcessor.from_pretrained(whole).image_processor.size
        == AutoProcessor.from_pretrained(model).image_processor.size
    )
    card = (whole / "README.md").read_text()
    assert "# whole" in card and "GIT" in card and "SwinBERT" not in card and "| CIDEr |" in card

    captioned = CliRunner().invoke(app, ["caption", str(dataset / "4.mp4"), "--model", str(whole), "--device", "cpu"])
    assert captioned.exit_code == 0, captioned.output
    expected = pipeline("video-captioning", model=str(whole), device="cpu")(str(dataset / "4.mp4"))[0]["generated_text"]
    assert captioned.stdout.strip() == expected
    assert np.isfinite(metrics["eval_CIDEr"])


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(dataset, tmp_path):
    model, run = write_git_folder(tmp_path / "git"), tmp_path / "run"
    each = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).with_name("launched.py")), *arguments(dataset, model, run, **each)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(json.loads((run / "evaluated.json").read_text())) == [0, 1, 2]
    results = json.loads((run / "all_results.json").read_text())
    alone = train.build_trainer(arguments(dataset, run, tmp_path / "alone", **each)).evaluate()
    for name in ("eval_loss", "eval_CIDEr", "eval_distinct_captions"):
        assert results[name] == pytest.approx(alone[name], rel=1e-5), name


def test_the_command_reports_inapplicable_arguments(dataset, tmp_path):
    model = write_git_folder(tmp_path / "git")
    arguments = ["train", "--dataset", str(dataset), "--model", str(model), "--output_dir", str(tmp_path / "x")]
    result = CliRunner().invoke(app, [*arguments, "--objective", "scst", "--use_cpu"])
    assert result.exit_code == 1 and "--objective scst" in result.output
    assert not (tmp_path / "x").exists()
