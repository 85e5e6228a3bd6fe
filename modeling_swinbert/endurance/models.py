"""Target: a damaged copy of the bundled model."""

import json
import pickle
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from swinbert.endurance.cases import READ, REFUSED, Case, Finding
from swinbert.endurance.mutation import draw_header, draw_text, mutate

_WEIGHTS = "model.safetensors"
_FILES = (
    *("config.json", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", _WEIGHTS, _WEIGHTS),
)


class _Writes:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


class ModelTarget:
    """
    Args:
        clip: that is captioned if the model can be loaded.
        work: of the files that are written.
    """

    name = "model"
    known: frozenset[str] = frozenset()
    is_of_videos = False

    def __init__(self, clip: Path, work: Path):
        from swinbert import bundled_model

        self._clip, self._work, self._model = clip, work, Path(bundled_model())
        self._read = cache(lambda name: (self._model / name).read_bytes())

    def draw(self, random: Random) -> Case:
        file = random.choice(_FILES)
        draw = draw_header if file == _WEIGHTS else draw_text
        is_of_model = file in (_WEIGHTS, "config.json", "generation_config.json")
        settings = {
            "through": random.choice(list(_THROUGH)[: 3 if is_of_model else 2]),
            "pickle": random.random() < 0.1,
            "deleted": random.random() < 0.02,
        }
        return Case(self.name, file, draw(random, self._read(file)), settings)

    def content(self, case: Case) -> bytes:
        return mutate(self._read(case.sample), case.operations)

    def run(self, case: Case) -> str:
        with tempfile.TemporaryDirectory(dir=self._work) as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder, trap = Path(name, "model"), Path(name, "executed")
            shutil.copytree(self._model, folder, ignore=shutil.ignore_patterns(_WEIGHTS, case.sample))
            if case.sample != _WEIGHTS:
                (folder / _WEIGHTS).symlink_to(self._model / _WEIGHTS)
            if not case.settings["deleted"]:
                (folder / case.sample).write_bytes(self.content(case))
            if case.settings["pickle"]:
                (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Writes(trap)))
            status = _THROUGH[case.settings["through"]](folder, self._clip)
            if trap.exists():
                raise Finding("pickle executed", case.settings["through"], "")
            return status


def _load_and_caption(folder: Path, clip: Path) -> str:
    from swinbert.captioning.loading import LoadingError, load_captioner

    try:
        captioner = load_captioner(str(folder), device="cpu", max_length=4)
    except LoadingError as error:
        if len(str(error)) < 20 or "Traceback" in str(error):
            raise Finding("unclear message", "load_captioner", str(error)) from error
        return REFUSED
    try:
        (result,) = captioner(str(clip))
    except ValueError:  # the clip does not fit the model
        return REFUSED
    if not isinstance(result["generated_text"], str):
        raise Finding("no caption", "load_captioner", json.dumps(result, default=repr))
    return READ


def _from_pretrained(folder: Path, clip: Path) -> str:
    from huggingface_hub.errors import StrictDataclassError

    from swinbert import SwinBertForVideoCaptioning

    try:
        SwinBertForVideoCaptioning.from_pretrained(folder)
    except (ValueError, OSError, StrictDataclassError):
        return REFUSED
    return READ


def _info(folder: Path, clip: Path) -> str:
    from swinbert.endurance.commands import run_command

    return run_command(["info", str(folder)])


_THROUGH = {"load_captioner": _load_and_caption, "info": _info, "from_pretrained": _from_pretrained}
