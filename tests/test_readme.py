"""The README is true: its Python runs, and its `swinbert` commands do what they say."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import swinbert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLE = ROOT / "modeling_swinbert" / "checkpoints" / "sample.mp4"
# Needs the Hub, or names a repository that stands for the reader's own.
ELSEWHERE = ("ORG/NAME",)
# What an example needs beyond the package and its extra `train`.
EXTRAS = {"swinbert.exporting": "onnxruntime", "torchao": "torchao"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", [code for code in blocks("python") if not any(name in code for name in ELSEWHERE)])
def test_python_runs(code, monkeypatch, tmp_path):
    if missing := [package for name, package in EXTRAS.items() if name in code and find_spec(package) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    (tmp_path / "modeling_swinbert").symlink_to(ROOT / "modeling_swinbert")  # examples may write where they run
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "swinbert", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_first_command_prints_what_the_readme_shows():
    assert f"swinbert caption {SAMPLE.relative_to(ROOT).as_posix()}" in blocks("bash")[0]
    done = run("caption", str(SAMPLE.relative_to(ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == blocks("text")[0]
    assert "moving shapes" in done.stderr  # the notice


@pytest.mark.parametrize("subcommand", ["bench", "caption", "convert", "train", "make-shapes", "info", "push"])
def test_options_in_commands_exist(subcommand):
    options = {
        option
        for line in "\n".join(blocks("bash")).splitlines()
        for command in line.split("&&")
        if command.split()[:2] == ["swinbert", subcommand]
        for option in re.findall(r"\s(--[\w-]+)", command)
    }
    text = run(subcommand, "--help").stdout
    assert not [option for option in options if option not in text]


def test_test_command_is_what_ci_runs():
    command = next(block for block in blocks("bash") if "pytest" in block).strip()
    assert command in (ROOT / ".ci" / "run").read_text()


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link.replace("\n", "")).exists(), link


def test_bundled_model_is_small_and_holds_no_pickle():
    folder = Path(swinbert.bundled_model())
    weights = list(folder.glob("*.safetensors"))
    assert 0 < sum(file.stat().st_size for file in weights) <= 12e6
    assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
