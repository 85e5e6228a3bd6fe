"""Captions as HTML: the best one, the others, the timeline of a long video, and files to download."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path, PurePath

from swinbert.captioning.caption import Caption
from swinbert.captioning.demo.service import Progress
from swinbert.captioning.explaining import Explanation
from swinbert.captioning.explaining.page import page as explanation_page
from swinbert.captioning.writers import Row, make_writer
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline

_MEDIA_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt", "csv": "text/csv"}


def result_html(progress: Progress, is_complete: bool) -> str:
    """What the page shows of the captions so far."""
    found = progress.captions
    if not found:
        return status_html("Reading the clip …")
    parts = [_timeline(found) if len(found) > 1 or not is_complete else _single(found[0])]
    if is_complete:
        parts.append(_downloads(found))
    else:
        parts.insert(0, _progress(progress))
    return f'<div class="result">{"".join(parts)}</div>'


def title_html(title: str) -> str:
    return (
        f'<h1 class="title">{html.escape(title)}</h1><p class="lead">A clip goes in, an English sentence comes out.</p>'
    )


def hint_html() -> str:
    """In the place of the result, before there is one."""
    return '<p class="hint">Choose a clip, or try the example. Its caption appears here.</p>'


def model_html(captioner: VideoCaptioningPipeline) -> str:
    """What captions the clips."""
    model, family = captioner.model, captioner.family
    facts = [
        PurePath(model.name_or_path).name,
        f"{model.config.model_type}, {model.num_parameters() / 1e6:,.1f} million parameters",
        f"{family.num_frames} frames of each clip",
        f"{str(model.dtype).removeprefix('torch.')} on {captioner.device.type}",
    ]
    return f'<p class="model"><b>Model</b> {html.escape(" · ".join(facts))}</p>'


def status_html(text: str) -> str:
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def error_html(text: str) -> str:
    return f'<p class="error" role="alert">{html.escape(text)}</p>'


def explanation_html(explanation: Explanation, video: Path) -> str:
    """The page of `swinbert explain`, as a part of this one."""
    document = html.escape(explanation_page(explanation, video))
    return f'<iframe title="What each word was read from" srcdoc="{document}"></iframe>'


def clock(seconds: float) -> str:
    """`M:SS`, as in a player, with tenths where there are any."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    return f"{minutes}:{tenths // 10:02d}.{tenths % 10}".removesuffix(".0")


def _single(caption: Caption) -> str:
    others = "".join(
        f'<li><span>{html.escape(other.text)}</span><span class="score">{_score(other.score)}</span></li>'
        for other in caption.alternatives
    )
    return f'<p class="caption">{_text(caption)}</p><p class="about">{_about(caption)}</p>' + (
        f'<details class="others" open><summary>Other captions</summary><ol>{others}</ol></details>' if others else ""
    )


def _text(caption: Caption) -> str:
    """The caption, marked as what is explained; or why there is none."""
    if caption.text:
        return f'<span lang="en" data-caption>{html.escape(caption.text)}</span>'
    return f"<em>{html.escape('no words' if caption.text is not None else f'{caption.error}')}</em>"


def _about(caption: Caption) -> str:
    facts = [f"score {_score(caption.score)}"] if caption.score is not None else []
    if caption.duration is not None:
        facts.append(f"{caption.duration:.1f} s of video")
    return html.escape(" · ".join(facts))


def _score(score: float) -> str:
    return f"{score:.2f}".replace("-", "−")


def _timeline(found: Sequence[Caption]) -> str:
    """Buttons that jump the player: a band to scale, and a list with the captions."""
    end = max(caption.duration or caption.end or 0.0 for caption in found) or 1.0
    band, rows = [], []
    for caption in found:
        start, stop = caption.start or 0.0, caption.end or end
        title = html.escape(caption.text if caption.text is not None else f"{caption.error}")
        failed = " failed" if caption.text is None else ""
        seek = f'type="button" data-seek="{start:.3f}" data-until="{stop:.3f}"'
        style = f"left:{100 * start / end:.3f}%;width:{100 * (stop - start) / end:.3f}%"
        # The list has the same buttons: in the band they are left out for the keyboard and for screen readers.
        band.append(f'<button {seek} class="cell{failed}" style="{style}" tabindex="-1" title="{title}"></button>')
        score = f'<span class="score">{_score(caption.score)}</span>' if caption.score is not None else ""
        rows.append(
            f'<li><button {seek} class="segment{failed}"><span class="times">{clock(start)} – {clock(stop)}</span>'
            f"<span>{_text(caption)}</span>{score}</button></li>"
        )
    return (
        f'<div class="band" aria-hidden="true">{"".join(band)}</div>'
        f'<ol class="segments" aria-label="Segments; each jumps the player">{"".join(rows)}</ol>'
    )


def _progress(progress: Progress) -> str:
    if progress.share is None:
        return status_html(f"{len(progress.captions)} segments captioned …")
    left = "" if progress.remaining is None else f", about {max(1, round(progress.remaining))} s left"
    return (
        f'<div class="progress"><progress max="1" value="{progress.share:.3f}" aria-label="Captioned"></progress>'
        f"{status_html(f'{100 * progress.share:.0f}% captioned{left}')}</div>"
    )


def _downloads(found: Sequence[Caption]) -> str:
    """Links that hold the files themselves, so that the server keeps none."""
    stem = PurePath(found[0].clip).stem
    links = []
    for kind, media_type in _MEDIA_TYPES.items():
        try:
            document = make_writer(kind).document(map(Row, found))
        except ValueError:  # no duration, no subtitle
            continue
        content = base64.b64encode(document.encode(errors="surrogateescape")).decode()
        links.append(
            f'<a class="download" download="{html.escape(stem)}.{kind}"'
            f' href="data:{media_type};charset=utf-8;base64,{content}">{kind.upper()}</a>'
        )
    return f'<p class="downloads"><span>Download</span>{"".join(links)}</p>'


__all__ = [
    "clock",
    "error_html",
    "explanation_html",
    "hint_html",
    "model_html",
    "result_html",
    "status_html",
    "title_html",
]
