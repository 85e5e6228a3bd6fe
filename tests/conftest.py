"""Fixtures of more than one file."""

import os
from pathlib import Path

import huggingface_hub
import pytest
import transformers.utils.hub
from encoded_clips import GROUPS, encode
from hub_server import HubServer
from huggingface_hub import constants


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, default=10, help="tests/endurance: how long mutants are tried")
    parser.addoption("--seed", type=int, default=0, help="tests/endurance: of the mutants")


def pytest_configure(config):
    if config.getoption("numprocesses", 0):  # threads of several processes would wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """Tests that train in a forked process come first: after a backward pass here, PyTorch refuses one there."""
    items.sort(key=lambda item: item.path.name != "test_faults.py")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub for this process: what `huggingface_hub` read from the environment at its import is set anew."""
    with HubServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        yield server


@pytest.fixture(scope="session")
def numbered_clip(tmp_path_factory) -> Path:
    """60 frames at 30 a second, in groups of 12 with B-frames; each shows its number, see `encoded_clips`."""
    return encode(tmp_path_factory.mktemp("numbered") / "clip.mp4", range(60), options=GROUPS)


@pytest.fixture
def captioned(monkeypatch):
    """Number of clips in each forward pass."""
    from swinbert.processing import VideoCaptioningPipeline  # here: most tests need no pipeline

    passes = []
    forward = VideoCaptioningPipeline.forward

    def counted(self, inputs, **kwargs):
        passes.append(len(inputs["error"]))
        return forward(self, inputs, **kwargs)

    monkeypatch.setattr(VideoCaptioningPipeline, "forward", counted)
    return passes
