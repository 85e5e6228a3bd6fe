"""What is shipped: the modules of a saved model, and the files of the wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import swinbert

ROOT = Path(__file__).parent.parent
SHIPPED = sorted([*ROOT.glob("modeling_swinbert/*_swinbert.py"), *ROOT.glob("processing/*_swinbert.py")])
NAMES = {file.stem for file in SHIPPED}
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# Packages that loading with `trust_remote_code` requires; imports inside `try` are optional.
REQUIRED = {"torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"}


def imports(tree: ast.AST, optional: bool = False):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], 0, optional) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.level, optional
        yield from imports(node, optional or isinstance(node, ast.Try))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_modules_import_only_what_remote_code_can(file):
    for name, level, optional in imports(ast.parse(file.read_text())):
        if level:
            assert level == 1 and name in NAMES, f"{file.name}: relative import of {name!r}"
        elif name not in sys.stdlib_module_names and not optional:
            assert name in REQUIRED, f"{file.name} requires {name}"
    for line in file.read_text().splitlines():
        if line.strip().startswith("from ."):
            assert line.split()[1].removeprefix(".") in NAMES, f"the loader reads {line!r} as an import"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_loader_of_remote_code_finds_siblings_and_requirements(file):
    """The loader finds siblings in the text of a file, and requires every package that is imported anywhere in it."""
    assert set(get_relative_imports(file)) <= NAMES
    assert {name.split(".")[0] for name in get_imports(file)} - sys.stdlib_module_names <= REQUIRED


ENTRIES = [
    *("modeling_swinbert", "modeling_video_swin_swinbert", "pipeline_swinbert", "processing_swinbert"),
    "video_processing_swinbert",
]


@pytest.mark.parametrize("entry", ENTRIES)
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


def test_bundled_checkpoint_is_data():
    """Its code is the package's: a copy would grow stale, and naming it would make transformers look for it."""
    folder = Path(swinbert.bundled_model())
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    for file in folder.glob("*.json"):
        assert "auto_map" not in file.read_text() and "custom_pipelines" not in file.read_text(), file.name


WITH_THE_PACKAGE = """
import sys
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline
import swinbert
model = swinbert.bundled_model()
for auto_class in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
    loaded = type(auto_class.from_pretrained(model))
    assert loaded.__module__.startswith("swinbert."), loaded
captioner = pipeline("video-captioning", model=model)
captioner.save_pretrained(sys.argv[1])
print(captioner(sys.argv[2])[0]["generated_text"])
"""
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["swinbert"] = None  # importing it fails
from transformers import pipeline
captioner = pipeline("video-captioning", model=sys.argv[1], trust_remote_code=True)
assert type(captioner).__module__.startswith("transformers_modules"), type(captioner)
print(captioner(sys.argv[2])[0]["generated_text"])
"""


def test_bundled_checkpoint_loads_without_a_prompt_and_is_saved_with_its_code(tmp_path):
    """In the README's order of imports; `trust_remote_code` would prompt on stdin, which is closed."""
    clip = Path(swinbert.bundled_model()).parent / "sample.mp4"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    captions = []
    for code in (WITH_THE_PACKAGE, WITHOUT_THE_PACKAGE):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "saved"), str(clip)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        captions.append(done.stdout.splitlines()[-1])  # libraries print too
    assert captions[0] == captions[1] != ""
    saved = {file.name: file.read_text() for file in (tmp_path / "saved").glob("*.py")}
    assert saved == {file.name: file.read_text() for file in SHIPPED}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("built")

    def build(kind: str, source: Path) -> None:
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)

    source = folder / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache", "outputs", "shapes"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    build("sdist", source)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build("wheel", unpacked)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_wheel_holds_the_package_alone(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"swinbert"}
    assert not [name for name in names if name.endswith(PICKLES) or "/tests/" in name]
    for file in SHIPPED:
        assert len([name for name in names if name.endswith(f"/{file.name}")]) == 1, file
    for needed in (
        "swinbert/py.typed",
        "swinbert/processing/pipeline_swinbert.py",
        "swinbert/training/examples/own_trainer.py",
        "swinbert/training/recipes/moving_shapes.yaml",
        "swinbert/model_cards/template.md",
        "swinbert/checkpoints/sample.mp4",
        "swinbert/checkpoints/moving-shapes/model.safetensors",
    ):
        assert needed in names


def test_metadata_is_complete(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Metadata.from_email(wheel.read(name), validate=True)
    assert (metadata.name, str(metadata.version)) == ("swinbert", swinbert.__version__)
    assert metadata.license_expression == "Apache-2.0" and set(metadata.license_files) == {"LICENSE", "NOTICE"}
    assert str(metadata.requires_python) == ">=3.11"
    assert metadata.description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert metadata.description_content_type == "text/markdown"
    assert metadata.summary and metadata.author and metadata.keywords and metadata.project_urls
    assert "Typing :: Typed" in metadata.classifiers
    assert {"all", "onnx", "peft", "test", "train"} <= set(metadata.provides_extra)


def test_version_is_in_one_place():
    version = swinbert.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1] == version
    files = [*ROOT.glob("*.toml"), *ROOT.glob("*.cff"), *ROOT.glob("*/*.py")]
    assert [file.name for file in files if f'"{version}"' in file.read_text(encoding="utf-8")] == ["version.py"]


def test_citation_file():
    """The rules of the Citation File Format 1.2.0 for the keys that the file uses."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software" and citation["license"] == "Apache-2.0"
    for work in (citation, *citation["references"]):
        assert work["title"] and work["authors"]
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    for reference in citation["references"]:
        assert reference["type"] == "conference-paper" and isinstance(reference["year"], int)
        assert reference["url"].startswith("https://arxiv.org/abs/")


def test_contributors_need_three_commands():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert len(commands) == 3
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[0] in ci and commands[1].split()[0] in ci
    assert all(part in ci for part in commands[2].split(" && "))


def report_of_newest(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ".ci/newest_report.py", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_report_of_newest_names_what_broke(tmp_path):
    case = '<testcase file="tests/test_cli.py" name="test_a">{}</testcase>'
    for name, release, result in (("oldest", "2.10.0", "<failure/>"), ("newest", "2.15.0", "")):
        (tmp_path / f"{name}.txt").write_text(f"torch=={release}\nsix==1.17.0\n")
        (tmp_path / f"{name}.xml").write_text(f"<testsuites><testsuite>{case.format(result)}</testsuite></testsuites>")
    (tmp_path / "newest.audit").write_text("clean\n")
    report = report_of_newest(tmp_path)
    rows = [line.split() for line in report.stdout.splitlines()]
    assert report.returncode == 1 and "six" not in report.stdout
    assert ["torch", "2.10.0", "2.15.0"] in rows and ["tests/test_cli.py", "1", "FAILED", "-"] in rows
    assert ["audit", "NOT", "AUDITED", "clean"] in rows
    shutil.copy(tmp_path / "newest.xml", tmp_path / "oldest.xml")
    assert report_of_newest(tmp_path).returncode == 0
    (tmp_path / "newest.audit").write_text("VULNERABLE\n")
    assert report_of_newest(tmp_path).returncode == 1
    (tmp_path / "newest.audit").unlink()
    (tmp_path / "oldest.xml").write_text("<testsuites/>")  # no test has run
    assert report_of_newest(tmp_path).returncode == 1
    (tmp_path / "oldest.txt").unlink()  # the releases could not be installed
    assert "installation" in report_of_newest(tmp_path).stdout


@pytest.mark.parametrize("document", ["README.md", "training/README.md", "CONTRIBUTING.md"])
def test_remote_code_is_trusted_at_one_revision_only(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for code in re.findall(r"```(?:python|bash)\n(.*?)```", text, re.DOTALL):
        for call in re.findall(r"[^\n]*trust_remote_code=True[^\n]*|[^\n]*--trust-remote-code[^\n]*", code):
            assert "revision" in call, call


def test_declared_packages():
    declared = {line.split(";")[0].rstrip("0123456789.,<>=! "): line for line in requires("swinbert")}
    for package in "torch transformers huggingface-hub safetensors decord av".split():
        assert "extra ==" not in declared[package]
    for package in "accelerate datasets evaluate timm".split():
        assert 'extra == "train"' in declared[package]
    assert "platform_machine" in declared["decord"]
