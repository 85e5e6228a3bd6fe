"""The commands of training/README.md, from the annotation files of each benchmark to a scored model.

The annotation files have the published layout of each benchmark; the clips are moving shapes under other names.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from swinbert import VideoSwinConfig, VideoSwinModel
from swinbert.cli import app
from swinbert.training import train
from swinbert.training.data.clip_datasets import load_clips
from swinbert.training.moving_shapes import make_shapes

RECIPES = Path(train.__file__).parent / "recipes"
SPLITS = {"train": 4, "validation": 2, "test": 2}


@dataclass
class Shape:
    """A clip of moving shapes."""

    file: Path
    split: str
    captions: list[str]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = make_shapes(tmp_path_factory.mktemp("data") / "shapes", **SPLITS)
    return [
        Shape(Path(clip["video"]["path"]), split, clip["captions"])
        for split in SPLITS
        for clip in load_clips(folder, split)
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny Video Swin instead of a converted one."""
    torch.manual_seed(0)
    config = VideoSwinConfig(
        **{"num_frames": 4, "image_size": 32, "patch_size": (2, 8, 8), "window_size": (2, 2, 2)},
        **{"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
    )
    folder = tmp_path_factory.mktemp("pretrained") / "backbone"
    VideoSwinModel(config).save_pretrained(folder)
    return folder


# Each writes annotation files to the current folder and videos to `videos/`, and returns the names of the former.


def put(shape, name):
    Path("videos").mkdir(exist_ok=True)
    shutil.copy(shape.file, Path("videos", name))


def dump(name, content):
    Path(name).write_text(json.dumps(content))


def msvd(shapes):
    lines, listed = [], {split: [] for split in SPLITS}
    for number, shape in enumerate(shapes):
        name = f"mv89psg6zh{number}_{number}_{number + 10}"
        put(shape, f"{name}.avi")
        listed[shape.split].append(name)
        lines += [f"{name} {caption}" for caption in shape.captions]
    Path("captions.txt").write_text("\n".join(lines) + "\n")
    names = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
    for split, name in names.items():
        Path(name).write_text("\n".join(listed[split]) + "\n")
    return ["captions.txt", *names.values()]


def msrvtt(shapes):
    files = {"train_val_videodatainfo.json": ("train", "validation"), "test_videodatainfo.json": ("test",)}
    first, sentence = {"train": 0, "validation": 6513, "test": 7010}, 0
    for file, splits in files.items():
        videos, sentences = [], []
        for shape in shapes:
            if shape.split in splits:
                number = first[shape.split]
                first[shape.split] += 1
                name, split = f"video{number}", shape.split.replace("validation", "validate")
                put(shape, f"{name}.mp4")
                about = {"category": 9, "url": "https://example.org", "start time": 0.0, "end time": 2.0}
                videos.append({**about, "video_id": name, "split": split, "id": number})
                for caption in shape.captions:
                    sentences.append({"caption": caption, "video_id": name, "sen_id": sentence})
                    sentence += 1
        dump(file, {"info": {"year": "2016"}, "videos": videos, "sentences": sentences})
    return list(files)


def vatex(shapes):
    files = {
        "train": "vatex_training_v1.0.json",
        "validation": "vatex_validation_v1.0.json",
        "test": "vatex_public_test_english_v1.1.json",
    }
    entries = {split: [] for split in files}
    for number, shape in enumerate(shapes):
        name = f"Ptf_2VRj-V{number}_000122_000132"
        put(shape, f"{name}.mp4")
        chinese = {} if shape.split == "test" else {"chCap": ["一个红色的圆"]}
        entries[shape.split].append({"videoID": name, "enCap": shape.captions, **chinese})
    for split, file in files.items():
        dump(file, entries[split])
    return list(files.values())


def youcook2(shapes):
    database = {}
    for number, shape in enumerate(shapes):
        name, subset = f"GLd3aX16zB{number}", "training" if shape.split == "train" else "validation"
        put(shape, f"{name}.mp4")
        segments = [
            {"segment": [start, start + 0.5], "id": id, "sentence": caption}
            for id, (start, caption) in enumerate(zip((0, 0.5), shape.captions, strict=False))
        ]
        about = {"duration": 2.0, "recipe_type": "113", "video_url": "https://example.org"}
        database[name] = {**about, "subset": subset, "annotations": segments}
    dump("youcookii_annotations_trainval.json", {"database": database})
    return ["youcookii_annotations_trainval.json"]


def tvc(shapes):
    files = {
        "train": "tvc_train_release.jsonl",
        "validation": "tvc_val_release.jsonl",
        "test": "tvc_test_public_release.jsonl",
    }
    lines = {split: [] for split in files}
    for number, shape in enumerate(shapes):
        name = f"friends_s01e{number:02d}_seg02_clip_00"
        put(shape, f"{name}.mp4")
        moment = {"vid_name": name, "duration": 2.0, "ts": [0.0, 1.0], "clip_id": 100 + number}
        kinds = zip(("v", "vt"), shape.captions, strict=False)
        descriptions = [{"desc": text, "type": kind, "desc_id": id} for id, (kind, text) in enumerate(kinds)]
        lines[shape.split].append(json.dumps({**moment, **({} if shape.split == "test" else {"descs": descriptions})}))
    for split, file in files.items():
        Path(file).write_text("\n".join(lines[split]) + "\n")
    return list(files.values())


# (annotations, split to score, clips of each split)
WRITTEN = {
    "msvd": (msvd, "test", {"train": 4, "validation": 2, "test": 2}),
    "msrvtt": (msrvtt, "test", {"train": 4, "validation": 2, "test": 2}),
    "vatex": (vatex, "test", {"train": 4, "validation": 2, "test": 2}),
    "youcook2": (youcook2, "validation", {"train": 8, "validation": 8}),
    "tvc": (tvc, "validation", {"train": 4, "validation": 2, "test": 2}),
}
TINY = [
    *("--tokenizer", "captions", "--config.num_frames", "4", "--config.image_size", "32"),
    *("--config.hidden_size", "32", "--config.num_attention_heads", "2", "--config.num_hidden_layers", "2"),
    *("--config.intermediate_size", "32", "--config.projection_dim", "32", "--max_steps", "2", "--logging_steps", "1"),
    *("--per_device_train_batch_size", "2", "--dataloader_num_workers", "0", "--use_cpu", "--disable_tqdm", "true"),
    *("--report_to", "none", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps"),
    *("--eval_steps", "1"),
]


def swinbert(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, f"{arguments}\n{result.output}"
    return result


@pytest.mark.parametrize(
    "name", ["msrvtt", *(pytest.param(name, marks=pytest.mark.slow) for name in WRITTEN if name != "msrvtt")]
)
def test_from_annotations_to_scores(name, shapes, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, split, expected = WRITTEN[name]
    prepared = swinbert("prepare", name, *write(shapes), "--videos", "videos", "--output", name)
    for each, number in expected.items():
        assert f"{each}: {number} of {number} clips" in prepared.stdout
    lines = [json.loads(line) for line in Path(name, "metadata.jsonl").read_text().splitlines()]
    assert {each: sum(line["split"] == each for line in lines) for each in expected} == expected

    swinbert("doctor", name, "--output", "report", "--workers", 0)
    assert Path("report", "doctor.png").is_file()

    recipe = RECIPES / f"{name}.yaml"
    swinbert("train", recipe, "--backbone", backbone, "--output_dir", f"outputs/{name}", *TINY)
    scores = json.loads(Path("outputs", name, "all_results.json").read_text())
    assert scores["eval_CIDEr"] >= 0 and Path("outputs", name, "training.png").is_file()

    model = ["--model", f"outputs/{name}", "--dataset", name, "--split", split]
    plain = ["--metrics", "bleu,rouge_l,cider", "--device", "cpu", "--num-workers", 0]
    result = swinbert("evaluate", *model, "--beams", 2, "--output", f"outputs/{name}/{split}", *plain)
    scored = json.loads(result.stdout)
    assert (scored["clips"], scored["missing"], scored["split"]) == (expected[split], 0, split)
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= scored.keys()
    written = json.loads(Path("outputs", name, split, "scores.json").read_text())
    assert written["settings"]["generation"]["num_beams"] == 2
    if name == "tvc":  # a test set without captions can be captioned
        swinbert("evaluate", "--model", "outputs/tvc", "--dataset", "tvc", "--output", "unscored", *plain)
        assert len(Path("unscored", "predictions.jsonl").read_text().splitlines()) == expected["test"]
