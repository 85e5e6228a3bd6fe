"""Reading the segments of a film in one pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from swinbert.captioning.isolation import IsolatedFilm, IsolatedReader
from swinbert.captioning.live import LiveStream
from swinbert.captioning.scenes import read_scenes
from swinbert.captioning.segments import Segmentation, part_between, plan_windows
from swinbert.processing.clip_reading_swinbert import CaptionerFamily
from swinbert.processing.video_decoding_swinbert import VideoReader


@dataclass(frozen=True)
class FilmSegment:
    """
    A part of a film.

    Args:
        start, end: seconds from the first frame of the film.
        video: for `CaptionerFamily.read`, until the next segment is asked for.
        duration: of the film, in seconds.
    """

    start: float
    end: float
    video: Any
    duration: float | None


def read_segments(
    family: CaptionerFamily,
    film: Any,
    segmentation: Segmentation,
    start: float | None,
    end: float | None,
    isolation: IsolatedReader | None = None,
) -> Iterator[FilmSegment]:
    """
    The segments of a film, in the order of time. The film is opened once, and decoded in one pass if each segment is
    read when it comes.

    Args:
        film: what `VideoReader` opens, or a [`LiveStream`].
        start, end: seconds; the part to cut.
        isolation: decodes in processes of its own; a stream is decoded in this one.

    Raises:
        VideoDecodeError: it cannot be opened, is no file, or ends before `start`.
        ImportError: scenes need an extra.
    """
    if isinstance(film, LiveStream):
        if segmentation.length is None or segmentation.stride not in (None, segmentation.length):
            raise ValueError("A stream is cut into windows that do not overlap: give their length alone.")
        for window in film.windows(family, segmentation.length):
            yield FilmSegment(window.start, window.end, window.video, duration=None)
        return
    with family.open_video(film) if isolation is None else isolation.open(film, family.decoding) as reader:
        timeline = reader.timeline
        part = part_between(reader.name, timeline, start, end)
        if segmentation.scenes:
            segments: Iterable[tuple[range, Any]] = read_scenes(family, reader, segmentation, part)
        else:
            segments = _windows(reader, plan_windows(timeline, segmentation, part, start or 0.0))
        for frames, video in segments:
            times = timeline.time_of(frames.start), timeline.time_of(frames.stop)
            yield FilmSegment(*times, video, duration=timeline.time_of(len(timeline)))


def _windows(reader: VideoReader | IsolatedFilm, windows: list[range]) -> Iterator[tuple[range, Any]]:
    """Frames of each window, and what reads them together with what overlapping windows want of them."""
    for number, window in enumerate(windows):
        stop = number + 1
        while stop < len(windows) and windows[stop].start in window:
            stop += 1
        yield window, reader.segment(window, windows[number + 1 : stop])


__all__ = ["FilmSegment", "read_segments"]
