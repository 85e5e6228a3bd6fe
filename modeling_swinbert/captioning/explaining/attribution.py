"""Which tokens of the clip a caption's words were read from: methods that give each token a weight for each word.

Shapes: L tokens of a caption after the first, (T', H', W') the grid of the clip's tokens, B variants of the clip.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from swinbert.captioning.explaining.encoded_clips import EncodedClip

# Of the method `pixels`: how often the clip is encoded, and the most cells of a choice along time, height and width.
NUM_HALVES = 64
MAX_CELLS = (8, 4, 4)

# Of an encoded clip and the caption's ids (1, L + 1) the weights (L, T', H', W'), of either sign.
Method = Callable[[EncodedClip, torch.Tensor], torch.Tensor]


def attention(clip: EncodedClip, ids: torch.Tensor, layers: Sequence[int] | None = None) -> torch.Tensor:
    """
    Attention weights from the prediction of each word to the clip, mean over the heads and over all layers, or over
    those with the numbers `layers`.
    """
    weights = clip.attention(ids)
    return (weights if layers is None else weights[list(layers)]).mean(dim=(0, 1))


def rollout(clip: EncodedClip, ids: torch.Tensor) -> torch.Tensor:
    """Attention of all layers multiplied, see [`EncodedClip.rollout`]."""
    return clip.rollout(ids)


def gradient(clip: EncodedClip, ids: torch.Tensor) -> torch.Tensor:
    """Gradient times attention, summed over heads and layers: to first order, what each weight adds to the word."""
    return clip.gradient_times_attention(ids).sum(dim=(0, 1))


def occlusion(clip: EncodedClip, ids: torch.Tensor) -> torch.Tensor:
    """How much the log-probability of each word falls when each token of the clip is hidden from the words."""
    size = math.prod(clip.grid)
    hidden = torch.eye(size, dtype=torch.bool, device=ids.device).unflatten(1, clip.grid)
    return occlusion_effects(clip, ids, hidden).T.unflatten(1, clip.grid)


def occlusion_effects(clip: EncodedClip, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """
    How much the log-probability of each word falls when tokens of the clip are hidden from the words.

    Args:
        hidden: (B, T', H', W') bool.

    Returns:
        (B, L); positive where a word needs the hidden tokens.
    """
    shown = clip.log_probs(ids, torch.ones_like(hidden[:1]))
    return shown - clip.log_probs(ids, ~hidden)


def pixels(clip: EncodedClip, ids: torch.Tensor) -> torch.Tensor:
    """
    How much higher the log-odds of each word are where a place of the clip itself is visible than where it is hidden,
    mean over random halves of the clip (RISE, arXiv:1806.07421), each of which is encoded anew; times the square root
    of the attention that the word pays to the tokens of that time.

    The first finds the places, with a noise that is spread over all times; the second knows the times.
    """
    visible = random_halves(clip.grid, NUM_HALVES).to(ids.device)
    log_odds = _log_odds(clip.log_probs_of_pixels(ids, visible))
    shown = visible.flatten(1).to(log_odds.dtype)
    of_shown = log_odds.T @ shown / shown.sum(0).clamp(min=1)
    of_hidden = log_odds.T @ (1 - shown) / (1 - shown).sum(0).clamp(min=1)
    of_times = attention(clip, ids).sum((-2, -1), keepdim=True)
    return (of_shown - of_hidden).unflatten(1, clip.grid) * of_times.sqrt()


def _log_odds(log_probs: torch.Tensor) -> torch.Tensor:
    """Unlike log-probabilities, they do not flatten where a word is nearly certain."""
    return log_probs - torch.log1p(-log_probs.exp().clamp(max=1 - 1e-6))


def random_halves(grid: tuple[int, int, int], number: int) -> torch.Tensor:
    """
    Random choices of the tokens, each visible with probability 1/2: (number, T', H', W') bool. Of a large grid,
    neighbours are chosen together, in cells at random offsets, since single ones hide little.
    """
    generator = torch.Generator().manual_seed(0)
    cells = [math.ceil(size / most) for size, most in zip(grid, MAX_CELLS, strict=True)]
    chosen = []
    for _ in range(number):
        counts = [size // cell + 2 for size, cell in zip(grid, cells, strict=True)]
        half = torch.rand(counts, generator=generator) < 0.5
        for axis, (size, cell) in enumerate(zip(grid, cells, strict=True)):
            offset = int(torch.randint(cell, (), generator=generator))
            half = half.repeat_interleave(cell, dim=axis).narrow(axis, offset, size)
        chosen.append(half)
    return torch.stack(chosen)


METHODS: dict[str, Method] = {
    "pixels": pixels,
    "occlusion": occlusion,
    "gradient": gradient,
    "attention": attention,
    "rollout": rollout,
}
DEFAULT_METHOD = "pixels"


def find_method(name: str, layers: Sequence[int] | None = None) -> Method:
    """
    Args:
        name: one of `METHODS`.
        layers: of the method `attention`.

    Raises:
        ValueError: there is no such method, or it has no layers to choose.
    """
    if name not in METHODS:
        raise ValueError(f"Expected as `method` one of {', '.join(METHODS)}; got {name!r}.")
    if layers is None:
        return METHODS[name]
    if name != "attention":
        raise ValueError(f"`layers` belong to the method attention, got {name}: leave one of them out.")
    return partial(attention, layers=layers)


__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "find_method", "occlusion_effects"]
