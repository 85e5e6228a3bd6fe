"""An explanation as a page: one file that opens from disk, with all its pictures, and asks no address for anything."""

import base64
import io
import json
from html import escape
from importlib.resources import files
from pathlib import Path, PurePath
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from swinbert.captioning.explaining.explanation import Explanation, Word
from swinbert.captioning.explaining.wording import legend, noticeable, percent, read_from
from swinbert.processing.video_backends_swinbert import open_stream

# Of a clip that is embedded; the page of a larger one plays its sampled frames.
MAX_VIDEO_BYTES = 8 << 20
# What browsers play: container -> its media type and the codecs.
_PLAYABLE = {
    "mp4": ("video/mp4", {"h264", "av1", "vp9"}),
    "webm": ("video/webm", {"vp8", "vp9", "av1"}),
}


def page(explanation: Explanation, video: Path | None = None) -> str:
    """
    The page of an explanation, as HTML. Pointing at a word, or reaching it by the keyboard, lights its frames and
    places; a click plays the clip from there.

    Args:
        video: the file of the clip, which is embedded if it is small and browsers play it.
    """
    encoded, media_type = _embedded(video) if video is not None and explanation.times is not None else ("", "")
    height, width = explanation.pictures.shape[1:3]
    name = PurePath(explanation.clip).name  # the page may be passed on, and a folder says more than it should
    data = {
        "words": [_word_data(explanation, word) for word in explanation.words],
        "times": explanation.times,
        "box": explanation.box,
        "frames_per_token": explanation.frames_per_token,
        "pictures": [_data_uri(picture) for picture in explanation.pictures],
        "size": [width, height],
        "video": encoded,
        "video_type": media_type,
    }
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{explanation.caption or 'No caption'} - {name}"),
        clip=escape(name),
        caption=_caption(explanation),
        legend=escape(legend(explanation)),
        rows="\n".join(_row(explanation, word) for word in explanation.words),
        # Inside a script element, "<" could end it.
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _caption(explanation: Explanation) -> str:
    """The caption with each word as a button and the punctuation between them."""
    if not explanation.words:
        return "<em>This caption has no words.</em>"
    parts = []
    for written, word in zip(explanation.caption.split(), explanation.words, strict=True):
        before, _, after = written.partition(word.word)
        button = f'<button type="button" aria-pressed="false">{escape(word.word)}</button>'
        parts.append(f"{escape(before)}{button}{escape(after)}")
    return " ".join(parts)


def _word_data(explanation: Explanation, word: Word) -> dict[str, Any]:
    return {
        "word": word.word,
        "frames": np.round(word.frames, 5).tolist(),
        "tokens": np.round(word.tokens, 5).tolist(),
        "strongest": int(word.frames.argmax()),
        "summary": [
            f"Probability {percent(word.probability)}; without the clip {percent(word.blind_probability)}.",
            f"Read mostly {read_from(explanation, word)}." if word.tokens.any() else "It needs no part of the clip.",
        ],
        "alternatives": [f"{other.word}, {percent(other.probability)}" for other in noticeable(word)],
    }


def _row(explanation: Explanation, word: Word) -> str:
    others = ", ".join(f"{other.word} {percent(other.probability)}" for other in noticeable(word))
    numbers = "".join(
        f'<td class="number">{percent(value)}</td>' for value in (word.probability, word.blind_probability)
    )
    where = read_from(explanation, word) if word.tokens.any() else "nowhere"
    return f"<tr><td>{escape(word.word)}</td>{numbers}<td>{escape(where)}</td><td>{escape(others)}</td></tr>"


def _data_uri(picture: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _embedded(video: Path) -> tuple[str, str]:
    """A clip in base64 and its media type; empty if it is too large, or not what browsers play."""
    if video.stat().st_size > MAX_VIDEO_BYTES:
        return "", ""
    with open_stream(video.name, str(video.absolute())) as (container, stream):
        codec, pixel_format = stream.codec_context.name, stream.codec_context.pix_fmt
        names = container.format.name.split(",")
    kind = "webm" if video.suffix.lower() == ".webm" and "webm" in names else "mp4" if "mp4" in names else ""
    media_type, codecs = _PLAYABLE.get(kind, ("", set()))
    if codec not in codecs or pixel_format not in ("yuv420p", "yuvj420p"):
        return "", ""
    return base64.b64encode(video.read_bytes()).decode(), media_type


__all__ = ["MAX_VIDEO_BYTES", "page"]
