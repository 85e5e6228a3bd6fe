"""A saved captioner -> a repository of the Hub that is complete, and holds nothing that could run when it is read."""

import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open

import swinbert.processing
from swinbert.configuration_swinbert import SwinBertConfig
from swinbert.model_cards import captioner_card

# Left where they are, as `Trainer` does: hidden files, what a run writes beside its model, checkpoints to go on from.
NOT_PUSHED = [".*", "_*", "checkpoint-*"]
# What a former push may have left, and would be read together with the new: shards, and code.
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_swinbert.py"]
_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class PushError(ValueError):
    """A folder that is not pushed, or a push that failed: what is wrong, and what to do."""


def push(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None
) -> tuple[CommitInfo, bool]:
    """
    Checks a folder and uploads it; what has not changed is not uploaded again, and an interrupted push goes on.

    Args:
        folder: what `save_pretrained` of a pipeline, `swinbert train` or `swinbert convert` wrote, or an adapter of
            `peft`. If it has no README.md, it gets one: `template.md`, filled in from the configuration.
        repo_id: "OWNER/NAME"; made if it does not exist.
        private: to make it private, and to push to none that exists and is public.
        revision: branch, made if it does not exist; by default main.

    Returns:
        The commit, and whether a README.md was written.

    Raises:
        PushError: the folder is not complete or holds a pickle; or the Hub refused.
    """
    folder = Path(folder)
    check_folder(folder)
    card = folder / "README.md"
    if wrote_card := not card.exists():
        card.write_text(_card(folder, repo_id.split("/")[-1]), encoding="utf-8")
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise PushError("it exists and is public; make it private on the Hub, or leave out --private.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message="Push with swinbert",
            ignore_patterns=list(NOT_PUSHED),
            delete_patterns=_REPLACED,
        )
    except Exception as error:
        raise PushError(f"{folder} is not, or not wholly, pushed to {repo_id}: {_reason(error)}") from error
    return commit, wrote_card


def _reason(error: Exception) -> str:
    if isinstance(error, PushError):
        return str(error)
    if isinstance(error, HFValidationError):
        return f"{error} Expected OWNER/NAME."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub does not let you write there. Log in by `hf auth login`, or set HF_TOKEN, with a token that may"
            f" write to repositories of that owner. ({str(error).splitlines()[0]})"
        )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    return f"{str(error).splitlines()[0]} ({first}). The same command goes on with what is missing."


def check_folder(folder: Path) -> None:
    """
    Raises:
        PushError: it names all that is missing, damaged or must not be pushed, and how to mend it.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            _refuse(folder, [*_problems_of_adapter(folder), *_pickles(folder)])
            return
        raise PushError(f"{folder} is no folder of a model: it has no config.json. Name what `save_pretrained` wrote.")
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "swinbert":
        raise PushError(
            f"{folder} holds a {config.get('model_type')!r} model; expected 'swinbert'. `hf upload` pushes any folder."
        )
    problems = [*_problems_of_weights(folder), *_problems_of_processor(folder)]
    if of_code := list(_problems_of_code(folder, config)):
        problems += of_code
        problems.append(
            "code, and what names it, is written again, with this package imported, by"
            f" pipeline('video-captioning', model='{folder}').save_pretrained('{folder}')"
        )
    _refuse(folder, [*problems, *_pickles(folder)])


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        raise PushError("\n  - ".join([f"{folder} is not pushed:", *problems]))


def _problems_of_adapter(folder: Path) -> Iterator[str]:
    yield from _problems_of_weights(folder, "adapter_model.safetensors")
    base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or Path(base).exists():
        yield (
            f"adapter_config.json says that it adapts {base}, which is no model of the Hub: push that one, and write"
            " its ORG/NAME there as base_model_name_or_path."
        )


def _problems_of_weights(folder: Path, name: str = "model.safetensors") -> Iterator[str]:
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
            yield f"{name} is truncated or no safetensors file ({error}). Save the model again."


def _problems_of_processor(folder: Path) -> Iterator[str]:
    needed = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        yield (
            f"{', '.join(missing)} missing: the processor. Save the one that the model was trained with there:"
            f" AutoProcessor.from_pretrained(...).save_pretrained('{folder}')"
        )
    if not (folder / "generation_config.json").is_file():
        yield f"generation_config.json is missing: model.generation_config.save_pretrained('{folder}') writes it."


def _problems_of_code(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if missing := [name for name in shipped_modules() if not (folder / name).is_file()]:
        yield f"{', '.join(missing)} missing: the code by which it works where this package is not installed."
    pipelines = {task: pipeline.get("impl", "") for task, pipeline in (config.get("custom_pipelines") or {}).items()}
    references = {**(config.get("auto_map") or {}), **pipelines}
    needed = ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "video-captioning"]
    if (folder / "processor_config.json").is_file():
        references |= _read_json(folder / "processor_config.json").get("auto_map") or {}
        needed.append("AutoProcessor")
    if unnamed := [name for name in needed if name not in references]:
        yield f"where the code of {', '.join(unnamed)} is, is not said (`auto_map`, `custom_pipelines`)."
    if elsewhere := sorted({reference for reference in references.values() if "--" in reference}):
        yield f"code is taken from another repository: {', '.join(elsewhere)}."


def shipped_modules() -> list[str]:
    """Names of the files of this package that belong into every repository."""
    folders = {Path(str(module.__file__)).parent for module in (swinbert, swinbert.processing)}
    return sorted(file.name for folder in folders for file in folder.glob("*_swinbert.py"))


def _pickles(folder: Path) -> Iterator[str]:
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    for name in filter_repo_objects(names, ignore_patterns=NOT_PUSHED):
        if Path(name).suffix in _PICKLES or _is_pickle(folder / name):
            yield f"{name} is a pickle, which can run code where it is read: delete it, or move it away."


def _is_pickle(file: Path) -> bool:
    """Whether it is one whatever its name: a pickle of protocol 2 or later, or an archive of `torch.save`."""
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
    """What can be told of a model from its folder alone."""
    base, kind = None, "model"
    if not (folder / "config.json").is_file():
        base, kind = _read_json(folder / "adapter_config.json")["base_model_name_or_path"], "adapter"
    return captioner_card(
        SwinBertConfig.from_pretrained(base or folder),
        title=name,
        base_model=base,
        summary=f"A SwinBERT {kind}. It describes a short clip in one sentence.",
        training="Not told yet: the data, and how the model was trained on it.",
        evaluation="Not measured yet. `swinbert evaluate` gives scores, and with them all that decides them.",
        provenance="Not told yet: who trained the model, on what it builds, and its licence.",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PushError(f"{file} cannot be read as JSON ({error}): save the model again.") from error
    if not isinstance(content, dict):
        raise PushError(f"{file} must hold a JSON object, found {type(content).__name__}: save the model again.")
    return content
