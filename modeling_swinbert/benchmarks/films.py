"""Reading films in windows: time beside plain sequential decoding and beside a call for each window, and memory."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch

from swinbert.captioning.films import read_segments
from swinbert.captioning.segments import Segmentation, plan_windows
from swinbert.processing import VideoReader, sample_indices
from swinbert.processing.clip_reading_swinbert import SwinBertFamily

from .measurement import Row, Table, peak_memory, write_clip

if TYPE_CHECKING:
    from .suite import Bench

WINDOW_SECONDS = 10.0
# Rounds of films that are longer than this would take hours.
_REPEATED_SECONDS = 600.0


def film(bench: "Bench") -> list[Table]:
    """A film in windows of ten seconds, without the model; a clip of ten seconds tells what memory one clip takes."""
    family = SwinBertFamily(bench.config, bench.processor)
    source = bench.clips[0] if bench.clips else bench.folder / "repeated.mp4"
    if not bench.clips:
        write_clip(source, *bench.size.film)
    tables = []
    for seconds in bench.size.films:
        path, clip = bench.folder / "film.mp4", bench.folder / "clip.mp4"
        bench.progress(f"joining a film of {seconds:g} s")
        _repeat(source, path, seconds)
        _repeat(source, clip, min(WINDOW_SECONDS, seconds))
        wanted = _wanted(path, bench.config.num_frames)
        resize = family.frame_resizer()
        ways: dict[str, Callable[[], object]] = {
            "decoding in sequence": functools.partial(_decode_in_sequence, path, np.concatenate(wanted), resize),
            "swinbert, in one pass": functools.partial(_read_in_windows, family, path),
            "a call for each window": functools.partial(_decode_each, path, wanted, resize),
            "swinbert, a clip of ten seconds": functools.partial(_read_in_windows, family, clip),
        }
        rows = [Row(name, items=len(wanted)) for name in ways]
        rows[-1].items = 1
        for number in range(bench.rounds if seconds <= _REPEATED_SECONDS else 1):
            for row, call in zip(rows, ways.values(), strict=True):
                bench.progress(f"{row.name}, {seconds:g} s, round {number + 1}")
                row.measure(functools.partial(_note_memory, row, call), torch.device("cpu"))
        tables.append(Table(f"{seconds:g} s of film in windows of {WINDOW_SECONDS:g} s, read", rows, rows[0].name))
    return tables


def _note_memory(row: Row, call: Callable[[], object]) -> None:
    peak, _ = peak_memory(call, torch.device("cpu"))
    row.peak_bytes = peak if row.peak_bytes is None or peak is None else max(row.peak_bytes, peak)


def _repeat(source: Path, path: Path, seconds: float) -> None:
    """Writes a film that repeats a clip, whose packets are copied, and ends with the first repeat beyond `seconds`."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
        times = [(packet.pts, packet.dts) for packet in packets]
        length = max(packet.pts + packet.duration for packet in packets) - min(pts for pts, _ in times)
        shift = 0
        while shift * float(packets[0].time_base) < seconds:
            for packet, (pts, dts) in zip(packets, times, strict=True):
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.duration = pts + shift, dts + shift, packet.duration
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                output.mux(copy)
            shift += length


def _wanted(path: Path, num_frames: int) -> list[np.ndarray]:
    """Numbers of the frames that are sampled from each window."""
    with VideoReader(path) as reader:
        timeline = reader.timeline
        windows = plan_windows(timeline, Segmentation(length=WINDOW_SECONDS), range(len(timeline)))
    return [window.start + sample_indices(len(window), num_frames) for window in windows]


def _read_in_windows(family: SwinBertFamily, path: Path) -> None:
    for segment in read_segments(family, str(path), Segmentation(length=WINDOW_SECONDS), None, None):
        family.read(segment.video)


def _decode_in_sequence(path: Path, wanted: np.ndarray, resize: Any) -> None:
    """The wanted frames, by decoding every frame once: nothing but FFmpeg, and the resizing."""
    is_wanted = set(wanted.tolist())
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in is_wanted:
                resize(frame.to_ndarray(format="rgb24"))


def _decode_each(path: Path, wanted: list[np.ndarray], resize: Any) -> None:
    """The same frames, by opening the file anew and seeking for each window, as a call of `ffmpeg -ss` does."""
    for numbers in wanted:
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            stream.thread_type = "AUTO"
            per_second = float(stream.average_rate)
            container.seek(int(numbers[0] / per_second / float(stream.time_base)), stream=stream)
            remaining = set(numbers.tolist())
            for frame in container.decode(stream):
                number = round(float(frame.pts * stream.time_base) * per_second)
                if number in remaining:
                    resize(frame.to_ndarray(format="rgb24"))
                    remaining.discard(number)
                if number >= numbers[-1]:
                    break


__all__ = ["film"]
