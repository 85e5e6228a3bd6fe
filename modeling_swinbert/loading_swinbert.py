"""Loading of weights: from safetensors only, and checked against the hash that the Hub names."""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel

_CONFIGURATIONS = ("config.json", "adapter_config.json")
_REMEDY = (
    "pytorch_model.bin and other pickles are never opened, because they can run code. `swinbert convert --checkpoint"
    " FILE --output DIR` converts released weights to safetensors; `save_pretrained` writes your own model as such."
)


class SafetensorsModel(PreTrainedModel):
    """A model that is never loaded from a pickle, which could run code, nor from a damaged download."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any):
        """
        As [`PreTrainedModel.from_pretrained`], from `.safetensors` only.

        Raises:
            ValueError: `use_safetensors=False` asks for a pickle, a configuration is damaged, or weights have other
                shapes than it says.
            OSError: the folder or repository has no safetensors, a file is damaged or differs from the Hub's, or any
                error of the library's.
        """
        started, ticks = time.time(), time.monotonic()
        if kwargs.get("use_safetensors") is False:
            raise ValueError(f"`use_safetensors=False` is refused: {_REMEDY}")
        try:
            loaded = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, **{**kwargs, "use_safetensors": True}
            )
        except OSError as error:
            # The library advises to turn safetensors off.
            if not any(found in str(error) for found in ("no file named", "not appear to have a file named model")):
                raise
            raise OSError(f"{pretrained_model_name_or_path} has no model.safetensors. {_REMEDY}") from error
        except SafetensorError as error:
            raise OSError(
                f"The weights of {pretrained_model_name_or_path} are damaged ({error}): download or save them again."
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"Weights of {pretrained_model_name_or_path} have other shapes than its configuration says; the report"
                " above lists them. With `ignore_mismatched_sizes=True` they are initialised from scratch."
            ) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} cannot be loaded ({type(error).__name__}: {error}): an argument is"
                " wrong, or one of its files is damaged."
            ) from error
        finally:
            # The auto classes pass the adapter beside the name of its base model.
            adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
            started = min(started, time.time() - (time.monotonic() - ticks))  # if the clock was set back meanwhile
            for source in filter(None, (pretrained_model_name_or_path, adapter)):
                check_downloads(str(source), started, kwargs.get("cache_dir"), kwargs.get("revision"))
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.can_generate():
            _check_tokens(str(pretrained_model_name_or_path), model)
        return loaded

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args: Any, **kwargs: Any):
        # Loading a `peft` adapter does not pass through `from_pretrained`, and falls back to a pickle.
        if refused := [str(file) for file in checkpoint_files or () if not str(file).endswith(".safetensors")]:
            raise OSError(
                f"{', '.join(refused)} is not opened: pickles can run code. Save the adapter again, as safetensors."
            )
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)


def _check_tokens(source: str, model: PreTrainedModel) -> None:
    """Checks the tokens that `generation_config.json` names, which the library does not."""
    size = model.config.get_text_config().vocab_size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found = getattr(model.generation_config, name, None)
        tokens = found if isinstance(found, list) and name == "eos_token_id" else [found]
        if found is not None and not all(type(token) is int and 0 <= token < size for token in tokens):
            raise ValueError(
                f"generation_config.json of {source}: `{name}` must name one of {size} tokens, got {found!r}."
            )


def check_downloads(
    source: str, since: float, cache_dir: str | Path | None = None, revision: str | None = None
) -> None:
    """
    Compares newly downloaded weights with the SHA-256 that the Hub names, and removes damaged files from the cache.
    The Hub's client compares the size of a download only.

    Args:
        source: repository of a model; or repository or folder of an adapter, whose base model is checked too.
        since: seconds since 1970. Files that were in the cache before are not checked.
        cache_dir, revision: as for `from_pretrained`.

    Raises:
        OSError: the SHA-256 of a file differs.
    """
    is_local = os.path.isdir(source)
    folder = Path(source) if is_local else _cached_folder(source, cache_dir, revision)
    if folder is None:
        return
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and base != source:
            check_downloads(base, since, cache_dir)
    if not is_local:
        for link in folder.glob("*.safetensors"):
            _check_download(link, source, since)


def _cached_folder(repo_id: str, cache_dir: str | Path | None, revision: str | None) -> Path | None:
    """Snapshot of a repository in the Hub's cache; `None` if there is none."""
    try:
        files = [try_to_load_from_cache(repo_id, name, cache_dir, revision) for name in _CONFIGURATIONS]
    except ValueError:  # not the name of a repository
        return None
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _check_download(link: Path, source: str, since: float) -> None:
    file = link.resolve()  # the cache names files by their SHA-256
    # File systems store times in steps of up to two seconds.
    if not re.fullmatch(r"[0-9a-f]{64}", file.name) or file.stat().st_ctime < since - 2:
        return
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.name:
        link.unlink()
        file.unlink()
        raise OSError(
            f"The download of {link.name} from {source} is damaged: its SHA-256 is {digest.hexdigest()}, not"
            f" {file.name}. It was removed from the cache: load it again."
        )


__all__ = ["SafetensorsModel", "check_downloads"]
