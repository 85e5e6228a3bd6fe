"""The demo's page: an upload, an address or the camera on the left, what came of it on the right, and its events."""

from typing import Any, NamedTuple

import gradio as gr

from swinbert.captioning.demo.handlers import Handlers
from swinbert.captioning.demo.page import hint_html, model_html, title_html
from swinbert.captioning.demo.service import LONG, MAX_BEAMS, WINDOW, Demo, Settings

TITLE = "Video captioning"
_SEGMENTS = [
    (f"{WINDOW:g} s each, if longer than {LONG:g} s", "auto"),
    ("The whole video", "whole"),
    *((f"{seconds} s each", str(seconds)) for seconds in (2, 5, 10, 30, 60)),
    ("Scenes", "scenes"),
]
# Events of one name wait for each other: the model works on one clip at a time.
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class ClipInput(NamedTuple):
    """The components that a clip comes from."""

    video: gr.Video
    chosen: gr.HTML
    url: gr.Textbox
    fetch: gr.Button
    example: gr.Button
    caption: gr.Button


def build(demo: Demo, title: str = TITLE) -> gr.Blocks:
    """The page, and the same as endpoints."""
    handlers = Handlers(demo)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(title_html(title))
        with gr.Row(elem_id="desk"):
            with gr.Column(min_width=320):
                clip = _clip_input()
            with gr.Column(min_width=320):
                result = gr.HTML(hint_html(), elem_id="result", apply_default_css=False)
        explain = gr.Button("What was each word read from?", visible=False, elem_id="explain")
        explanation = gr.HTML(elem_id="explanation", apply_default_css=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            settings = _settings(demo)

        _connect_clip(handlers, clip, demo)
        shown = [result, explain, explanation]
        clip.caption.click(
            handlers.show_caption, [clip.video, *settings], shown, show_progress_on=result, **_PRIVATE, **_MODEL
        )
        # Which segment is explained, the browser knows.
        explain.click(
            handlers.show_explanation,
            [clip.video, gr.JSON(visible=False)],
            explanation,
            js="(video, _) => [video, window.swinbertSelected()]",
            **_PRIVATE,
            **_MODEL,
        )
        page.unload(handlers.left)
        _add_endpoints(handlers, clip, settings)
    return page


def _clip_input() -> ClipInput:
    # Larger pictures are made smaller for the model, and the browser has to encode them while it records.
    camera = gr.WebcamOptions(constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}})
    video = gr.Video(label="Clip", sources=["upload", "webcam"], webcam_options=camera, elem_id="clip", buttons=[])
    chosen = gr.HTML(elem_id="chosen", apply_default_css=False)
    with gr.Row(elem_id="address"):
        url = gr.Textbox(
            "",
            label="Address of a clip",
            show_label=False,
            placeholder="Or an address: https://…",
            container=False,
            scale=4,
            min_width=160,
        )
        fetch = gr.Button("Fetch", scale=1, min_width=70)
    with gr.Row():
        example = gr.Button("Example", min_width=110)
        caption = gr.Button("Caption", variant="primary", interactive=False, elem_id="caption", scale=2, min_width=140)
    return ClipInput(video, chosen, url, fetch, example, caption)


def _settings(demo: Demo) -> list[Any]:
    """Components whose values are those of [`Settings`]."""
    preset = Settings()
    gr.HTML(model_html(demo.captioner))
    with gr.Row():
        return [
            gr.Dropdown(_SEGMENTS, value=preset.segments, label="Segments", info="One sentence for each."),
            gr.Slider(1, MAX_BEAMS, preset.beams, step=1, label="Beams", info="1 is greedy search."),
            gr.Slider(0, MAX_BEAMS - 1, preset.alternatives, step=1, label="Other captions", info="Less likely ones."),
        ]


def _connect_clip(handlers: Handlers, clip: ClipInput, demo: Demo) -> None:
    clip.video.change(handlers.chosen, clip.video, [clip.chosen, clip.caption], show_progress="hidden", **_PRIVATE)
    for trigger in (clip.fetch.click, clip.url.submit):
        trigger(handlers.fetch, clip.url, [clip.video, clip.chosen], **_PRIVATE)
    clip.example.click(lambda: str(demo.example), None, clip.video, show_progress="hidden", **_PRIVATE)


def _add_endpoints(handlers: Handlers, clip: ClipInput, settings: list[Any]) -> None:
    """For programs and agents: what the page does, by buttons that nobody sees."""
    answer, text = gr.JSON(visible=False), gr.Textbox("", label="Caption", visible=False)
    segments = gr.Textbox(Settings().segments, label="Segments", visible=False)  # any number of seconds
    inputs = [clip.video, clip.url]
    settings = [segments, *settings[1:]]
    gr.Button(visible=False).click(handlers.caption, [*inputs, *settings], answer, api_name="caption", **_MODEL)
    if handlers.demo.can_explain:
        gr.Button(visible=False).click(handlers.explain, [*inputs, text], answer, api_name="explain", **_MODEL)


__all__ = ["TITLE", "build"]
