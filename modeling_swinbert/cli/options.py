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


class OutputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    srt = "srt"
    vtt = "vtt"
    metadata = "metadata"
    activitynet = "activitynet"


class BesideFormat(StrEnum):
    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class LoadedBits(StrEnum):
    eight = "8bit"
    four = "4bit"


Clips = Annotated[
    list[str],
    typer.Argument(
        metavar="CLIP", help="Files, folders (searched recursively), globs, URLs; - reads a list from stdin."
    ),
]
Start = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption from this time on.")]
End = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption up to this time.")]

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

# --- What `swinbert caption` writes -----------------------------------------------------------------------------------

Format = Annotated[
    OutputFormat,
    typer.Option(
        "--format",
        help="text: CLIP, a tab and the caption; tabs, line ends and backslashes in names become \\t, \\n, \\r and"
        " \\\\. With --segments it has their times. jsonl and csv: also scores and errors. srt, vtt: subtitles of one"
        " clip. metadata: metadata.jsonl of a dataset, for `swinbert train`. activitynet: JSON of dense captioning.",
    ),
]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Write to this file, complete or not at all; default: stdout."),
]
WriteBeside = Annotated[
    list[BesideFormat] | None,
    typer.Option("--write-beside", help="Write each caption beside its clip, under the same stem; can be repeated."),
]
Burn = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Copy the clip, not encoded again, to this mp4, mov, mkv or webm with a subtitle track."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files, and caption again what is captioned already.")
]
NBest = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="N captions of each clip, by N beams at least, or by sampling."),
]
MinScore = Annotated[
    float | None, typer.Option(metavar="SCORE", help="Leave out captions with a lower score; jsonl and csv mark them.")
]
SkipDuplicates = Annotated[
    bool,
    typer.Option(
        "--skip-duplicates",
        help="Leave out captions that a clip of the same folder has already; jsonl and csv mark them.",
    ),
]

# --- How films are cut ------------------------------------------------------------------------------------------------

Segments = Annotated[
    str | None,
    typer.Option(metavar="SECONDS|scenes", help="Take clips for films, and caption each window or each scene of them."),
]
Stride = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="From window to window; less than their length makes them overlap."),
]
MinSegment = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Join shorter scenes with the neighbour that they resemble more, and a last window."
    ),
]
MaxSegment = Annotated[float | None, typer.Option(metavar="SECONDS", help="Split longer scenes evenly.")]
SceneThreshold = Annotated[
    float | None,
    typer.Option(
        metavar="RATIO",
        help="How many times as much as around it the picture must change at a cut; lower finds more; default: 3.",
    ),
]
NoMerge = Annotated[
    bool, typer.Option("--no-merge", help="Keep neighbouring segments of the same caption apart, instead of one.")
]
MergeSimilar = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, metavar="SHARE", help="Merge neighbours also if their captions share this part of their words."
    ),
]

Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Caption each window while the clip goes on: - (a pipe), a file that grows, or an address in the network."
        " Where the model is slower, windows are dropped and reported.",
    ),
]
AllowNetworkStreams = Annotated[
    bool,
    typer.Option(
        "--allow-network-streams", help="With --stream, let FFmpeg connect to an address: RTSP, HTTP (FLV...), HLS."
    ),
]

# --- How captions are generated ---------------------------------------------------------------------------------------

MinLength = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Minimum length of a caption in tokens, counted as the maximum.")
]
Sample = Annotated[bool, typer.Option("--sample", help="Sample the words instead of searching for the best.")]
Temperature = Annotated[
    float | None, typer.Option(metavar="T", help="With --sample: below 1 prefers likely words, above 1 rare ones.")
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="With --sample: the same seed gives the same captions; default: 0."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Clips in one forward pass; default: as many as their size suits."),
]
Isolate = Annotated[
    bool,
    typer.Option(
        help="Decode in processes of their own, with limits of time and memory: a clip on which the decoder hangs or"
        " crashes costs itself alone."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads of the model on a CPU; default: all or one, what is faster."),
]
