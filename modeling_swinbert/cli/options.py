"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class CaptionDType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


_AUTO_DTYPE = "auto is bfloat16 where the hardware supports it, else float32"

Model = Annotated[
    str | None,
    typer.Option(metavar="ID|DIR", help="SwinBERT or GIT model: a folder or a name on the Hub."),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model."),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1...; auto is cuda if there is a CUDA device."),
]
ComputeDType = Annotated[
    DType,
    typer.Option("--dtype", help=f"{_AUTO_DTYPE}."),
]
CaptionComputeDType = Annotated[
    CaptionDType,
    typer.Option("--dtype", help=f"{_AUTO_DTYPE}; int8 quantizes the linear layers, on a CPU."),
]
NumFrames = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Frames to sample from a clip; default: what the model was trained with."),
]
Beams = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of beams; 1 is greedy search."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Maximum length of a caption in tokens, with [CLS] and [SEP]."),
]
NewFolder = Annotated[
    Path,
    typer.Option("--output", metavar="DIR", help="Folder to write; it must be empty or not exist yet."),
]
