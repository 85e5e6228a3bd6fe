"""`swinbert caption`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli.loading import load_captioner_or_exit
from swinbert.cli.messages import fail, lines_and_progress, say
from swinbert.cli.options import (
    BatchSize,
    Beams,
    CaptionComputeDType,
    CaptionDType,
    Device,
    Format,
    FramesPerSecond,
    LoadIn,
    MaxLength,
    MaxSegment,
    MergeSimilar,
    MinLength,
    MinScore,
    MinSegment,
    Model,
    NBest,
    NoMerge,
    NumFrames,
    OutputFile,
    OutputFormat,
    Overwrite,
    Prompt,
    Revision,
    Sample,
    SceneThreshold,
    Seed,
    Segments,
    SkipDuplicates,
    Stride,
    Temperature,
    Threads,
    TrustRemoteCode,
    WriteBeside,
)

if TYPE_CHECKING:
    from swinbert.captioning.labelling import Labelling
    from swinbert.processing import VideoCaptioningPipeline


def caption(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIP", help="Files, folders (searched recursively), globs, URLs; - reads a list from stdin."
        ),
    ],
    model: Model = None,
    output_format: Format = OutputFormat.text,
    output: OutputFile = None,
    write_beside: WriteBeside = None,
    overwrite: Overwrite = False,
    min_score: MinScore = None,
    skip_duplicates: SkipDuplicates = False,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    prompt: Prompt = None,
    load_in: LoadIn = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption from this time on.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption up to this time.")] = None,
    segments: Segments = None,
    stride: Stride = None,
    min_segment: MinSegment = None,
    max_segment: MaxSegment = None,
    scene_threshold: SceneThreshold = None,
    no_merge: NoMerge = False,
    merge_similar: MergeSimilar = None,
    beams: Beams = None,
    n_best: NBest = None,
    min_length: MinLength = None,
    max_length: MaxLength = None,
    sample: Sample = False,
    temperature: Temperature = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    device: Device = "auto",
    dtype: CaptionComputeDType = CaptionDType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Caption clips, one line on stdout for each, or into files.

    A line of text is CLIP, a tab and the caption; if the only argument is one file or URL, it is the caption alone. A
    clip that cannot be read is reported on stderr, the other clips are captioned, and the exit code is 1. With --output
    or --write-beside the same command continues after an interruption, and tries failed clips again.
    """
    search = _search(beams, n_best, sample, temperature, seed, min_length, max_length)
    files = (output_format, output, tuple(dict.fromkeys(write_beside or ())), overwrite, min_score, skip_duplicates)
    cutting = _cutting(segments, stride, min_segment, max_segment, scene_threshold, no_merge, merge_similar)
    labelling, only_caption = _labelling(clips, start, end, files, cutting)
    loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "revision": revision}
    reading = {"num_frames": num_frames, "fps": fps, "prompt": prompt, "load_in": load_in}
    captioner = load_captioner_or_exit(model, **loading, **reading, **search) if labelling.needs_captioner else None
    captioning = {"batch_size": batch_size or "auto", "threads": threads, "seed": (seed or 0) if sample else None}
    _run(labelling, captioner, only_caption, **captioning)


def _search(
    beams: int | None,
    n_best: int | None,
    sample: bool,
    temperature: float | None,
    seed: int | None,
    min_length: int | None,
    max_length: int | None,
) -> dict[str, Any]:
    """Arguments of `generate()`."""
    if not sample and (temperature is not None or seed is not None):
        raise typer.BadParameter(f"--{'seed' if temperature is None else 'temperature'} needs --sample.")
    if temperature is not None and temperature <= 0:
        raise typer.BadParameter(f"Expected a positive --temperature, got {temperature:g}.")
    if None not in (min_length, max_length) and min_length > max_length:  # type: ignore[operator]
        raise typer.BadParameter(f"--min-length {min_length} must not exceed --max-length {max_length}.")
    if n_best is not None and not sample or beams is not None:
        beams = max(n_best or 1, beams or 1)
    return {
        "num_beams": beams,
        "num_return_sequences": n_best,
        "do_sample": sample,
        "temperature": temperature,
        "min_length": min_length,
        "max_length": max_length,
    }


def _cutting(
    segments: str | None,
    stride: float | None,
    min_segment: float | None,
    max_segment: float | None,
    scene_threshold: float | None,
    no_merge: bool,
    merge_similar: float | None,
) -> dict[str, Any]:
    """Arguments of `Labelling` on films."""
    options = {"stride": stride, "min_segment": min_segment, "max_segment": max_segment}
    given = {name: value for name, value in options.items() if value is not None}
    if segments is None:
        used = [*given, *(["no_merge"] if no_merge else []), *(["merge_similar"] if merge_similar is not None else [])]
        if used:
            raise typer.BadParameter(f"--{used[0].replace('_', '-')} needs --segments.")
        return {}
    if scene_threshold is not None:
        if segments != "scenes":
            raise typer.BadParameter("--scene-threshold needs --segments scenes.")
        given["threshold"] = scene_threshold
    if no_merge and merge_similar is not None:
        raise typer.BadParameter("--no-merge and --merge-similar exclude each other.")
    from swinbert.captioning import Segmentation
    from swinbert.captioning.scenes import adaptive_detector

    try:
        segmentation = Segmentation.of(segments, **given)
        if segmentation.scenes:
            adaptive_detector()
    except ImportError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(f"--segments: {error}") from None
    return {"segments": segmentation, "merge": not no_merge, "similarity": merge_similar}


def _labelling(
    clips: list[str], start: float | None, end: float | None, destination: tuple, cutting: dict[str, Any]
) -> "tuple[Labelling, bool]":
    """What is to be captioned into what, and whether the only argument is one clip."""
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter(f"--start {start:g} must be before --end {end:g}.")
    from swinbert.captioning import find_clips
    from swinbert.captioning.labelling import Destination, Labelling

    found = list(find_clips(clips, start, end))
    try:
        labelling = Labelling(found, Destination(*destination), report=say, **cutting)
    except (OSError, ValueError) as error:
        fail(str(error))
    return labelling, len(clips) == len(found) == 1 and found[0].name == clips[0]


def _run(
    labelling: "Labelling", captioner: "VideoCaptioningPipeline | None", only_caption: bool, **captioning: Any
) -> None:
    """Captions, and says at the end how it went."""
    try:
        with lines_and_progress(len(labelling.clips) if labelling.segments is None else 1) as write:
            summary = labelling.run(captioner, write, only_caption, **captioning)
    except BrokenPipeError:  # of a reader of stdout that has enough
        raise
    except (OSError, ValueError) as error:
        fail(str(error))
    if summary.num_clips > 1:
        say(str(summary))
        if num_failed := summary.num_clips - summary.num_captioned:
            say(f"{num_failed} of {summary.num_clips} {summary.unit}s could not be captioned.")
    if summary.failed:
        raise typer.Exit(1)
