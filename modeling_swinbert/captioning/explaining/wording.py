"""An explanation in words, for pictures and pages."""

import numpy as np

from swinbert.captioning.explaining.explanation import Explanation, Word


def legend(explanation: Explanation) -> str:
    """What the pictures show, in two sentences."""
    _, height, width = explanation.words[0].tokens.shape if explanation.words else (0, 0, 0)
    return (
        f"Bright: what the word was read from, by {explanation.method}; each square of the {height} x {width} is one"
        " token. A token has also seen the rest of the clip: it says where the model keeps what it knows, which need"
        " not be where the thing is."
    )


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


def percent(share: float) -> str:
    if 0.999 <= share < 1:
        return "> 99.9%"
    return "< 0.1%" if share < 0.001 else f"{share:.1%}"


__all__ = ["legend", "percent", "read_from"]
