"""Captions as a subtitle track in a copy of their video: a soft one, which players show or not; nothing is encoded."""

import contextlib
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from swinbert.captioning.writers import Row, SrtWriter, VttWriter, cue_range
from swinbert.processing.video_backends_swinbert import open_stream
from swinbert.processing.video_sources_swinbert import describe_source, open_source
from swinbert.processing.video_timeline_swinbert import VideoTimeline, read_timeline
from swinbert.utils.text import one_line

# Suffix -> codec of subtitles. In mp4 and mov, FFmpeg's `mov_text`, which is 3GPP timed text (3GPP TS 26.245).
CODECS = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".mkv": "srt", ".webm": "webvtt"}
_MILLISECOND = Fraction(1, 1000)
# FFmpeg's encoders of subtitles do not open without a style.
_STYLE = (
    b"[V4+ Styles]\nFormat: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold,"
    b" Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL,"
    b" MarginR, MarginV, Encoding\nStyle: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,"
    b"10,0\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def check_burned(output: Path) -> None:
    """
    Raises:
        ValueError: no video with subtitles can be written under this name.
    """
    if output.suffix.lower() not in CODECS:
        raise ValueError(f"A video with subtitles is one of {' '.join(CODECS)}, got {output}.")
    if not hasattr(av.CodecContext.create("mov_text", "w"), "subtitle_header"):
        raise ValueError(f"Writing subtitles needs PyAV 17 or later, found {av.__version__}: pip install -U av.")


def burn(video: Any, rows: Iterable[Row], output: Path) -> None:
    """
    Copies the picture and the sound of a video, with captions as a track of subtitles. The file appears whole or not at
    all. Where segments overlap, a subtitle ends where the next one begins.

    Args:
        video: a path, a URL, or what else `VideoReader` opens.
        rows: of this video, in the order of time; those without a text are left out.
        output: .mp4, .m4v, .mov, .mkv or .webm; replaced if it exists.

    Raises:
        ValueError: this kind of file cannot hold the video, or `VideoDecodeError`: the video cannot be read.
        OSError: the file cannot be written.
    """
    check_burned(output)
    name = describe_source(video)
    unfinished = output.with_name(f".{output.stem}.{secrets.token_hex(4)}{output.suffix}")
    try:
        with open_source(video) as media:
            with open_stream(name, media) as (container, stream):
                timeline, _ = read_timeline(name, container, stream)
            with open_stream(name, media) as (container, stream):
                _remux(container, stream, timeline, list(_cues(rows)), unfinished, CODECS[output.suffix.lower()])
        os.replace(unfinished, output)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) or hasattr(error, "kind"):
            raise
        raise ValueError(f"{name} cannot be copied into a {output.suffix} file: {one_line(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _cues(rows: Iterable[Row]) -> Iterator[tuple[int, int, str]]:
    """Begin and end in milliseconds, and text, of what is to be shown; no two overlap."""
    shown = [(cue_range(row.caption), row.text) for row in rows if row.text]
    following = [begin for (begin, _), _ in shown[1:]]
    for ((begin, end), text), next_begin in zip(shown, [*following, math.inf], strict=True):
        first, last = round(1000 * begin), round(1000 * min(end, next_begin))
        if last > first:
            yield first, last, text


def _remux(
    container: Any, stream: Any, timeline: VideoTimeline, cues: list[tuple[int, int, str]], output: Path, codec: str
) -> None:
    copied = [stream, *container.streams.audio]
    beginning = timeline.pts[0] * timeline.time_base if timeline.has_time_stamps else Fraction(0)
    with av.open(str(output), "w") as written:
        streams = {each.index: written.add_stream_from_template(each, opaque=True) for each in copied}
        subtitles: Any = written.add_stream(codec)
        subtitles.codec_context.subtitle_header = _STYLE
        subtitles.codec_context.time_base = _MILLISECOND
        written.start_encoding()
        for begin, end, text in cues:
            packet = av.Packet(_encoded(text, codec))
            packet.stream, packet.time_base = subtitles, _MILLISECOND
            packet.pts = packet.dts = begin + round(beginning / _MILLISECOND)
            packet.duration = end - begin
            written.mux(packet)
        for packet in container.demux(copied):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                written.mux(packet)


def _encoded(text: str, codec: str) -> bytes:
    if codec == "mov_text":
        content = text.encode()
        return len(content).to_bytes(2, "big") + content
    return (VttWriter() if codec == "webvtt" else SrtWriter()).cue_text(text).encode()


__all__ = ["burn", "check_burned"]
