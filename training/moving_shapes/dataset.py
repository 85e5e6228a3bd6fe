"""Writes datasets of moving shapes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from swinbert.training.moving_shapes.contents import KINDS, WORLDS, Content, all_contents, held_out, wordings
from swinbert.training.moving_shapes.rendering import render, write_clip
from swinbert.utils.files import check_new_folder, new_folder, write_atomically


def _write_example(
    folder: Path,
    split: str,
    number: int,
    contents: list[Content],
    kinds: dict[str, float],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Draws a content, writes its clip, and returns the line for `metadata.jsonl`."""
    kind = rng.choice(list(kinds), p=[weight / sum(kinds.values()) for weight in kinds.values()])
    candidates = [content for content in contents if content.kind == kind]
    chosen = candidates[rng.integers(len(candidates))]
    file_name = f"{split}/{number:06d}.mp4"
    (folder / split).mkdir(parents=True, exist_ok=True)
    write_clip(folder / file_name, render(chosen, rng))
    return {
        "file_name": file_name,
        "split": split,
        "captions": wordings(chosen),
        "content": asdict(chosen),
    }


def make_shapes(
    output_dir: str | Path,
    *,
    train: int = 16000,
    validation: int = 200,
    test: int = 300,
    seed: int = 0,
    world: str = "shapes",
    kinds: Sequence[str] = tuple(KINDS),
) -> Path:
    """
    Writes a dataset of moving shapes: `<split>/<number>.mp4` and `metadata.jsonl`. It appears whole or not at all.

    Each line of `metadata.jsonl` has `file_name`, `split`, `captions` (all wordings of a content) and `content` (its
    fields). The same arguments give the same bytes; a larger split begins with the clips of a smaller one.

    Args:
        output_dir: a folder that does not exist or is empty.
        train, validation, test: number of clips of each split.
        seed: of all random numbers.
        world: one of `WORLDS`.
        kinds: some of `KINDS`; they keep their relative frequencies.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: a number of clips is negative or all are 0, or the world or a kind does not exist.
        FileExistsError: `output_dir` is not empty.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    if min(sizes.values()) < 0 or not sum(sizes.values()) or seed < 0:
        raise ValueError(f"Expected numbers of clips >= 0, not all 0, and a seed >= 0; got {sizes} and seed {seed}.")
    if world not in WORLDS:
        raise ValueError(f"No world {world!r}; there are {', '.join(WORLDS)}.")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"Expected some of the kinds {', '.join(KINDS)}; got {', '.join(kinds) or 'none'}.")
    output_dir = Path(output_dir)
    check_new_folder(output_dir)

    seen: list[Content] = []
    unseen: list[Content] = []
    for content in all_contents(world):
        (unseen if held_out(content) else seen).append(content)
    weights = {kind: weight for kind, weight in KINDS.items() if kind in kinds}
    clips = [(split, number) for split, size in sizes.items() for number in range(size)]
    console = Console(stderr=True)
    lines = []
    with new_folder(output_dir) as unfinished:
        for split, number in track(clips, "Moving shapes", console=console, disable=not console.is_terminal):
            rng = np.random.default_rng([seed, list(sizes).index(split), number])
            line = _write_example(unfinished, split, number, unseen if split == "test" else seen, weights, rng)
            lines.append(json.dumps(line) + "\n")
        write_atomically(unfinished / "metadata.jsonl", "".join(lines))
    return output_dir
