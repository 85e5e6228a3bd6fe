"""`swinbert demo`."""

from typing import Annotated

import typer

from swinbert.cli.loading import load_captioner_or_exit
from swinbert.cli.messages import fail, needs_extra, say
from swinbert.cli.options import CaptionComputeDType, CaptionDType, Device, Isolate, Model, Revision, TrustRemoteCode


def demo(
    model: Model = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Default: the first free one from 7860 on."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also at a public address, through servers of Gradio.")
    ] = False,
    max_megabytes: Annotated[float, typer.Option(min=0.001, metavar="N", help="Size of the largest file.")] = 500,
    max_minutes: Annotated[float, typer.Option(min=0.001, metavar="N", help="Length of the longest video.")] = 60,
    isolate: Isolate = True,
    device: Device = "auto",
    dtype: CaptionComputeDType = CaptionDType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Serve a page that captions clips: uploaded, from an address, or from the camera.

    The same server is an API with named endpoints and, at /gradio_api/mcp/, a tool for agents (MCP). Nothing is sent to
    other servers, and what visitors send is deleted when they leave. Needs the extra `demo`.
    """
    with needs_extra("demo"):
        from swinbert.captioning.demo.app import serve
    from swinbert.captioning.demo.service import Demo, Limits

    captioner = load_captioner_or_exit(
        model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision
    )
    try:
        demo = Demo(captioner, Limits(max_megabytes, max_minutes), isolate=isolate)
        serve(demo, announce=say, port=port, share=share)
    except OSError as error:
        fail(f"{error} Choose another --port." if port is None else f"Port {port} is in use: choose another --port.")
