"""Training: masking and parameter groups of the original, datasets, recipes, and a run from clips to a saved model."""

import json
import platform
import random
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from swinbert import SwinBertConfig
from swinbert.cli import app
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor
from swinbert.training import train
from swinbert.training.arguments import SwinBertTrainingArguments, parse_arguments
from swinbert.training.data.augmentation import shift_clip
from swinbert.training.data.clip_datasets import ClipDataset, load_clips
from swinbert.training.data.collators import CaptionCollator, mask_caption
from swinbert.training.moving_shapes import make_shapes
from swinbert.training.tokenization import build_tokenizer
from swinbert.training.trainer import VideoCaptioningTrainer

ORIGINAL = json.loads((golden.FOLDER / "training.json").read_text())
RECIPE = Path(train.__file__).parent / "recipes" / "moving_shapes.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes", train=6, validation=2, test=2)


@pytest.fixture(scope="module")
def processor(shapes):
    captions = [caption for each in load_clips(shapes, "train")["captions"] for caption in each]
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return SwinBertProcessor(SwinBertVideoProcessor(num_frames=4, **size), build_tokenizer(captions))


# ------------------------------------------------------------------------------------------------------------ masking


@pytest.mark.parametrize("case", ORIGINAL["captions"], ids=lambda case: case["case"])
def test_masks_the_tokens_that_the_original_masks(case):
    generator = random.Random(case["seed"])
    for caption in case["captions"]:
        masked, labels = mask_caption(
            caption["input_ids"],
            ORIGINAL["mask_token_id"],
            ORIGINAL["vocab_size"],
            case["mask_prob"],
            case["max_masked_tokens"],
            generator,
        )
        assert masked == caption["masked"]
        assert [position for position, label in enumerate(labels) if label != -100] == caption["positions"]
        assert all(labels[position] == caption["input_ids"][position] for position in caption["positions"])


@pytest.mark.parametrize("setting", ORIGINAL["num_masked"])
def test_number_of_masked_tokens(setting):
    mask_prob, most = (float(part.split("=")[1]) for part in setting.split(","))
    for length, expected in ORIGINAL["num_masked"][setting].items():
        labels = mask_caption(range(int(length)), 103, 200, mask_prob, int(most), random.Random(0))[1]
        assert sum(label != -100 for label in labels) == expected


def test_share_of_masks_random_and_kept_tokens():
    generator, kinds, positions = random.Random(0), [], set()
    for _ in range(2000):
        masked, labels = mask_caption([101, *[7] * 8, 102], 103, 10_000, 0.5, 45, generator)
        chosen = [position for position, label in enumerate(labels) if label != -100]
        positions.update(chosen)
        kinds += ["mask" if masked[p] == 103 else "kept" if masked[p] == labels[p] else "random" for p in chosen]
    assert positions == set(range(1, 10))  # possibly [SEP], never [CLS]
    share = {kind: kinds.count(kind) / len(kinds) for kind in ("mask", "kept", "random")}
    assert share == pytest.approx({"mask": 0.8, "kept": 0.1, "random": 0.1}, abs=0.015)


# ----------------------------------------------------------------------------------------------------------- collator


def test_batch_groups_captions_by_clip(shapes, processor):
    dataset = ClipDataset(load_clips(shapes, "train"), processor.video_processor)
    collator = CaptionCollator(processor, captions_per_clip=3)
    batch = collator([dataset[4], dataset[1]])
    assert next(iter(batch)) == "pixel_values_videos"
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    assert batch["index"].tolist() == [4, 1]
    original = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
    captions = processor.batch_decode(original, skip_special_tokens=True)
    for row, caption in enumerate(captions):
        references = dataset[4 if row < 3 else 1]["captions"]
        # Tokens that are not predicted are those of the caption.
        assert caption in references
    assert len(set(captions[:3])) == len(set(captions[3:])) == 3
    assert torch.equal(batch["attention_mask"], (original != processor.tokenizer.pad_token_id).long())
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["labels"][:, 0] == -100).all()


def test_causal_batch_is_not_masked(shapes, processor):
    dataset = ClipDataset(load_clips(shapes, "train"), processor.video_processor)
    batch = CaptionCollator(processor, objective="causal_lm", max_caption_length=6)([dataset[0]])
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["input_ids"].shape == (1, 6)
    assert batch["input_ids"][0, -1] == processor.tokenizer.sep_token_id


def test_random_numbers_depend_only_on_seed_epoch_and_clip(shapes, processor):
    def batch(seed, epoch, indices):
        dataset = ClipDataset(load_clips(shapes, "train"), processor.video_processor, max_shift=4, seed=seed)
        dataset.set_epoch(epoch)
        examples = [dataset[index] for index in indices]
        return [
            CaptionCollator(processor, captions_per_clip=2)([example])["input_ids"].tolist() for example in examples
        ], [example["frames"] for example in examples]

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    captions, frames = batch(0, 1, range(6))
    reversed_captions, reversed_frames = batch(0, 1, reversed(range(6)))
    assert captions == reversed_captions[::-1]
    np.testing.assert_array_equal(frames, reversed_frames[::-1])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    for others in (batch(1, 1, range(6)), batch(0, 0, range(6))):
        assert captions != others[0] and not np.array_equal(frames, others[1])


def test_few_captions_are_repeated(shapes, processor):
    example = {**ClipDataset(load_clips(shapes, "train"), processor.video_processor)[0], "captions": ["a", "a red"]}
    assert CaptionCollator(processor, captions_per_clip=5)([example])["input_ids"].shape[0] == 5


# --------------------------------------------------------------------------------------------------------------- data


def test_kept_frames_give_the_same_pixels(shapes, processor):
    clips, collator = load_clips(shapes, "validation"), CaptionCollator(processor)
    decoded, kept = (ClipDataset(clips, processor.video_processor, keep_frames=keep) for keep in (False, True))
    for index in (1, 0, 1):
        pixels = [collator([each[index]])["pixel_values_videos"] for each in (kept, decoded)]
        assert torch.equal(*pixels)
    assert (decoded[0]["frames"].shape, kept[0]["frames"].shape) == ((4, 64, 64, 3), (4, 32, 32, 3))


def test_shift_clip():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.testing.assert_array_equal(shift_clip(frames, 0, 0), frames)
    shifted = shift_clip(frames, 1, -2)
    np.testing.assert_array_equal(shifted[:, 1:, :3], frames[:, :-1, 2:])
    np.testing.assert_array_equal(shifted[:, 0], shifted[:, 1])  # the edge, repeated


def test_start_and_end_cut_a_clip(shapes, processor, tmp_path):
    clip = "clip.mp4"
    (tmp_path / clip).symlink_to(load_clips(shapes, "train")[0]["video"]["path"])
    lines = [{"file_name": clip, "captions": ["a b"]}, {"file_name": clip, "captions": ["a b"], "start": 0, "end": 0.4}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole, part = (ClipDataset(load_clips(tmp_path, "train"), processor.video_processor)[i]["frames"] for i in (0, 1))
    np.testing.assert_array_equal(whole[0], part[0])
    assert not np.array_equal(whole[-1], part[-1])


@pytest.mark.parametrize(
    ("metadata", "split", "error", "message"),
    [
        (None, "train", FileNotFoundError, "no metadata.jsonl"),
        ('{"file_name": "a.mp4", "captions": ["a"], "split": "test"}', "train", ValueError, "only {'test': 1}"),
        ('{"file_name": "a.mp4", "captions": []}', "train", ValueError, "list of captions"),
        ('{"file_name": "a.mp4", "captions": [" "]}', "train", ValueError, "list of captions"),
        ('{"file_name": "a.mp4", "label": "a"}', "train", ValueError, "no `captions`"),
        ('{"file_name": "a.mp4", "caption": "a", "text": "b"}', "train", ValueError, "line 1.*caption and text"),
        ('{"file_name": "a.mp4", "sentence": 3}', "train", ValueError, "line 1.*`sentence` to be a text"),
        ('{"captions": ["a"]}', "train", ValueError, "line 1.*file_name"),
        ("not json", "train", ValueError, "line 1"),
    ],
)
def test_malformed_folders_are_an_error(tmp_path, metadata, split, error, message):
    if metadata is not None:
        (tmp_path / "metadata.jsonl").write_text(metadata)
    with pytest.raises(error, match=message):
        load_clips(tmp_path, split)


@pytest.mark.parametrize("name", ["caption", "sentence", "sentences", "text"])
def test_other_names_of_captions(tmp_path, name):
    lines = [{"file_name": "a.mp4", name: "a b"}, {"file_name": "b.mp4", "captions": ["c"], name: "no caption"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(load_clips(tmp_path, "train")["captions"]) == [["a b"], ["c"]]


def test_vocabulary_has_the_words_of_the_captions_and_spells_others():
    tokenizer = build_tokenizer(["A red disc, then it hops.", "a box"])
    assert tokenizer.decode(tokenizer("a red disc, then it hops.").input_ids, skip_special_tokens=True).split()
    assert tokenizer.unk_token_id not in tokenizer("red zebra 42").input_ids
    assert len(tokenizer("a red box").input_ids) == 5
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) == list(range(6))


# ---------------------------------------------------------------------------------------------------------- optimiser


def test_parameter_groups_are_those_of_the_original(tmp_path):
    wanted, model = ORIGINAL["optimizer"], golden.tiny_model("e8", "soft")
    rates = {name: wanted[name] for name in ("learning_rate", "backbone_lr_factor")}
    arguments = SwinBertTrainingArguments(output_dir=str(tmp_path), use_cpu=True, weight_decay=0.2, **rates)
    trainer = VideoCaptioningTrainer(model=model, args=arguments)
    names = {id(parameter): golden.original_name(name) for name, parameter in model.named_parameters()}
    found = {
        (round(group["lr"], 9), group["weight_decay"]): {names[id(each)] for each in group["params"]}
        for group in trainer.parameter_groups(model)
    }
    for group in wanted["groups"]:
        # Our model lacks the unused parameters of the original.
        params = {name for name in group["params"] if "cls_img_feat" not in name and "pooler" not in name}
        assert found.pop((round(group["lr"], 9), group["weight_decay"])) == params
    assert not found


def test_learning_rate_of_the_mask(tmp_path):
    arguments = SwinBertTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3, backbone_lr_factor=1.0, mask_lr_factor=20.0
    )
    model = golden.tiny_model("e8", "soft")
    groups = VideoCaptioningTrainer(model=model, args=arguments).parameter_groups(model)
    (mask,) = [group for group in groups if group["lr"] != 1e-3]
    assert (mask["lr"], mask["weight_decay"]) == (0.02, 0.2)
    assert [id(each) for each in mask["params"]] == [id(model.model.sparse_mask.weight)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# ---------------------------------------------------------------------------------------------------- recipe, and run


def test_command_line_takes_precedence_over_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "dataset: there\nlearning_rate: 1e-3\nkeep_frames: true\nconfig: {hidden_size: 64, sparse_mask: soft}"
    )
    changes = "--learning_rate 2e-4 --output_dir x --config.sparse_mask none --config.vision_config.embed_dim=16"
    model, data, training, config = parse_arguments([str(recipe), *changes.split()])
    assert (data.dataset, data.keep_frames, data.captions_per_clip, model.model) == ("there", True, 1, None)
    assert (training.learning_rate, training.weight_decay, training.remove_unused_columns) == (2e-4, 0.2, False)
    assert config == {"hidden_size": 64, "sparse_mask": "none", "vision_config": {"embed_dim": 16}}


def test_unknown_arguments_are_an_error(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: x\nlerning_rate: 1")
    with pytest.raises(ValueError, match="lerning_rate"):
        parse_arguments([str(recipe)])
    with pytest.raises(ValueError, match="lerning_rate"):
        parse_arguments(["--dataset", "x", "--lerning_rate", "1"])


def test_the_bundled_recipe_makes_a_small_model():
    _, _, training, config = parse_arguments([str(RECIPE)])
    assert yaml.safe_load(RECIPE.read_text())["learning_rate"] == training.learning_rate
    assert SwinBertConfig(**config).sparse_mask == "soft"


TINY = [
    *("--config.hidden_size=32", "--config.num_attention_heads=2", "--config.num_hidden_layers=2"),
    *("--config.intermediate_size=32", "--config.projection_dim=32", "--config.vision_config.image_size=32"),
    *("--config.vision_config.embed_dim=16", "--config.vision_config.num_frames=4"),
]


def test_train_and_evaluate(shapes, tmp_path, capsys):
    output = tmp_path / "model"
    metrics = train.main(
        [
            *(str(RECIPE), "--dataset", str(shapes), "--output_dir", str(output), *TINY),
            *("--max_steps", "2", "--logging_steps", "1", "--eval_steps", "1", "--per_device_train_batch_size", "2"),
            *("--gradient_accumulation_steps", "2", "--disable_tqdm", "true"),
        ]
    )
    assert {"eval_caption_loss", "eval_sparsity_loss", "eval_exact_content", "train_loss"} <= set(metrics)
    assert metrics["eval_loss"] == pytest.approx(
        metrics["eval_caption_loss"] + 0.1 * metrics["eval_sparsity_loss"], abs=1e-3
    )
    assert "generated: " in capsys.readouterr().err

    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    clip = load_clips(shapes, "test")[0]["video"]["path"]
    inputs = processor(videos=clip, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert model.generate(**inputs).shape[1] <= model.config.max_caption_length

    there = ["--model", str(output), "--dataset", str(shapes), "--output", str(tmp_path / "evaluation")]
    result = CliRunner().invoke(app, ["evaluate", *there, "--device", "cpu", "--num-workers", "0"])
    scores = json.loads(result.stdout.splitlines()[-1])
    assert scores["clips"] == 2 and result.stderr.count("reference: ") == 2 - scores["exact"]


def test_gradient_accumulation_equals_a_large_batch(shapes, tmp_path):
    """A batch of four clips and four batches of one clip log the same caption loss and lead to the same weights."""
    common = ["--dataset", str(shapes), *TINY, "--max_steps", "1", "--logging_steps", "1", "--disable_tqdm", "true"]
    common += ["--max_shift", "0", "--eval_split", "none", "--eval_strategy", "no", "--config.objective=causal_lm"]
    common += ["--warmup_steps", "0", "--captions_per_clip", "4"]
    states, losses = [], []
    for name, size, steps in (("big", 4, 1), ("small", 1, 4)):
        batch = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(steps)]
        train.main([str(RECIPE), *common, *batch, "--output_dir", str(tmp_path / name)])
        states.append(AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict())
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses.append(history[0]["caption_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=2e-4, rtol=0, msg=name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_memory_is_kept_or_returned():
    program = """
import sys, torch
from swinbert.utils.memory import keep_freed_memory

if sys.argv[1] != "default":
    keep_freed_memory(sys.argv[1] == "kept")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
del (large := [torch.ones(100 << 18)])[:]
print(resident() - before)
del (large := [torch.ones(30 << 18)])[:]  # after this, glibc by default keeps smaller blocks
before = resident()
blocks = [torch.ones(8 << 18) for _ in range(20)]
del blocks[:-1]  # the last one stays above the others
print(resident() - before)
"""

    def run(how: str) -> list[int]:
        result = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True)
        return [int(line) >> 20 for line in result.stdout.split()]

    of_large, of_small = run("default")
    assert of_large < 20 and of_small > 100
    assert run("kept")[0] > 80
    of_large, of_small = run("returned")
    assert of_large < 20 and of_small < 20
