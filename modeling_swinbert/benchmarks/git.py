"""GIT through our pipeline's `generate`, beside plain `GitForCausalLM.generate`."""

import functools
from typing import TYPE_CHECKING, Any

import torch

from swinbert.captioning.families.git_generation import generate_captions

from .measurement import Table, agreement
from .peers import git_model

if TYPE_CHECKING:
    from .suite import Bench


def git(bench: "Bench") -> list[Table]:
    model = git_model(**bench.size.git).to(device=bench.device, dtype=bench.dtype)
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 6, 3, side, side, generator=torch.Generator().manual_seed(0)).to(bench.device, bench.dtype)
    start = torch.tensor([[101]], device=bench.device)
    tables = []
    for beams, search in ((1, "greedy"), (4, "4 beams")):
        # Random weights would repeat one word for ever, whatever the clip.
        options: dict[str, Any] = {"input_ids": start, "no_repeat_ngram_size": 1, **bench.generation(beams)}
        rows, captions = bench.compare(
            {
                "plain generate": functools.partial(model.generate, pixel_values=pixels, **options),
                "swinbert": functools.partial(generate_captions, model, pixels, **options),
            }
        )
        rows[1].note = agreement(*captions)
        rows[1].target = 1.4
        tables.append(Table(f"GIT, six frames to a caption of {bench.size.words} words, {search}", rows, rows[0].name))
    return tables


__all__ = ["git"]
