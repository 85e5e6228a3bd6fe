"""Clips decoded in processes of their own: what it costs beside decoding in the process of the model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from swinbert import bundled_model
from swinbert.captioning import captions, load_captioner
from swinbert.captioning.isolation import IsolatedReader

from .measurement import Row, Table, take_turns, write_clip

if TYPE_CHECKING:
    from .suite import Bench

_TARGET = 0.9
_BATCH_SIZE = 8


def isolation(bench: "Bench") -> list[Table]:
    """Captions of small clips by the bundled model, which is so small that reading them is much of the work."""
    num_clips = bench.size.small_clips
    captioner = load_captioner(bundled_model(), device="cpu")
    longer = bench.folder / "small.mp4"
    write_clip(longer, *bench.size.film)
    width, height, frames, _ = bench.size.film
    clips = {"64 x 64, 24 frames": Path(bundled_model()).parent / "sample.mp4"}
    clips[f"{width} x {height}, {frames} frames"] = longer
    tables = []
    with IsolatedReader() as reader:
        for name, path in clips.items():

            def caption(reader: IsolatedReader | None, paths: list[Path]) -> None:
                found = captions(paths, captioner, batch_size=_BATCH_SIZE, isolation=reader)
                assert all(each.text for each in found)

            paths = [path] * num_clips
            ways: dict[str, Callable[[], object]] = {
                "in the model's process": functools.partial(caption, None, paths),
                "isolated": functools.partial(caption, reader, paths),
            }
            rows = [Row(each, items=num_clips) for each in ways]
            rows[1].target, rows[1].limit = _TARGET, "frames are copied through a pipe, a clip at a time"
            rows[1].note = "CPU seconds are without those of the readers"
            for way in ways.values():
                way()  # starts processes
            take_turns(rows, ways.values(), bench.rounds, torch.device("cpu"), bench.progress)
            tables.append(Table(f"Captions of {num_clips} clips of {name}, bundled model", rows, rows[0].name))
    return tables


__all__ = ["isolation"]
