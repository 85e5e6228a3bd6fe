"""The demo's page on Gradio: an upload, an address or the camera on the left, what came of it on the right."""

import contextlib
import io
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from swinbert.captioning.demo.page import (
    clock,
    error_html,
    explanation_html,
    hint_html,
    model_html,
    result_html,
    status_html,
    title_html,
)
from swinbert.captioning.demo.service import LONG, MAX_BEAMS, WINDOW, Demo, DemoError, Progress, Settings
from swinbert.captioning.writers import Row, json_row

# Before Gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TITLE = "Video captioning"
_SEGMENTS = [
    (f"{WINDOW:g} s each, if longer than {LONG:g} s", "auto"),
    ("The whole video", "whole"),
    ("5 s each", "5"),
    ("30 s each", "30"),
    ("Scenes", "scenes"),
]
_EXPLAIN = "What was each word read from?"
# Visitors who wait; others are told to come back later.
_LONGEST_QUEUE = 32
_FOLDER = Path(__file__).parent
# The browser loads nothing from other hosts, whatever a page of Gradio names.
_ONLY_FROM_HERE = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
# Events of one name wait for each other: the model works on one clip at a time.
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}


_HIDDEN = {"visible": False, "__type__": "update"}


class Gate:
    """
    Before Gradio's own server: adds a Content-Security-Policy to every answer, and takes a browser that is closed in
    the middle of an upload for no error.

    Args:
        policy: `None` for none.
    """

    def __init__(self, app: ASGIApp, policy: bytes | None):
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start" and self._policy is not None:
                message["headers"] = [*message["headers"], (b"content-security-policy", self._policy)]
            await send(message)

        with contextlib.suppress(ClientDisconnect):
            await self._app(scope, receive, send_with_policy)


class Handlers:
    """What the page's events call. What is wrong with a clip becomes one sentence on the page."""

    def __init__(self, demo: Demo):
        self.demo = demo

    def chosen(self, video: str | None, request: gr.Request) -> tuple[str, Any]:
        """A clip was uploaded, recorded, fetched, or taken away: what is known of it, and the button."""
        if video is None:
            return "", gr.Button(interactive=False)
        self.demo.files.hold(str(request.session_hash), Path(video))
        try:
            seconds = self.demo.check(Path(video))
        except DemoError as error:
            return error_html(str(error)), gr.Button(interactive=False)
        length = "" if seconds is None else f", {clock(seconds)}"
        return status_html(f"{Path(video).name}{length}"), gr.Button(interactive=True)

    def fetch(self, url: str, request: gr.Request) -> tuple[Any, str]:
        try:
            return str(self.demo.fetch(url, str(request.session_hash))), ""
        except DemoError as error:
            return None, error_html(str(error))

    def show_caption(
        self, video: str | None, segments: str, beams: float, alternatives: float
    ) -> Iterator[tuple[str, Any, str]]:
        """The captions so far, whether they can be explained, and nothing in the place of an explanation."""
        if video is None:
            yield error_html("Choose a clip first."), _HIDDEN, ""
            return
        progress = Progress()
        yield result_html(progress, is_complete=False), _HIDDEN, ""
        try:
            settings = Settings(segments, int(beams), int(alternatives))
            for progress in self.demo.caption(Path(video), settings):
                yield result_html(progress, is_complete=False), _HIDDEN, ""
        except DemoError as error:
            yield error_html(str(error)), _HIDDEN, ""
            return
        yield result_html(progress, is_complete=True), gr.Button(visible=self.demo.can_explain), ""

    def show_explanation(self, video: str | None, chosen: dict[str, Any] | None) -> str:
        """
        Args:
            chosen: `caption`, `start` and `end` of what is explained, as the page has them.
        """
        if video is None or not chosen:
            return error_html("Caption a clip first.")
        try:
            return explanation_html(self.demo.explain(Path(video), **chosen), Path(video))
        except DemoError as error:
            return error_html(str(error))

    def caption(
        self,
        request: gr.Request,
        video: str | None = None,
        url: str = "",
        segments: str = "auto",
        beams: float = 4,
        alternatives: float = 2,
    ) -> list[dict[str, Any]]:
        """
        Describes a video in English: one sentence for a short clip, one for each segment of a long video.

        Args:
            video: the video; leave it out to give an address instead.
            url: public http or https address of a video.
            segments: "whole" for one sentence, a number of seconds for one in each so many, "scenes" for one in each
                scene, or "auto".
            beams: number of beams of the search; 1 is greedy search.
            alternatives: further captions of each clip.

        Returns:
            A list of rows, in order of time, each with caption, score, start and end in seconds.
        """
        with self._sent(request, video, url) as file:
            *_, progress = self.demo.caption(file, Settings(segments, int(beams), int(alternatives)))
        # Clients of Gradio take a dictionary with a path for a file to download.
        rows = [json_row(Row(caption)) for caption in progress.captions]
        return [{name: value for name, value in row.items() if name != "path"} for row in rows]

    def explain(
        self, request: gr.Request, video: str | None = None, url: str = "", caption: str = ""
    ) -> dict[str, Any]:
        """
        Says which frames and places of a video each word of its caption was read from.

        Args:
            video: the video; leave it out to give an address instead.
            url: public http or https address of a video.
            caption: the caption to explain; by default the one that the model finds.

        Returns:
            The caption and its words, each with its probability, its weights of the frames and of their places, and
            the words that were nearly as likely; and the time of each frame in seconds.
        """
        with self._sent(request, video, url) as file:
            return self.demo.explain(file, caption or None).to_dict()

    @contextlib.contextmanager
    def _sent(self, request: gr.Request, video: str | None, url: str) -> Iterator[Path]:
        """The file that a program sent or gave the address of; what is wrong with it becomes Gradio's error."""
        download = secrets.token_hex(8)
        try:
            if video is None and not url:
                raise DemoError("Expected a video, or its address as `url`; found neither.")
            file = self.demo.fetch(url, download) if video is None else Path(video)
            self.demo.files.hold(str(request.session_hash), file)
            yield file
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            self.demo.files.forget(download)

    def left(self, request: gr.Request) -> None:
        self.demo.files.forget(str(request.session_hash))


def build(demo: Demo, title: str = TITLE) -> gr.Blocks:
    """The page, and the same as endpoints."""
    handlers, preset = Handlers(demo), Settings()
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(title_html(title))
        with gr.Row(elem_id="desk"):
            with gr.Column(min_width=320):
                video = gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip", buttons=[])
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
                    button = gr.Button(
                        "Caption", variant="primary", interactive=False, elem_id="caption", scale=2, min_width=140
                    )
            with gr.Column(min_width=320):
                result = gr.HTML(hint_html(), elem_id="result", apply_default_css=False)
        explain = gr.Button(_EXPLAIN, visible=False, elem_id="explain")
        explanation = gr.HTML(elem_id="explanation", apply_default_css=False)
        selected = gr.JSON(visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            gr.HTML(model_html(demo.captioner))
            with gr.Row():
                segments = gr.Dropdown(
                    _SEGMENTS,
                    value=preset.segments,
                    label="Segments",
                    info="One sentence for each. Other numbers of seconds can be typed.",
                    allow_custom_value=True,
                )
                beams = gr.Slider(1, MAX_BEAMS, preset.beams, step=1, label="Beams", info="1 is greedy search.")
                alternatives = gr.Slider(
                    0, MAX_BEAMS - 1, preset.alternatives, step=1, label="Other captions", info="Less likely ones."
                )
        settings = [segments, beams, alternatives]

        video.change(handlers.chosen, video, [chosen, button], show_progress="hidden", api_visibility="private")
        for trigger in (fetch.click, url.submit):
            trigger(handlers.fetch, url, [video, chosen], api_visibility="private")
        example.click(lambda: str(demo.example), None, video, show_progress="hidden", api_visibility="private")
        shown = [result, explain, explanation]
        button.click(handlers.show_caption, [video, *settings], shown, api_visibility="private", **_MODEL)
        explain.click(
            handlers.show_explanation,
            [video, selected],
            explanation,
            js="(video, _) => [video, window.swinbertSelected()]",
            api_visibility="private",
            **_MODEL,
        )
        page.unload(handlers.left)
        _endpoints(handlers, [video, url, *settings])
    return page


def _endpoints(handlers: Handlers, inputs: list[Any]) -> None:
    """For programs and agents: what the page does, by buttons that nobody sees."""
    video, url, *_ = inputs
    answer, caption = gr.JSON(visible=False), gr.Textbox("", label="Caption", visible=False)
    gr.Button(visible=False).click(handlers.caption, inputs, answer, api_name="caption", **_MODEL)
    if handlers.demo.can_explain:
        gr.Button(visible=False).click(handlers.explain, [video, url, caption], answer, api_name="explain", **_MODEL)


def launch(demo: Demo, *, title: str = TITLE, port: int | None = None, share: bool = False) -> gr.Blocks:
    """
    Starts to serve the page, its API and its MCP tool, in threads of this process.

    Args:
        port: default: the first free one from 7860 on.
        share: also at a public address, through servers of Gradio.

    Returns:
        What runs: `local_url`, `share_url`, `block_thread()`, `close()`.

    Raises:
        OSError: the port is in use.
    """
    # Where Gradio keeps uploads, and what it copies for the page.
    os.environ["GRADIO_TEMP_DIR"] = str(demo.files.uploads)
    page = build(demo, title)
    page.queue(max_size=_LONGEST_QUEUE)
    with contextlib.redirect_stdout(io.StringIO()):  # it announces the MCP server even where it is told to be quiet
        page.launch(
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            mcp_server=True,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            max_file_size=demo.limits.num_bytes,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=_FOLDER / "page.css",
            head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
            footer_links=["api"],
            # A shared page takes its program from a server of Gradio.
            app_kwargs={"middleware": [Middleware(Gate, policy=None if share else _ONLY_FROM_HERE)]},
        )
    return page


def serve(demo: Demo, announce: Callable[[str], None] = print, **options: Any) -> None:
    """
    Serves until Ctrl-C or SIGTERM, and then removes temporary files.

    Args:
        announce: called with a sentence that has the address.
        options: of [`launch`].
    """
    # Raised in this thread, as Ctrl-C is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with demo:
        page = launch(demo, **options)
        announce(f"The demo is at {page.share_url or page.local_url} until Ctrl-C.")
        page.block_thread()


__all__ = ["build", "launch", "serve"]
