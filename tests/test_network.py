"""Commands on local files alone make no network request: no name is looked up, no connection made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

import swinbert

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"

# An audit hook sees every use of a socket in the process, whatever library it is of.
WATCHED = """
import json, sys
seen = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        if not any(isinstance(each, (str, bytes)) and b"/" in (each.encode() if isinstance(each, str) else each)
                   for each in arguments):  # not a socket of this machine
            seen.append([event, str(arguments[:3])])
sys.addaudithook(watch)
from typer.testing import CliRunner
from swinbert.cli import app
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
print("seen:", json.dumps(seen))
"""


def watched(folder: Path, *commands: list[str]) -> list:
    """Look-ups and connections that these commands of `swinbert` make."""
    quieted = ("HF_", "TRANSFORMERS_", "DO_NOT_TRACK")  # settings of a user that switch requests off
    environment = {name: value for name, value in os.environ.items() if not name.startswith(quieted)}
    environment |= {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("seen:")[2])


def test_captioning_local_clips_makes_no_request(tmp_path):
    assert watched(tmp_path, ["caption", str(SAMPLE), "--model", "moving-shapes"], ["info", "moving-shapes"]) == []


def test_the_audit_hook_records_a_look_up():
    hook = WATCHED.partition("from typer")[0]
    code = f"{hook}import socket\nsocket.getaddrinfo('localhost', 9)\nprint(seen)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "socket.getaddrinfo" in done.stdout


@pytest.mark.slow
def test_training_makes_no_request(tmp_path):
    dataset = tiny_run.make_shapes(tmp_path)
    arguments = tiny_run.arguments(dataset, tmp_path / "out", max_steps=1, eval_steps=1, save_steps=1)
    assert watched(tmp_path, ["train", *arguments], ["caption", str(SAMPLE), "--model", str(tmp_path / "out")]) == []
