"""An explanation in words, for pictures and pages."""

import numpy as np

from swinbert.captioning.explaining.explanation import Explanation, Word
from swinbert.captioning.explaining.words import RunnerUp

# The smallest probability that is written as a number.
_NOTICEABLE = 0.001
# Method -> what is bright in its pictures.
_BRIGHT = {
    "pixels": "Bright: what the word depends on. Hidden from the model, it makes the word less likely.",
    "occlusion": "Bright: the tokens without which the word is less likely.",
    "gradient": "Bright: the tokens whose attention makes the word more likely.",
    "attention": "Bright: the tokens that the word attends to.",
    "rollout": "Bright: the tokens that the word attends to, through all layers.",
}
_OF_TOKENS = (
    " A token has seen the rest of the clip too: it shows where the model keeps what it knows, which need not be where"
    " the thing is."
)


def legend(explanation: Explanation) -> str:
    """What the pictures of an explanation show, in a few sentences."""
    about = _BRIGHT[explanation.method] + ("" if explanation.method == "pixels" else _OF_TOKENS)
    return f"{about} What is nearly black the model did not see." if _is_cropped(explanation) else about


def _is_cropped(explanation: Explanation) -> bool:
    left, top, right, bottom = explanation.box
    return left > 0 or top > 0 or right < 1 or bottom < 1


def read_from(explanation: Explanation, word: Word) -> str:
    """The moment and the place of the largest weight, as in `"at 1.25 s, upper left"`."""
    slot, row, column = np.unravel_index(int(word.tokens.argmax()), word.tokens.shape)
    frame = int(slot) * explanation.frames_per_token
    moment = f"in frame {frame + 1}" if explanation.times is None else f"at {explanation.times[frame]:.2f} s"
    return f"{moment}, {_place(int(row), int(column), *word.tokens.shape[1:])}"


def _place(row: int, column: int, rows: int, columns: int) -> str:
    """Where one of `rows` x `columns` places is."""
    vertical = _third(row, rows, ("upper", "", "lower"))
    horizontal = _third(column, columns, ("left", "", "right"))
    return " ".join(filter(None, (vertical, horizontal))) or "centre"


def _third(index: int, size: int, names: tuple[str, str, str]) -> str:
    return names[min(2, int(3 * (index + 0.5) / size))]


def noticeable(word: Word) -> list[RunnerUp]:
    """The runners-up that are worth a line."""
    return [other for other in word.alternatives if other.probability >= _NOTICEABLE]


def percent(share: float) -> str:
    if 0.999 <= share < 1:
        return "> 99.9%"
    return "< 0.1%" if share < _NOTICEABLE else f"{share:.1%}"


__all__ = ["legend", "noticeable", "percent", "read_from"]
