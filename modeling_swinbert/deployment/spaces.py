"""A Hugging Face Space for a saved captioner: the demo, with model, code and an example clip."""

import shutil
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import CommitInfo, SpaceCardData
from packaging.requirements import Requirement

import swinbert
import swinbert.model_cards
import swinbert.processing
from swinbert.deployment.hub import NOT_PUSHED, PushError, check_folder, upload
from swinbert.version import __version__

# Folders of the Space that consist of what the new commit has: old shards and old code would stay in use.
_REPLACED = ["model/*", "swinbert/*"]
# What is left out of the code: compiled files, the bundled model, and what measures and trains.
_NOT_NEEDED = ["__pycache__", "checkpoints", "benchmarks", "conversion", "training"]
_CARD = """---
{metadata}
---

# {title}

Describes a video clip in one sentence. The page is `swinbert demo` {version}; the model is in `model`.

The code is in `swinbert`, as it was where this Space was made: `swinbert push --space DIR ORG/NAME` writes it again.
"""


def push_space(folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> CommitInfo:
    """
    Checks a model's folder, and uploads a Space that serves the demo with it.

    Args:
        folder: as of [`push`](swinbert.deployment.hub.push), but a whole model, not an adapter.
        repo_id, private, revision: likewise.

    Raises:
        PushError: the folder is incomplete or holds a pickle, or the Hub refused the upload.
    """
    folder = Path(folder)
    check_folder(folder)
    if not (folder / "config.json").is_file():
        raise PushError(f"{folder} holds an adapter; a Space needs the whole model: merge it, and save that.")
    with tempfile.TemporaryDirectory() as temporary:
        space = Path(temporary, "space")
        write_space(space, folder, repo_id.split("/")[-1])
        return upload(
            space, repo_id, named=folder, repo_type="space", private=private, revision=revision, replaced=_REPLACED
        )


def write_space(space: Path, model: Path, title: str) -> None:
    """Writes the files of a Space into a new folder."""
    shutil.copytree(model, space / "model", ignore=shutil.ignore_patterns(*NOT_PUSHED))
    _copy_code(space / "swinbert")
    shutil.copy(Path(swinbert.bundled_model()).parent / "sample.mp4", space / "example.mp4")
    shutil.copy(Path(__file__).with_name("space_app.py"), space / "app.py")
    (space / "requirements.txt").write_text(_requirements(), encoding="utf-8")
    (space / "README.md").write_text(
        _CARD.format(metadata=_metadata(title), title=title, version=__version__), encoding="utf-8"
    )


def _copy_code(target: Path) -> None:
    """The package as one folder; in an editable installation it consists of several."""
    ignored = shutil.ignore_patterns(*_NOT_NEEDED)
    for package in (swinbert, swinbert.processing, swinbert.model_cards):
        inner = package.__name__.split(".")[1:]
        shutil.copytree(Path(str(package.__file__)).parent, target.joinpath(*inner), ignore=ignored, dirs_exist_ok=True)


def _demo_requirements() -> list[Requirement]:
    """What this package and its extra `demo` require."""
    found = [Requirement(line) for line in requires("swinbert") or []]
    extras = [(each, "extra ==" in str(each.marker or "")) for each in found]
    base = [each for each, is_extra in extras if not is_extra]
    demo = [Requirement(str(each).partition(";")[0]) for each, _ in extras if 'extra == "demo"' in str(each.marker)]
    return base + demo


def _requirements() -> str:
    """
    `requirements.txt`. The package itself is not in it: a Space installs this file before it has any other, so that a
    wheel beside it is not found, one at an address would need a public Space, and no registry need have this release.
    """
    lines = "\n".join(map(str, _demo_requirements()))
    return f"# What swinbert[demo]=={__version__} requires, whose code is in the folder swinbert.\n{lines}\n"


def _metadata(title: str) -> str:
    """The header of a Space's README.md: https://huggingface.co/docs/hub/spaces-config-reference."""
    (gradio,) = (each for each in _demo_requirements() if each.name == "gradio")
    return SpaceCardData(
        title=title,
        emoji="🎬",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=next(each.version for each in gradio.specifier if each.operator == ">="),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        short_description="Describes a video clip in one sentence",
    ).to_yaml()


__all__ = ["push_space", "write_space"]
