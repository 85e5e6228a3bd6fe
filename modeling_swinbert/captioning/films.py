"""Reading the segments of a film in one pass."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swinbert.captioning.segments import Segmentation, plan_windows
from swinbert.processing.clip_reading_swinbert import CaptionerFamily
from swinbert.processing.video_decoding_swinbert import VideoSegment


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
    family: CaptionerFamily, film: Any, segmentation: Segmentation, start: float | None, end: float | None
) -> Iterator[FilmSegment]:
    """
    The segments of a film, in the order of time. The film is opened once, and decoded in one pass if each segment is
    read when it comes.

    Args:
        film: what `VideoReader` opens.
        start, end: seconds; the part to cut.

    Raises:
        VideoDecodeError: it cannot be opened, is no file, or ends before `start`.
    """
    with family.open_video(film) as reader:
        timeline = reader.timeline
        segments: list[VideoSegment] = []
        for part in reversed(plan_windows(reader.name, timeline, segmentation, start, end)):
            later = itertools.takewhile(lambda each, part=part: each.part.start < part.stop, reversed(segments))
            segments.append(VideoSegment(reader, part, list(later)))
        while segments:
            segment = segments.pop()
            begin, stop = timeline.time_of(segment.part.start), timeline.time_of(segment.part.stop)
            yield FilmSegment(begin, stop, segment, timeline.time_of(len(timeline)))


__all__ = ["FilmSegment", "read_segments"]
