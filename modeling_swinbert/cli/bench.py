"""`swinbert bench`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swinbert.cli.loading import choose_device_or_exit
from swinbert.cli.messages import fail, quiet_libraries, say
from swinbert.cli.options import ComputeDType, Device, DType

if TYPE_CHECKING:
    from swinbert.benchmarks import Table


class BenchmarkSize(StrEnum):
    base = "base"
    tiny = "tiny"


def bench(
    only: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Only these parts, separated by commas; default: all.")
    ] = None,
    size: Annotated[
        BenchmarkSize, typer.Option(help="The released base model, or a tiny one that runs in seconds.")
    ] = BenchmarkSize.base,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rounds; in each, every contestant is measured once.")
    ] = 5,
    clips: Annotated[
        list[Path] | None,
        typer.Option("--clip", metavar="FILE", exists=True, dir_okay=False, help="Video to decode; repeatable."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for benchmark.json (after every part), benchmark.md, benchmark.png."),
    ] = Path("outputs/benchmark"),
    device: Device = "auto",
    dtype: ComputeDType = DType.auto,
):
    """
    Measure speed and memory on this machine, beside the original algorithm (re-implemented) and other models.

    Parts: decode, stages, encoder, words, caption, beams, masks, frames, batch, training, overlap, film, folder, git,
    isolation, startup. Parts that benchmark.json already holds, measured with the same settings, are not measured
    again. Weights are random; clips are generated unless you name some.
    """
    quiet_libraries()
    from swinbert.benchmarks import PARTS, report, run
    from swinbert.captioning.loading import choose_dtype

    def show(tables: list["Table"], peak: float) -> None:
        for table in tables:
            typer.echo(f"{report.markdown(table, peak)}\n")

    on = choose_device_or_exit(device)
    try:
        results = run(
            list(PARTS) if only is None else [part.strip() for part in only.split(",")],
            output,
            size=size.value,
            repeats=repeats,
            device=on,
            dtype=choose_dtype(dtype.value, on),
            clips=clips or (),
            progress=say,
            done=show,
        )
    except (ValueError, OSError) as error:
        fail(str(error))
    if not report.write(results, output):
        say("No picture: that needs matplotlib (pip install 'swinbert[train]').")
    say(f"All numbers are in {output}.")
