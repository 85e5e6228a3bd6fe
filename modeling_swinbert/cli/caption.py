"""`swinbert caption`."""

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from swinbert.cli.loading import load_captioner_or_exit
from swinbert.cli.messages import lines_and_progress, say
from swinbert.cli.options import (
    Beams,
    CaptionComputeDType,
    CaptionDType,
    Device,
    FramesPerSecond,
    LoadIn,
    MaxLength,
    Model,
    NumFrames,
    Prompt,
    Revision,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.captioning import Caption


class OutputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"


def caption(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIP", help="Files, folders (searched recursively), globs, URLs; - reads a list from stdin."
        ),
    ],
    model: Model = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Format of the line that is printed for each clip.")
    ] = OutputFormat.text,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    prompt: Prompt = None,
    load_in: LoadIn = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption from this time on.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption up to this time.")] = None,
    beams: Beams = None,
    max_length: MaxLength = None,
    device: Device = "auto",
    dtype: CaptionComputeDType = CaptionDType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Caption clips, one line on stdout for each.

    A line of text is CLIP, a tab and the caption; if the only argument is one file or URL, it is the caption alone. A
    line of jsonl is {"path", "caption", "score", "error"}. A clip that cannot be read is reported on stderr, the other
    clips are captioned, and the exit code is 1.
    """
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter(f"--start {start:g} must be before --end {end:g}.")
    from swinbert.captioning import Caption, captions, find_clips

    found = list(find_clips(clips, start, end))
    results: Iterable[Caption] = [Caption.of_failure(clip, str(clip.error)) for clip in found]
    if any(clip.error is None for clip in found):
        captioner = load_captioner_or_exit(
            model,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            num_frames=num_frames,
            fps=fps,
            prompt=prompt,
            load_in=load_in,
            num_beams=beams,
            max_length=max_length,
        )
        results = captions(found, captioner)
    only_caption = len(clips) == len(found) == 1 and found[0].name == clips[0]
    if num_failed := _print_captions(results, len(found), output_format, only_caption):
        if len(found) > 1:
            say(f"{num_failed} of {len(found)} clips could not be captioned.")
        raise typer.Exit(1)


def _print_captions(
    results: "Iterable[Caption]", num_clips: int, output_format: OutputFormat, only_caption: bool
) -> int:
    """Prints a line for each clip, and says why a clip has no caption; returns how many have none."""
    num_failed = 0
    with lines_and_progress(num_clips) as write:
        for result in results:
            if result.error is not None:
                num_failed += 1
                say(f"{result.clip}: {result.error}")
            if output_format is OutputFormat.jsonl:
                row = {"path": result.clip, "caption": result.text, "score": result.score, "error": result.error}
                write(json.dumps(row))
            elif result.text is None:
                write(None)
            else:
                write(result.text if only_caption else f"{result.clip}\t{result.text}")
    return num_failed
