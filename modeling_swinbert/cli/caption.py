"""`swinbert caption`."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import typer

from swinbert.cli.loading import import_captioning, isolation_if, load_captioner_or_exit
from swinbert.cli.messages import fail, lines_and_progress, say
from swinbert.cli.options import (
    AllowNetworkStreams,
    BatchSize,
    Beams,
    Burn,
    CaptionComputeDType,
    CaptionDType,
    Clips,
    Device,
    End,
    Format,
    FramesPerSecond,
    Isolate,
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
    Start,
    Stream,
    Stride,
    Temperature,
    Threads,
    TrustRemoteCode,
    WriteBeside,
)

if TYPE_CHECKING:
    from swinbert.captioning import Clip
    from swinbert.captioning.labelling import Labelling
    from swinbert.processing import VideoCaptioningPipeline


def caption(
    clips: Clips,
    model: Model = None,
    output_format: Format = OutputFormat.text,
    output: OutputFile = None,
    write_beside: WriteBeside = None,
    burn: Burn = None,
    overwrite: Overwrite = False,
    min_score: MinScore = None,
    skip_duplicates: SkipDuplicates = False,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    prompt: Prompt = None,
    load_in: LoadIn = None,
    start: Start = None,
    end: End = None,
    segments: Segments = None,
    stride: Stride = None,
    min_segment: MinSegment = None,
    max_segment: MaxSegment = None,
    scene_threshold: SceneThreshold = None,
    no_merge: NoMerge = False,
    merge_similar: MergeSimilar = None,
    stream: Stream = False,
    allow_network_streams: AllowNetworkStreams = False,
    beams: Beams = None,
    n_best: NBest = None,
    min_length: MinLength = None,
    max_length: MaxLength = None,
    sample: Sample = False,
    temperature: Temperature = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    isolate: Isolate = False,
    device: Device = "auto",
    dtype: CaptionComputeDType = CaptionDType.auto,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Caption clips, or the segments of films, one line on stdout for each, or into files.

    A line of text is CLIP, a tab and the caption; if the only argument is one file or URL, it is the caption alone. A
    clip that cannot be read is reported on stderr, the other clips are captioned, and the exit code is 1. With --output
    or --write-beside the same command continues after an interruption, and tries failed clips again.
    """
    given = SimpleNamespace(**locals())
    search = _search(given)
    import_captioning()
    labelling, only_caption = _labelling(given)
    _run(labelling, _captioner(given, search) if labelling.needs_captioner else None, only_caption, given)


def _search(given: SimpleNamespace) -> dict[str, Any]:
    """Arguments of `generate()`."""
    beams, n_best = given.beams, given.n_best
    if not given.sample and (given.temperature is not None or given.seed is not None):
        raise typer.BadParameter(f"--{'seed' if given.temperature is None else 'temperature'} needs --sample.")
    if given.temperature is not None and given.temperature <= 0:
        raise typer.BadParameter(f"Expected a positive --temperature, got {given.temperature:g}.")
    if None not in (given.min_length, given.max_length) and given.min_length > given.max_length:
        raise typer.BadParameter(f"--min-length {given.min_length} must not exceed --max-length {given.max_length}.")
    if n_best is not None and not given.sample or beams is not None:
        beams = max(n_best or 1, beams or 1)
    return {
        "num_beams": beams,
        "num_return_sequences": n_best,
        "do_sample": given.sample,
        "temperature": given.temperature,
        "min_length": given.min_length,
        "max_length": given.max_length,
    }


def _captioner(given: SimpleNamespace, search: dict[str, Any]) -> "VideoCaptioningPipeline":
    names = ("device", "dtype", "trust_remote_code", "revision", "num_frames", "fps", "prompt", "load_in")
    return load_captioner_or_exit(given.model, **{name: getattr(given, name) for name in names}, **search)


def _cutting(given: SimpleNamespace) -> dict[str, Any]:
    """Arguments of `Labelling` on films."""
    options = {
        "stride": given.stride,
        "min_segment": given.min_segment,
        "max_segment": given.max_segment,
        "threshold": given.scene_threshold,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if given.segments is None:
        for name in ("stride", "min_segment", "max_segment", "scene_threshold", "no_merge", "merge_similar"):
            if getattr(given, name) not in (None, False):
                raise typer.BadParameter(f"--{name.replace('_', '-')} needs --segments.")
        return {}
    if "threshold" in options and given.segments != "scenes":
        raise typer.BadParameter("--scene-threshold needs --segments scenes.")
    if given.no_merge and given.merge_similar is not None:
        raise typer.BadParameter("--no-merge and --merge-similar exclude each other.")
    from swinbert.captioning import Segmentation
    from swinbert.captioning.scenes import adaptive_detector

    try:
        segmentation = Segmentation.of(given.segments, **options)
        if segmentation.scenes:
            adaptive_detector()
    except ImportError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(f"--segments: {error}") from None
    # Of a stream, a caption should not wait for the next one.
    merge = given.merge_similar is not None if given.stream else not given.no_merge
    return {"segments": segmentation, "merge": merge, "similarity": given.merge_similar}


def _clips(given: SimpleNamespace) -> "list[Clip]":
    """What is to be captioned."""
    from swinbert.captioning import Clip, LiveStream, find_clips

    if not given.stream:
        return list(find_clips(given.clips, given.start, given.end))
    (name,) = given.clips
    # Not `sys.stdin`, which waits until its buffer is full.
    source = open(0, "rb", buffering=0, closefd=False) if name == "-" else name
    return [Clip(LiveStream(source, given.allow_network_streams), name=name)]


def _check_stream(given: SimpleNamespace) -> None:
    """Refuses what a stream cannot be asked for."""
    if not given.stream:
        if given.allow_network_streams:
            raise typer.BadParameter("--allow-network-streams needs --stream.")
        return
    if len(given.clips) != 1:
        raise typer.BadParameter(f"--stream captions one clip, got {len(given.clips)}.")
    if given.segments in (None, "scenes") or given.stride is not None:
        raise typer.BadParameter("--stream needs --segments SECONDS, of windows that do not overlap.")
    for name in ("output", "write_beside", "burn", "start", "end", "batch_size", "isolate"):
        if getattr(given, name):
            raise typer.BadParameter(f"--stream prints captions as they come: leave out --{name.replace('_', '-')}.")
    if given.output_format in (OutputFormat.metadata, OutputFormat.activitynet):
        raise typer.BadParameter(f"--stream prints captions as they come, which --format {given.output_format} cannot.")


def _labelling(given: SimpleNamespace) -> "tuple[Labelling, bool]":
    """What is to be captioned into what, and whether the only argument is one clip."""
    if given.start is not None and given.end is not None and given.start >= given.end:
        raise typer.BadParameter(f"--start {given.start:g} must be before --end {given.end:g}.")
    _check_stream(given)
    cutting = _cutting(given)
    from swinbert.captioning.labelling import Destination, Labelling

    destination = Destination(
        output_format=given.output_format,
        output=given.output,
        write_beside=tuple(dict.fromkeys(given.write_beside or ())),
        overwrite=given.overwrite,
        min_score=given.min_score,
        skip_duplicates=given.skip_duplicates,
        burned=given.burn,
    )
    try:
        found = _clips(given)
        labelling = Labelling(found, destination, report=say, **cutting)
    except (OSError, ValueError) as error:
        fail(str(error))
    return labelling, len(given.clips) == len(found) == 1 and found[0].name == given.clips[0]


def _run(
    labelling: "Labelling", captioner: "VideoCaptioningPipeline | None", only_caption: bool, given: SimpleNamespace
) -> None:
    """Captions, and says at the end how it went."""
    seed = (given.seed or 0) if given.sample else None
    batch_size = 1 if given.stream else given.batch_size or "auto"
    captioning = {"batch_size": batch_size, "threads": given.threads, "seed": seed}
    try:
        # Of films, only what is written to a file is not seen anyway.
        num_clips = len(labelling.clips) if labelling.segments is None else 1 if given.output is None else None
        with lines_and_progress(num_clips) as write, isolation_if(given.isolate) as isolation:
            summary = labelling.run(captioner, write, only_caption, **captioning, isolation=isolation)
    except BrokenPipeError:  # of a reader of stdout that has enough
        raise
    except (OSError, ValueError) as error:
        fail(str(error))
    finally:
        if given.stream:
            say(str(labelling.clips[0].video))
    if summary.num_clips > 1:
        say(str(summary))
        if num_failed := summary.num_clips - summary.num_captioned:
            say(f"{num_failed} of {summary.num_clips} {summary.unit}s could not be captioned.")
    if summary.failed:
        raise typer.Exit(1)
