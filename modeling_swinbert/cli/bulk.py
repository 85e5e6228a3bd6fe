"""`swinbert bulk`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinbert.cli.messages import fail, needs_extra, say
from swinbert.cli.options import (
    BatchSize,
    Beams,
    CaptionComputeDType,
    CaptionDType,
    Device,
    FramesPerSecond,
    Isolate,
    LoadIn,
    MaxLength,
    MaxSegment,
    MinSegment,
    Model,
    NumFrames,
    Prompt,
    Revision,
    Segments,
    Stride,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from swinbert.captioning.bulk import Progress

# Between lines of progress where stderr is no terminal.
_SECONDS_BETWEEN_LINES = 30.0


class BulkFormat(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"
    csv = "csv"
    metadata = "metadata"
    webdataset = "webdataset"


_Source = Annotated[
    str | None,
    typer.Argument(
        help="A folder, a glob, - for a list on stdin, a manifest (.parquet, .jsonl, .csv; columns path or uri, and"
        " start, end and others), or tar shards; local or of a storage: s3://, gs://, az://, hf://, https://..."
    ),
]
_Output = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Folder for parts of results and report.json, also of a storage; of --merge, the file."
    ),
]
_Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes with a model of their own; default: one for each GPU or core."),
]
_GpusPerWorker = Annotated[
    float | None, typer.Option(min=0, metavar="F", help="0.5 lets two workers share a GPU, 0 takes the CPU.")
]
_Timeout = Annotated[
    float, typer.Option(min=0.1, metavar="SECONDS", help="A clip that takes longer is an error of its own.")
]
_Address = Annotated[
    str | None,
    typer.Option(metavar="auto|ray://...", help="Ray cluster; default: Ray on this machine, for the time of the job."),
]
_Format = Annotated[
    BulkFormat | None,
    typer.Option("--format", help="Of parts: parquet (default) or jsonl. Of --merge: any; default: csv."),
]
_Merge = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Write the parts in DIR as one file or data set, instead of captioning."),
]


def bulk(
    source: _Source = None,
    output: _Output = None,
    model: Model = None,
    workers: _Workers = None,
    gpus_per_worker: _GpusPerWorker = None,
    batch_size: BatchSize = None,
    timeout: _Timeout = 300.0,
    isolate: Isolate = True,
    address: _Address = None,
    output_format: _Format = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Caption again what an earlier run left with an error.")
    ] = False,
    merge: _Merge = None,
    num_frames: NumFrames = None,
    fps: FramesPerSecond = None,
    prompt: Prompt = None,
    segments: Segments = None,
    stride: Stride = None,
    min_segment: MinSegment = None,
    max_segment: MaxSegment = None,
    beams: Beams = None,
    max_length: MaxLength = None,
    device: Device = "auto",
    dtype: CaptionComputeDType = CaptionDType.auto,
    load_in: LoadIn = None,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
):
    """
    Caption very many clips on Ray, on this machine or a cluster, each exactly once.

    Results are parts of parquet or JSON lines in a folder; whatever dies, the same command goes on from there. A clip
    that cannot be captioned is a row with an error. What would fail for every clip ends the job with one line.
    """
    if merge is not None:
        if source is not None:
            raise typer.BadParameter("--merge DIR takes no source.")
        _merge(merge, output_format or BulkFormat.csv, output)
        return
    if source is None or output is None:
        raise typer.BadParameter("Expected a source and --output DIR, or --merge DIR.")
    if output_format not in (None, BulkFormat.parquet, BulkFormat.jsonl):
        raise typer.BadParameter(
            f"Parts are parquet or jsonl; --merge {output} --format {output_format} comes afterwards."
        )
    if num_frames is not None and fps is not None:
        raise typer.BadParameter(f"Expected one of --num-frames {num_frames} and --fps {fps:g}, got both.")
    loading: dict[str, Any] = {"model": model, "num_frames": num_frames, "fps": fps, "prompt": prompt}
    loading |= {"num_beams": beams, "max_length": max_length, "revision": revision, "load_in": load_in}
    loading |= {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    captioning = {"batch_size": batch_size or "auto", **_cutting(segments, stride, min_segment, max_segment)}
    if device == "cpu" and gpus_per_worker is None:
        gpus_per_worker = 0.0
    running: dict[str, Any] = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
    running |= {"file_format": str(output_format or BulkFormat.parquet), "retry_failed": retry_failed}
    _run(source, output, loading, captioning, {"timeout": timeout, "isolate": isolate}, running)


def _cutting(
    segments: str | None, stride: float | None, min_segment: float | None, max_segment: float | None
) -> dict[str, Any]:
    """How films are cut."""
    options = {"stride": stride, "min_segment": min_segment, "max_segment": max_segment}
    given = {name: value for name, value in options.items() if value is not None}
    if segments is None:
        if given:
            raise typer.BadParameter(f"--{next(iter(given)).replace('_', '-')} needs --segments.")
        return {}
    from swinbert.captioning import Segmentation

    try:
        return {"segments": Segmentation.of(segments, **given)}
    except ValueError as error:
        raise typer.BadParameter(f"--segments: {error}") from None


def _run(
    source: str,
    output: str,
    loading: dict[str, Any],
    captioning: dict[str, Any],
    watching: dict[str, Any],
    running: dict[str, Any],
) -> None:
    with needs_extra("ray"):
        from swinbert.captioning.bulk import CaptionerSpec, Job, SharedFailure

        spec = CaptionerSpec.of(loading, captioning, **watching)
        try:
            with _progress() as show, _warnings_as_messages():
                report = Job(source, output, spec, **running, say=say, show=show).run()
        except (SharedFailure, ValueError, OSError) as error:
            fail(" ".join(str(error).split()))
        except KeyboardInterrupt:
            say(f"Stopped. What is done is in {output}, and the same command goes on.")
            sys.exit(130)
    errors = ", ".join(f"{kind} {number:,}" for kind, number in report["errors"].items())
    speed = "" if report["clips_per_second"] is None else f", {report['clips_per_second']:.3g} clips/s"
    say(
        f"{report['clips']:,} clips, {report['captioned']:,} captions, {sum(report['errors'].values()):,} errors"
        f"{f' ({errors})' if errors else ''}{speed}, in {output}."
    )


@contextmanager
def _progress() -> "Iterator[Callable[[Progress], None]]":
    """One line: on a terminal always the same, elsewhere a new one now and then."""
    is_terminal = sys.stderr.isatty()
    last = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal last
        if is_terminal:
            sys.stderr.write(f"\r\x1b[K{progress}")
            sys.stderr.flush()
        elif time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(str(progress))

    try:
        yield show
    finally:
        if is_terminal:
            sys.stderr.write("\r\x1b[K")


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"swinbert\.")
        warnings.showwarning = lambda message, *_: say(str(message))
        yield


def _merge(folder: str, output_format: BulkFormat, output: str | None) -> None:
    with needs_extra("ray"):
        from swinbert.captioning.bulk import merge

        try:
            target, number, left_out = merge(folder, str(output_format), output)
        except (ValueError, OSError) as error:
            fail(str(error))
    without = f"; {left_out:,} without a caption are left out" if left_out else ""
    say(f"{number:,} rows in {target}{without}.")
