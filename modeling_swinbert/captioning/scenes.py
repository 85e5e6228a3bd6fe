"""Scenes of a film, found by PySceneDetect in frames that are decoded anyway, and kept in little memory until read."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinbert.captioning.isolation import IsolatedFilm
from swinbert.captioning.kept_frames import KeptFrames, frame_reducer, frame_step, undecodable
from swinbert.captioning.segments import Segmentation, frame_at
from swinbert.processing.clip_reading_swinbert import CaptionerFamily
from swinbert.processing.video_decoding_swinbert import VideoReader

# What the detector looks at: wider pictures are reduced to this width, as PySceneDetect does.
_DETECTOR_WIDTH = 256
# Frames before and after one with which the adaptive detector compares its change: it finds a cut so many frames late.
_DETECTOR_WINDOW = 2
# Of the frames of all scenes that are not captioned yet. Where there are more, every second one of a scene is kept.
_KEPT_BYTES = 128 << 20
# A scene without an end is split evenly if it ends before so many times its maximum; else its beginning is cut off.
_HELD_PARTS = 4


# --- Detection --------------------------------------------------------------------------------------------------------


def adaptive_detector() -> tuple[Any, Any]:
    """
    PySceneDetect's `AdaptiveDetector` and `FrameTimecode`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise ImportError("Scenes need PySceneDetect: pip install 'swinbert[scenes]'.") from error
    return AdaptiveDetector, FrameTimecode


class _Detector:
    """The adaptive detector, with the strength of each cut."""

    def __init__(self, threshold: float):
        detector, self._time_code = adaptive_detector()
        # Short scenes are joined with what they resemble instead of being overlooked.
        self._detector = detector(threshold, min_scene_len=1, window_width=_DETECTOR_WINDOW)
        self._latest: deque[tuple[int, np.ndarray]] = deque(maxlen=_DETECTOR_WINDOW + 2)

    def cuts(self, number: int, picture: np.ndarray) -> list[tuple[int, float]]:
        """
        Scenes that frame `number` shows to have begun: their first frames, and how much the colours change there.

        Args:
            picture: (H, W, 3) BGR.
        """
        self._latest.append((number, _histogram(picture)))
        # The detector knows frames by their numbers alone; the rate has no effect.
        found = self._detector.process_frame(self._time_code(number, 25.0), picture)
        return [(cut.frame_num, self._change_at(cut.frame_num)) for cut in found]

    def _change_at(self, number: int) -> float:
        """Between 0 and 1."""
        before = [histogram for each, histogram in self._latest if each < number]
        after = [histogram for each, histogram in self._latest if each >= number]
        return 0.5 * float(np.abs(before[-1] - after[0]).sum()) if before and after else 0.0


def _histogram(picture: np.ndarray) -> np.ndarray:
    """(512,) shares of colours, eight of each channel."""
    blue, green, red = np.moveaxis(picture >> 5, -1, 0).astype(np.int64)
    return np.bincount((blue << 6 | green << 3 | red).ravel(), minlength=512) / blue.size


# --- Scenes until they are captioned ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Scene:
    """
    Args:
        first: number of the first frame.
        strength: how much the picture changes there; infinite if it cannot join the scene before.
        frames: numbers and pictures that are kept: every `step`-th.
    """

    first: int
    strength: float
    frames: list[tuple[int, np.ndarray]] = field(default_factory=list)
    step: int = 1


class _Scenes:
    """
    The scenes that wait for their end, or for that of a neighbour that may join them: all but the last have ended.

    Args:
        reader: of the film.
        first: number of its first frame.
        step: every how many frames one is kept, at least.
    """

    def __init__(self, reader: VideoReader | IsolatedFilm, first: int, segmentation: Segmentation, step: int = 1):
        self._reader, self._timeline = reader, reader.timeline
        self._shortest, self._longest = segmentation.scene_limits
        self._step = step
        self._waiting = [_Scene(first, math.inf, step=step)]
        self._lost: list[int] = []
        self._num_bytes = 0

    def _seconds(self, first: int, stop: int) -> float:
        return self._timeline.time_of(stop) - self._timeline.time_of(first)

    def add(self, number: int, picture: Callable[[], np.ndarray | None]) -> None:
        """Keeps the next frame, or not."""
        scene = self._waiting[-1]
        if (number - scene.first) % scene.step or (frame := picture()) is None:
            return
        scene.frames.append((number, frame))
        self._num_bytes += frame.nbytes
        while self._num_bytes > _KEPT_BYTES:
            largest = max(self._waiting, key=lambda each: len(each.frames))
            if len(largest.frames) < 2:
                break
            largest.step *= 2
            largest.frames = largest.frames[::2]
            self._num_bytes = sum(frame.nbytes for scene in self._waiting for _, frame in scene.frames)

    def lose(self, part: range) -> None:
        """Notes that frames could not be decoded; so many that they would make a scene are one."""
        if self._seconds(part.start, part.stop) >= self._shortest:
            self.cut(part.start, math.inf)
            self.cut(part.stop, math.inf)
        else:
            self._lost += part

    def cut(self, number: int, strength: float) -> None:
        """Begins a scene with frame `number`; the scene before joins a neighbour if it is too short."""
        scene = self._waiting[-1]
        if number <= scene.first:
            scene.strength = max(scene.strength, strength)
            return
        later = [frame for frame in scene.frames if frame[0] >= number]
        following = _Scene(number, strength, later, self._step)
        scene.frames = [frame for frame in scene.frames if frame[0] < number]
        self._waiting.append(following)
        if self._seconds(scene.first, number) >= self._shortest or min(scene.strength, strength) == math.inf:
            return
        one, other = (self._waiting[-3], scene) if scene.strength <= strength else (scene, following)
        one.frames, one.step = one.frames + other.frames, max(one.step, other.step)
        self._waiting.remove(other)

    def settled(self, number: int) -> Iterator[tuple[range, KeptFrames]]:
        """Those that cannot change any more, where frames up to `number` have been looked at."""
        while len(self._waiting) > 1 and (
            len(self._waiting) > 2
            or self._waiting[1].strength == math.inf
            or self._seconds(self._waiting[1].first, number - _DETECTOR_WINDOW) >= self._shortest
        ):
            yield from self._take()
        first = self._waiting[0].first
        if len(self._waiting) == 1 and self._seconds(first, number) >= _HELD_PARTS * self._longest:
            self.cut(frame_at(self._timeline, self._timeline.time_of(first) + self._longest), math.inf)
            yield from self._take()

    def finish(self, stop: int) -> Iterator[tuple[range, KeptFrames]]:
        """All that are left, of which the last ends before frame `stop`."""
        self.cut(stop, math.inf)
        while len(self._waiting) > 1:
            yield from self._take()

    def _take(self) -> Iterator[tuple[range, KeptFrames]]:
        """The first scene, in equal parts if it is too long."""
        scene = self._waiting.pop(0)
        stop = self._waiting[0].first
        self._waiting[0].strength = math.inf
        begin, seconds = self._timeline.time_of(scene.first), self._seconds(scene.first, stop)
        count = max(1, math.ceil(seconds / self._longest - 1e-6))
        inner = {frame_at(self._timeline, begin + seconds * part / count) for part in range(1, count)}
        bounds = sorted({scene.first, stop} | {bound for bound in inner if scene.first < bound < stop})
        for first, last in itertools.pairwise(bounds):
            yield range(first, last), self._kept(scene, range(first, last))
        self._lost = [number for number in self._lost if number >= stop]
        self._num_bytes -= sum(frame.nbytes for _, frame in scene.frames)

    def _kept(self, scene: _Scene, part: range) -> KeptFrames:
        first, seconds = part.start, self._timeline.seconds
        return KeptFrames(
            self._reader.name,
            seconds[first : part.stop] - seconds[first],
            self._seconds(first, part.stop),
            [(number - first, frame) for number, frame in scene.frames if number in part],
            sum(number in part for number in self._lost),
        )


# --- In one pass ------------------------------------------------------------------------------------------------------


def read_scenes(
    family: CaptionerFamily, reader: VideoReader | IsolatedFilm, segmentation: Segmentation, part: range
) -> Iterator[tuple[range, KeptFrames]]:
    """
    The scenes of a part of a film, with what can be read like a [`VideoSegment`], each as soon as its end is known.
    Where frames are damaged for as long as the shortest scene, that is a scene of its own, which cannot be read.

    Raises:
        VideoDecodeError: no frame can be decoded.
        ImportError: PySceneDetect is not installed.
    """
    reduce = frame_reducer(family)
    detector = _Detector(segmentation.threshold)
    scenes = _Scenes(reader, part.start, segmentation, frame_step(family, reader.metadata.fps))
    expected = part.start
    for number, preview, picture in reader.preview_frames(part, _DETECTOR_WIDTH, reduce):
        if number > expected:
            scenes.lose(range(expected, number))
        expected = number + 1
        scenes.add(number, picture)
        for first, strength in detector.cuts(number, preview):
            scenes.cut(first, strength)
        yield from scenes.settled(number)
    if expected == part.start:
        raise undecodable(reader.name, len(part))
    if expected < part.stop:
        scenes.lose(range(expected, part.stop))
    yield from scenes.finish(part.stop)


__all__ = ["adaptive_detector", "read_scenes"]
