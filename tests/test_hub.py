"""Pushing to the Hub by every route, loading from it, and what is refused; the server is `hub_server`."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_run
import torch
from hub_server import TOKEN, captions_of_process, git_oid
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor, pipeline
from typer.testing import CliRunner

import swinbert
from swinbert import SwinBertForVideoCaptioning, VideoSwinModel
from swinbert.cli import app
from swinbert.deployment.hub import PushError, check_folder, push, shipped_modules
from swinbert.training import train

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"
MODEL_FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *shipped_modules(),
}
COMPLETE = {".gitattributes", "README.md", *MODEL_FILES}


@pytest.fixture(scope="module")
def pipe():
    return pipeline("video-captioning", model=swinbert.bundled_model(), device="cpu")


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def swinbert_push(*arguments: object):
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path != "README.md"}


def test_every_route_gives_the_same_repository(hub, pipe, folder):
    pipe.push_to_hub("org/pipeline")
    pipe.model.push_to_hub("org/parts")
    pipe.processor.push_to_hub("org/parts")
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)
    done = swinbert_push(folder, "org/folder")
    assert done.exit_code == 0, done.stderr

    pushed = {name: repository.files() for name, repository in hub.repositories.items()}
    assert all(files.keys() == COMPLETE for files in pushed.values())
    assert without_card(pushed["org/pipeline"]) == without_card(pushed["org/parts"])
    assert without_card(pushed["org/pipeline"]) == without_card(pushed["org/folder"])
    assert pushed["org/pipeline"]["README.md"] == pushed["org/parts"]["README.md"]
    sha = hub.repositories["org/folder"].branches["main"]
    assert done.stdout == f"{hub.endpoint}/org/folder/commit/{sha}\n"


def test_config_names_the_code_beside_it(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"].keys() >= {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    assert config["custom_pipelines"]["video-captioning"]["impl"] == "pipeline_swinbert.VideoCaptioningPipeline"
    assert not re.search("local|dtype", (saved / "tokenizer_config.json").read_text())


def test_pushing_again_changes_nothing_that_did_not_change(hub, pipe, folder):
    first, _ = push(folder, "org/model")
    assert len(hub.uploads) == len(COMPLETE) - 1
    hub.uploads.clear()
    again, _ = push(folder, "org/model")
    assert again.oid == first.oid and hub.uploads == []

    pipe.push_to_hub("org/model")  # with the card that is there
    assert hub.uploads == [] and hub.repositories["org/model"].branches["main"] == first.oid

    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "num_beams": 2}))
    push(folder, "org/model")
    assert hub.uploads == ["generation_config.json"]


def test_weights_in_shards_and_then_in_one_file(hub, pipe, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    pipe.model.save_pretrained(folder, max_shard_size="2MB")
    push(folder, "org/model")
    files = hub.repositories["org/model"].files()
    assert "model.safetensors.index.json" in files and "model.safetensors" not in files
    loaded = SwinBertForVideoCaptioning.from_pretrained("org/model", cache_dir=tmp_path / "cache")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in pipe.model.state_dict().items())

    for file in folder.glob("model-*"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    pipe.model.save_pretrained(folder)
    push(folder, "org/model")
    assert hub.repositories["org/model"].files().keys() == COMPLETE, "shards of the former push are left"


def test_private_repository_and_branch(hub, folder, monkeypatch):
    assert swinbert_push(folder, "org/model", "--private", "--revision", "v1").exit_code == 0
    repository = hub.repositories["org/model"]
    assert repository.private
    assert repository.files("v1").keys() == COMPLETE and repository.files("main").keys() == {".gitattributes"}
    assert SwinBertForVideoCaptioning.from_pretrained("org/model", revision="v1").num_parameters()
    with pytest.raises(OSError, match="v2 is not a valid git identifier"):
        SwinBertForVideoCaptioning.from_pretrained("org/model", revision="v2")

    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match="(?s)org/model is not a .*valid model identifier.*token"):
        AutoModel.from_pretrained("org/model", revision="v1", cache_dir=folder.parent / "other")
    refused = swinbert_push(folder, "org/model")
    assert refused.exit_code == 1 and "hf auth login" in refused.stderr


def test_private_is_not_pushed_to_a_public_repository(hub, folder):
    push(folder, "org/model")
    before = hub.repositories["org/model"].branches["main"]
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(PushError, match="is public"):
        push(folder, "org/model", private=True)
    assert hub.repositories["org/model"].branches["main"] == before


def test_bundled_model_is_pushed_with_code(hub, folder):
    """The bundled folder holds no code, and stays as it is: it may be read-only."""
    bundled = Path(swinbert.bundled_model())
    before = {file.name: file.stat().st_mtime_ns for file in bundled.iterdir()}
    done = swinbert_push(bundled, "org/bundled")
    assert done.exit_code == 0, done.stderr
    push(folder, "org/saved")
    pushed = hub.repositories["org/bundled"].files()
    assert without_card(pushed) == without_card(hub.repositories["org/saved"].files())
    assert pushed["README.md"] == (bundled / "README.md").read_bytes()
    assert {file.name: file.stat().st_mtime_ns for file in bundled.iterdir()} == before


def test_malformed_repository_name(hub, folder):
    with pytest.raises(PushError, match="OWNER/NAME"):
        push(folder, "a/b/c")


def test_interrupted_upload_and_retry(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail_uploads = 1000
    failed = swinbert_push(folder, "org/model")
    assert failed.exit_code == 1
    assert "model.safetensors" in failed.stderr and "same command again" in failed.stderr
    assert hub.repositories["org/model"].files().keys() == {".gitattributes"}, "a part of a model must not be visible"
    hub.fail_uploads = 0
    assert swinbert_push(folder, "org/model").exit_code == 0
    assert hub.repositories["org/model"].files().keys() == COMPLETE


@pytest.mark.parametrize("damage", ["a value", "the header", "the end"])
def test_damaged_download(hub, folder, damage):
    push(folder, "org/model")
    weights = hub.repositories["org/model"].files()["model.safetensors"]
    hub.served[git_oid(weights)] = {
        "a value": weights[:-1] + bytes([weights[-1] ^ 1]),
        "the header": b"\xff" * 8 + weights[8:],
        "the end": weights[:-1000],
    }[damage]
    with pytest.raises(OSError, match="size" if damage == "the end" else "model.safetensors from org/model is damaged"):
        SwinBertForVideoCaptioning.from_pretrained("org/model")
    hub.served.clear()
    assert SwinBertForVideoCaptioning.from_pretrained("org/model").num_parameters()


# What `swinbert push` refuses


@pytest.mark.parametrize("name", sorted(MODEL_FILES - {"config.json"}))
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(PushError, match=rf"is not pushed:(.|\n)*{re.escape(name)}(.|\n)*(missing|Save|save)"):
        check_folder(folder)


def test_all_missing_files_are_named_and_nothing_is_uploaded(hub, folder):
    for name in ("model.safetensors", "processor_config.json", "pipeline_swinbert.py"):
        (folder / name).unlink()
    done = swinbert_push(folder, "org/model")
    assert done.exit_code == 1 and hub.requests == []
    for words in ("model.safetensors is missing", "processor_config.json missing", "pipeline_swinbert.py missing"):
        assert words in done.stderr
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("name", ["training_args.bin", "runs/model.pt", "notes.txt"])
def test_pickle_is_refused_whatever_its_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    torch.save({"a": torch.zeros(2)}, folder / name)
    with pytest.raises(PushError, match=f"{name} is a pickle"):
        check_folder(folder)


def test_what_is_not_pushed_may_be_a_pickle(hub, folder):
    for name in ("checkpoint-10/optimizer.pt", "_saving/scheduler.pt", ".cache/a.bin"):
        (folder / name).parent.mkdir()
        torch.save({}, folder / name)
    push(folder, "org/model")
    assert hub.repositories["org/model"].files().keys() == COMPLETE


def test_truncated_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(PushError, match="model.safetensors is truncated"):
        check_folder(folder)


def test_code_of_another_repository(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "someone/else--modeling_swinbert.SwinBertForVideoCaptioning"
    del config["custom_pipelines"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PushError, match="(?s)video-captioning.*another repository: someone/else--.*save_pretrained"):
        check_folder(folder)


def test_folders_of_something_else(folder, tmp_path):
    with pytest.raises(PushError, match="no config.json"):
        check_folder(tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PushError, match="'bert' model; expected 'swinbert'"):
        check_folder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(PushError, match="JSON object"):
        check_folder(folder)


# Cards


def test_card_is_filled_in_where_there_is_none(hub, folder):
    done = swinbert_push(folder, "org/captions-of-things")
    assert "README.md is a first model card" in done.stderr
    text = hub.repositories["org/captions-of-things"].files()["README.md"].decode()
    assert text == (folder / "README.md").read_text() and "# captions-of-things\n" in text
    vision = SwinBertForVideoCaptioning.from_pretrained(folder).config.vision_config
    assert f"{vision.num_frames} frames" in text and f"{vision.image_size} x {vision.image_size}" in text
    assert "{{ " not in text
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "video-text-to-text")
    assert {"video-captioning", "swinbert", "custom_code"} <= set(data.tags)


def test_card_of_the_owner_is_kept(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    assert swinbert_push(folder, "org/model").stderr == ""
    assert hub.repositories["org/model"].files()["README.md"] == b"---\nlicense: mit\n---\n\n# Mine\n"


# Training


@pytest.mark.slow
def test_trainer_pushes_whole_repositories(hub, tmp_path, monkeypatch):
    dataset = tiny_run.make_shapes(tmp_path)
    changes = {"max_steps": 2, "eval_steps": 2, "save_steps": 1, "push_to_hub": True, "hub_model_id": "org/trained"}
    arguments = tiny_run.arguments(dataset, tmp_path / "out", hub_always_push=True, **changes)
    train.main(arguments)
    repository = hub.repositories["org/trained"]
    assert len(repository.commits) >= 4, "the empty one, of both checkpoints, of the end"
    for files in list(repository.commits.values())[1:]:
        assert files.keys() >= COMPLETE
    pushed = repository.files()
    assert not [path for path in pushed if path.endswith((".bin", ".pt", ".pth")) or "checkpoint" in path]

    parts = {
        "AutoModel": AutoModel.from_pretrained(tmp_path / "out"),
        "": AutoProcessor.from_pretrained(tmp_path / "out"),
    }
    for part in parts.values():
        part.push_to_hub("org/parts")
    check_folder(tmp_path / "out")
    push(tmp_path / "out", "org/folder")
    for name in MODEL_FILES:
        assert pushed[name] == hub.repositories["org/parts"].files()[name], name
        assert pushed[name] == hub.repositories["org/folder"].files()[name], name

    text = pushed["README.md"].decode()
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert {result.metric_type for result in data.eval_results} >= {"cider", "accuracy"}
    assert "2 steps" in text and "`shapes`" not in text and "of shapes" in text and "- `learning_rate`: " in text
    assert str(tmp_path) not in text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "checkpoint", "all_checkpoints"])
def test_what_the_strategies_push(hub, tmp_path, strategy):
    changes = {"max_steps": 2, "eval_strategy": "no", "save_steps": 1}
    changes |= {"push_to_hub": True, "hub_model_id": "org/trained", "hub_strategy": strategy, "hub_always_push": True}
    dataset = tiny_run.make_shapes(tmp_path)
    train.main(tiny_run.arguments(dataset, tmp_path / "out", **changes))
    repository = hub.repositories["org/trained"]
    folders = {path.split("/")[0] for path in repository.files() if "/" in path}
    expected = {"end": set(), "checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == expected[strategy]
    assert {path for path in repository.files() if "/" not in path} >= COMPLETE
    assert all(f"{folder}/model.safetensors" in repository.files() for folder in folders)
    if strategy == "end":
        assert len(repository.commits) == 2, "the empty one, and that of the end"


# Security


@pytest.mark.parametrize("model_class", [AutoModel, SwinBertForVideoCaptioning, VideoSwinModel])
def test_pickled_weights_are_refused(model_class, folder, pipe, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a pickle was opened")

    (folder / "model.safetensors").unlink()
    torch.save(pipe.model.state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", opened)
    with pytest.raises(OSError, match="no model.safetensors.*swinbert convert"):
        model_class.from_pretrained(folder)
    with pytest.raises(ValueError, match="swinbert convert"):
        model_class.from_pretrained(folder, use_safetensors=False)


def test_pickled_weights_of_the_hub_are_not_even_fetched(hub, folder, pipe):
    push(folder, "org/model")
    repository = hub.repositories["org/model"]
    files = without_card(repository.files())
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    repository.commit("main", files)
    hub.requests.clear()
    with pytest.raises(OSError, match="no model.safetensors.*swinbert convert"):
        AutoModel.from_pretrained("org/model")
    assert not [request for request in hub.requests if "pytorch_model" in request or "lfs" in request]


def test_with_the_package_no_code_of_the_repository_is_fetched(hub, pipe, folder):
    commit, _ = push(folder, "org/model")
    hub.requests.clear()
    done = CliRunner().invoke(app, ["caption", str(SAMPLE), "--model", "org/model", "--revision", commit.oid])
    assert done.stdout == f"{pipe(str(SAMPLE))[0]['generated_text']}\n", done.stderr
    assert hub.requests and not [request for request in hub.requests if request.endswith(".py")]


# Where the package is not

WITHOUT_THE_PACKAGE = """
import json, sys
# Importing anything beyond transformers, torch and a decoder fails.
for name in ("swinbert", "accelerate", "datasets", "evaluate", "peft", "timm", "matplotlib", "decord", "torchcodec"):
    sys.modules[name] = None
from transformers import AutoModel
model, revision, clip, *again = sys.argv[1:]
AutoModel.from_pretrained(model, trust_remote_code=True, revision=revision)
assert not any(map(sys.modules.get, ("av", "decord", "torchcodec"))), "a model alone needs no decoder"
from transformers import pipeline
pipe = pipeline("video-captioning", model=model, trust_remote_code=True, revision=revision, device="cpu")
assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
print("captions:", json.dumps(pipe(clip)))
if again:
    pipe.push_to_hub("org/again")
    pipe.model.push_to_hub("org/parts")
    pipe.processor.push_to_hub("org/parts")
    pipe.save_pretrained("saved")
"""


@pytest.mark.slow
def test_pull_push_and_offline_without_the_package(hub, pipe, folder, tmp_path):
    commit, _ = push(folder, "org/model", private=True)
    broken = {**hub.repositories["org/model"].files(), "modeling_swinbert.py": b"raise RuntimeError"}
    hub.repositories["org/model"].commit("main", broken)  # later than the revision that is pinned

    def run(*arguments: str, **environment: str) -> list:
        given = ("org/model", commit.oid, str(SAMPLE), *arguments)
        return captions_of_process(hub, tmp_path, WITHOUT_THE_PACKAGE, *given, **environment)

    expected = pipe(str(SAMPLE))
    assert run("again", HF_TOKEN=TOKEN) == expected
    pushed = without_card(hub.repositories["org/model"].files(commit.oid))
    assert without_card(hub.repositories["org/again"].files()) == pushed
    assert without_card(hub.repositories["org/parts"].files()) == pushed
    check_folder(tmp_path / "saved")
    assert {name: (tmp_path / "saved" / name).read_bytes() for name in MODEL_FILES} == {
        name: pushed[name] for name in MODEL_FILES
    }

    hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == expected
    assert hub.requests == []
