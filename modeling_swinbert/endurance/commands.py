"""Target: random command lines."""

import contextlib
import functools
import inspect
import os
import tempfile
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo

from swinbert import bundled_model
from swinbert.endurance.cases import READ, REFUSED, Case, Finding

_SUCCESS, _FAILURE, _USAGE, _INTERRUPTED = 0, 1, 2, 130
# Commands that train, serve, download or measure: only their options are read.
_ONLY_PARSED = frozenset(("bench", "bulk", "demo", "push", "train"))
# What is captioned by: without a model, the default one would be asked for on the Hub.
_NEEDS_MODEL = frozenset(("caption", "explain"))
# They wait for a server, or try everything.
_LEFT_OUT = frozenset(("--allow-network-streams", "--self-test"))
_INTEGERS = ("-1", "0", "1", "2", "3", "x", "", "1.5", "٣", "1e3")
_NUMBERS = ("-1", "0", "0.5", "1", "2.5", "nan", "inf", "1e-9", "x", "", "-0")
_TEXTS = ("", " ", "x", "train", "test", "bleu", "a=b", "\udce4", "é" * 40, "--", "-", "a,b")
_PLACES = (
    *("clip.mp4", "clip.mp4", "clips", "empty.mp4", "text.txt", "missing.mp4", "lines.jsonl", "metadata.json", "", "."),
    *("out", "out/a.txt", "out/b.json", "data", "model", "*.mp4", "no\nline", "clip.mp4/x", "http://127.0.0.1:9/x"),
)
_VALUES = {
    "--model": (*("moving-shapes",) * 3, "model", "clips", "missing", "a/b/c", "clip.mp4", ""),
    "--device": ("cpu", "auto", "x", "cuda:99", ""),
    "--segments": ("0.3", "0.5", "scenes", "0", "-1", "x", "nan", "inf", "1e9", ""),
    "--metrics": ("bleu", "bleu,rouge_l", "x", "", ",", "BLEU"),
    "--revision": ("main", "x", ""),
    "--train": ("0", "1", "2", "-1", "x"),
    "--validation": ("0", "1", "-1"),
    "--test": ("0", "1", "-1"),
    "--tokenizer": ("model", "missing", "clips"),
    "--dataset": ("data", "clips", "missing", "metadata.json", "", "."),
    "BENCHMARK": ("msrvtt", "msvd", "vatex", "tvc", "youcook2", "activitynet", "tsv", "x", ""),
}


@dataclass(frozen=True)
class _Parameter:
    """An option, or with `names` empty an argument; `kind` is its type, that of an item if it is a list."""

    name: str
    names: tuple[str, ...]
    kind: Any
    is_required: bool


@cache
def _commands() -> dict[str, list[_Parameter]]:
    """Command -> its parameters, read from the functions themselves."""
    from swinbert.cli import app

    commands = {}
    for command in app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        parameters = inspect.signature(command.callback).parameters.values()
        commands[command.name or command.callback.__name__] = [
            _parameter(each.name, hints[each.name], each.default is inspect.Parameter.empty)
            for each in parameters
            if hasattr(hints.get(each.name), "__metadata__")
        ]
    return commands


def _parameter(name: str, hint: Any, is_required: bool) -> _Parameter:
    (kind, *_), (info, *_) = get_args(hint), hint.__metadata__
    while get_args(kind):  # of `list[str] | None`
        kind = get_args(kind)[0]
    names = tuple(each for decl in info.param_decls or () for each in decl.split("/") if each.startswith("-"))
    if isinstance(info, ArgumentInfo):
        return _Parameter(info.metavar or name, (), kind, is_required)
    option = name.replace("_", "-")
    both = (f"--{option}", f"--no-{option}") if kind is bool else (f"--{option}",)
    return _Parameter(f"--{option}", names or both, kind, is_required)


@cache
def _parser() -> Any:
    """The commands, which read their options and do nothing."""
    import typer

    from swinbert.cli import app

    parser = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    for command in app.registered_commands:
        assert command.callback is not None
        settings: dict[str, Any] = {
            "add_help_option": command.add_help_option,
            "context_settings": command.context_settings,
        }
        parser.command(command.name, **settings)(functools.wraps(command.callback)(lambda *_, **__: None))
    return parser


def run_command(arguments: list[str], app: Any = None) -> str:
    """
    Runs a command as the shell does.

    Args:
        app: by default that of `swinbert`.

    Raises:
        Finding: its exit code or its messages are not as documented.
    """
    from typer.testing import CliRunner

    from swinbert import cli

    show = warnings.showwarning
    try:
        with warnings.catch_warnings():
            result = CliRunner().invoke(app or cli.app, arguments, input="")
    finally:
        warnings.showwarning = show  # commands replace it
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    output = result.output + (result.stderr or "")
    if "Traceback (most recent call last)" in output:
        raise Finding("traceback", arguments[0], output[-3000:])
    if result.exit_code not in (_SUCCESS, _FAILURE, _USAGE, _INTERRUPTED):
        raise Finding("undocumented exit code", arguments[0], f"{result.exit_code}: {output[-2000:]}")
    if result.exit_code and not output.strip():
        raise Finding("silent failure", arguments[0], f"exit code {result.exit_code}, no message")
    return READ if result.exit_code == _SUCCESS else REFUSED


class CommandTarget:
    """
    Args:
        clip: a good one.
        work: of the files that are written.
    """

    name = "command"
    known: frozenset[str] = frozenset()
    is_of_videos = False

    def __init__(self, clip: Path, work: Path):
        self._clip, self._work = clip, work

    def draw(self, random: Random) -> Case:
        name = random.choice(sorted(_commands()))
        parts: list[list[str]] = []
        for parameter in _commands()[name]:
            if parameter.name in _LEFT_OUT or random.random() > (0.9 if parameter.is_required else 0.15):
                continue
            if parameter.kind is bool:
                parts.append([random.choice(parameter.names)])
                continue
            for _ in range(1 if parameter.names else random.choice((1, 1, 1, 2))):
                value = _draw_value(random, parameter)
                parts.append([random.choice(parameter.names), value] if parameter.names else [value])
        if random.random() < 0.1:
            parts.append([random.choice(("--nonsense", "-x", "--", "extra", "--model"))])
        random.shuffle(parts)
        return Case(self.name, name, parts)

    def content(self, case: Case) -> None:
        return None

    def run(self, case: Case) -> str:
        arguments = [each for part in case.operations for each in part]
        if case.sample in _ONLY_PARSED:
            return run_command([case.sample, *arguments], _parser())
        if case.sample in _NEEDS_MODEL and "--model" not in arguments:
            arguments = ["--model", "moving-shapes", *arguments]
        if case.sample == "make-shapes":  # by default 16,000 clips
            arguments = ["--train", "1", "--validation", "1", "--test", "0", *arguments]
        with tempfile.TemporaryDirectory(dir=self._work) as folder, contextlib.chdir(folder):
            self._furnish(Path(folder))
            return run_command([case.sample, *arguments])

    def _furnish(self, folder: Path) -> None:
        (folder / "clips").mkdir()
        (folder / "data").mkdir()
        for place in ("clip.mp4", "clips/a.mp4", "data/a.mp4"):
            os.link(self._clip, folder / place)
        (folder / "data" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "captions": ["a man"]}\n')
        (folder / "lines.jsonl").write_text('{"path": "clip.mp4", "caption": "a man"}\n')
        (folder / "metadata.json").write_text("{}")
        (folder / "text.txt").write_text("clip.mp4\n")
        (folder / "empty.mp4").touch()
        (folder / "model").mkdir()
        for file in Path(bundled_model()).iterdir():
            (folder / "model" / file.name).symlink_to(file)


def _draw_value(random: Random, parameter: _Parameter) -> str:
    if parameter.name in _VALUES:
        return random.choice(_VALUES[parameter.name])
    if issubclass(parameter.kind, Enum):
        return random.choice((*(str(each.value) for each in parameter.kind), "x"))
    if parameter.kind in (int, float):
        return random.choice(_INTEGERS if parameter.kind is int else _NUMBERS)
    return random.choice(_PLACES if random.random() < 0.8 else _TEXTS)
