"""How true the ways of explaining a word are, measured on moving shapes, where it is known what a word is about.

    python -m swinbert.training.studies.attribution --output_dir outputs/attribution [--model DIR] [--clips 100]

Clips of fresh worlds (seeds that no data set uses) with contents that the training split never shows; only clips whose
caption has exactly the right content count. For each method of `swinbert explain`, and for random weights:

- **pointing**: whether the token with the largest weight holds more of the shape than any other place of its time, for
  words about the subject (its size, colour and shape) and about its actions;
- **order**: whether, of a clip with two actions, the words of the second were read later than those of the first, by
  the mean time of their weights;
- **tokens removed**: by how much the log-probability of a word falls when the fifth of the tokens with the largest
  weights is hidden from the words, and the mean probability while one tenth after the other is hidden (the area under
  the curve: the lower, the better);
- **pixels removed**: the same fall when that fifth is hidden from the encoder of the clip.

Each seed is a row of `attribution.json` when it is done: the same call resumes. `attribution.md` has the mean over the
seeds and their standard deviation.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from swinbert import bundled_model
from swinbert.captioning.explaining.attribution import METHODS
from swinbert.captioning.explaining.encoded_clips import EncodedClip, encode_clip
from swinbert.captioning.explaining.words import decoded, words_of
from swinbert.training.moving_shapes import all_contents, content, held_out, render_scene
from swinbert.training.moving_shapes.contents import Content
from swinbert.utils.files import write_atomically, write_json

# Kinds of the clips in turn: order is measured on clips of two actions.
_KINDS = ("sequence", "solo", "sequence", "passage")
# Fresh worlds: `make-shapes` draws from [seed, split, number].
_WORLD = 20261128
_REMOVED_SHARE = 0.2
_COLUMNS = {
    "point_subject": "pointing, subject",
    "point_action": "pointing, action",
    "order": "order",
    "tokens_drop": "tokens removed: fall",
    "tokens_area": "tokens removed: area",
    "pixels_drop": "pixels removed: fall",
}


def measure_clip(
    model: Any, processor: Any, wanted: Content, rng: np.random.Generator
) -> dict[str, dict[str, list[float]]] | None:
    """
    Method -> measure -> its values for the words of one clip; `None` if the caption is not right.

    Args:
        rng: draws the clip, and random weights.
    """
    scene = render_scene(wanted, rng)
    inputs = processor(videos=scene.frames, return_tensors="pt", return_metadata=True)
    (metadata,) = inputs.pop("video_metadata")
    encoded = encode_clip(model, {"pixel_values_videos": inputs["pixel_values_videos"]})
    ids = model.generate(**encoded.generation_inputs)
    if content(decoded(processor, ids[0])) != wanted:
        return None
    sampled = np.array(metadata.frames_indices)
    shape = _per_token(scene.shape[sampled], encoded.grid)
    words = words_of(processor, ids[0])
    subject, action = [1, 2, 3], [[4, 5]]  # "a small red circle moves left"
    if len(wanted.actions) == 2:
        action.append([len(words) - 2, len(words) - 1])
    methods = {name: method(encoded, ids) for name, method in METHODS.items()}
    methods["random"] = torch.from_numpy(rng.random((ids.shape[1] - 1, *encoded.grid), dtype=np.float32))
    results = {}
    for name, weights in methods.items():
        of_words = [weights[places].sum(0).clamp(min=0).numpy() for _, places in words]
        told = subject + sum(action, [])
        results[name] = {
            "point_subject": [_points_at(of_words[word], shape) for word in subject],
            "point_action": [_points_at(of_words[word], shape) for word in sum(action, [])],
            **({"order": [_in_order(of_words, *action)]} if len(action) == 2 else {}),
            **_removal(encoded, ids, [(words[word][1], of_words[word]) for word in told]),
        }
    return results


def _per_token(shape: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The visible area of the shape (T, H, W) in each token, (T', H', W')."""
    frames, height, width = shape.shape
    time, rows, columns = grid
    return shape.reshape(time, frames // time, rows, height // rows, columns, width // columns).sum((1, 3, 5))


def _points_at(weights: np.ndarray, shape: np.ndarray) -> float:
    time, row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    return float(0 < shape[time].max() == shape[time, row, column] and weights.any())


def _in_order(of_words: Sequence[np.ndarray], first: Sequence[int], second: Sequence[int]) -> float:
    """1 if the mean time of the second phrase is later than that of the first, 1/2 if it is the same."""
    times = [_mean_time([of_words[word] for word in phrase]) for phrase in (first, second)]
    return float(np.heaviside(times[1] - times[0], 0.5))


def _mean_time(words: Sequence[np.ndarray]) -> float:
    """Mean of t' under the weights of several words, each of which counts the same."""
    shares = sum(word.sum((1, 2)) / max(word.sum(), np.finfo(np.float32).tiny) for word in words)
    return float((shares * np.arange(len(shares))).sum() / max(shares.sum(), np.finfo(np.float32).tiny))


def _removal(
    encoded: EncodedClip, ids: torch.Tensor, words: Sequence[tuple[list[int], np.ndarray]]
) -> dict[str, list[float]]:
    """
    Args:
        words: places of the tokens of each word in the caption, and weights (T', H', W') of the clip's tokens.
    """
    size = int(np.prod(encoded.grid))
    shares = np.arange(1, 10) / 10
    visible, most = [], []
    for _, weights in words:
        ranks = torch.from_numpy(weights.flatten()).argsort(descending=True, stable=True).argsort()
        visible.append(torch.stack([ranks >= round(share * size) for share in shares]))
        most.append(ranks >= round(_REMOVED_SHARE * size))
    everything = torch.ones(1, *encoded.grid, dtype=torch.bool)
    before = encoded.log_probs(ids, everything)[0]
    with_fewer = encoded.log_probs(ids, torch.cat(visible).unflatten(1, encoded.grid)).unflatten(0, (len(words), -1))
    without_most = torch.stack(most).unflatten(1, encoded.grid)
    of_tokens, of_pixels = encoded.log_probs(ids, without_most), encoded.log_probs_of_pixels(ids, without_most)
    results = defaultdict(list)
    for number, (places, _) in enumerate(words):
        results["tokens_drop"].append(float((before - of_tokens[number])[places].sum()))
        results["tokens_area"].append(float(with_fewer[number][:, places].sum(-1).exp().mean()))
        results["pixels_drop"].append(float((before - of_pixels[number])[places].sum()))
    return results


def measure_world(model: Any, processor: Any, seed: int, clips: int) -> dict[str, Any]:
    """Means over the words, or clips, of one world; number of clips with a right caption, and with two actions."""
    contents = [each for each in all_contents() if held_out(each)]
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    right = 0
    for number in range(clips):
        rng = np.random.default_rng([_WORLD, seed, number])
        kind = _KINDS[number % len(_KINDS)]
        of_kind = [each for each in contents if each.kind == kind]
        measured = measure_clip(model, processor, of_kind[rng.integers(len(of_kind))], rng)
        right += measured is not None
        for method, measures in (measured or {}).items():
            for measure, each in measures.items():
                values[method][measure] += each
    means = {method: {name: float(np.mean(each)) for name, each in values[method].items()} for method in values}
    return {"seed": seed, "clips": right, "sequences": len(values["random"]["order"]), "methods": means}


def table(worlds: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table: mean over the worlds, and their standard deviation."""
    yield f"| method | {' | '.join(_COLUMNS.values())} |"
    yield f"|---|{'---:|' * len(_COLUMNS)}"
    for method in worlds[0]["methods"]:
        cells = []
        for name in _COLUMNS:
            values = [world["methods"][method][name] for world in worlds]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}")
        yield f"| {method} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model", default=bundled_model(), help="a SwinBERT trained on moving shapes")
    parser.add_argument("--clips", type=int, default=100, help="of each world")
    parser.add_argument("--seeds", type=int, default=3, help="number of worlds")
    options = parser.parse_args(arguments)
    model = AutoModelForImageTextToText.from_pretrained(options.model).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    file = options.output_dir / "attribution.json"
    worlds = json.loads(file.read_bytes()) if file.exists() else []
    for seed in range(len(worlds), options.seeds):
        worlds.append(measure_world(model, processor, seed, options.clips))
        write_json(file, worlds)
        write_atomically(options.output_dir / "attribution.md", "\n".join(table(worlds)) + "\n")
    print("\n".join(table(worlds)))


if __name__ == "__main__":
    main()
