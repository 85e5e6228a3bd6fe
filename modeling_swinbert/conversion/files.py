"""Reading checkpoints and args.json. No code of a checkpoint runs: pickles are loaded with `weights_only=True`."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from swinbert.utils.text import first_names

Tensors = dict[str, torch.Tensor]

# Keys under which training scripts save a state dict: mmaction and timm, DeepSpeed, the original Swin, others.
_WRAPPERS = ("state_dict", "module", "model", "model_state_dict")
_REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+)|Unsupported class (\S+)|blocklisted module (\S+)")


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message says what was expected, what was found and what to do."""


def read_state_dict(checkpoint: str | Path) -> Tensors:
    """
    Loads the tensors of a checkpoint, under their original names, without running any code of it.

    Args:
        checkpoint: a `torch.save` file (`model.bin`, `.pth`, a DeepSpeed `mp_rank_00_model_states.pt`), a
            `.safetensors` file, or a folder that holds one. Wrappers (`{"state_dict": ...}`, `{"module": ...}`) and a
            `module.` prefix are removed.

    Raises:
        ConversionError: the file is missing, damaged or not a checkpoint, or holds other objects than tensors.
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
    """The file of a checkpoint, or the folder of its safetensors shards; raises `ConversionError` if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConversionError(
            f"No checkpoint at {path}: expected a file such as model.bin, or the folder that holds it."
        )
    if list(path.glob("*.safetensors")):
        return path
    for name in ("model.bin", "best-checkpoint/model.bin", "pytorch_model.bin", "mp_rank_00_model_states.pt"):
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
    raise ConversionError(
        f"No checkpoint in the folder {path}: expected model.bin or *.safetensors, found {found}. Pass the file itself."
    )


def _load_safetensors(file: Path) -> Tensors:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{file} is truncated or not a safetensors file: {error}. Download or copy it again."
        ) from error


def _check_container(path: Path) -> None:
    """Raises `ConversionError` for a file that is not a checkpoint. Checks archives: torch ignores their checksums."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ConversionError(f"{path} is empty: expected a checkpoint. Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ConversionError(
            f"{path} is a Git LFS pointer, not the checkpoint: run `git lfs pull` where it came from."
        )
    if zipfile.is_zipfile(path):
        _check_archive(path)
    elif head.startswith(b"PK"):
        raise ConversionError(
            f"{path} is truncated: its end, with the table of contents, is missing. Download or copy it again."
        )
    elif head[:1] != b"\x80":  # the first byte of every pickle of protocol 2 or later
        raise ConversionError(
            f"{path} is not a torch checkpoint: it begins with {head[:24]!r}. If it was downloaded, it may be an HTML"
            " error page."
        )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise ConversionError(f"{path} is damaged: {error}. Download or copy it again.") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ConversionError(
            f"{path} is an archive ({first_names(names)}), not a checkpoint: unpack it and pass the model.bin in it."
        )
    if damaged:
        raise ConversionError(
            f"{path} is damaged: the checksum of {damaged} in it does not match. Download or copy it again."
        )


def _load_pickle(path: Path) -> Any:
    try:
        # Memory-mapped: a base checkpoint has 0.9 GB, and half of some files is optimizer state, which is not needed.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises different types for different kinds of damage
        refused = _REFUSED.search(str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            name = next(group for group in refused.groups() if group)
            raise ConversionError(
                f"{path} holds more than tensors: unpickling {name} would run code, so the file is not loaded. If you"
                " trust it, save the tensors alone: torch.save(model.state_dict(), 'model.bin'), or, if other objects"
                " are stored beside them, torch.save({'state_dict': checkpoint['state_dict']}, 'model.pth')."
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(
            f"{path} is truncated, damaged or not a torch checkpoint ({reason}). Compare its size with the original's,"
            " and download or copy it again."
        ) from error


def _unwrap(stored: Any, path: Path) -> Tensors:
    """The state dict in a saved object, without its wrappers and the `module.` prefix of data-parallel training."""
    while isinstance(stored, Mapping):
        wrapped = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), Mapping)), None)
        if wrapped is None:
            break
        stored = wrapped
    if not isinstance(stored, Mapping):
        raise ConversionError(
            f"{path} does not hold a state dict: expected a mapping of names to tensors, found {type(stored).__name__}."
        )
    if not stored or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        other = [str(key) for key, value in stored.items() if not isinstance(value, torch.Tensor)]
        raise ConversionError(
            f"{path} does not hold a state dict: expected a mapping of names to tensors, found"
            f" {first_names(other) or 'an empty mapping'}."
        )
    tensors = dict(stored)
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise ConversionError(
            f"{path} holds tensors without values ({first_names(empty)}): it is one shard of DeepSpeed ZeRO-3. Join the"
            " shards with DeepSpeed's zero_to_fp32.py and convert the result."
        )
    return tensors


def read_args(args: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """
    Reads the original's `args.json`, unless it is given as a mapping already.

    Raises:
        ConversionError: the file is missing or does not hold a JSON object.
    """
    if isinstance(args, Mapping):
        return dict(args)
    try:
        content = json.loads(Path(args).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{args} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{args} must hold a JSON object of arguments, found {type(content).__name__}.")
    return content
