"""Serving the demo's page, its endpoints and its MCP tools."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import gradio.mcp
import gradio.routes
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swinbert.captioning.demo.layout import TITLE, build
from swinbert.captioning.demo.service import Demo

# Visitors who wait; others are told to come back later.
_LONGEST_QUEUE = 32
_FOLDER = Path(__file__).parent
# The browser loads nothing from other hosts, whatever a page of Gradio names.
_ONLY_FROM_HERE = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


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
    # Where Gradio keeps uploads, and what it copies for the page. Two of its modules read the variable at their import.
    for module in (gradio.mcp, gradio.routes):
        module.DEFAULT_TEMP_DIR = str(demo.files.uploads)
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
            allowed_paths=[str(demo.example)],
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


__all__ = ["launch", "serve"]
