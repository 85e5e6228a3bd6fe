"""GIT through our pipeline's `generate`, beside plain `GitForCausalLM.generate`."""

from typing import TYPE_CHECKING

import torch

from swinbert.captioning.families.git_generation import generate_captions

from .measurement import Table
from .peers import agreement, git_model

if TYPE_CHECKING:
    from .suite import Bench

_BEAMS = 4


def git(bench: "Bench") -> list[Table]:
    model = git_model(**bench.size.git).to(device=bench.device, dtype=bench.dtype)
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 6, 3, side, side, generator=torch.Generator().manual_seed(0)).to(bench.device, bench.dtype)
    start = torch.tensor([[101]], device=bench.device)
    tables = []
    for beams in (1, _BEAMS):
        # Random weights would repeat one word for ever, whatever the clip.
        options = {"input_ids": start, "no_repeat_ngram_size": 1, **bench.generation(beams)}
        rows, captions = bench.compare(
            {
                "plain generate": lambda options=options: model.generate(pixel_values=pixels, **options),
                "swinbert": lambda options=options: generate_captions(model, pixels, **options),
            }
        )
        rows[1].note = agreement(*captions)
        if beams == 1:
            rows[1].target = 1.4
        title = f"GIT, six frames to a caption of {bench.size.words} words, " + (
            f"{beams} beams" if beams > 1 else "greedy"
        )
        tables.append(Table(title, rows, "plain generate"))
    return tables


__all__ = ["git"]
