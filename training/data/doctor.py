"""`swinbert doctor`: what is wrong with a dataset, found before training finds it.

    swinbert doctor DATASET --output DIR        # DIR/doctor.json and DIR/doctor.png

Every clip is decoded at a few moments, in several processes; captions are counted, measured and compared, within splits
and between them.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from swinbert.processing import VideoDecodeError, decode_video
from swinbert.training.data.clip_datasets import build_tokenizer
from swinbert.training.data.sources import clip_name, clip_source, load_splits, no_split
from swinbert.training.splits import spans_overlap
from swinbert.utils.files import duplicate_files
from swinbert.utils.progress import progress

# Of these, training or evaluation breaks ...
BREAKING = {
    "unreadable": "videos that cannot be read",
    "without captions": "clips without a caption",
    "empty caption": "clips with an empty caption",
}
# ... of these, it goes on, and is worse than it could be or seems better than it is.
DOUBTFUL = {
    "damaged": "clips with frames that cannot be decoded",
    "cut off": "files that end early",
    "blank": "clips of one colour",
    "past the end": "clips that end after their video",
    "repeated caption": "clips that say the same twice",
    "long caption": "clips with captions that will be cut",
    "unknown words": "clips with words that the tokenizer does not know",
    "in two splits": "clips of this split in another",
    "source in two splits": "other parts of the same videos in another split",
    "captions in two splits": "clips with just the captions of a clip in another split",
}
PICTURED = 4  # clips of each split in the picture
_LISTED = 5  # problems of each kind in the text; the JSON file has all
_END_TOLERANCE = 0.5  # seconds; annotations are often in whole ones


@dataclass
class Problem:
    """
    Args:
        clip: its name.
        index: its number in the split.
        reason: what is wrong.
        kind: of an unreadable video, that of `VideoDecodeError`, or `"crashed"`.
    """

    clip: str
    index: int
    reason: str
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.clip} ({self.reason})" if self.reason else self.clip


@dataclass
class SplitReport:
    """
    Args:
        clips, checked: number of clips, and of those that were decoded.
        captions, distinct_captions: number of all captions, and of different ones.
        caption_lengths: tokens of a caption, `[CLS]` and `[SEP]` included -> number of captions.
        problems: kind, of `BREAKING` or `DOUBTFUL` -> the clips.
    """

    clips: int
    checked: int = 0
    captions: int = 0
    distinct_captions: int = 0
    caption_lengths: dict[int, int] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, kind: str, problem: Problem) -> None:
        self.problems.setdefault(kind, []).append(problem)


@dataclass
class Report:
    """All splits; `str` is for people, `as_dict` for programs."""

    dataset: str
    splits: dict[str, SplitReport]
    tokenizer: str
    max_caption_length: int
    complete: bool = True  # not interrupted
    notes: list[str] = field(default_factory=list)

    @property
    def breaks_training(self) -> bool:
        return any(split.problems.get(kind) for split in self.splits.values() for kind in BREAKING)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "breaks_training": self.breaks_training}

    def __str__(self) -> str:
        lines = []
        for name, split in self.splits.items():
            lines.append(
                f"{name}: {split.clips} clips, {split.checked} decoded; {split.captions} captions,"
                f" {split.distinct_captions} different"
            )
            for kinds, mark in ((BREAKING, "BREAKS TRAINING: "), (DOUBTFUL, "")):
                for kind, text in kinds.items():
                    found = split.problems.get(kind, [])
                    lines += [f"  {mark}{text}: {len(found)}"] if found else []
                    lines += [f"    {problem}" for problem in found[:_LISTED]]
                    lines += [f"    and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
            lines += [f"  {line}" for line in _histogram(split.caption_lengths, self.max_caption_length)]
        lines += self.notes
        if not self.complete:
            lines.append("Interrupted: not all clips were decoded.")
        return "\n".join(lines)


@dataclass
class _Check:
    """What was seen of one clip."""

    clip: str
    error: tuple[str, str] | None = None  # kind, reason
    cut_off: str = ""
    missing: int = 0
    sampled: int = 0
    is_blank: bool = False
    seconds: float | None = None
    identity: str | None = None  # of the file, or of the bytes
    frames: np.ndarray | None = None  # (num_frames, h, w, 3), small; only of clips for the picture


def examine(
    dataset: str | Path,
    splits: Sequence[str] | None = None,
    clips_per_split: int | None = None,
    num_frames: int = 4,
    tokenizer: Any = None,
    max_caption_length: int = 50,
    workers: int | None = None,
    output: str | Path | None = None,
) -> Report:
    """
    Args:
        dataset: as `load_clips` takes it.
        splits: only these.
        clips_per_split: decode so many clips of each split, evenly spread over it; all by default. Captions and names
            are compared for all clips in any case.
        num_frames: frames to decode of each clip, evenly spaced.
        tokenizer: measures captions; by default one of the words of the training captions, as `swinbert train` makes
            for a new model.
        max_caption_length: longest caption in tokens, with `[CLS]` and `[SEP]`.
        workers: processes; by default as many as there are cores for this one. 0 decodes in this process.
        output: folder for `doctor.json` and `doctor.png`, made if it is not there.

    Returns:
        the report; `report.breaks_training` tells whether anything has to be done. After Ctrl-C it is of what was
        decoded until then, and `complete` is false.

    Raises:
        FileNotFoundError, ValueError: the dataset cannot be read at all, or has no such split.
    """
    found = load_splits(dataset)
    for name in splits or ():
        if name not in found:
            raise no_split(dataset, name, found)
    chosen = {name: clips for name, clips in found.items() if not splits or name in splits}
    folder = None if output is None else Path(output).expanduser()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it

    training = found.get("train", next(iter(found.values())))["captions"]
    measured_by = getattr(tokenizer, "name_or_path", "") or "given" if tokenizer else "words of the training captions"
    tokenizer = tokenizer or build_tokenizer(caption for captions in training for caption in captions)
    reports = {name: SplitReport(len(clips)) for name, clips in chosen.items()}
    report = Report(str(dataset), reports, measured_by, max_caption_length)

    checks = _decode(chosen, clips_per_split, num_frames, workers, report)
    for name, clips in chosen.items():
        _read_captions(report, name, clips, tokenizer)
        _judge_videos(reports[name], clips, checks[name])
    _look_for_leaks(report, chosen, checks)
    if folder:
        (folder / "doctor.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        _draw(folder / "doctor.png", chosen, checks)
    return report


# --- Videos -----------------------------------------------------------------------------------------------------------


def _decode(
    splits: dict[str, datasets.Dataset],
    clips_per_split: int | None,
    num_frames: int,
    workers: int | None,
    report: Report,
) -> dict[str, dict[int, _Check]]:
    """What is seen of the clips, by split and number; in part, and `report.complete` false, if it is interrupted."""
    tasks = []
    for name, clips in splits.items():
        numbers = _spread(len(clips), clips_per_split)
        # More than will be shown: some may be unreadable.
        pictured = {numbers[place] for place in _spread(len(numbers), 3 * PICTURED)}
        tasks += [(name, number, num_frames, number in pictured) for number in numbers]
    checks: dict[str, dict[int, _Check]] = {name: {} for name in splits}
    try:
        for (name, number, *_), check in progress(_run(splits, tasks, workers), "Decoding clips", len(tasks)):
            checks[name][number] = check
    except KeyboardInterrupt:
        report.complete = False
    for name, found in checks.items():
        report.splits[name].checked = len(found)
    return checks


def _spread(length: int, count: int | None) -> list[int]:
    """`count` of the numbers below `length`, evenly spread; all of them without a count."""
    count = length if count is None else min(count, length)
    return [number * length // count for number in range(count)]


_Task = tuple[str, int, int, bool]


def _run(
    splits: dict[str, datasets.Dataset], tasks: list[_Task], workers: int | None
) -> Iterator[tuple[_Task, _Check]]:
    """Checks of all tasks, as they are done. A clip that kills its process is found out and reported."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, len(tasks))
    if not workers:
        _start(splits)
        yield from ((task, _check(*task)) for task in tasks)
        return
    waiting = iter(tasks)
    running: dict[Future[_Check], _Task] = {}
    pool = _pool(splits, workers)
    try:
        while True:
            for task in islice(waiting, 2 * workers - len(running)):
                running[pool.submit(_check, *task)] = task
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            killed = []
            for future in done:
                task = running.pop(future)
                try:
                    yield task, future.result()
                except BrokenProcessPool:
                    killed.append(task)
            if killed:
                # One of those that ran has killed its process, and the pool with it.
                suspects = [*killed, *running.values()]
                running.clear()
                pool.shutdown()
                for task in suspects:
                    yield task, _alone(splits, task)
                pool = _pool(splits, workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(splits: dict[str, datasets.Dataset], task: _Task) -> _Check:
    with _pool(splits, 1) as pool:
        try:
            return pool.submit(_check, *task).result()
        except BrokenProcessPool:
            reason = "decoding it kills the process (memory, or a fault in the decoder)."
            return _Check(clip_name(splits[task[0]][task[1]]), error=("crashed", reason))


def _pool(splits: dict[str, datasets.Dataset], workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context(), initializer=_start, initargs=(splits, True)
    )


_splits: dict[str, datasets.Dataset] = {}


def _start(splits: dict[str, datasets.Dataset], is_worker: bool = False) -> None:
    """Gives this process the clips, of which it then gets the numbers alone."""
    global _splits
    _splits = splits
    if is_worker:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process


def _check(split: str, number: int, num_frames: int, keep: bool) -> _Check:
    clip = _splits[split][number]
    check = _Check(clip_name(clip))
    try:
        source = clip_source(clip)
        check.identity = _identity(source)
        with warnings.catch_warnings(), _heard() as said:
            warnings.simplefilter("ignore")  # of missing frames, which are counted
            frames, about = decode_video(source, num_frames=num_frames, start=clip.get("start"), end=clip.get("end"))
    except VideoDecodeError as error:
        check.error = error.kind, error.message
        return check
    except OSError as error:  # the shard, not the clip
        check.error = "not_readable", f"{error}."
        return check
    check.cut_off = "; ".join(said)
    check.missing, check.sampled, check.seconds = about.missing_frames, len(frames), about.duration
    check.is_blank = bool((np.ptp(frames, axis=(0, 1, 2)) == 0).all())
    if keep:
        check.frames = np.stack([_thumbnail(frame) for frame in frames])
    return check


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the decoder logs, without the name of the clip: that a file ends early, say."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage().partition(": ")[2] or record.getMessage())

    logger, listener = logging.getLogger(decode_video.__module__), Listener()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


def _identity(source: Any) -> str:
    if isinstance(source, dict):
        return hashlib.blake2b(source["bytes"], digest_size=16).hexdigest()
    return os.path.realpath(source)


def _judge_videos(report: SplitReport, clips: datasets.Dataset, checks: dict[int, _Check]) -> None:
    ends: list[Any] = list(clips["end"]) if "end" in clips.column_names else [None] * len(clips)
    for number, check in sorted(checks.items()):

        def say(kind: str, reason: str, error: str | None = None, number=number, check=check) -> None:
            report.add(kind, Problem(check.clip, number, reason, error))

        if check.error:
            say("unreadable", f"{check.error[0]}: {check.error[1]}", check.error[0])
            continue
        if check.missing:
            say("damaged", f"{check.missing} of {check.sampled} that were tried")
        if check.cut_off:
            say("cut off", check.cut_off)
        if check.is_blank:
            say("blank", "")
        if ends[number] is not None and check.seconds and ends[number] > check.seconds + _END_TOLERANCE:
            say("past the end", f"{ends[number]:g} of {check.seconds:.1f} s")


# --- Captions ---------------------------------------------------------------------------------------------------------


def _read_captions(report: Report, split: str, clips: datasets.Dataset, tokenizer: Any) -> None:
    found, captions = report.splits[split], clips["captions"]
    if not any(captions) and split not in ("train", "validation"):
        report.notes.append(f"{split} has no captions: it can be captioned, not scored.")
        return
    flat = [caption for texts in captions for caption in texts]
    ids = tokenizer(flat)["input_ids"] if flat else []
    found.captions, found.distinct_captions = len(flat), len(set(map(_plain, flat)))
    found.caption_lengths = dict(sorted(Counter(map(len, ids)).items()))
    tokens = iter(ids)
    for number, texts in enumerate(captions):
        about = [next(tokens) for _ in texts]
        problems = {}
        if not texts:
            problems["without captions"] = ""
        if empty := sum(not text.strip() for text in texts):
            problems["empty caption"] = f"{empty} of {len(texts)}"
        if repeated := len(texts) - len(set(map(_plain, texts))):
            problems["repeated caption"] = f"{repeated} of {len(texts)}"
        if longest := max((len(each) for each in about if len(each) > report.max_caption_length), default=0):
            problems["long caption"] = f"{longest} tokens"
        unknown = [text for text, each in zip(texts, about, strict=True) if tokenizer.unk_token_id in each]
        if unknown:
            problems["unknown words"] = textwrap.shorten(repr(unknown[0]), 60)
        if problems:
            name = clip_name(clips[number])
            for kind, reason in problems.items():
                found.add(kind, Problem(name, number, reason))


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split()).rstrip(". ")


def _histogram(lengths: dict[int, int], longest: int, width: int = 40) -> Iterator[str]:
    """Lines of text: tokens of a caption, number of captions."""
    if not lengths:
        return
    low, high = min(lengths), max(lengths)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, high) if high // step - low // step < 10)
    counts = Counter({place: 0 for place in range(low // step, high // step + 1)})
    for length, count in lengths.items():
        counts[length // step] += count
    yield f"tokens of a caption, of which {longest} are read"
    for place, count in sorted(counts.items()):
        first, last = place * step, (place + 1) * step - 1
        span = f"{first}" if first == last else f"{first}-{last}"
        yield f"{span:>9} {count:7}  {'#' * -(-width * count // max(counts.values()))}".rstrip()


# --- Between splits ---------------------------------------------------------------------------------------------------


def _look_for_leaks(report: Report, splits: dict[str, datasets.Dataset], checks: dict[str, dict[int, _Check]]) -> None:
    """Clips of one split that are in another: by what their files hold, by their ids, by their captions."""
    if len(splits) < 2:
        return
    identities = {check.identity for found in checks.values() for check in found.values() if check.identity}
    files = [Path(each) for each in identities if os.path.isfile(each)]
    same = {str(file): str(earlier) for file, earlier in duplicate_files(files).items()}
    by_source: dict[tuple[str, str], list[tuple[str, int, float | None, float | None]]] = defaultdict(list)
    by_captions: dict[frozenset[str], list[tuple[str, int]]] = defaultdict(list)
    for split, clips in splits.items():
        columns = {name: clips[name] if name in clips.column_names else [None] * len(clips) for name in _COMPARED}
        for number, (video_id, start, end, texts) in enumerate(zip(*columns.values(), strict=True)):
            check = checks[split].get(number)
            if check and check.identity:
                by_source["video", same.get(check.identity, check.identity)].append((split, number, start, end))
            if video_id:
                by_source["id", video_id].append((split, number, start, end))
            # One caption alone may fit two videos; the same set of several is no chance.
            if len(meant := frozenset(map(_plain, texts or ()))) > 1:
                by_captions[meant].append((split, number))

    leaks: dict[tuple[str, int], tuple[str, str]] = {}  # of each clip the worst
    for clips in by_source.values():
        if len({split for split, *_ in clips}) > 1:
            for split, number, start, end in clips:
                others = [other for other in clips if other[0] != split]
                overlapping = [other for other in others if spans_overlap(start, end, *other[2:])]
                kind = "in two splits" if overlapping else "source in two splits"
                if leaks.get((split, number), ("",))[0] != "in two splits":
                    leaks[split, number] = kind, _other(splits, *(overlapping or others)[0][:2])
    for alike in by_captions.values():
        for split, number in alike:
            if other := next((each for each in alike if each[0] != split), None):
                leaks.setdefault((split, number), ("captions in two splits", _other(splits, *other)))
    for (split, number), (kind, reason) in sorted(leaks.items()):
        report.splits[split].add(kind, Problem(clip_name(splits[split][number]), number, reason))


_COMPARED = ("video_id", "start", "end", "captions")


def _other(splits: dict[str, datasets.Dataset], split: str, number: int) -> str:
    return f"{clip_name(splits[split][number])} of {split}"


# --- The picture ------------------------------------------------------------------------------------------------------

_HEIGHT, _MARGIN, _TEXT_WIDTH = 120, 8, 420


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame)
    picture.thumbnail((2 * _HEIGHT, _HEIGHT))
    return np.asarray(picture)


def _draw(path: Path, splits: dict[str, datasets.Dataset], checks: dict[str, dict[int, _Check]]) -> None:
    """A row for each of a few clips of each split: its frames, its name and its captions."""
    path.unlink(missing_ok=True)
    rows = []
    for split, found in checks.items():
        seen = [(split, number, check.frames) for number, check in sorted(found.items()) if check.frames is not None]
        rows += [seen[place] for place in _spread(len(seen), PICTURED)]
    if not rows:
        return
    widest = max(len(frames) * (frames.shape[2] + _MARGIN) for _, _, frames in rows)
    step = _HEIGHT + _MARGIN
    picture = Image.new("RGB", (widest + 2 * _MARGIN + _TEXT_WIDTH, step * len(rows) + _MARGIN), "white")
    # Pillow's own font knows English letters alone.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    draw = ImageDraw.Draw(picture)
    for row, (split, number, frames) in enumerate(rows):
        top = _MARGIN + row * step
        for column, frame in enumerate(frames):
            picture.paste(Image.fromarray(frame), (_MARGIN + column * (frames.shape[2] + _MARGIN), top))
        clip = splits[split][number]
        lines = [f"{split}  {clip_name(clip)}"]
        lines += [line for text in clip["captions"] for line in textwrap.wrap(f"- {text}", 62)]
        if len(lines) > 7:
            lines = [*lines[:6], f"... {len(clip['captions'])} captions"]
        draw.multiline_text((widest + 2 * _MARGIN, top), "\n".join(lines), fill="black", font=font)
    picture.save(path)
