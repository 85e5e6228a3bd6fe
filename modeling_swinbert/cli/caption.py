"""`swinbert caption`."""

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from swinbert.cli import loading
from swinbert.cli.messages import lines_and_progress, reason_on_one_line, say
from swinbert.cli.options import (
    Beams,
    CaptionComputeDType,
    CaptionDType,
    Device,
    MaxLength,
    Model,
    NumFrames,
    Revision,
    TrustRemoteCode,
)


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
    found = list(loading.expand(clips))
    generation = {"num_beams": beams, "max_length": max_length}
    pipe = None
    if any(error is None for _, error in found):
        pipe = loading.load_pipeline(
            model,
            device=loading.choose_device(device),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            num_frames=num_frames,
            **{name: value for name, value in generation.items() if value is not None},
        )
    alone = len(clips) == 1 and found == [(clips[0], None)]
    captions = _captions(pipe, [clip for clip, error in found if error is None], start, end)
    num_failed = 0
    with lines_and_progress(len(found)) as write:
        for clip, error in found:
            result = {"path": clip, "caption": None, "score": None, "error": error}
            if error is None:
                result.update(next(captions))
            if result["error"] is not None:
                num_failed += 1
                say(f"{clip}: {result['error']}")
            if output_format is OutputFormat.jsonl:
                write(json.dumps(result))
            elif result["error"] is not None:
                write(None)
            else:
                write(result["caption"] if alone else f"{clip}\t{result['caption']}")
    if num_failed:
        if len(found) > 1:
            say(f"{num_failed} of {len(found)} clips could not be captioned.")
        raise typer.Exit(1)


def _captions(pipe, clips: list[str], start: float | None, end: float | None) -> Iterator[dict[str, Any]]:
    """`caption` and `score`, or `error`, of each clip; those that come next are read while one is captioned."""
    results = iter(pipe(({"video": clip, "start": start, "end": end} for clip in clips), on_error="raise"))
    for _ in clips:
        # Whatever is wrong with one clip, the others go on.
        try:
            (best, *_) = next(results)
        except Exception as error:
            yield {"error": reason_on_one_line(error)}
        else:
            yield {"caption": best["generated_text"], "score": best["score"]}
