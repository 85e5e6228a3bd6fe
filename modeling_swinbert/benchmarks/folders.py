"""A folder of small clips with the default batches and threads, beside each batch size on one thread and on all."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swinbert import bundled_model
from swinbert.captioning.caption import captions
from swinbert.captioning.loading import load_captioner
from swinbert.processing.clip_reading_swinbert import available_cores

from .measurement import Row, Table, take_turns

if TYPE_CHECKING:
    from .suite import Bench

_CPU = torch.device("cpu")
_CLIPS = {True: 300, False: 6}  # of the base size, of another
_BATCHES = (1, 8, 32)
# Until it is killed; a core is its only argument.
_SPIN = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""


def folder(bench: "Bench") -> list[Table]:
    captioner = load_captioner(bundled_model(), device=_CPU, dtype="float32")
    clips = [str(Path(bundled_model()).parent / "sample.mp4")] * _CLIPS[not bench.size.git]
    threads = sorted({1, torch.get_num_threads()})
    grid = {
        f"batches of {size}, threads: {number}": {"batch_size": size, "threads": number}
        for size in _BATCHES
        for number in threads
    }
    tables = []
    for state, load in {"the machine idle": _nothing, "one core busy": _busy_core}.items():
        ways: dict[str, dict[str, Any]] = {"defaults": {"batch_size": "auto"}, **grid}
        rows = [Row(name, items=len(clips)) for name in ways]
        calls = [functools.partial(_caption, clips, captioner, **options) for options in ways.values()]
        with load():
            take_turns(rows, calls, bench.rounds, _CPU, bench.progress)
        best = min(rows[1:], key=lambda row: row.median)
        rows[0].target = 0.77
        tables.append(Table(f"{len(clips)} clips of the bundled model, {state}", rows, best.name))
    return tables


def _caption(clips: list[str], captioner: Any, **options: Any) -> None:
    for _ in captions(clips, captioner, **options):
        pass


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _busy_core() -> Iterator[None]:
    """Another process computes on one of the cores."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN, str(available_cores()[0])])
    try:
        yield
    finally:
        process.kill()
        process.wait()


__all__ = ["folder"]
