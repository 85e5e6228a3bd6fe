"""Reading clips from files: frames of a clip beside FFmpeg's decoder alone, decoding all of it, and other decoders."""

import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch

from swinbert.processing import decode_video, sample_indices
from swinbert.processing.video_backends_swinbert import StreamDecoder, open_stream
from swinbert.processing.video_timeline_swinbert import demux

from .measurement import Row, Table, compare

if TYPE_CHECKING:
    from .suite import Bench

_DECODER_ALONE = "FFmpeg's decoder alone"
_OTHERS = ("decord", "torchcodec")
# In at most 1.15 times the time of the decoder.
_TARGET = 0.87
_LIMIT = (
    "on two cores one thread decodes, while the other makes pictures: with two for decoding, frames at full size are 5"
    " to 15% faster and resized ones up to 10% slower"
)


def decode(bench: "Bench") -> list[Table]:
    """
    Frames of a clip, at full size and resized as the model wants them. The baseline reads the file and decodes the same
    packets, as the `ffmpeg` program does, and does not convert the frames.
    """
    num_frames = bench.config.num_frames
    resize = bench.processor.video_processor.frame_resizer()
    tables = []
    for name, path in bench.clip_files().items():
        needed = _needed_packets(path, num_frames)
        ways: dict[str, Callable[[], Any]] = {
            _DECODER_ALONE: functools.partial(_decode_alone, path, needed, 0),
            "the same, one thread": functools.partial(_decode_alone, path, needed, 1),
            "whole clip, then index": functools.partial(_decode_whole, path, num_frames),
            "swinbert": functools.partial(decode_video, path, num_frames=num_frames),
            "swinbert, resized": functools.partial(decode_video, path, num_frames=num_frames, transform=resize),
            "decord": functools.partial(_decode_with_decord, path, num_frames),
            "torchcodec": functools.partial(_decode_with_torchcodec, path, num_frames),
        }
        unable = {}
        for way, call in list(ways.items()):
            try:
                call()
            except Exception as error:  # not installed, no libraries, or no such format
                unable[way] = Row(way, note=f"cannot: {type(error).__name__}")
                del ways[way]
        rows, _ = compare(ways, bench.rounds, torch.device("cpu"), bench.progress)
        for row in rows:
            if row.name.startswith("swinbert"):
                row.target, row.limit = _TARGET, _LIMIT
                _note_ratios(row, rows)
        tables.append(Table(f"{num_frames} frames of a clip of {name}", [*rows, *unable.values()], _DECODER_ALONE))
    return tables


def _note_ratios(ours: Row, rows: list[Row]) -> None:
    """Notes on our row how many times as fast as the other decoders it is."""
    others = {row.name: row for row in rows if row.name in _OTHERS}
    ratios = {
        name: statistics.median(other / own for other, own in zip(row.seconds, ours.seconds, strict=True))
        for name, row in others.items()
    }
    ours.note = ", ".join(f"{ratio:.2f} times as fast as {name}" for name, ratio in ratios.items())


def _needed_packets(path: Path, num_frames: int) -> list[bool]:
    """Which packets must be decoded: the wanted frames', and those that they need, directly or indirectly."""
    decoder = StreamDecoder(path.name, str(path))
    spans, skip = decoder.plan(np.unique(sample_indices(len(decoder.timeline), num_frames)))
    decoder.close()
    needed = np.zeros(len(skip), bool)
    for first, last in spans:
        needed[first : last + 1] = ~skip[first : last + 1]
    return needed.tolist()


def _decode_alone(path: Path, needed: list[bool], num_threads: int) -> None:
    """With `num_threads`, or as many as FFmpeg chooses if it is 0."""
    with open_stream(path.name, str(path)) as (container, stream):
        codec = stream.codec_context
        codec.thread_type, codec.thread_count = "AUTO", num_threads
        for packet, is_needed in zip(demux(container, stream), needed, strict=True):
            if is_needed:
                codec.decode(packet)
        codec.decode(None)


def _decode_whole(path: Path, num_frames: int) -> np.ndarray:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames[sample_indices(len(frames), num_frames)]


def _decode_with_decord(path: Path, num_frames: int) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0))
    return reader.get_batch(sample_indices(len(reader), num_frames)).asnumpy()


def _decode_with_torchcodec(path: Path, num_frames: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC")
    indices = sample_indices(len(decoder), num_frames)
    return decoder.get_frames_at(indices=indices.tolist()).data.numpy()


__all__ = ["decode"]
