"""From the token ids of a caption to its words, and to the words that the model found less likely.

Shapes: L tokens of a caption after the first.
"""

import math
import string
from typing import Any, NamedTuple

import numpy as np
import torch

# Runner-up words of each word.
NUM_RUNNERS_UP = 4


class RunnerUp(NamedTuple):
    """A word that the model found less likely, and its probability."""

    word: str
    probability: float


def decoded(processor: Any, ids: torch.Tensor) -> str:
    """The text of token ids (L,), as the pipeline writes it."""
    (text,) = processor.batch_decode(ids[None], skip_special_tokens=True)
    return " ".join(text.split())


def words_of(processor: Any, ids: torch.Tensor) -> list[tuple[str, list[int]]]:
    """
    The words of a caption, ids (L + 1,), without the punctuation around them, and the places of each word's tokens
    among those after the first. There is one for each word that `decoded` separates by spaces.
    """
    special = set(processor.tokenizer.all_special_ids)
    beginnings = [decoded(processor, ids[: place + 2]) for place in range(len(ids) - 1)]
    # A word may grow by later tokens ("do", "don't"): the number of words up to a token can only fall by what follows.
    numbers = np.minimum.accumulate([len(text.split()) for text in beginnings][::-1])[::-1] - 1
    words = []
    for number, written in enumerate(decoded(processor, ids).split()):
        places = [int(place) for place in np.flatnonzero(numbers == number) if int(ids[place + 1]) not in special]
        spoken = [place for place in places if any(map(str.isalnum, decoded(processor, ids[place + 1 : place + 2])))]
        words.append((written.strip(string.punctuation) or written, spoken or places))
    return words


def runners_up(processor: Any, log_probs: torch.Tensor, chosen: int) -> tuple[RunnerUp, ...]:
    """The likeliest tokens at the beginning of a word, log-probabilities (vocabulary,), but the one that was chosen."""
    left_out = {chosen, *processor.tokenizer.all_special_ids}
    best = log_probs.topk(min(len(log_probs), len(left_out) + NUM_RUNNERS_UP))
    found = [
        RunnerUp(decoded(processor, torch.tensor([token])), math.exp(value))
        for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if token not in left_out
    ]
    return tuple(found[:NUM_RUNNERS_UP])


__all__ = ["RunnerUp", "decoded", "runners_up", "words_of"]
