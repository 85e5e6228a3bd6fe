"""The documents are true: the commands and options that they name exist, and what the README shows runs."""

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import captioning
import chat_models
import encoded_clips
import original_checkpoint
import pytest
import torch
from transformers import GitConfig, pipeline
from typer.testing import CliRunner

import swinbert
from swinbert import SwinBertConfig, VideoSwinConfig
from swinbert.cli import app
from swinbert.deployment.hub import push

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "modeling_swinbert" / "checkpoints" / "sample.mp4"
DOCUMENTS = ("README.md", "training/README.md", "CONTRIBUTING.md", "modeling_swinbert/captioning/bulk/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = "-m swinbert.training.studies"
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")
# What an example needs beyond the package and its extra `train`.
EXTRAS = {"swinbert.exporting": "onnxruntime", "torchao": "torchao"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# --- Commands and options exist ---------------------------------------------------------------------------------------


def code_lines(text: str) -> list[str]:
    """The commands of the bash blocks, without comments, and the code spans of the prose."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.split(r"&&|\|", re.sub(r"#.*", "", line))] + spans


def named_options(text: str) -> list[tuple[str | None, str | None]]:
    """
    Pairs of a command and an option that a document names.

    A command without options is paired with `None`, and so is an option in a code span of its own.
    """
    named: list[tuple[str | None, str | None]] = []
    for line in code_lines(text):
        if match := re.match(r"swinbert ([a-z][a-z-]*)", line):
            command, rest = match[1], line
        elif match := re.search(r"-m swinbert\.training\.(train|studies)\b(.*)", line):
            command, rest = ("train" if match[1] == "train" else STUDIES), match[2]
        elif line.startswith("--"):
            command, rest = None, line
        else:
            continue
        named += [(command, option) for option in OPTION.findall(rest)] or [(command, None)]
    return named


@functools.cache
def help_of(command: str) -> str | None:
    """What a command prints for `--help`, or `None` if there is no such command."""
    if command == STUDIES:
        words = [sys.executable, *command.split(), "--help"]
        return subprocess.run(words, capture_output=True, text=True, timeout=600, check=True).stdout
    done = CliRunner().invoke(app, [command, "--help"])
    return done.stdout if done.exit_code == 0 else None


@functools.cache
def options_of(command: str) -> set[str]:
    text = help_of(command)
    # The studies hand other options on to `swinbert train`.
    return set(OPTION.findall(text or "")) | (options_of("train") if command == STUDIES else set())


def is_config_field(option: str) -> bool:
    name = option.removeprefix("--config.")
    if name.startswith("vision_config."):
        return name.removeprefix("vision_config.") in VideoSwinConfig.__annotations__
    return name in {*SwinBertConfig.__annotations__, "num_frames", "image_size"} or hasattr(GitConfig(), name)


def errors_in(text: str, commands: tuple[str, ...]) -> list[str]:
    """Every command of `swinbert` and every option in a document that does not exist; `commands` own lone options."""
    errors = []
    for command, option in named_options(text):
        if command is not None and help_of(command) is None:
            errors.append(command)
        elif option is not None and option.startswith("--config."):
            if command not in (None, "train", STUDIES) or not is_config_field(option):
                errors.append(f"{command} {option}")
        elif option is not None and not any(
            option in options_of(each) for each in ([command] if command else commands)
        ):
            errors.append(f"{command} {option}")
    return errors


ALL_NAMED = {document: named_options((ROOT / document).read_text(encoding="utf-8")) for document in DOCUMENTS}
COMMANDS = tuple(sorted({command for named in ALL_NAMED.values() for command, _ in named if command}))


def test_documents_name_the_commands():
    assert {"bench", "caption", "convert", "info", "make-shapes", "prepare", "push", "train"} <= {
        command for command, _ in ALL_NAMED["README.md"]
    }
    assert {"doctor", "evaluate", "harden", "prepare", "train", STUDIES} <= {
        command for command, _ in ALL_NAMED["training/README.md"]
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(document):
    assert errors_in((ROOT / document).read_text(encoding="utf-8"), COMMANDS) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```bash\nswinbert captoin clip.mp4\n```", "captoin"),
        ("Run `swinbert inform MODEL`.", "inform"),
        ("```bash\npip install . && swinbert make-shapes shapes --trains 5\n```", "make-shapes --trains"),
        ("```bash\nswinbert info MODEL \\\n    --revisions X  # a comment --with-an-option\n```", "info --revisions"),
        ("```bash\nswinbert evaluate --out DIR\n```", "evaluate --out"),
        ("`swinbert train\n--learning_rates 1`", "train --learning_rates"),
        ("```bash\ntorchrun --standalone -m swinbert.training.train r.yaml --dat X\n```", "train --dat"),
        ("```bash\nswinbert train r.yaml --config.hiden_size 64\n```", "train --config.hiden_size"),
        ("with `--no-such-option 3`", "None --no-such-option"),
    ],
)
def test_an_error_in_a_document_is_found(text, error):
    assert errors_in(text, COMMANDS) == [error]
    assert errors_in(text.replace("captoin", "caption"), COMMANDS) == ([] if error == "captoin" else [error])


# --- What the README shows runs ---------------------------------------------------------------------------------------

# Options that make a command small enough for a test.
SMALLER = {
    "make-shapes": ["--train", "4", "--validation", "2", "--test", "2"],
    "train": ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--use_cpu", "true"],
    "bench": ["--size", "tiny", "--only", "caption", "--repeats", "1", "--output", "outputs/benchmark"],
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with everything that the README's examples name."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("modeling_swinbert", "training"):
        (folder / name).symlink_to(ROOT / name)
    for clip in ("clip.mp4", "videos/a.mp4", "clips/a.mp4", "clips/b.mp4", "held-out/a.mp4"):
        Path(clip).parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLE, clip)
    with Path("clips/b.mp4").open("ab") as file:  # a file of its own, not a copy
        file.write(b"\0\0\0\x08free")
    reference = {"file_name": "a.mp4", "captions": ["a red cross moves right"], "split": "test"}
    Path("held-out/metadata.jsonl").write_text(json.dumps(reference) + "\n")
    encoded_clips.encode(folder / "film.mkv", range(140), rate=2)
    Path("films").mkdir()
    shutil.copy("film.mkv", "films/film.mkv")
    event = {"file_name": "film.mkv", "start": 0, "end": 20, "caption": "a red cross moves right", "split": "test"}
    Path("films/metadata.jsonl").write_text(json.dumps(event) + "\n")
    torch.save(original_checkpoint.original_tiny_state_dict(), "model.bin")
    Path("args.json").write_text(json.dumps(original_checkpoint.TINY_ARGS))
    original_checkpoint.write_vocabulary(folder / "bert-base-uncased")
    captioning.write_git_folder(folder / "microsoft" / "git-base-vatex")
    chat_models.write_smolvlm(folder / "HuggingFaceTB" / "SmolVLM2-500M-Video-Instruct")
    pipeline("video-captioning", model=swinbert.bundled_model(), device="cpu").save_pretrained("outputs/moving-shapes")
    return folder


def test_first_command_prints_what_the_readme_shows():
    shown = shlex.split(blocks(README, "bash")[0].split("&& ")[1])
    assert shown == ["swinbert", "caption", SAMPLE.relative_to(ROOT).as_posix(), "--model", "moving-shapes"]
    command = [sys.executable, "-m", "swinbert", "caption", str(SAMPLE), *shown[3:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == blocks(README, "text")[0]


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_python_runs(number, workplace, hub):
    code = blocks(README, "python")[number]
    if missing := [package for name, package in EXTRAS.items() if name in code and find_spec(package) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    if "ORG/NAME" in code:
        code = code.replace("COMMIT", push("outputs/moving-shapes", "ORG/NAME")[0].oid)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
def test_commands_run(workplace, hub):
    """All `swinbert` commands of the bash blocks, in their order, as the reader types them."""
    commit, done = "", []
    for line in code_lines("".join(f"```bash\n{block}```\n" for block in blocks(README, "bash"))):
        if not line.startswith("swinbert "):
            continue
        words = shlex.split(line.split(">")[0].replace("COMMIT", commit))[1:]
        if "outputs/moving-shapes" in words and words[0] == "train":
            shutil.rmtree("outputs/moving-shapes")
        result = CliRunner().invoke(app, [*words, *SMALLER.get(words[0], [])], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if words[0] == "push":
            commit = result.stdout.strip().rsplit("/", 1)[-1]
        done.append(words[0])
    assert {"bench", "bulk", "caption", "convert", "doctor", "evaluate", "explain", "push", "train"} <= set(done)


# --- Links and files --------------------------------------------------------------------------------------------------


def test_test_command_is_what_ci_runs():
    command = next(block for block in blocks(README, "bash") if "pytest" in block).strip()
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document):
    file = ROOT / document
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
        assert (file.parent / link.replace("\n", "")).exists(), link


def test_bundled_model_is_small_and_holds_no_pickle():
    folder = Path(swinbert.bundled_model())
    weights = list(folder.glob("*.safetensors"))
    assert 0 < sum(file.stat().st_size for file in weights) <= 12e6
    assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
