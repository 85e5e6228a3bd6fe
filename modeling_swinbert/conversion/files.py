"""Files: a checkpoint -> its tensors, args.json -> a dict, and a folder that is written whole or not at all.

Nothing of a checkpoint is ever executed: pickles are read with `weights_only=True`.
"""

import contextlib
import json
import pickle
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

# What training scripts wrap a state dict in: mmaction and timm, DeepSpeed, the original Swin, others.
_WRAPPERS = ("state_dict", "module", "model", "model_state_dict")
_REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+)|Unsupported class (\S+)|blocklisted module (\S+)")


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: what was expected, what was found, what to do. Nothing is left written."""


def read_state_dict(checkpoint: str | Path) -> Tensors:
    """
    The tensors of a checkpoint, by their names in it, without ever running code of it.

    Args:
        checkpoint: a `torch.save` file (`model.bin`, `.pth`, a DeepSpeed `mp_rank_00_model_states.pt`), a
            `.safetensors` file, or a folder that holds one. Wrappers (`{"state_dict": ...}`, `{"module": ...}`) and a
            `module.` prefix are taken off.

    Raises:
        ConversionError: no such file, not a checkpoint, damaged, or more than tensors in it.
    """
    path = find_checkpoint(Path(checkpoint))
    safetensors = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] * (path.suffix == ".safetensors")
    if safetensors:
        stored: Any = {name: tensor for file in safetensors for name, tensor in _load_safetensors(file).items()}
    else:
        _check_container(path)
        stored = _load_pickle(path)
    return _unwrap(stored, path)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint's file (for safetensors also the folder of its shards); `ConversionError` if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConversionError(f"No checkpoint at {path}: expected a file such as model.bin, or the folder with it.")
    if list(path.glob("*.safetensors")):
        return path
    for name in ("model.bin", "best-checkpoint/model.bin", "pytorch_model.bin", "mp_rank_00_model_states.pt"):
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
    raise ConversionError(
        f"No checkpoint in the folder {path}: expected model.bin or *.safetensors, found {found}. Name the file itself."
    )


def _load_safetensors(file: Path) -> Tensors:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file} is truncated or not a safetensors file: {error}. Get it again.") from error


def _check_container(path: Path) -> None:
    """Says what a file is when it is no checkpoint, and whether a zipped one is whole: torch skips the checksums."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ConversionError(f"{path} is empty: expected a checkpoint. Get it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ConversionError(
            f"{path} is a Git LFS pointer, not the checkpoint: run `git lfs pull` where it came from."
        )
    if zipfile.is_zipfile(path):
        _check_archive(path)
    elif head.startswith(b"PK"):
        raise ConversionError(f"{path} is truncated: its end, with the table of contents, is missing. Get it again.")
    elif head[:1] != b"\x80":  # every pickle of protocol 2 or later begins so
        raise ConversionError(
            f"{path} is no torch checkpoint: it begins with {head[:24]!r}. If it was downloaded, it may be an error"
            " page."
        )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise ConversionError(f"{path} is damaged: {error}. Get it again.") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ConversionError(
            f"{path} is an archive ({some(names)}), not a checkpoint: unpack it and name the model.bin in it."
        )
    if damaged:
        raise ConversionError(f"{path} is damaged: the checksum of {damaged} in it does not match. Get it again.")


def _load_pickle(path: Path) -> Any:
    try:
        # Memory-mapped: a base checkpoint is 0.9 GB, and half of some files is optimizer state that nobody reads.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises another type for every kind of damage
        refused = _REFUSED.search(str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            name = next(group for group in refused.groups() if group)
            raise ConversionError(
                f"{path} holds more than tensors: unpickling {name} would run code, so the file is not opened. Where"
                " you trust it, save the tensors alone: torch.save(model.state_dict(), 'model.bin'), or"
                " torch.save({'state_dict': checkpoint['state_dict']}, 'model.pth') if that object sits beside them."
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(
            f"{path} is truncated, damaged or no torch checkpoint ({reason}). Compare its size with the original's and"
            " get it again."
        ) from error


def _unwrap(stored: Any, path: Path) -> Tensors:
    """The state dict inside an object that was saved, without a prefix that a parallel wrapper put on every name."""
    while isinstance(stored, Mapping):
        wrapped = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), Mapping)), None)
        if wrapped is None:
            break
        stored = wrapped
    if not isinstance(stored, Mapping):
        raise ConversionError(
            f"{path} holds no state dict: expected names with tensors, found {type(stored).__name__}."
        )
    if not stored or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        other = [str(key) for key, value in stored.items() if not isinstance(value, torch.Tensor)]
        raise ConversionError(
            f"{path} holds no state dict: expected names with tensors, found {some(other) or 'an empty dict'}."
        )
    tensors = dict(stored)
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise ConversionError(
            f"{path} holds tensors without values ({some(empty)}): it is one shard of DeepSpeed ZeRO-3. Join the shards"
            " with DeepSpeed's zero_to_fp32.py and convert the result."
        )
    return tensors


def some(names: list[str], limit: int = 4) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_args(args: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """
    The original's `args.json`: a file, or its content.

    Raises:
        ConversionError: no such file, or no JSON object in it.
    """
    if isinstance(args, Mapping):
        return dict(args)
    try:
        content = json.loads(Path(args).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{args} is not a readable args.json: {error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{args} must hold a JSON object of arguments, found {type(content).__name__}.")
    return content


def check_output(output: Path) -> None:
    """Raises `ConversionError` if something would be overwritten."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConversionError(f"{output} exists and is not empty: name a new folder, nothing is overwritten.")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `output` if the block ends well, and of which nothing is left if it does not."""
    check_output(output)
    made = [parent for parent in output.absolute().parents if not parent.exists()]
    staging = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        yield staging
        if output.exists():
            output.rmdir()
        staging.rename(output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
