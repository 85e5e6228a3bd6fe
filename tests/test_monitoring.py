"""Recipes, augmentation, scores, warnings and the figure of a run; errors that are found before training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EvalPrediction
from typer.testing import CliRunner

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning
from swinbert.cli import app
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor
from swinbert.training import train
from swinbert.training.arguments import parse_arguments
from swinbert.training.data.collators import CaptionCollator
from swinbert.training.initialization import check_config
from swinbert.training.metrics import java_metrics, scoring
from swinbert.training.monitoring import CaptionMetrics, collapse_warning, history_figure, plot_history
from swinbert.training.moving_shapes import make_shapes
from swinbert.training.tokenization import build_tokenizer
from swinbert.training.trainer import VideoCaptioningTrainer

RECIPES = sorted((Path(train.__file__).parent / "recipes").glob("*.yaml"))
BENCHMARKS = {
    "msvd": (15, 1, 0.5),
    "msrvtt": (15, 4, 0.5),
    "vatex": (15, 1, 0.5),
    "youcook2": (40, 4, 0.5),
    "tvc": (40, 1, 0.1),
}


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_make_models(recipe):
    model_args, data_args, training_args, config = parse_arguments([str(recipe)])
    check_config(config)
    assert len(recipe.read_text().splitlines()) <= 60
    if recipe.stem in ("moving_shapes", "studies"):
        return
    assert data_args.random_crop and training_args.metric_for_best_model == "CIDEr" and training_args.greater_is_better
    with torch.device("meta"):
        model = SwinBertForVideoCaptioning(
            SwinBertConfig(**config, **({"objective": model_args.objective} if model_args.objective else {}))
        )
    # The original's, less its pooler, its unused image head and its mask of 196 x 196; ours is one of 784 x 784.
    mask = 784**2 if config["sparse_mask"] == "soft" else 0
    assert model.num_parameters() - mask == 224_309_010 - 590_592 - 2_167_040 - 196**2
    assert (model.config.num_video_tokens, model_args.generation_max_length) == (784, 20)
    if recipe.stem == "git":
        assert model.config.objective == "causal_lm"
    else:
        epochs, accumulation, weight = BENCHMARKS[recipe.stem]
        assert (training_args.num_train_epochs, training_args.gradient_accumulation_steps) == (epochs, accumulation)
        assert (training_args.learning_rate, training_args.backbone_lr_factor, training_args.weight_decay) == (
            3e-4,
            0.05,
            0.2,
        )
        assert (training_args.per_device_train_batch_size, training_args.warmup_steps, training_args.seed) == (
            6,
            0.1,
            88,
        )
        assert (data_args.mask_prob, data_args.max_masked_tokens, model.config.sparsity_loss_weight) == (
            0.5,
            45,
            weight,
        )


def test_a_named_model_replaces_the_new_model_of_a_recipe(tmp_path):
    changes = ["--model=there", "--config.num_frames", "64", "--objective", "scst"]
    model_args, data_args, _, config = parse_arguments([str(RECIPES[0].with_name("tvc.yaml")), *changes])
    assert (model_args.model, model_args.backbone, model_args.tokenizer) == ("there", None, None)
    assert (model_args.objective, model_args.generation_max_length, data_args.dataset) == ("scst", 20, "tvc")
    assert config == {"num_frames": 64}


def test_there_is_a_recipe_for_every_benchmark():
    assert {recipe.stem for recipe in RECIPES} == {*BENCHMARKS, "git", "moving_shapes", "studies"}


# -------------------------------------------------------------------------------------------------------- augmentation


def test_random_crops_are_those_of_the_whole_clip():
    """Every frame is cut at one place, which differs from clip to clip and epoch to epoch; none is flipped."""
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    video_processor = SwinBertVideoProcessor(num_frames=2, **size, do_rescale=False, do_normalize=False)
    processor = SwinBertProcessor(video_processor, build_tokenizer(["a b"]))
    frame = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)
    # The short side comes to 8 pixels, the long one to 24.
    resized = torch.from_numpy(np.array(Image.fromarray(frame).resize((24, 8), Image.Resampling.BILINEAR))).permute(
        2, 0, 1
    )
    example = {"frames": np.stack([frame, frame]), "captions": ["a b"], "index": 0}
    places = []
    for epoch in range(40):
        pixels = CaptionCollator(processor, random_crop=True)([{**example, "seed": (0, epoch, 0)}])[
            "pixel_values_videos"
        ]
        assert pixels.shape == (1, 2, 3, 8, 8) and torch.equal(pixels[0, 0], pixels[0, 1])
        (place,) = [
            left for left in range(17) if torch.equal(resized[:, :, left : left + 8].float(), pixels[0, 0].float())
        ]
        places.append(place)
    assert min(places) <= 1 and max(places) >= 15 and len(set(places)) > 8
    again = CaptionCollator(processor, random_crop=True)([{**example, "seed": (0, 39, 0)}])["pixel_values_videos"]
    assert torch.equal(again, pixels)
    centre = CaptionCollator(processor)([{**example, "seed": (0, 0, 0)}])["pixel_values_videos"]
    assert torch.equal(centre[0, 0].float(), resized[:, :, 8:16].float())


# ------------------------------------------------------------------------------------------ scores, warnings, a figure


class Clips(dict):
    """What `CaptionMetrics` reads of a dataset."""


def predict(processor, captions, indices):
    rows = [processor.tokenizer(caption)["input_ids"] for caption in captions]
    longest = max(map(len, rows))
    ids = np.array([row + [-100] * (longest - len(row)) for row in rows])
    return EvalPrediction(predictions=ids, label_ids=np.array(indices))


@pytest.fixture(scope="module")
def processor():
    return SwinBertProcessor(
        SwinBertVideoProcessor(num_frames=2), build_tokenizer(["a man plays a guitar on stage dog runs"])
    )


def test_scores_take_all_references_and_each_clip_once(processor, capsys):
    clips = Clips(captions=[["a man plays", "a man plays a guitar"], ["a dog runs", "dog runs on stage"]])
    metrics = CaptionMetrics(processor, clips, ["bleu", "rouge_l", "cider"], num_samples=1)
    # The second clip fills up the last batch.
    scores = metrics(predict(processor, ["a man plays a guitar", "dog runs on stage", "dog runs on stage"], [0, 1, 1]))
    assert set(scores) == {"distinct_captions", "Bleu_4", "ROUGE_L", "CIDEr"}
    assert [scores["Bleu_4"], scores["ROUGE_L"]] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert scores["CIDEr"] > 5 and scores["distinct_captions"] == 1
    printed = capsys.readouterr().err
    assert "generated: a man plays a guitar\n  reference: a man plays\n" in printed and "dog" not in printed
    worse = metrics(predict(processor, ["a man plays a guitar", "a man plays a guitar"], [1, 0]))
    assert worse["CIDEr"] < scores["CIDEr"] and worse["distinct_captions"] == 0.5
    assert set(CaptionMetrics(processor, clips, [])(predict(processor, ["a", "a"], [0, 1]))) == {"distinct_captions"}


def test_a_metric_that_fails_does_not_stop_the_run(processor, capsys, monkeypatch):
    def fail(candidates, references):
        raise RuntimeError("METEOR's Java program gave no score.")

    monkeypatch.setattr(java_metrics, "_coco_tools", lambda metric: None)
    monkeypatch.setattr(scoring, "meteor", fail)
    clips = Clips(captions=[["a man plays"], ["a dog runs"]])
    scores = CaptionMetrics(processor, clips, ["cider", "meteor"])(predict(processor, ["a man", "a dog"], [0, 1]))
    assert set(scores) == {"distinct_captions", "CIDEr"}
    warning = capsys.readouterr().err
    assert "meteor" in warning and "METEOR's Java program gave no score." in warning


def test_extra_scorers_add_shares_but_no_counts(processor):
    clips = Clips(captions=[["a man plays"], ["a dog runs"]])

    def scorer(captions, references):
        return {"same": 1, "same_share": 0.5} if references == {"0": ["a man plays"], "1": ["a dog runs"]} else {}

    metrics = CaptionMetrics(processor, clips, [], extra_scorers=[scorer])(predict(processor, ["a", "man"], [0, 1]))
    assert metrics == {"distinct_captions": 1.0, "same_share": 0.5}


def test_collapsed_captions_are_reported(processor, capsys):
    warning = collapse_warning(["a man"] * 9 + ["a dog"])
    assert "9 of 10 clips" in warning and "'a man'" in warning and "--learning_rate" in warning
    assert collapse_warning(["a man"] * 8 + ["a dog"] * 2) is None and collapse_warning(["a man"] * 3) is None
    clips, same = Clips(captions=[["a man"]] * 4), predict(processor, ["a man"] * 4, range(4))
    CaptionMetrics(processor, clips, [])(same)
    assert "--learning_rate" in capsys.readouterr().err
    metrics = CaptionMetrics(processor, clips, [])
    first, again = (metrics(same) and capsys.readouterr().err for _ in range(2))
    assert len(again) < len(first) / 3 and "4 of 4 clips" in again
    CaptionMetrics(processor, clips, [], num_samples=2, quiet=True)(same)
    assert not capsys.readouterr().err


def curves(axes) -> dict[str, dict[int, float]]:
    """Label of a curve -> step -> value."""
    return {line.get_label(): dict(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}


def assert_drawn(file: Path, panels: int) -> None:
    """Each of the panels from left to right has coloured pixels, as curves have and axes have not."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for panel in np.array_split(pixels, panels, axis=1):
        assert (np.ptp(panel, axis=-1) > 100).sum() > 20


def test_figure_of_a_run(tmp_path):
    history = [{"step": step, "loss": 3 / step, "caption_loss": 2 / step} for step in range(1, 9)]
    history += [
        {"step": 4, "eval_caption_loss": 0.9, "eval_CIDEr": 0.1, "eval_mask_alive": 0.5, "eval_exact_content": 0.25},
        {"step": 8, "train_loss": 1},
    ]
    figure = history_figure(history, extra_scores=["exact_content"])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "CIDEr", "other scores", "sparse mask"]
    loss, cider, scores, mask = map(curves, figure.axes)
    assert loss == {
        "total, training": {step: 3 / step for step in range(1, 9)},
        "captions, training": {step: 2 / step for step in range(1, 9)},
        "captions, evaluation": {4: 0.9},
    }
    assert cider == {"evaluation": {4: 0.1}} and scores == {"exact content": {4: 0.25}}
    assert mask == {"share alive in float32": {4: 0.5}}
    assert all(axes.get_legend() and axes.get_xlabel() == "step" for axes in figure.axes)
    assert [axes.get_title() for axes in history_figure(history[:8]).axes] == ["loss"]

    plot_history(history, tmp_path / "training.png")
    assert_drawn(tmp_path / "training.png", panels=3)  # exact content is not among the scores that are always drawn
    plot_history([{"step": 1, "train_runtime": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# ------------------------------------------------------------------------------------------------------- errors, a run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return str(make_shapes(tmp_path_factory.mktemp("shapes") / "shapes", train=4, validation=4, test=0))


TINY = [
    *(
        "--config.vision_config.image_size=32",
        "--config.vision_config.num_frames=4",
        "--config.vision_config.embed_dim=16",
    ),
    *("--config.vision_config.depths=[1,1]", "--config.vision_config.num_heads=[2,2]", "--config.hidden_size=32"),
    *("--config.num_attention_heads=2", "--config.num_hidden_layers=1", "--config.intermediate_size=32"),
    *("--config.max_caption_length=12", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none"),
]


def test_a_loss_that_is_not_finite_stops_the_run(shapes, tmp_path):
    arguments = ["--dataset", shapes, "--output_dir", str(tmp_path / "run"), "--eval_split", "none", *TINY]
    trainer = train.build_trainer([*arguments, "--max_steps", "3", "--save_strategy", "no"])
    assert type(trainer) is VideoCaptioningTrainer
    with torch.no_grad():
        trainer.model.lm_head.transform.dense.weight[0, 0] = torch.nan
    before = trainer.model.lm_head.decoder.weight.clone()
    with pytest.raises(
        FloatingPointError, match="loss is nan at step 1.*lm_head.transform.dense.weight.*--learning_rate"
    ):
        train.run(trainer)
    assert torch.equal(trainer.model.lm_head.decoder.weight, before)


def test_a_frozen_backbone_has_no_stochastic_depth(shapes, tmp_path):
    arguments = ["--dataset", shapes, "--output_dir", str(tmp_path), "--eval_split", "none", *TINY]
    trainer = train.build_trainer([*arguments, "--freeze", "video_encoder", "--config.hidden_dropout_prob", "0.5"])
    backbone, modes = trainer.model.model.video_encoder, []
    backbone.register_forward_hook(lambda module, *_: modes.append(module.layers[0].blocks[0].training))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch).requires_grad
    assert modes == [False] and trainer.model.model.encoder.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_split", "trian"], "no split 'trian'"),
        (["--lerning_rate", "1"], "lerning_rate"),
        (["--config.hiden_size", "3"], "no field hiden_size"),
        (["--label_smoothing_factor", "0.1"], "--config.label_smoothing 0.1"),
        (["--metrics", "ciderr"], "'ciderr'"),
        (["--freeze", "bert"], "--freeze bert matches no parameter"),
        (["--objective", "scst"], "name one as --model"),
    ],
)
def test_wrong_arguments_are_reported_before_training(shapes, tmp_path, arguments, message):
    result = CliRunner().invoke(
        app, ["train", "--dataset", shapes, "--output_dir", str(tmp_path / "x"), *TINY, *arguments]
    )
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_a_metric_that_cannot_run_is_reported_before_training(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)
    arguments = ["--dataset", shapes, "--output_dir", str(tmp_path / "x"), *TINY, "--metrics", "cider", "meteor"]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 1 and "METEOR needs pycocoevalcap" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_captions_that_are_not_text(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "captions": ["a", 3]}')
    result = CliRunner().invoke(app, ["train", "--dataset", str(tmp_path), "--eval_split", "none", *TINY])
    assert result.exit_code == 1 and "caption" in result.output


def test_runs_from_scratch_to_reinforcement(shapes, tmp_path):
    """Soft mask, evaluation, TensorBoard and figure; a hard mask; then scst with a frozen backbone."""
    first, hard, last = (tmp_path / name for name in ("first", "hard", "last"))
    common = ["--dataset", shapes, "--max_steps", "1", "--logging_steps", "1", "--per_device_train_batch_size", "2"]
    metrics = train.main(
        [
            *common,
            *TINY,
            "--eval_strategy",
            "steps",
            "--eval_steps",
            "1",
            "--report_to",
            "tensorboard",
            "--output_dir",
            str(first),
        ]
    )
    assert {"eval_CIDEr", "eval_Bleu_4", "eval_ROUGE_L", "eval_mask_alive", "eval_mask_below_half"} <= set(metrics)
    assert_drawn(first / "training.png", panels=4)
    assert list(first.rglob("events.out.tfevents*"))

    assert CliRunner().invoke(app, ["harden", str(first), "--output", str(hard)]).exit_code == 0
    arguments = ["--model", str(hard), "--objective", "scst", "--captions_per_clip", "3", "--freeze", "video_encoder"]
    arguments += ["--random_crop", "true", "--use_cpu", "--disable_tqdm", "true"]
    metrics = train.main([*common, *arguments, "--output_dir", str(last), "--eval_strategy", "no"])
    (logged,) = [row for row in json.loads((last / "trainer_state.json").read_text())["log_history"] if "reward" in row]
    assert logged["reward"] >= 0 and "greedy_reward" in logged and "caption_loss" not in logged
    before, after = (SwinBertForVideoCaptioning.from_pretrained(folder) for folder in (hard, last))
    same = {name for name, tensor in before.state_dict().items() if torch.equal(tensor, after.state_dict()[name])}
    assert {name for name in same if "video_encoder" in name} == {
        name for name in before.state_dict() if "video_encoder" in name
    }
    assert "model.sparse_mask.weight" in same
    assert (after.config.sparse_mask, after.config.objective, after.config.hidden_dropout_prob) == (
        "hard",
        "masked_lm",
        0.0,
    )
