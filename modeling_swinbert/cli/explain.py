"""`swinbert explain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli.loading import isolation_if, load_captioner_or_exit
from swinbert.cli.messages import fail, going_on, lines_and_progress, needs_extra, say
from swinbert.cli.options import (
    Beams,
    ComputeDType,
    Device,
    DType,
    FramesPerSecond,
    Isolate,
    MaxLength,
    Model,
    NumFrames,
    Revision,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.processing import VideoCaptioningPipeline


def explain(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="As for `swinbert caption`.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="A folder for each clip is written into this one.")],
    model: Model = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the weights are found: pixels (the default; it encodes the clip many times), occlusion, gradient,"
            " attention or rollout (no more than the caption takes).",
        ),
    ] = None,
    caption: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Explain this caption; default: the model's own.")
    ] = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Explain from this time on.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Explain up to this time.")] = None,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    beams: Beams = None,
    max_length: MaxLength = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace folders of other explanations.")] = False,
    isolate: Isolate = False,
    device: Device = "auto",
    dtype: ComputeDType = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Show which frames and places of a clip each word of its caption was read from.

    Writes explanation.html (opens from disk, without a network), words.png, explanation.json and, for a SwinBERT,
    mask.png into a folder for each clip, and prints the folders. SwinBERT and GIT models. A clip that cannot be read is
    reported on stderr, the other clips are explained, and the exit code is 1.
    """
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter(f"--start {start:g} must be before --end {end:g}.")
    captioner = load_captioner_or_exit(
        model,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        revision=revision,
        num_frames=num_frames,
        fps=fps,
        num_beams=beams,
        max_length=max_length,
    )
    options: dict[str, Any] = {"method": method, "caption": caption}
    options = {name: value for name, value in options.items() if value is not None}
    _run(clips, start, end, captioner, output, {**options, "overwrite": overwrite}, isolate)


def _run(
    clips: list[str],
    start: float | None,
    end: float | None,
    captioner: "VideoCaptioningPipeline",
    output: Path,
    options: dict[str, Any],
    isolate: bool,
) -> None:
    """Explains the clips, and ends with exit code 1 if one of them could not be explained."""
    with needs_extra("explain"):
        import matplotlib  # noqa: F401
    from swinbert.captioning import find_clips
    from swinbert.captioning.explaining.attribution import DEFAULT_METHOD, find_method
    from swinbert.captioning.explaining.files import explain_clips

    try:
        find_method(options.get("method", DEFAULT_METHOD))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    found = list(find_clips(clips, start, end))
    failed = False
    try:
        output.mkdir(parents=True, exist_ok=True)
        kept = f"Explanations so far are in {output}, and the same command goes on from there."
        with going_on(kept), lines_and_progress(len(found)) as write, isolation_if(isolate) as isolation:
            for result in explain_clips(found, captioner, output, isolation=isolation, **options):
                write(None if result.folder is None else str(result.folder))
                if result.error is not None:
                    failed = True
                    say(f"{result.clip}: {result.error}")
    except BrokenPipeError:  # of a reader of stdout that has enough
        raise
    except (OSError, ValueError) as error:
        fail(str(error))
    if failed:
        raise typer.Exit(1)
