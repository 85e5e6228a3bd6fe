"""Explanations and sparse masks as pictures, with matplotlib (extra `explain`).

Shapes: T frames, H and W pixels of a picture, (T', H', W') the grid of the clip's tokens, N of them.
"""

import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swinbert.captioning.explaining.explanation import Explanation, Word
from swinbert.captioning.explaining.wording import legend, noticeable, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
# Pixels: width of a picture, of the column with the words, of gaps; height of the bars under frames, of the legend.
_WIDTH, _LABELS, _GAP, _BAR, _FOOT = 1000, 150, 6, 10, 40
_MAX_COLUMNS = 8
_MAX_FRAME_HEIGHT = 150
# A word that is bright where it was read, on any ground: amber, which all kinds of colour vision tell from dark.
_AMBER = np.array([255, 176, 0])
_BAR_COLOUR = "#b36b00"
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
    shown = resized(picture, size).astype(np.float32)
    left, top, right, bottom = box
    rows, columns = weights.shape
    row = np.floor(((np.arange(height) + 0.5) / height - top) / (bottom - top) * rows).astype(int)
    column = np.floor(((np.arange(width) + 0.5) / width - left) / (right - left) * columns).astype(int)
    is_seen = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
    share = weights[row.clip(0, rows - 1)[:, None], column.clip(0, columns - 1)][..., None]
    seen = shown * (0.45 + 0.55 * share)
    seen += 0.4 * share * (_AMBER - seen)
    return np.where(is_seen[..., None], seen, 0.2 * shown).round().clip(0, 255).astype(np.uint8)


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of another height and width."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))


def words_figure(explanation: Explanation) -> "Figure":
    """
    A row for each content word: frames at their own aspect ratio, bright where the word was read, the time of each
    under it, and how the word's weight is spread over all times. The first row shows the frames as they are.

    Each frame of a word is that of the largest weight among those of its column.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    words, groups = content_words(explanation), moments(explanation)
    height, width = explanation.pictures.shape[1:3]
    cell = (_WIDTH - _LABELS - _GAP) / max(4, len(groups)) - _GAP
    frame_height = min(cell * height / width, _MAX_FRAME_HEIGHT)
    frame_size = round(frame_height), round(frame_height * width / height)
    caption = textwrap.wrap(explanation.caption or "This caption has no words.", 80)
    head, row = 24 + 20 * len(caption), max(round(frame_height) + _BAR + 32, 90)
    total = head + row * (len(words) + 1) + _FOOT
    figure = Figure(figsize=(_WIDTH / DPI, total / DPI), dpi=DPI, facecolor="white")
    canvas = _Canvas(figure, total)
    canvas.text(_GAP, 12, "\n".join(caption), fontsize=13, weight="bold")
    canvas.text(_GAP, head, "the clip", fontsize=11)
    for column, slots in enumerate(groups):
        picture = explanation.pictures[slots[0] * explanation.frames_per_token]
        _draw_frame(canvas, explanation, slots[0], picture, (_LABELS + column * (cell + _GAP), head), frame_size)
    for number, word in enumerate(words, start=1):
        _draw_label(canvas, word, head + number * row)
        _draw_word(canvas, explanation, word, groups, head + number * row, cell, frame_size)
    canvas.text(_GAP, total - _FOOT, "\n".join(textwrap.wrap(legend(explanation), 150)), fontsize=8, color="0.25")
    return figure


def as_png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


class _Canvas:
    """A figure addressed in pixels from its upper left corner."""

    def __init__(self, figure: "Figure", height: float):
        self._figure, self._height = figure, height

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        options = {"va": "top", "parse_math": False, **options}
        self._figure.text(x / _WIDTH, 1 - y / self._height, text, **options)

    def picture(self, x: float, y: float, pixels: np.ndarray) -> None:
        self._figure.figimage(pixels, round(x), round(self._height - y - len(pixels)))

    def bar(self, x: float, bottom: float, width: float, height: float) -> None:
        from matplotlib.patches import Rectangle

        corner = x / _WIDTH, 1 - bottom / self._height
        size = width / _WIDTH, height / self._height
        self._figure.add_artist(
            Rectangle(corner, *size, transform=self._figure.transFigure, color=_BAR_COLOUR, linewidth=0)
        )


def _draw_label(canvas: _Canvas, word: Word, top: float) -> None:
    canvas.text(_GAP, top, _wrapped(word.word, 14), fontsize=13, weight="bold")
    lines = [f"{percent(word.probability)} likely", f"without the clip {percent(word.blind_probability)}"]
    for other in noticeable(word)[:1]:
        lines.append(f"or “{textwrap.shorten(other.word, 12, placeholder='…')}” {percent(other.probability)}")
    canvas.text(_GAP, top + 26, "\n".join(lines), fontsize=8, color="0.25")


def _draw_word(
    canvas: _Canvas,
    explanation: Explanation,
    word: Word,
    groups: list[list[int]],
    top: float,
    cell: float,
    frame_size: tuple[int, int],
) -> None:
    """Frames, bars and times of a word."""
    height, width = frame_size
    smallest = np.finfo(np.float32).tiny
    peak = max(float(word.tokens.max()), smallest)
    of_slots = word.tokens.sum((1, 2))
    for column, slots in enumerate(groups):
        left = _LABELS + column * (cell + _GAP)
        slot = max(slots, key=lambda slot: of_slots[slot])
        frame = explanation.pictures[slot * explanation.frames_per_token]
        picture = lit(frame, word.tokens[slot] / peak, explanation.box, frame_size)
        _draw_frame(canvas, explanation, slot, picture, (left, top), frame_size)
        step = width / len(slots)
        for number, each in enumerate(slots):
            size = _BAR * float(of_slots[each] / max(of_slots.max(), smallest))
            canvas.bar(left + number * step, top + height + 2 + _BAR, step - 1, size)


def _draw_frame(
    canvas: _Canvas,
    explanation: Explanation,
    slot: int,
    picture: np.ndarray,
    place: tuple[float, float],
    size: tuple[int, int],
) -> None:
    """A picture at `place`, its left upper corner, with its time under it."""
    (left, top), (height, width) = place, size
    frame = slot * explanation.frames_per_token
    time = f"frame {frame + 1}" if explanation.times is None else f"{explanation.times[frame]:.2f} s"
    canvas.picture(left, top, resized(picture, size))
    canvas.text(left + width / 2, top + height + _BAR + 5, time, fontsize=8, ha="center")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text


__all__ = ["as_png", "content_words", "lit", "moments", "words_figure"]
