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


class LoadedBits(StrEnum):
    eight = "8bit"
    four = "4bit"


_AUTO_DTYPE = "auto is bfloat16 where the hardware supports it, else float32"

Model = Annotated[
    str | None,
    typer.Option(
        metavar="ID|DIR",
        help="SwinBERT, GIT or chat model: a folder, a name on the Hub, or moving-shapes, the bundled one;"
        " default: microsoft/git-base-vatex of the Hub.",
    ),
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
    typer.Option(
        min=1,
        metavar="N",
        help="Frames to sample from a clip; default: what the model was trained with; chat models, 16.",
    ),
]
FramesPerSecond = Annotated[
    float | None,
    typer.Option("--fps", min=0.001, metavar="N", help="Frames to sample from each second, instead of --num-frames."),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="What a chat model is asked; of SwinBERT and GIT, the beginning of every caption."
    ),
]
LoadIn = Annotated[
    LoadedBits | None,
    typer.Option(help="Weights of 8 or 4 bits, for large models; needs the extra `quantization`."),
]
Beams = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of beams; 1 is greedy search."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Maximum length of a caption in tokens, with its first and last token."),
]
NewFolder = Annotated[
    Path,
    typer.Option("--output", metavar="DIR", help="Folder to write; it must be empty or not exist yet."),
]
