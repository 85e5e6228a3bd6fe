"""What the page's events and its endpoints call."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from swinbert.captioning.demo.page import clock, error_html, explanation_html, result_html, status_html
from swinbert.captioning.demo.service import Demo, DemoError, Progress, Settings
from swinbert.captioning.writers import Row, json_row


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
            yield error_html("Choose a clip first."), gr.Button(visible=False), ""
            return
        progress = Progress()
        yield result_html(progress, is_complete=False), gr.Button(visible=False), ""
        try:
            settings = Settings(segments, int(beams), int(alternatives))
            for progress in self.demo.caption(Path(video), settings):
                yield result_html(progress, is_complete=False), gr.Button(visible=False), ""
        except DemoError as error:
            yield error_html(str(error)), gr.Button(visible=False), ""
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
            wanted = [chosen.get(name) for name in ("caption", "start", "end")]
            return explanation_html(self.demo.explain(Path(video), *wanted), Path(video))
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


__all__ = ["Handlers"]
