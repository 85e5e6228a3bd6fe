"""How a film is cut into segments, each of which gets a caption; and neighbours with the same caption, merged."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from swinbert.processing.video_sources_swinbert import as_seconds
from swinbert.processing.video_timeline_swinbert import VideoTimeline, frame_range

if TYPE_CHECKING:
    from swinbert.captioning.caption import Caption

# How far from a moment, in units of a video's time stamps, a frame is still at this moment: rounding of float numbers.
_ROUNDING = 1e-3
# Seconds. The shortest scene is that of PySceneDetect.
_SHORTEST_SCENE, _LONGEST_SCENE = 0.6, 30.0
# Share of two times by which captions that follow each other may miss each other, for the same reason.
_TOUCHING = 1e-6

# --- Cutting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmentation:
    """
    How a film is cut: into windows of one length, or into scenes.

    A segment begins and ends with frames: a window from 10 s on begins with the first frame not before 10 s. It ends
    where the next one begins, and the last one where the video ends. Windows with a `stride` below their length
    overlap.

    Args:
        length: seconds of a window.
        stride: seconds from the beginning of a window to that of the next one; by default its length.
        scenes: cut where the picture changes instead.
        min_segment: seconds. A shorter scene joins the neighbour that it resembles more (by default below 0.6 s); a
            shorter last window joins the one before.
        max_segment: seconds. Longer scenes are split evenly (by default above 30 s).
        threshold: of scenes: how many times as much as around it the picture must change at a cut.

    Raises:
        ValueError: they contradict each other.
    """

    length: float | None = None
    stride: float | None = None
    scenes: bool = False
    min_segment: float | None = None
    max_segment: float | None = None
    threshold: float = 3.0

    def __post_init__(self):
        for name in ("length", "stride", "min_segment", "max_segment", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                unit = "" if name == "threshold" else " of seconds"
                raise ValueError(f"`{name}` must be a positive number{unit}, got {value}.")
        if self.scenes == (self.length is not None):
            raise ValueError("A film is cut either into windows (`length`) or into scenes (`scenes=True`).")
        self._check_order()

    def _check_order(self) -> None:
        if self.stride is not None and (self.length is None or self.stride > self.length):
            raise ValueError(
                f"`stride` must not exceed the length of a window, got {self.stride:g} s"
                + (" for scenes." if self.length is None else f" for windows of {self.length:g} s.")
            )
        limits = [
            (name, value)
            for name, value in (
                ("`min_segment`", self.min_segment),
                ("the length of a window", self.length),
                ("`max_segment`", self.max_segment),
            )
            if value is not None
        ]
        for (low, least), (high, most) in itertools.pairwise(limits):
            if least > most:
                raise ValueError(f"{low} must not exceed {high}, got {least:g} and {most:g} s.")

    @classmethod
    def of(cls, segments: Union["Segmentation", float, str], **options: Any) -> "Segmentation":
        """
        Args:
            segments: seconds of a window, as a number or as text; `"scenes"`; or a segmentation, which is returned.
            options: the other arguments.

        Raises:
            ValueError: it is none of these.
        """
        if isinstance(segments, Segmentation):
            return segments
        if segments == "scenes":
            return cls(scenes=True, **options)
        try:
            return cls(length=float(segments), **options)
        except (TypeError, ValueError) as error:
            if isinstance(error, ValueError) and "`" in str(error):
                raise
            raise ValueError(f'Segments are seconds or "scenes", got {segments!r}.') from None

    @property
    def scene_limits(self) -> tuple[float, float]:
        """Seconds of the shortest and of the longest scene."""
        shortest = min(_SHORTEST_SCENE, self.max_segment or math.inf) if self.min_segment is None else self.min_segment
        return shortest, max(_LONGEST_SCENE, shortest) if self.max_segment is None else self.max_segment

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides where a film is cut."""
        if self.scenes:
            shortest, longest = self.scene_limits
            found = {"min_segment": shortest, "max_segment": longest, "threshold": self.threshold}
            return {"scenes": f"PySceneDetect {_version('scenedetect-headless', 'scenedetect')}", **found}
        return {"length": self.length, "stride": self.stride or self.length, "min_segment": self.min_segment}


def _version(*packages: str) -> str:
    """Of the first package that is installed."""
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return "unknown"


def frame_at(timeline: VideoTimeline, moment: float) -> int:
    """The first frame not before a moment, in seconds; the number of frames if there is none."""
    return int(np.searchsorted(timeline.seconds, moment - _ROUNDING * float(timeline.time_base)))


def part_between(name: str, timeline: VideoTimeline, start: float | None, end: float | None) -> range:
    """
    The frames from `start` up to, not including, `end`; at least one.

    Args:
        name: of the video, for messages.
        start, end: seconds.

    Raises:
        VideoDecodeError: the video ends before `start`.
    """
    first, _ = frame_range(name, timeline.seconds, start, end, float(timeline.time_base))
    end = as_seconds(name, "end", end)
    return range(first, len(timeline) if end is None else max(frame_at(timeline, end), first + 1))


def plan_windows(timeline: VideoTimeline, segmentation: Segmentation, part: range, start: float = 0.0) -> list[range]:
    """
    Frames of each window in a part of a video. Where no frame is shown in a window, as in the gaps of a variable frame
    rate, there is none.

    Args:
        start: seconds at which the first window begins.
    """
    assert segmentation.length is not None
    length, stride = segmentation.length, segmentation.stride or segmentation.length
    windows: list[range] = []
    number = 0
    while not windows or windows[-1].stop < part.stop:
        begin = start + number * stride
        window = range(frame_at(timeline, begin), min(frame_at(timeline, begin + length), part.stop))
        if window and window not in windows[-1:]:
            windows.append(window)
        number += 1
        if not window:  # a gap: on to the first window that reaches the frame after it
            after = timeline.time_of(window.start) - start
            number = max(number, math.floor((after - length) / stride + _TOUCHING) + 1)
    return _without_short_end(windows, timeline, segmentation)


def _without_short_end(windows: list[range], timeline: VideoTimeline, segmentation: Segmentation) -> list[range]:
    """Joins a last window that is shorter than it should be with the one before."""
    if len(windows) < 2 or segmentation.min_segment is None:
        return windows
    *others, before, last = windows
    if timeline.time_of(last.stop) - timeline.time_of(last.start) >= segmentation.min_segment:
        return windows
    return [*others, range(before.start, last.stop)]


# --- Merging ----------------------------------------------------------------------------------------------------------


def merge_segments(captions: Iterable["Caption"], similarity: float | None = None) -> Iterator["Caption"]:
    """
    Joins neighbours in time that have the same caption. The score is that of the parts, weighted by their duration.

    Args:
        captions: of segments, in the order of time, film by film.
        similarity: join neighbours also if their captions share at least this part of their words: the number of
            different words in both over that in either (Jaccard index). The caption is then that of the part with the
            best score.

    Yields:
        Captions, each as soon as the next one differs from it.
    """
    parts: list[Caption] = []
    for caption in captions:
        if parts and not _belongs_to(caption, parts, similarity):
            yield _merged(parts)
            parts = []
        parts.append(caption)
    if parts:
        yield _merged(parts)


def _belongs_to(caption: "Caption", parts: list["Caption"], similarity: float | None) -> bool:
    """Whether a caption continues the one that the parts will become."""
    last = parts[-1]
    if caption.clip != last.clip or caption.start is None or last.end is None:
        return False
    if caption.text is None or last.text is None or caption.start > last.end * (1 + _TOUCHING):
        return False
    text = _best(parts).text or ""
    return caption.text == text or (similarity is not None and word_overlap(caption.text, text) >= similarity)


def word_overlap(one: str, other: str) -> float:
    """The number of different words in both texts over that in either; 1 for two texts without words."""
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / len(words | others) if words or others else 1.0


def _best(parts: list["Caption"]) -> "Caption":
    return max(parts, key=lambda part: -math.inf if part.score is None else part.score)


def _merged(parts: list["Caption"]) -> "Caption":
    if len(parts) == 1:
        return parts[0]
    scored = [(part.score, (part.end or 0.0) - (part.start or 0.0)) for part in parts if part.score is not None]
    total = sum(duration for _, duration in scored)
    return dataclasses.replace(
        _best(parts),
        start=parts[0].start,
        end=max(part.end or 0.0 for part in parts),
        score=sum(score * duration for score, duration in scored) / total if total else None,
    )


__all__ = ["Segmentation", "frame_at", "merge_segments", "part_between", "plan_windows", "word_overlap"]
