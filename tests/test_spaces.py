"""A Space for a model: what is pushed, and that it runs; the server is `hub_server`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

import swinbert
from swinbert.cli import app
from swinbert.deployment.hub import PushError
from swinbert.deployment.spaces import push_space, write_space
from swinbert.version import __version__

MODEL = Path(swinbert.bundled_model())


def swinbert_push(*arguments: object):
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_one_command_pushes_a_space(hub):
    done = swinbert_push("--space", MODEL, "org/demo")
    assert done.exit_code == 0, done.stderr
    repository = hub.repositories["spaces/org/demo"]
    files = repository.files()
    assert {"README.md", "app.py", "requirements.txt", "example.mp4", "swinbert/__init__.py"} <= files.keys()
    assert {"swinbert/processing/__init__.py", "swinbert/captioning/demo/page.css"} <= files.keys()
    assert {f"model/{name.name}" for name in MODEL.iterdir()} <= files.keys()
    assert files["model/model.safetensors"] == (MODEL / "model.safetensors").read_bytes()
    assert not any("__pycache__" in name for name in files)
    assert done.stdout.strip().endswith(f"org/demo/commit/{repository.branches['main']}")
    assert "org/demo" not in hub.repositories, "it is no model repository"


def test_metadata_and_requirements(hub):
    push_space(MODEL, "org/demo", private=True)
    repository = hub.repositories["spaces/org/demo"]
    assert repository.private
    _, header, text = repository.files()["README.md"].decode().split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["title"] == "demo" and metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
    assert metadata["license"] == "apache-2.0" and metadata["pinned"] is False and metadata["emoji"]
    assert {metadata["colorFrom"], metadata["colorTo"]} <= {
        *("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    }
    assert 0 < len(metadata["short_description"]) <= 60, "the Hub's limit"
    assert tuple(map(int, metadata["python_version"].split("."))) == sys.version_info[:2]
    requirements = repository.files()["requirements.txt"].decode()
    comment, *lines = requirements.splitlines()
    assert comment.startswith("#") and __version__ in comment
    needed = {requirement.name: requirement for requirement in map(Requirement, lines)}
    assert {"torch", "transformers", "av", "gradio"} <= needed.keys() and "pytest" not in needed
    assert metadata["sdk_version"] in needed["gradio"].specifier and metadata["sdk_version"].count(".") == 2


def test_pushing_again_replaces_old_code_and_keeps_other_files(hub):
    push_space(MODEL, "org/demo")
    repository = hub.repositories["spaces/org/demo"]
    repository.commit("main", {**repository.files(), "swinbert/old.py": b"old", "notes.txt": b"mine"})
    hub.uploads.clear()
    push_space(MODEL, "org/demo")
    assert "swinbert/old.py" not in repository.files() and repository.files()["notes.txt"] == b"mine"
    assert hub.uploads == []


def test_what_is_no_model_is_not_pushed(hub, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    done = swinbert_push("--space", tmp_path, "org/demo")
    assert done.exit_code == 1 and "adapter" in done.stderr and not hub.repositories
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "training_args.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(PushError, match="training_args.bin is a pickle"):
        push_space(model, "org/demo")
    assert not hub.repositories


def test_the_program_of_a_space_runs_on_its_own_code(tmp_path):
    """As a Space runs it, in a new process: `python app.py`."""
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    from gradio_client import Client, handle_file

    write_space(tmp_path / "space", MODEL, "demo")
    page = tmp_path / "space" / "swinbert" / "captioning" / "demo" / "layout.py"
    page.write_text(page.read_text().replace('TITLE = "', 'TITLE = "Its own: '))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")},
        "GRADIO_SERVER_PORT": address.split(":")[2].strip("/"),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
    }
    command, log = [sys.executable, "app.py"], tmp_path / "log"
    with (
        log.open("w") as messages,
        subprocess.Popen(command, cwd=page.parents[3], env=environment, stderr=messages) as running,
    ):
        try:
            assert answers(running, address), log.read_text()
            client = Client(address, verbose=False)
            assert client.config["title"].startswith("Its own: ")
            (row,) = client.predict(video=handle_file(tmp_path / "space" / "example.mp4"), api_name="/caption")
            assert "red cross" in row["caption"]
            client.close()
        finally:
            running.terminate()
    assert "Traceback" not in log.read_text() and not list(tmp_path.glob("swinbert-demo-*"))


def answers(process: subprocess.Popen, address: str, seconds: float = 120) -> bool:
    """Whether a server answers before it ends and before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
