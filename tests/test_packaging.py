"""What is shipped: the modules of a saved model, and the files of the wheel."""

import ast
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).parent.parent
SHIPPED = sorted([*ROOT.glob("modeling_swinbert/*_swinbert.py"), *ROOT.glob("processing/*_swinbert.py")])
NAMES = {file.stem for file in SHIPPED}
# `trust_remote_code` demands these of the machine; what stands in `try` is optional.
DEMANDED = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL"}


def imports(tree: ast.AST, optional: bool = False):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], 0, optional) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.level, optional
        yield from imports(node, optional or isinstance(node, ast.Try))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_modules_import_what_remote_code_may(file):
    for name, level, optional in imports(ast.parse(file.read_text())):
        if level:
            assert level == 1 and name in NAMES, f"{file.name}: relative import of {name!r}"
        elif name not in sys.stdlib_module_names and not optional:
            assert name in DEMANDED, f"{file.name} demands {name}"
    for line in file.read_text().splitlines():
        if line.strip().startswith("from ."):
            assert line.split()[1].removeprefix(".") in NAMES, f"the loader reads {line!r} as an import"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_loader_of_remote_code_finds_and_demands_no_more(file):
    """As it reads a file itself: by its text for siblings, and without regard to what is called."""
    assert set(get_relative_imports(file)) <= NAMES
    assert {name.split(".")[0] for name in get_imports(file)} - sys.stdlib_module_names <= DEMANDED


@pytest.mark.parametrize("entry", ["modeling_swinbert", "processing_swinbert"])
def test_an_entry_module_names_every_sibling_that_it_needs(entry):
    """The loader of remote code copies what the entry file imports, one level deep."""
    files = {file.stem: file for file in SHIPPED}

    def siblings(name):
        return {found for found, level, _ in imports(ast.parse(files[name].read_text())) if level}

    direct, seen, todo = siblings(entry), set(), [entry]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += siblings(name)
    assert seen - {entry} <= direct


def test_bundled_checkpoint_holds_the_code_of_this_package():
    """A complete folder for the Hub. After a change of a shipped module: copy it there."""
    copies = {file.name: file.read_text() for file in (ROOT / "modeling_swinbert" / "checkpoints").rglob("*.py")}
    assert copies == {file.name: file.read_text() for file in SHIPPED}


def test_wheel_holds_the_package_alone(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache", "outputs", "shapes"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"swinbert"}
    for needed in (
        "swinbert/py.typed",
        "swinbert/processing/pipeline_swinbert.py",
        "swinbert/training/recipes/moving_shapes.yaml",
        "swinbert/model_cards/template.md",
        "swinbert/checkpoints/sample.mp4",
        "swinbert/checkpoints/moving-shapes/model.safetensors",
    ):
        assert needed in names


def test_declared_packages():
    declared = {line.split(";")[0].rstrip("0123456789.,<>=! "): line for line in requires("swinbert")}
    for package in "torch transformers huggingface-hub safetensors decord av".split():
        assert "extra ==" not in declared[package]
    for package in "accelerate datasets evaluate timm".split():
        assert 'extra == "train"' in declared[package]
    assert "platform_machine" in declared["decord"]
