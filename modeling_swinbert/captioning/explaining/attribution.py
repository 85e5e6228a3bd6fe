"""Which tokens of the clip a caption's words were read from: methods that give each token a weight for each word.

Shapes: L tokens of a caption after the first, (T', H', W') the grid of the clip's tokens, B variants of the clip.
"""

import math
from collections.abc import Callable

import torch

from swinbert.captioning.explaining.encoded_clips import EncodedClip

# Of an encoded clip and the caption's ids (1, L + 1) the weights (L, T', H', W'), of either sign.
Method = Callable[[EncodedClip, torch.Tensor], torch.Tensor]


def attention(clip: EncodedClip, ids: torch.Tensor) -> torch.Tensor:
    """Attention weights from the prediction of each word to the clip, mean over heads and layers."""
    return clip.attention(ids).mean(dim=(0, 1))


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


METHODS: dict[str, Method] = {
    "occlusion": occlusion,
    "gradient": gradient,
    "attention": attention,
    "rollout": rollout,
}
DEFAULT_METHOD = "occlusion"

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "occlusion_effects"]
