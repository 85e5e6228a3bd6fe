"""The model that captions clips if none is named, and the bundled one by its name."""

import functools
import json
import socket

import huggingface_hub
import pytest
from captioning import write_clip, write_git_folder
from hub_server import Repository, git_oid, is_large
from transformers import pipeline
from typer.testing import CliRunner

import swinbert
from swinbert.captioning import LoadingError, load_captioner
from swinbert.captioning.loading import DEFAULT_MODEL, download_size
from swinbert.cli import app
from swinbert.training.arguments import parse_arguments


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", 0)


@pytest.fixture
def published(hub, git):
    """The Hub with the default model, which also has weights in another format, as the published one has."""
    files = {file.name: file.read_bytes() for file in git.iterdir()} | {"pytorch_model.bin": b"\0" * 5_000_000}
    hub.large_files |= {git_oid(content): content for content in files.values() if is_large(content)}
    repository = hub.repositories[DEFAULT_MODEL] = Repository()
    repository.commit("main", files)
    return hub


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_default_model_is_announced_and_downloaded_once(published, git, clip):
    size = sum(file.stat().st_size for file in git.iterdir())
    assert download_size(DEFAULT_MODEL) == size
    published.requests.clear()
    first = command("caption", clip, "--device", "cpu")
    assert first.exit_code == 0, first.stderr
    (notice,) = first.stderr.splitlines()
    assert DEFAULT_MODEL in notice and f"({size / 1e6:,.0f} MB)" in notice and "--model" in notice
    assert first.stdout == load_captioner(str(git), device="cpu", dtype="float32")(clip)[0]["generated_text"] + "\n"
    assert not [request for request in published.requests if "pytorch_model.bin" in request]
    # One tells the size; transformers asks for the commit.
    assert published.requests.count(f"GET /api/models/{DEFAULT_MODEL}") == 2
    assert download_size(DEFAULT_MODEL) is None
    second = command("caption", clip, "--device", "cpu")
    assert (second.stdout, second.stderr) == (first.stdout, "")


def test_python_has_the_same_default(published, git, clip):
    expected = load_captioner(str(git), device="cpu", dtype="float32")(clip)
    assert load_captioner(device="cpu", dtype="float32")(clip) == expected
    pipe = pipeline("video-captioning", device="cpu")
    assert pipe.model.name_or_path == DEFAULT_MODEL and pipe(clip) == expected


def test_a_model_of_the_hub_that_is_named_is_announced_too(published, clip):
    published.repositories["org/other"] = published.repositories[DEFAULT_MODEL]
    result = command("caption", clip, "--device", "cpu", "--model", "org/other")
    assert result.exit_code == 0 and "org/other" in result.stderr and "MB" in result.stderr
    assert "--model" not in result.stderr


def test_evaluation_has_the_same_default(published, clip, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "clip.mp4").write_bytes(clip.read_bytes())
    row = {"file_name": "clip.mp4", "split": "test", "captions": ["a dog"]}
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row))
    where = ["--dataset", tmp_path / "data", "--output", tmp_path / "out", "--num-workers", 0, "--device", "cpu"]
    result = command("evaluate", *where, "--metrics", "cider")
    assert result.exit_code == 0, result.stderr
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["model"]["name"] == DEFAULT_MODEL
    assert settings["model"]["revision"] == published.repositories[DEFAULT_MODEL].branches["main"]


@pytest.mark.parametrize("reason", ["offline", "no network"])
def test_without_network_and_cache_the_ways_on_are_named(hub, clip, monkeypatch, reason):
    if reason == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    result = command("caption", clip, "--device", "cpu")
    assert result.exit_code == 1 and result.stdout == ""
    (message,) = result.stderr.splitlines()
    for remedy in (DEFAULT_MODEL, "network", "--model DIR", "--model moving-shapes"):
        assert remedy in message
    for load in (load_captioner, functools.partial(pipeline, "video-captioning")):
        with pytest.raises(LoadingError, match=r"--model moving-shapes; in Python, model=swinbert.bundled_model\(\)"):
            load(device="cpu")


def test_the_bundled_model_has_a_name(tmp_path):
    clip = swinbert.bundled_model().removesuffix("moving-shapes") + "sample.mp4"
    result = command("caption", clip, "--model", "moving-shapes", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "") and "red cross" in result.stdout
    assert "SwinBertForVideoCaptioning" in command("info", "moving-shapes").stdout
    for argument in ("model", "mask"):
        words = [f"--{argument}", "moving-shapes", "--dataset", str(tmp_path), "--output_dir", str(tmp_path / "run")]
        assert getattr(parse_arguments(words)[0], argument) == swinbert.bundled_model()


def test_a_missing_bundled_model_is_one_message(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("swinbert.captioning.loading.bundled_model", lambda: tmp_path / "nowhere")
    result = command("caption", clip, "--model", "moving-shapes")
    assert result.exit_code == 1 and "bundled model is missing" in result.stderr
