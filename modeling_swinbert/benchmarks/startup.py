"""What a command takes from its start to its end, as a process, beside processes that only import libraries."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swinbert import bundled_model

from .measurement import Row, Table

if TYPE_CHECKING:
    from .suite import Bench

_LIBRARIES = (
    "import torch, torchvision; "
    "from transformers import pipeline, AutoModelForImageTextToText, AutoProcessor, GenerationMixin"
)


def startup(bench: "Bench") -> list[Table]:
    swinbert = ("-m", "swinbert")
    commands: dict[str, Sequence[str]] = {
        "import torch": ("-c", "import torch"),
        "swinbert --help": (*swinbert, "--help"),
        "swinbert --version": (*swinbert, "--version"),
    }
    tables = [_table(bench, "Commands that need no model", commands, 3)]
    if not bench.size.git:  # at the base size only: it takes as long at any
        clip = str(Path(bundled_model()).parent / "sample.mp4")
        commands = {
            "importing the libraries": ("-c", _LIBRARIES),
            "swinbert caption CLIP": (*swinbert, "caption", clip, "--model", "moving-shapes"),
        }
        tables.append(_table(bench, "The caption of one short clip", commands, 0.91))
    return tables


def _table(bench: "Bench", title: str, commands: Mapping[str, Sequence[str]], target: float) -> Table:
    """Processes in turns; the first is the baseline, and the others have a target."""
    rows = [Row(name, target=target if number else None) for number, name in enumerate(commands)]
    for arguments in commands.values():  # byte code and files are in memory afterwards
        _run(arguments)
    for number in range(bench.rounds):
        for row, arguments in zip(rows, commands.values(), strict=True):
            bench.progress(f"{row.name}, round {number + 1} of {bench.rounds}")
            start, before = time.perf_counter(), os.times()
            _run(arguments)
            row.seconds.append(time.perf_counter() - start)
            after = os.times()
            row.cpu_seconds.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
    return Table(title, rows, rows[0].name)


def _run(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


__all__ = ["startup"]
