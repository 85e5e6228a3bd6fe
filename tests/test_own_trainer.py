"""Training in one's own loop: `Trainer`, `Seq2SeqTrainer`, accelerate, with rows of `datasets` and our collator."""

import io
import json
import logging
import random
import re
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import tiny_run
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import find_labels
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from swinbert import SwinBertForVideoCaptioning, fusion_swinbert
from swinbert.cli import app
from swinbert.processing import VideoDecodeError
from swinbert.training import train
from swinbert.training.data.clip_datasets import ClipDataset
from swinbert.training.data.collators import CaptionCollator
from swinbert.training.data.sources import load_clips

EXAMPLES = Path(train.__file__).parent / "examples"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tiny_run.make_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def start(shapes, tmp_path_factory):
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("model") / "start"
    without_chance = {"config.hidden_dropout_prob": 0, "config.vision_config.drop_path_rate": 0}
    longer = {"config.max_position_embeddings": 48, "config.max_caption_length": 48}
    train.build_trainer(tiny_run.arguments(shapes, folder, **without_chance, **longer)).save_model(str(folder))
    return str(folder)


@pytest.fixture
def model(start):
    return AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(start):
    return AutoProcessor.from_pretrained(start)


@pytest.fixture(scope="module")
def rows(shapes):
    clips = load_clips(shapes, "train")
    return datasets.Dataset.from_list(
        [{"video": clip["video"]["path"], "caption": clip["captions"][0]} for clip in clips]
    )


def collator_of(model, processor, **arguments):
    return CaptionCollator(processor, model.config.objective, model.config.max_caption_length, **arguments)


def arguments_of(kind, output, **changes):
    values = {"max_steps": 2, "remove_unused_columns": False, "report_to": "none", "save_strategy": "no"}
    return kind(str(output), use_cpu=True, disable_tqdm=True, **{**values, **changes})


# --- The collator takes rows ------------------------------------------------------------------------------------------


def test_rows_give_the_batches_of_our_dataset(shapes, start, processor):
    clips = load_clips(shapes, "train")
    ours = CaptionCollator(processor, "causal_lm", 48)([ClipDataset(clips, processor.video_processor)[2]])
    path = clips[2]["video"]["path"]
    content = Path(path).read_bytes()
    for video in (path, Path(path), content, {"path": path, "bytes": None}, {"path": None, "bytes": content}):
        theirs = CaptionCollator(processor, "causal_lm", 48)([{"video": video, "captions": clips[2]["captions"]}])
        torch.testing.assert_close(theirs["pixel_values_videos"], ours["pixel_values_videos"], rtol=0, atol=0)
        texts = processor.batch_decode(theirs["input_ids"], skip_special_tokens=True)
        assert texts[0] in clips[2]["captions"]
        assert set(theirs) == set(ours) - {"index"}
    crop = CaptionCollator(processor, "causal_lm", 48, random_crop=True)([{"video": path, "text": "a"}])
    assert crop["pixel_values_videos"].shape == ours["pixel_values_videos"].shape
    part = CaptionCollator(processor, "causal_lm", 48)([{"video": path, "text": "a", "start": 0.0, "end": 0.1}])
    assert not torch.equal(part["pixel_values_videos"], ours["pixel_values_videos"])


@pytest.mark.parametrize("name", ["caption", "captions", "text", "sentence"])
def test_names_of_the_captions_of_a_row(name, rows, processor):
    collator = CaptionCollator(processor, "causal_lm", 48)
    for value in ("a small red circle", ["a small red circle"]):
        batch = collator([{"video": rows[0]["video"], name: value}])
        assert processor.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a small red circle"]


def test_masks_of_rows_are_those_of_the_seed(rows, processor):
    def batch(seed):
        random.seed(seed)
        return CaptionCollator(processor, max_caption_length=48)([rows[0], rows[1]])["labels"]

    assert torch.equal(batch(1), batch(1)) and not torch.equal(batch(1), batch(2))


def test_rows_that_cannot_be_used(rows, processor, tmp_path):
    collator = CaptionCollator(processor)
    with pytest.raises(ValueError, match="`video` and `caption`.*remove_unused_columns=False"):
        collator([{}])
    with pytest.raises(ValueError, match="a row with `caption`"):
        collator([{"video": rows[0]["video"]}])
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(VideoDecodeError, match="text.mp4"):
        collator([{"video": str(tmp_path / "text.mp4"), "caption": "a"}])


# --- Labels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the model's module. Each is given once in a process: these are those of this test."""
    messages: list[str] = []
    monkeypatch.setattr(fusion_swinbert.logger, "warning_once", messages.append)
    return messages


def test_labels_that_equal_the_inputs_are_warned_of(rows, model, processor, warned):
    batch = CaptionCollator(processor, "causal_lm", 48)([rows[0], rows[1]])
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])
    model.eval()(**batch)
    assert not warned
    model.train()(**batch)
    assert len(warned) == 1 and "nothing is masked" in warned[0] and "CaptionCollator" in warned[0]


def test_masked_labels_are_not_warned_of(rows, model, processor, warned):
    model.train()
    for _ in range(5):
        model(**CaptionCollator(processor, max_caption_length=48)([rows[0]]))
    model.config.objective = "causal_lm"
    model(**CaptionCollator(processor, "causal_lm", 48)([rows[0]]))
    assert not warned


def test_the_warning_is_given_once(rows, model, processor):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    fusion_swinbert.logger.addHandler(handler)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.warning_once.cache_clear()
    try:
        batch = CaptionCollator(processor, "causal_lm", 48)([rows[0], rows[1]])
        for _ in range(3):
            model.train()(**batch)
    finally:
        fusion_swinbert.logger.removeHandler(handler)
        transformers_logging.set_verbosity(level)
    assert stream.getvalue().count("nothing is masked") == 1


def test_labels_are_the_only_labels():
    assert find_labels(SwinBertForVideoCaptioning) == ["labels"]


# --- Trainer and Seq2SeqTrainer ---------------------------------------------------------------------------------------


def test_trainer_evaluates(rows, model, processor, tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        predicted = prediction.label_ids != -100
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[predicted].mean())}

    trainer = Trainer(
        model=model,
        args=arguments_of(TrainingArguments, tmp_path, per_device_eval_batch_size=2),
        data_collator=collator_of(model, processor),
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and 0 <= metrics["eval_accuracy"] <= 1
    assert seen["logits"].shape == (*seen["labels"].shape, model.config.vocab_size) and len(rows) == len(seen["labels"])


@pytest.mark.parametrize("of_our_dataset", [False, True])
def test_generated_captions_are_of_the_clip(of_our_dataset, shapes, rows, model, processor, tmp_path):
    """`Seq2SeqTrainer` passes the whole batch to `generate`: nothing of the reference may be in the captions."""
    data = ClipDataset(load_clips(shapes, "train"), processor.video_processor) if of_our_dataset else rows
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments_of(Seq2SeqTrainingArguments, tmp_path, predict_with_generate=True, per_device_eval_batch_size=4),
        data_collator=collator_of(model, processor),
        processing_class=processor,
    )
    generation = {"max_length": 12, "num_beams": 2}
    output = trainer.predict(data, **generation)
    assert output.metrics["test_loss"] > 0 and output.label_ids is not None
    videos = [row["video"] for row in rows]
    pixels = processor(videos=videos, return_tensors="pt")["pixel_values_videos"]
    alone = model.generate(pixel_values_videos=pixels, **generation)
    captions = [processor.batch_decode(ids, skip_special_tokens=True) for ids in (output.predictions, alone)]
    assert captions[0] == captions[1]


def test_the_text_of_a_batch_is_a_prompt_only_when_asked(rows, model, processor):
    batch = CaptionCollator(processor, "causal_lm", 48)([rows[0], rows[1]])
    pixels = batch["pixel_values_videos"]
    alone = model.generate(pixel_values_videos=pixels, max_length=10)
    assert torch.equal(model.generate(**batch, max_length=10), alone)
    encoded = model.encode_video(pixels).video_key_values
    without_pixels = {name: value for name, value in batch.items() if name != "pixel_values_videos"}
    assert torch.equal(model.generate(**without_pixels, video_key_values=encoded, max_length=10), alone)

    prompt = batch["input_ids"][:, :4]
    named = model.generate(input_ids=prompt, pixel_values_videos=pixels, max_length=10)
    continued = model.generate(prompt, **batch, max_length=10)
    assert torch.equal(continued, named) and torch.equal(continued[:, :4], prompt)


# --- The examples -----------------------------------------------------------------------------------------------------


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    set_seed(0)
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def eval_loss(folder, shapes):
    """The loss of a saved model on the training clips, with the same masks for every model."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    dataset = ClipDataset(load_clips(shapes, "train"), processor.video_processor)
    batch = collator_of(model, processor, captions_per_clip=8)([dataset[index] for index in range(len(dataset))])
    batch.pop("index")
    with torch.no_grad():
        return model.eval()(**batch).loss.item()


def test_examples_learn_what_our_command_learns(shapes, start, tmp_path, monkeypatch):
    steps = 60
    run_example("own_trainer.py", monkeypatch, shapes, start, tmp_path / "own", steps)
    run_example("accelerate_loop.py", monkeypatch, shapes, start, tmp_path / "loop", steps)
    # The settings of plain `Trainer`: one learning rate, no weight decay, no warm-up.
    plain = {"backbone_lr_factor": 1, "weight_decay": 0, "warmup_steps": 0, "learning_rate": 1e-3, "max_shift": 0}
    batch = {"max_steps": steps, "per_device_train_batch_size": 8, "captions_per_clip": 1, "eval_strategy": "no"}
    files = {"save_strategy": "no", "model": start}
    words = tiny_run.arguments(shapes, tmp_path / "command", **plain, **batch, **files)
    without_config = [pair for pair in zip(words[::2], words[1::2], strict=True) if not pair[0].startswith("--config.")]
    train.main([word for pair in without_config for word in pair])
    before = eval_loss(start, shapes)
    own, loop, command = (eval_loss(tmp_path / name, shapes) for name in ("own", "loop", "command"))
    assert command < 0.85 * before
    assert own == pytest.approx(command, rel=0.05) and loop == pytest.approx(command, rel=0.05)


def test_the_readme_shows_the_examples():
    text = Path(__file__).parents[1].joinpath("training", "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for file in sorted(EXAMPLES.glob("*.py")):
        code = file.read_text(encoding="utf-8")
        assert code in shown and len(code.splitlines()) < 40, file.name
    assert len(list(EXAMPLES.glob("*.py"))) == 2


# --- `swinbert train` says in one line what is wrong ------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_clip_is_named_in_one_line(workers, shapes, tmp_path):
    dataset = tmp_path / "broken"
    shutil.copytree(shapes, dataset)
    name = json.loads((dataset / "metadata.jsonl").read_text().splitlines()[1])["file_name"]
    (dataset / name).write_bytes(b"this is no video")
    changes = {"keep_frames": False, "dataloader_num_workers": workers, "eval_strategy": "no", "save_strategy": "no"}
    arguments = tiny_run.arguments(dataset, tmp_path / "run", **changes)
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 1 and "Traceback" not in result.output
    said = [line for line in result.stderr.splitlines() if name in line]
    assert len(said) == 1
    assert "--skip_unreadable" in said[0] and "swinbert doctor" in said[0] and "expected a video" in said[0]

    result = CliRunner().invoke(app, ["train", *arguments, "--skip_unreadable", "true", "--max_steps", "1"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lerning_rate", "1"], 1, "--lerning_rate .*--learning_rate?"),
        (["--confg.hidden_size=3"], 1, "--confg.hidden_size .*--config.hidden_size?"),
        (["--config.hiden_size=3"], 1, "hiden_size .*hidden_size?"),
        (["--max_steps", "one"], 2, "--max_steps.*invalid int value: 'one'"),
        (["--objective", "clm"], 2, "--objective: invalid choice: 'clm'"),
        (["--dataset", "shaeps"], 1, "no such folder: shaeps. Did you mean shapes"),
        (["--model", "outputs/mine"], 1, "--model: There is no such folder: outputs/mine. Did you mean outputs/minee"),
        (["--backbone", "/no/where"], 1, "--backbone: There is no such folder: /no/where"),
        (["--eval_split", "dev"], 1, "no split 'dev'.*--eval_split none"),
        (["stray"], 1, "Unexpected stray"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(shapes)
    (tmp_path / "outputs" / "minee").mkdir(parents=True)
    result = CliRunner().invoke(app, ["train", "--dataset", "shapes", "--output_dir", "outputs/new", *arguments])
    said = [line for line in result.stderr.splitlines() if line.startswith("swinbert: ")]
    assert result.exit_code == code and len(said) == 1 and re.search(message, said[0]), result.output
    assert "usage:" not in result.output and not (tmp_path / "outputs" / "new").exists()


@pytest.mark.parametrize("arguments", [["--max_steps", "1", "--lerning_rate", "1"], ["--model", "/no/where"]])
def test_processes_that_torchrun_starts_say_it_in_one_line_too(arguments, shapes, tmp_path, capsys):
    """`python -m swinbert.training.train` calls this function."""
    with pytest.raises(SystemExit) as ended:
        train.train_or_exit(["--dataset", str(shapes), "--output_dir", str(tmp_path / "new"), *arguments])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len([line for line in said if line.startswith("swinbert: ")]) == 1


def test_help_has_groups_and_each_option_once():
    text = CliRunner().invoke(app, ["train", "--help"]).stdout
    parts = re.split(r"^(Model|Data|Training|Training, further.*):$", text, flags=re.MULTILINE)
    assert parts[1::2][:3] == ["Model", "Data", "Training"] and "transformers" in parts[7]
    model, data, ours, theirs = parts[2::2]
    for part, option in ((model, "--backbone"), (data, "--dataset"), (ours, "--mask_lr_factor"), (theirs, "--bf16")):
        assert option in part
    options = re.findall(r"^  (--\w[\w-]*)", text, re.MULTILINE)
    assert len(options) > 100 and len(set(options)) == len(options)
    assert {"--learning_rate", "--max_steps"} <= set(options) and not [each for each in options if "-" in each[2:]]
