"""What the demo does with a clip, without its page: checks, fetching, captions with progress, and temporary files."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from swinbert import bundled_model
from swinbert.captioning.caption import Caption, Clip, captions
from swinbert.captioning.explaining import Explanation, explain
from swinbert.captioning.explaining.attribution import DEFAULT_METHOD
from swinbert.captioning.explaining.encoded_clips import encoded_clip_class
from swinbert.captioning.isolation import IsolatedReader
from swinbert.captioning.segments import Segmentation
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_decoding_swinbert import VideoReader, header_duration
from swinbert.processing.video_sources_swinbert import VideoDecodeError, open_source
from swinbert.utils.text import one_line

# Seconds from which on a video is a long one, and those of its windows.
LONG = 30.0
WINDOW = 10.0
MAX_BEAMS = 8
# Parameters of a model that encodes a clip 64 times on a CPU while a visitor waits.
_LARGEST_TO_ENCODE_OFTEN = 50e6
# Seconds after which an upload that does not grow counts as given up, and after which a file is removed.
_STALLED = 60.0
_OLD = 3600.0


class DemoError(ValueError):
    """Why a clip cannot be captioned, in one sentence for whoever sent it."""


@dataclass(frozen=True)
class Limits:
    """The largest video that the demo takes."""

    megabytes: float = 500.0
    minutes: float = 60.0

    @property
    def num_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def seconds(self) -> float:
        return 60 * self.minutes


@dataclass(frozen=True)
class Settings:
    """
    How a video is captioned, as people set it.

    Args:
        segments: `"whole"` for one caption of the whole video, seconds of a window, `"scenes"`, or `"auto"`: windows
            for videos that are longer than what one sentence can say.
        beams: number of beams; 1 is greedy search.
        alternatives: further captions of each clip.

    Raises:
        DemoError: they cannot be used.
    """

    segments: str = "auto"
    beams: int = 4
    alternatives: int = 2

    def __post_init__(self):
        if not 1 <= self.beams <= MAX_BEAMS or not 0 <= self.alternatives < MAX_BEAMS:
            raise DemoError(
                f"Expected from 1 to {MAX_BEAMS} beams and fewer alternatives, found {self.beams} and"
                f" {self.alternatives}."
            )
        if self.segments not in ("auto", "whole"):
            try:
                Segmentation.of(self.segments)
            except ValueError as error:
                raise DemoError(one_line(error)) from error

    def cut(self, duration: float | None) -> str | float | None:
        """`segments` of [`captions`](swinbert.captioning.captions) for a video of so many seconds."""
        if self.segments == "auto":
            return WINDOW if duration is not None and duration > LONG else None
        return None if self.segments == "whole" else self.segments

    @property
    def generation(self) -> dict[str, Any]:
        wanted = 1 + self.alternatives
        return {"num_beams": max(self.beams, wanted), "num_return_sequences": wanted}


@dataclass
class Progress:
    """
    A captioned video, as far as it is.

    Args:
        captions: so far, in order of time.
        share: of the video, from 0 to 1; `None` if its duration is unknown.
        remaining: seconds that the rest will take at the pace so far; `None` before the first caption.
    """

    captions: list[Caption] = field(default_factory=list)
    share: float | None = None
    remaining: float | None = None


class Demo:
    """
    One captioner for many visitors. Methods raise `DemoError` for all that is wrong with a clip.

    ```python
    with Demo(load_captioner("moving-shapes")) as demo:
        *_, progress = demo.caption(Path("clip.mp4"))
        print(progress.captions[0].text)
    ```

    Args:
        captioner: see `load_captioner`.
        limits: what is too large is refused before it is decoded.
        example: a clip for those who have none at hand.
        isolate: decode in processes of their own, so that no clip ends this one.

    Attributes:
        files: temporary files of the visitors.
    """

    def __init__(
        self,
        captioner: VideoCaptioningPipeline,
        limits: Limits = Limits(),
        example: Path | None = None,
        isolate: bool = True,
    ):
        self.captioner, self.limits = captioner, limits
        self.example = example or Path(bundled_model()).parent / "sample.mp4"
        self.files = TemporaryFiles()
        self._isolation = IsolatedReader() if isolate else None

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.files.close()
        if self._isolation is not None:
            self._isolation.close()

    def check(self, video: Path) -> float | None:
        """Seconds of a video according to its header, `None` if that says nothing. Nothing is decoded."""
        if not video.exists():
            raise DemoError(f"{video.name}: the file is gone; choose it again.")
        if (size := video.stat().st_size) > self.limits.num_bytes:
            raise DemoError(f"{video.name}: expected at most {self.limits.megabytes:g} MB, found {size / 1e6:,.0f} MB.")
        with explained(video.name):
            seconds = header_duration(video) if self._isolation is None else self._isolation.header_duration(video)
        if seconds is not None and seconds > self.limits.seconds:
            raise DemoError(f"{video.name}: expected at most {_length(self.limits.seconds)}, found {_length(seconds)}.")
        return seconds

    def fetch(self, url: str, visitor: str) -> Path:
        """Downloads a clip. Addresses are checked as everywhere in this package: public ones, by http or https."""
        url = url.strip()
        name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2])[-80:].lstrip(".") or "clip"
        if not re.match("https?://", url):
            raise DemoError(f"Expected an address that begins with https:// or http://, found {url[:60]!r}.")
        with explained(url), open_source(url) as downloaded:
            file = self.files.new_folder(visitor) / name
            shutil.move(str(downloaded), file)
        return file

    def caption(self, video: Path, settings: Settings = Settings()) -> Iterator[Progress]:
        """The captions of a video, and how far it is after each of them."""
        duration = self.check(video)
        start, progress = time.monotonic(), Progress()
        with explained(video.name):
            clips, cut = [Clip(video, name=video.name)], settings.cut(duration)
            stream = captions(clips, self.captioner, segments=cut, isolation=self._isolation, **settings.generation)
            for caption in stream:
                progress.captions.append(caption)
                duration = caption.duration or duration
                if caption.end is not None and duration:
                    progress.share = min(1.0, caption.end / duration)
                    progress.remaining = (time.monotonic() - start) * (1 - progress.share) / max(progress.share, 1e-3)
                yield progress
        if all(caption.text is None for caption in progress.captions):
            raise DemoError(f"{video.name}: {progress.captions[0].error}")

    @property
    def can_explain(self) -> bool:
        """Whether words can be explained: those of SwinBERT and GIT can."""
        try:
            encoded_clip_class(self.captioner.model)
        except ValueError:
            return False
        return True

    def explain(
        self, video: Path, caption: str | None = None, start: float | None = None, end: float | None = None
    ) -> Explanation:
        """
        What the words of a caption were read from.

        Args:
            caption: by default, the one that the model finds.
            start, end: seconds; the segment that it is the caption of.
        """
        self.check(video)
        with explained(video.name):
            clip = Clip(video, start, self._last_moment(video, start, end), name=video.name)
            return explain(
                self.captioner.model,
                self.captioner.processor,
                clip,
                caption=caption,
                method=self._explaining,
                isolation=self._isolation,
            )

    def _last_moment(self, video: Path, start: float | None, end: float | None) -> float | None:
        """
        The `end` of a [`Clip`] that has the frames of a segment. A segment ends before the frame that is shown at
        `end`; a clip has one frame after the last that is not after `end`, see `frame_range`.
        """
        if start is None or end is None:
            return end
        with VideoReader(video) if self._isolation is None else self._isolation.open(video, {}) as reader:
            seconds, unit = reader.timeline.seconds, float(reader.timeline.time_base)
        before_last = float(seconds[max(0, int(np.searchsorted(seconds, end - unit / 2)) - 2)])
        return before_last if before_last > start else end

    @property
    def _explaining(self) -> str:
        """The best method that a visitor has the patience for: the default encodes the clip 64 times."""
        model = self.captioner.model
        is_slow = model.device.type == "cpu" and model.num_parameters() > _LARGEST_TO_ENCODE_OFTEN
        return "attention" if is_slow else DEFAULT_METHOD


def _length(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:,.1f} min"


class TemporaryFiles:
    """
    Files of visitors, all in one folder: what they sent (`uploads`, where Gradio puts it) and what was made for them.
    Two visitors who send the same file share it. `forget` removes what nobody else has. What visitors leave behind who
    do not say that they leave, or in the middle of an upload, is removed after a while.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="swinbert-demo-"))
        self.uploads = self.root / "uploads"
        self._lock = threading.Lock()
        self._held: dict[str, set[Path]] = defaultdict(set)
        self._seen: dict[Path, tuple[int, float]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_regularly, daemon=True, name="sweep-demo-files").start()

    def new_folder(self, visitor: str) -> Path:
        """An empty folder that is removed with the visitor's other files."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            self._held[visitor].add(folder)
        return folder

    def hold(self, visitor: str, upload: Path) -> None:
        """Notes that a visitor has sent a file; any other is left alone for ever."""
        upload = Path(os.path.abspath(upload))
        if self.uploads in upload.parents:
            with self._lock:
                self._held[visitor].add(upload)

    def forget(self, visitor: str) -> None:
        """Removes the files of a visitor who has left."""
        with self._lock:
            held = self._held.pop(visitor, set())
            for path in held.difference(*self._held.values()):
                self._remove(path)

    def _sweep_regularly(self) -> None:
        while not self._closed.wait(_STALLED / 2):
            self.sweep()

    def sweep(self) -> None:
        """Removes uploads that have stopped in the middle, and files that are old."""
        # By a clock that nobody sets: for each file its last change, and when that was first seen.
        now = time.monotonic()
        seen: dict[Path, tuple[int, float]] = {}
        for path in list(self.root.rglob("*")):
            with contextlib.suppress(OSError):  # somebody else removes it
                if not path.is_file():
                    continue
                changed = path.stat().st_ctime_ns
                before = self._seen.get(path)
                seen[path] = before if before is not None and before[0] == changed else (changed, now)
                # Gradio writes to a file directly in the folder, and moves what is complete into another one.
                limit = _STALLED if path.parent == self.uploads else _OLD
                if now - seen[path][1] > limit:
                    self._remove(path)
        self._seen = seen

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            return
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()

    def close(self) -> None:
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns whatever goes wrong with a clip into one sentence that begins with the clip's name."""
    try:
        yield
    except DemoError:
        raise
    except VideoDecodeError as error:
        raise DemoError(f"{name}: {error.message}") from error
    except Exception as error:
        raise DemoError(f"{name}: {one_line(error)}") from error


__all__ = ["Demo", "DemoError", "Limits", "Progress", "Settings", "TemporaryFiles", "explained"]
