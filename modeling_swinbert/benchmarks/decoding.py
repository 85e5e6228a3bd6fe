"""Words: a whole caption beside the original's algorithm, one decoding step beside reading its weights, and beams."""

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from swinbert.deployment.quantization import quantize_decoding

from .measurement import Table, agreement
from .peers import original_caption

if TYPE_CHECKING:
    from .suite import Bench

_OPERATIONS = "a step has 600 small operations, which take Python and PyTorch about as long as reading the weights once"
_LIMITS = {
    "a word": f"{_OPERATIONS}; products with the weight on the left read at 80% of the memory's speed, and the clip's"
    " keys and values are another 58 MB in the base model",
    "a word, weights in float16": f"{_OPERATIONS}; FBGEMM's products alone take 0.65 times reading the weights",
    "a word, int8": f"{_OPERATIONS}; the products alone take 0.45 times reading the weights",
}
_BEAMS_LIMIT = (
    "no product of eight rows at hand reads the weights at memory's speed: oneDNN takes about twice the time of the two"
    " rows of greedy search with the weight on the left; prepacked weights would need a copy of all of them"
)


def words(bench: "Bench") -> list[Table]:
    features = bench.features(bench.pixels())
    calls = {
        "original's algorithm": lambda: original_caption(bench.model, features, bench.size.words),
        "swinbert": lambda: bench.model.generate(video_key_values=bench.prefill(features), **bench.generation()),
    }
    rows, captions = bench.compare(calls)
    rows[1].note = agreement(*captions)
    title = f"Backbone's output to a caption of {bench.size.words} words, {bench.live_share:.0%} of the mask alive"
    tables = [Table(title, rows, "original's algorithm")]
    return tables + ([_one_word(bench, bench.prefill(features))] if bench.device.type == "cpu" else [])


def _one_word(bench: "Bench", key_values: Any) -> Table:
    """Words of an encoded clip, with weights as stored and in fewer bits, beside reading the weights for each word."""
    weights = decoding_weights(bench.model)
    steps = range(bench.size.words)
    models = {"a word": bench.model}
    if bench.dtype == torch.float32 and "fbgemm" in torch.backends.quantized.supported_engines:
        models["a word, weights in float16"] = quantize_decoding(copy.deepcopy(bench.model))
    if bench.model_in_int8 is not None:
        models["a word, int8"] = bench.model_in_int8
    calls: dict[str, Callable[[], Any]] = {
        "reading the weights once": lambda: [weight.sum() for _ in steps for weight in weights],
    }
    for name, model in models.items():
        calls[name] = functools.partial(model.generate, video_key_values=key_values, **bench.generation())
    rows, captions = bench.compare(calls, items=len(steps))
    for row, ids in zip(rows[1:], captions[1:], strict=True):
        row.target, row.limit = 0.67 if row.name == "a word" else 1.33, _LIMITS[row.name]
        if row is not rows[1]:
            equal = int((ids == captions[1]).sum()) - 1  # not [CLS]
            row.note = f"{equal} of {len(steps)} words as in float32"
    megabytes = sum(weight.nbytes for weight in weights) / 1e6
    return Table(f"A word of an encoded clip, beside reading {megabytes:.0f} MB of weights", rows, rows[0].name)


def decoding_weights(model: Any) -> list[torch.Tensor]:
    """The matrices that a decoding step multiplies: those of the fusion encoder and of the head."""
    layers = [*model.model.encoder.modules(), *model.lm_head.modules()]
    return [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]


def beams(bench: "Bench") -> list[Table]:
    key_values = bench.prefill(bench.features(bench.pixels()))
    generate = functools.partial(bench.model.generate, video_key_values=key_values)
    rows, _ = bench.compare(
        {
            "greedy": lambda: generate(**bench.generation(1)),
            "4 beams": lambda: generate(**bench.generation(4)),
        },
        items=bench.size.words,
    )
    rows[1].target, rows[1].limit = 0.8, _BEAMS_LIMIT
    return [Table(f"{bench.size.words} words of an encoded clip", rows, "greedy")]


__all__ = ["beams", "decoding_weights", "words"]
