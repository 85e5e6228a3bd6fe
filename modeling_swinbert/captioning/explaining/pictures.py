"""Explanations and sparse masks as pictures, with matplotlib (extra `explain`).

Shapes: T frames, H and W pixels of a picture, (T', H', W') the grid of the clip's tokens, N of them.
"""

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from swinbert.captioning.explaining.explanation import Explanation, Word

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
# Pixels of the pictures: width of a page, of the column with the words, of the gaps, of the bars under the frames.
_WIDTH, _LABELS, _GAP, _BAR = 1000, 150, 6, 10
_MAX_COLUMNS = 8
_MAX_FRAME_HEIGHT = 150
# A word that is bright where it was read, on any ground: amber, which all kinds of colour vision tell from dark.
_AMBER = np.array([255, 176, 0])
# English words that say how a sentence is built and nothing of the clip.
_FUNCTION_WORDS = frozenset(
    "a an the this that these those some and or but then next after before while until of in on at to from with by for"
    " into onto as is are was were be been being am has have had do does did it its he his him she her"
    " they their them there who which what not no so than one's".split()
)


def content_words(explanation: Explanation) -> list[Word]:
    """The words that say something of the clip; all words where there is no such word."""
    words = [word for word in explanation.words if word.word.lower() not in _FUNCTION_WORDS]
    return words or list(explanation.words)


def moments(explanation: Explanation, columns: int = _MAX_COLUMNS) -> list[list[int]]:
    """
    The times t' of the tokens in at most `columns` groups, one after the other. Times that show one and the same frame,
    as of a clip of few frames, are one group.
    """
    slots = list(range(0, len(explanation.pictures), explanation.frames_per_token))
    groups: list[list[int]] = []
    for slot, frame in enumerate(slots):
        frames = explanation.pictures[frame : frame + explanation.frames_per_token]
        before = explanation.pictures[frame - 1] if frame else None
        is_same = before is not None and all(np.array_equal(before, picture) for picture in frames)
        if is_same and groups:
            groups[-1].append(slot)
        else:
            groups.append([slot])
    if len(groups) <= columns:
        return groups
    edges = np.linspace(0, len(groups), columns + 1).round().astype(int)
    return [sum(groups[low:high], []) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def lit(
    picture: np.ndarray, weights: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """
    A picture that is bright and tinted where a word was read, and dark elsewhere; darkest where the model did not look.

    Args:
        picture: (H, W, 3) uint8.
        weights: (H', W'), 1 for the largest weight of the word.
        box: see [`Explanation`].
        size: height and width of the result.

    Returns:
        uint8 of `size`, with three channels.
    """
    height, width = size
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    left, top, right, bottom = box
    rows, columns = weights.shape
    row = np.floor(((np.arange(height) + 0.5) / height - top) / (bottom - top) * rows).astype(int)
    column = np.floor(((np.arange(width) + 0.5) / width - left) / (right - left) * columns).astype(int)
    is_seen = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
    share = weights[row.clip(0, rows - 1)[:, None], column.clip(0, columns - 1)][..., None]
    seen = resized * (0.35 + 0.65 * share)
    seen += 0.35 * share * (_AMBER - seen)
    return np.where(is_seen[..., None], seen, 0.2 * resized).round().clip(0, 255).astype(np.uint8)


def words_figure(explanation: Explanation) -> "Figure":
    """
    A row for each content word: frames at their own aspect ratio, bright where the word was read, the time of each
    under it, and how the word's weight is spread over all times.

    Each frame is that of the largest weight among those of its column.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    words, groups = content_words(explanation), moments(explanation)
    _, height, width = explanation.pictures.shape[:3]
    cell = (_WIDTH - _LABELS - _GAP) / max(4, len(groups)) - _GAP
    frame_height = min(cell * height / width, _MAX_FRAME_HEIGHT)
    frame_size = round(frame_height), round(frame_height * width / height)
    head, row = 64, round(frame_height) + _BAR + 40
    total = head + row * max(1, len(words)) + _GAP
    figure = Figure(figsize=(_WIDTH / DPI, total / DPI), dpi=DPI, facecolor="white")
    figure.text(_GAP / _WIDTH, 1 - 14 / total, _wrapped(explanation.caption, 90), fontsize=12, weight="bold", va="top")
    for number, word in enumerate(words):
        top = head + number * row
        _draw_label(figure, word, top, total)
        _draw_frames(figure, explanation, word, groups, (top, total), cell, frame_size)
    if not words:
        figure.text(0.5, 0.3, "This caption has no words.", ha="center")
    return figure


def _draw_label(figure: "Figure", word: Word, top: float, total: float) -> None:
    x = _GAP / _WIDTH
    figure.text(x, 1 - top / total, _wrapped(word.word, 14), fontsize=13, weight="bold", va="top")
    lines = [f"{word.probability:.1%} likely", f"without the clip {word.blind_probability:.1%}"]
    if word.alternatives:
        other = word.alternatives[0]
        lines.append(f"else “{textwrap.shorten(other.word, 12, placeholder='…')}” {other.probability:.1%}")
    figure.text(x, 1 - (top + 24) / total, "\n".join(lines), fontsize=8, va="top", color="0.25", parse_math=False)


def _draw_frames(
    figure: "Figure",
    explanation: Explanation,
    word: Word,
    groups: list[list[int]],
    place: tuple[float, float],
    cell: float,
    frame_size: tuple[int, int],
) -> None:
    """Frames, times and bars of a word, from `place` on: pixels from the top, of how many."""
    from matplotlib.patches import Rectangle

    top, total = place
    height, width = frame_size
    peak = max(float(word.tokens.max()), np.finfo(np.float32).tiny)
    of_slots = word.tokens.sum((1, 2))
    for column, slots in enumerate(groups):
        left = _LABELS + column * (cell + _GAP)
        slot = max(slots, key=lambda slot: of_slots[slot])
        frame = slot * explanation.frames_per_token
        picture = lit(explanation.pictures[frame], word.tokens[slot] / peak, explanation.box, frame_size)
        figure.figimage(picture, round(left), round(total - top - height))
        time = f"frame {frame + 1}" if explanation.times is None else f"{explanation.times[frame]:.2f} s"
        figure.text(
            (left + width / 2) / _WIDTH, 1 - (top + height + _BAR + 6) / total, time, fontsize=8, ha="center", va="top"
        )
        step = width / len(slots)
        for number, each in enumerate(slots):
            bar = _BAR * float(of_slots[each] / max(of_slots.max(), np.finfo(np.float32).tiny))
            corner = (left + number * step) / _WIDTH, 1 - (top + height + 2 + _BAR) / total
            size = (step - 1) / _WIDTH, bar / total
            figure.add_artist(Rectangle(corner, *size, transform=figure.transFigure, color="#b36b00", linewidth=0))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text


__all__ = ["content_words", "lit", "moments", "words_figure"]
