"""Pushing a saved captioner to the Hub: complete with its code, and without pickles."""

import contextlib
import json
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open
from transformers import pipeline

import swinbert.processing
from swinbert.configuration_swinbert import SwinBertConfig
from swinbert.model_cards import captioner_card
from swinbert.utils.files import write_atomically

# Not uploaded, as in `Trainer`: hidden files, temporary folders of a run, and checkpoints for resuming.
NOT_PUSHED = [".*", "_*", "checkpoint-*"]
# Deleted from the repository where the new commit lacks them: old shards and code would be loaded with the new files.
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_swinbert.py"]
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class PushError(ValueError):
    """A folder cannot be pushed, or the push failed; the message says why and how to fix it."""


def push(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None
) -> tuple[CommitInfo, bool]:
    """
    Checks a folder and uploads it. Files that the repository already has are not uploaded again, so repeating an
    interrupted push uploads the rest.

    Args:
        folder: what `save_pretrained` of the pipeline, `swinbert train` or `swinbert convert` wrote, or a `peft`
            adapter. A folder without README.md gets one, generated from the configuration. A folder without any code,
            such as the bundled model, is uploaded with the code of this package, and is not changed itself.
        repo_id: "OWNER/NAME"; created if it does not exist.
        private: create the repository as private; refuse to push to an existing public one.
        revision: the branch, created if it does not exist; main by default.

    Returns:
        The commit, and whether a README.md was written to the folder.

    Raises:
        PushError: the folder is incomplete or holds a pickle, or the Hub refused the upload.
    """
    folder = Path(folder)
    check_folder(folder)
    card = folder / "README.md"
    if wrote_card := not card.exists():
        write_atomically(card, _card(folder, repo_id.split("/")[-1]))
    with _folder_with_code(folder) as complete:
        commit = upload(complete, repo_id, named=folder, private=private, revision=revision, replaced=_REPLACED)
    return commit, wrote_card


def upload(
    folder: Path,
    repo_id: str,
    *,
    named: Path,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    replaced: Sequence[str] = (),
) -> CommitInfo:
    """
    Uploads a folder to a repository, which is created if it does not exist.

    Args:
        named: what the folder is called in messages.
        repo_type: "model" or "space".
        private, revision: as of [`push`].
        replaced: patterns of files that are deleted from the repository if the folder lacks them.

    Raises:
        PushError: the Hub refused the upload, or it was interrupted.
    """
    api = HfApi()
    try:
        created = api.create_repo(
            repo_id,
            repo_type=repo_type,
            space_sdk="gradio" if repo_type == "space" else None,
            private=private or None,
            exist_ok=True,
        )
        repo_id = created.repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise PushError("it exists and is public; make it private on the Hub, or leave out --private.")
        if revision is not None:
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            revision=revision,
            commit_message="Push with swinbert",
            ignore_patterns=list(NOT_PUSHED),
            delete_patterns=list(replaced),
        )
    except Exception as error:
        raise PushError(f"{named} was not, or only partly, pushed to {repo_id}: {_reason(error)}") from error


@contextlib.contextmanager
def _folder_with_code(folder: Path) -> Iterator[Path]:
    """The folder itself, or a temporary copy with the code of this package if it holds a model without code."""
    if not (folder / "config.json").is_file() or _has_code(folder, _read_json(folder / "config.json")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary, "model"), ignore=shutil.ignore_patterns(*NOT_PUSHED))
        pipeline("video-captioning", model=str(folder), device="cpu").save_pretrained(copy)
        yield copy


def _has_code(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a model's folder holds or names any code."""
    return any(folder.glob("*_swinbert.py")) or any(config.get(key) for key in ("auto_map", "custom_pipelines"))


def _reason(error: Exception) -> str:
    if isinstance(error, PushError):
        return str(error)
    if isinstance(error, HFValidationError):
        return f"{error} Expected OWNER/NAME."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub does not let you write there. Run `hf auth login`, or set HF_TOKEN, with a token that may write"
            f" to repositories of that owner. ({str(error).splitlines()[0]})"
        )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    return f"{str(error).splitlines()[0]} ({first}). Run the same command again to upload the rest."


def check_folder(folder: Path) -> None:
    """
    Checks that a folder holds a complete SwinBERT captioner, or a `peft` adapter, and no pickle.

    Raises:
        PushError: names every file that is missing, damaged or must not be pushed, and says how to fix it.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            _raise_problems(folder, [*_adapter_problems(folder), *_pickle_problems(folder)])
            return
        raise PushError(
            f"{folder} is not a model folder: it has no config.json. Name a folder that `save_pretrained` wrote."
        )
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "swinbert":
        raise PushError(
            f"{folder} holds a {config.get('model_type')!r} model; expected 'swinbert'. `hf upload` pushes any folder."
        )
    problems = [*_weight_problems(folder), *_processor_problems(folder)]
    if _has_code(folder, config) and (code_problems := list(_code_problems(folder, config))):
        problems += code_problems
        problems.append(
            "to write code, `auto_map` and `custom_pipelines` again, run, with `import swinbert`,"
            f" pipeline('video-captioning', model='{folder}').save_pretrained('{folder}')"
        )
    _raise_problems(folder, [*problems, *_pickle_problems(folder)])


def _raise_problems(folder: Path, problems: list[str]) -> None:
    if problems:
        raise PushError("\n  - ".join([f"{folder} is not pushed:", *problems]))


def _adapter_problems(folder: Path) -> Iterator[str]:
    yield from _weight_problems(folder, "adapter_model.safetensors")
    base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or Path(base).exists():
        yield (
            f"adapter_config.json names {base} as base_model_name_or_path, which is not a model on the Hub: push that"
            " model, and write its ORG/NAME there."
        )


def _weight_problems(folder: Path, name: str = "model.safetensors") -> Iterator[str]:
    index = folder / f"{name}.index.json"
    names = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else [name]
    for name in names:
        if not (folder / name).is_file():
            yield f"{name} is missing: the weights. Save the model again, or convert them (`swinbert convert`)."
            continue
        try:
            with safe_open(folder / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{name} is truncated or not a safetensors file ({error}). Save the model again."


def _processor_problems(folder: Path) -> Iterator[str]:
    needed = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        yield (
            f"{', '.join(missing)} missing: the processor. Save the one that the model was trained with:"
            f" AutoProcessor.from_pretrained(...).save_pretrained('{folder}')"
        )
    if not (folder / "generation_config.json").is_file():
        yield f"generation_config.json is missing: model.generation_config.save_pretrained('{folder}') writes it."


def _code_problems(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if missing := [name for name in shipped_modules() if not (folder / name).is_file()]:
        yield f"{', '.join(missing)} missing: the code that the model needs where this package is not installed."
    pipelines = {task: pipeline.get("impl", "") for task, pipeline in (config.get("custom_pipelines") or {}).items()}
    references = {**(config.get("auto_map") or {}), **pipelines}
    needed = ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "video-captioning"]
    if (folder / "processor_config.json").is_file():
        references |= _read_json(folder / "processor_config.json").get("auto_map") or {}
        needed.append("AutoProcessor")
    if unnamed := [name for name in needed if name not in references]:
        yield f"`auto_map` and `custom_pipelines` do not name the code of {', '.join(unnamed)}."
    if elsewhere := sorted({reference for reference in references.values() if "--" in reference}):
        yield f"`auto_map` or `custom_pipelines` take code from another repository: {', '.join(elsewhere)}."


def shipped_modules() -> list[str]:
    """Names of the code files that every saved model holds."""
    folders = {Path(str(module.__file__)).parent for module in (swinbert, swinbert.processing)}
    return sorted(file.name for folder in folders for file in folder.glob("*_swinbert.py"))


def _pickle_problems(folder: Path) -> Iterator[str]:
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    for name in filter_repo_objects(names, ignore_patterns=NOT_PUSHED):
        if Path(name).suffix in _PICKLE_SUFFIXES or _is_pickle(folder / name):
            yield f"{name} is a pickle, which can run code when it is loaded: delete it, or move it away."


def _is_pickle(file: Path) -> bool:
    """Whether the content is a pickle (protocol 2 or later) or an archive of `torch.save`, whatever the file's name."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    with file.open("rb") as opened:
        if opened.read(1) != b"\x80":
            return False
        opened.seek(0)
        try:
            return next(pickletools.genops(opened))[0].name == "PROTO"
        except ValueError:
            return False


def _card(folder: Path, name: str) -> str:
    """A first model card, with what the folder tells."""
    base, kind = None, "model"
    if not (folder / "config.json").is_file():
        base, kind = _read_json(folder / "adapter_config.json")["base_model_name_or_path"], "adapter"
    return captioner_card(
        SwinBertConfig.from_pretrained(base or folder),
        title=name,
        base_model=base,
        summary=f"A SwinBERT {kind}. It describes a short clip in one sentence.",
        training="Not described yet: the training data and procedure.",
        evaluation="Not measured yet. `swinbert evaluate` measures scores and records the settings that decide them.",
        provenance="Not described yet: who trained the model, what it was initialised from, and its licence.",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PushError(f"{file} cannot be read as JSON ({error}): save the model again.") from error
    if not isinstance(content, dict):
        raise PushError(f"{file} must hold a JSON object, found {type(content).__name__}: save the model again.")
    return content
