"""What `import swinbert` and the `swinbert` command import, what they register, and what they leave to others."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import typer

import swinbert
from swinbert.cli import app

HEAVY = ("PIL", "av", "datasets", "huggingface_hub", "matplotlib", "numpy", "rich", "torch", "transformers")
# The arguments of the Trainer, which `swinbert train --help` lists, come from transformers.
COMMANDS = sorted(set(typer.main.get_command(app).commands) - {"train"})
SAMPLE = os.path.join(os.path.dirname(swinbert.__file__), "checkpoints", "sample.mp4")


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


# --- Nothing heavy is imported before it is needed --------------------------------------------------------------------

RUN_AND_LIST_MODULES = """
import json, sys
from swinbert.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported_by_command(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What the command prints on stdout, and the heavy libraries that it imports."""
    done = run_python(RUN_AND_LIST_MODULES, *arguments, **environment)
    *messages, modules = done.stderr.splitlines()
    assert done.returncode == 0 and not messages, done.stderr
    return done.stdout, set(HEAVY) & set(json.loads(modules))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command):
    text, heavy = imported_by_command(command, "--help")
    assert f"Usage: swinbert {command}" in text and not heavy


def test_help_and_version_import_nothing_heavy():
    text, heavy = imported_by_command("--help")
    assert set(COMMANDS) <= set(text.split()) and not heavy
    text, heavy = imported_by_command("--version")
    assert text.split() == ["swinbert", swinbert.__version__] and not heavy


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("swinbert ", {*COMMANDS, "train"}),
        ("swinbert ca", {"caption"}),
        ("swinbert caption --format ", {"text", "jsonl", "csv", "srt", "vtt", "metadata", "activitynet"}),
        ("swinbert evaluate --dt", {"--dtype"}),
    ],
)
def test_shell_completion_imports_nothing_heavy(typed, expected):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    text, heavy = imported_by_command(_SWINBERT_COMPLETE="complete_bash", **words)
    assert set(text.split()) == expected and not heavy


def test_import_of_the_package_imports_nothing_heavy():
    code = """
import pathlib, sys, swinbert
assert pathlib.Path(swinbert.bundled_model(), "config.json").is_file() and swinbert.__version__
assert set(swinbert.__all__) <= set(dir(swinbert))
assert not hasattr(swinbert, "SwinBert")
print(*sys.modules)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


def test_public_names():
    for name in swinbert.__all__:
        assert getattr(swinbert, name) is not None
    assert swinbert.processing.SwinBertProcessor.__module__ == "swinbert.processing.processing_swinbert"


# --- transformers knows our classes, whichever is imported first ------------------------------------------------------

USE_AUTO_CLASSES = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers import AutoProcessor, AutoVideoProcessor, pipeline

folder = sys.argv[1]
objects = [
    AutoConfig.from_pretrained(folder),
    AutoConfig.for_model("video_swin"),
    AutoModel.from_pretrained(folder),
    AutoModelForImageTextToText.from_pretrained(folder),
    AutoModelForMultimodalLM.from_pretrained(folder),
    AutoModel.from_config(AutoConfig.for_model("video_swin", embed_dim=8, depths=[1, 1], num_heads=[1, 1])),
    AutoProcessor.from_pretrained(folder),
    AutoVideoProcessor.from_pretrained(folder),
    pipeline("video-captioning", model=folder),
]
for each in objects:
    assert type(each).__module__.startswith("swinbert."), type(each)
    # `save_pretrained` copies the source files of registered classes.
    assert hasattr(each, "save_pretrained") and (each is objects[-1] or each._auto_class is not None), type(each)
"""

# One thread imports transformers and registers, another imports what that needs: each waits for the other.
TWO_THREADS = """
import sys, threading, time, torch
import swinbert
from swinbert import registration

second = threading.Thread(target=lambda: __import__("MODULE"))
register = registration.register

def register_after_the_second_thread_has_begun():
    if second.ident is None:
        second.start()
        while "MODULE" not in sys.modules:
            time.sleep(0.01)
        time.sleep(0.5)  # usually the second thread waits for transformers now
    register()

registration.register = register_after_the_second_thread_has_begun
import transformers
second.join()
assert set(getattr(sys.modules["MODULE"], "__all__", ())) <= set(dir(sys.modules["MODULE"]))
"""


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import swinbert.cli", id="command"),
        pytest.param("import transformers, swinbert", id="transformers first"),
        pytest.param("from transformers import AutoModelForImageTextToText; import swinbert", id="Auto class first"),
        pytest.param("from swinbert.processing import VideoDecodeError", id="processing alone"),
        pytest.param("from swinbert import SwinBertModel", id="public name"),
        pytest.param("import swinbert.modeling_swinbert", id="model file"),
        pytest.param(
            f"import pickle; pickle.loads({pickle.dumps(swinbert.SwinBertConfig())!r})",
            id="configuration from a pickle",
        ),
        *(
            pytest.param(TWO_THREADS.replace("MODULE", f"swinbert.{module}"), id=f"{module} in another thread")
            for module in ("modeling_swinbert", "processing", "captioning.caption")
        ),
    ],
)
def test_auto_classes_know_ours(imports):
    done = run_python(f"{imports}\n{USE_AUTO_CLASSES}", swinbert.bundled_model())
    assert done.returncode == 0, done.stderr


def test_the_import_hook_is_transparent():
    """Modules keep their own loaders, and a library that looks whether transformers is installed imports nothing."""
    code = """
import importlib.util, inspect, sys
import swinbert
assert importlib.util.find_spec("transformers").origin and "transformers" not in sys.modules
import swinbert.configuration_swinbert as module
import transformers
for each in (module, transformers):
    assert type(each.__spec__.loader).__module__.startswith(("importlib", "_frozen_importlib")), each.__spec__.loader
assert each.__spec__.loader.get_data(module.__file__)
assert "class SwinBertConfig" in inspect.getsource(module)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


# --- The commands are quiet -------------------------------------------------------------------------------------------


def test_captioning_a_clip_prints_its_caption_and_nothing_else():
    """Neither transformers nor the optional libraries that it imports, such as torchao, add warnings."""
    command = [sys.executable, "-m", "swinbert", "caption", SAMPLE, "--model", swinbert.bundled_model()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_libraries_are_left_out_of_garbage_collection():
    code = """
import gc, sys
from swinbert.cli import main
try:
    main()
finally:
    print(gc.isenabled(), gc.get_freeze_count(), file=sys.stderr)
"""
    done = run_python(code, "caption", SAMPLE, "--model", "moving-shapes")
    is_enabled, num_frozen = done.stderr.split()
    assert is_enabled == "True" and int(num_frozen) > 100_000, done.stderr


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_commands_silence_the_warnings_of_an_optional_library(library):
    pytest.importorskip(library)
    code = f"from swinbert.cli.messages import quiet_imports; quiet_imports(); import {library}"
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
