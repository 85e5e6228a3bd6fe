"""`swinbert doctor`: checks a dataset before training.

    swinbert doctor DATASET --output DIR        # DIR/doctor.json and DIR/doctor.png

Decodes some frames of every clip, in several processes, and checks captions and duplicates, within splits and between
them.
"""

import hashlib
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
from swinbert.processing.clip_reading_swinbert import available_cores
from swinbert.training.data.sources import clip_name, clip_source, load_splits, no_split
from swinbert.training.splits import spans_overlap
from swinbert.training.tokenization import build_tokenizer
from swinbert.utils.files import duplicate_files, write_json
from swinbert.utils.progress import progress

# Problems that stop training or evaluation.
BREAKING = {
    "unreadable": "videos that cannot be read",
    "without captions": "clips without a caption",
    "empty caption": "clips with an empty caption",
}
# Problems that make the model worse, or its scores too good.
DOUBTFUL = {
    "damaged": "clips with frames that cannot be decoded",
    "cut off": "damaged or truncated files",
    "blank": "clips of one colour",
    "past the end": "clips that end after their video",
    "repeated caption": "clips with repeated captions",
    "long caption": "clips with captions that will be truncated",
    "unknown words": "clips with words that the tokenizer does not know",
    "in two splits": "clips that are also in another split",
    "source in two splits": "clips whose video has other parts in another split",
    "captions in two splits": "clips with the same captions as a clip of another split",
}
NUM_DRAWN = 4  # clips of each split in the image
_NUM_LISTED = 5  # problems of each kind in the text; the JSON file has all
_END_TOLERANCE = 0.5  # seconds; annotations are often rounded to whole seconds


@dataclass
class Problem:
    """
    Args:
        clip: name of the clip.
        index: index of the clip in the split.
        reason: details.
        kind: for an unreadable video, the kind of `VideoDecodeError`, or `"crashed"`.
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
        clips, checked: number of clips, and of clips that were decoded.
        captions, distinct_captions: number of captions, and of different ones.
        caption_lengths: length of a caption in tokens, with `[CLS]` and `[SEP]` -> number of captions.
        problems: key of `BREAKING` or `DOUBTFUL` -> the clips with this problem.
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
    """The results for all splits; `str(report)` is a text to print, `as_dict` a dictionary for JSON."""

    dataset: str
    splits: dict[str, SplitReport]
    tokenizer: str
    max_caption_length: int
    complete: bool = True  # false if checking was interrupted
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
                    lines += [f"    {problem}" for problem in found[:_NUM_LISTED]]
                    lines += [f"    and {len(found) - _NUM_LISTED} more"] if len(found) > _NUM_LISTED else []
            lines += [f"  {line}" for line in _histogram(split.caption_lengths, self.max_caption_length)]
        lines += self.notes
        if not self.complete:
            lines.append("Interrupted: some clips were not decoded.")
        return "\n".join(lines)


@dataclass
class _Check:
    """The result of decoding a clip."""

    clip: str
    error: tuple[str, str] | None = None  # kind, reason
    cut_off: str = ""
    missing: int = 0
    sampled: int = 0
    is_blank: bool = False
    seconds: float | None = None
    identity: str | None = None  # of the file, or of the bytes
    frames: np.ndarray | None = None  # uint8 (T, H, W, C), thumbnails; only of clips that may be drawn


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
        dataset: see `load_clips`.
        splits: splits to check; by default all.
        clips_per_split: number of clips to decode of each split, evenly spaced; by default all. Captions and names of
            all clips are checked in any case.
        num_frames: number of frames to decode of each clip, evenly spaced.
        tokenizer: measures captions; by default a tokenizer of the words of the training captions, as `swinbert train`
            makes it for a new model.
        max_caption_length: maximum length of a caption in tokens, with `[CLS]` and `[SEP]`.
        workers: number of processes; by default one for each available core. 0 decodes in this process.
        output: folder for `doctor.json` and `doctor.png`, created if needed.

    Returns:
        The report; `report.breaks_training` says whether training would fail. After Ctrl-C it covers what was decoded
        until then, and `complete` is false.

    Raises:
        FileNotFoundError, ValueError: the dataset cannot be read, or has no such split.
    """
    found = load_splits(dataset)
    for name in splits or ():
        if name not in found:
            raise no_split(dataset, name, found)
    chosen = {name: clips for name, clips in found.items() if not splits or name in splits}
    folder = None if output is None else Path(output).expanduser()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # now rather than after the work

    training = found.get("train", next(iter(found.values())))["captions"]
    measured_by = getattr(tokenizer, "name_or_path", "") or "given" if tokenizer else "words of the training captions"
    tokenizer = tokenizer or build_tokenizer(caption for captions in training for caption in captions)
    reports = {name: SplitReport(len(clips)) for name, clips in chosen.items()}
    report = Report(str(dataset), reports, measured_by, max_caption_length)

    checks = _decode(chosen, clips_per_split, num_frames, workers, report)
    for name, clips in chosen.items():
        _read_captions(report, name, clips, tokenizer)
        _judge_videos(reports[name], clips, checks[name])
    _find_leaks(report, chosen, checks)
    if folder:
        write_json(folder / "doctor.json", report.as_dict(), indent=1)
        _draw_clips(folder / "doctor.png", chosen, checks)
    return report


# --- Videos -----------------------------------------------------------------------------------------------------------


def _decode(
    splits: dict[str, datasets.Dataset],
    clips_per_split: int | None,
    num_frames: int,
    workers: int | None,
    report: Report,
) -> dict[str, dict[int, _Check]]:
    """Split -> index of a clip -> its check. Ctrl-C ends decoding, and sets `report.complete` to false."""
    tasks = []
    for name, clips in splits.items():
        numbers = _evenly_spaced(len(clips), clips_per_split)
        # More than will be drawn: some may be unreadable.
        candidates = {numbers[place] for place in _evenly_spaced(len(numbers), 3 * NUM_DRAWN)}
        tasks += [(name, number, num_frames, number in candidates) for number in numbers]
    checks: dict[str, dict[int, _Check]] = {name: {} for name in splits}
    try:
        for (name, number, *_), check in progress(_run(splits, tasks, workers), "Decoding clips", len(tasks)):
            checks[name][number] = check
    except KeyboardInterrupt:
        report.complete = False
    for name, found in checks.items():
        report.splits[name].checked = len(found)
    return checks


def _evenly_spaced(length: int, count: int | None) -> list[int]:
    """`count` evenly spaced integers below `length`; all of them without a count."""
    count = length if count is None else min(count, length)
    return [number * length // count for number in range(count)]


# Split, index of the clip, number of frames, whether to keep thumbnails.
_Task = tuple[str, int, int, bool]


def _run(
    splits: dict[str, datasets.Dataset], tasks: list[_Task], workers: int | None
) -> Iterator[tuple[_Task, _Check]]:
    """Checks of all tasks, in the order in which they finish. A clip that kills its process is reported as such."""
    if workers is None:
        workers = min(len(available_cores()), len(tasks))
    if not workers:
        _set_splits(splits)
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
                # One of the running tasks killed its process, and with it the pool: each is repeated on its own.
                suspects = [*killed, *running.values()]
                running.clear()
                pool.shutdown()
                for task in suspects:
                    yield task, _check_in_own_process(splits, task)
                pool = _pool(splits, workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_in_own_process(splits: dict[str, datasets.Dataset], task: _Task) -> _Check:
    with _pool(splits, 1) as pool:
        try:
            return pool.submit(_check, *task).result()
        except BrokenProcessPool:
            reason = "decoding kills the process (out of memory, or a bug in the decoder)."
            return _Check(clip_name(splits[task[0]][task[1]]), error=("crashed", reason))


def _pool(splits: dict[str, datasets.Dataset], workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context(), initializer=_set_splits, initargs=(splits, True)
    )


_splits: dict[str, datasets.Dataset] = {}


def _set_splits(splits: dict[str, datasets.Dataset], is_worker: bool = False) -> None:
    """Makes the clips known to this process; tasks refer to them by split and index."""
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
        with warnings.catch_warnings(), _decoder_messages() as messages:
            warnings.simplefilter("ignore")  # about missing frames, which are counted
            frames, about = decode_video(source, num_frames=num_frames, start=clip.get("start"), end=clip.get("end"))
    except VideoDecodeError as error:
        check.error = error.kind, error.message
        return check
    except OSError as error:  # the tar shard of the clip
        check.error = "not_readable", f"{error}."
        return check
    check.cut_off = "; ".join(messages)
    check.missing, check.sampled, check.seconds = about.missing_frames, len(frames), about.duration
    check.is_blank = bool((np.ptp(frames, axis=(0, 1, 2)) == 0).all())
    if keep:
        check.frames = np.stack([_thumbnail(frame) for frame in frames])
    return check


@contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Collects log messages of the decoder (about damaged and truncated files), without the name of the clip."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage().partition(": ")[2] or record.getMessage())

    logger, listener = logging.getLogger(decode_video.__module__), Listener()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield messages
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


def _identity(source: Any) -> str:
    """A hash of the bytes of a video, or the path of its file."""
    if isinstance(source, dict):
        return hashlib.blake2b(source["bytes"], digest_size=16).hexdigest()
    return os.path.realpath(source)


def _judge_videos(report: SplitReport, clips: datasets.Dataset, checks: dict[int, _Check]) -> None:
    ends: list[Any] = list(clips["end"]) if "end" in clips.column_names else [None] * len(clips)
    for number, check in sorted(checks.items()):

        def add(kind: str, reason: str, error: str | None = None, number=number, check=check) -> None:
            report.add(kind, Problem(check.clip, number, reason, error))

        if check.error:
            add("unreadable", f"{check.error[0]}: {check.error[1]}", check.error[0])
            continue
        if check.missing:
            add("damaged", f"{check.missing} of {check.sampled} sampled frames")
        if check.cut_off:
            add("cut off", check.cut_off)
        if check.is_blank:
            add("blank", "")
        if ends[number] is not None and check.seconds and ends[number] > check.seconds + _END_TOLERANCE:
            add("past the end", f"{ends[number]:g} of {check.seconds:.1f} s")


# --- Captions ---------------------------------------------------------------------------------------------------------


def _read_captions(report: Report, split: str, clips: datasets.Dataset, tokenizer: Any) -> None:
    found, captions = report.splits[split], clips["captions"]
    if not any(captions) and split not in ("train", "validation"):
        report.notes.append(f"{split} has no captions: models can caption it, but not be scored on it.")
        return
    flat = [caption for texts in captions for caption in texts]
    ids = tokenizer(flat)["input_ids"] if flat else []
    found.captions, found.distinct_captions = len(flat), len(set(map(_normalised, flat)))
    found.caption_lengths = dict(sorted(Counter(map(len, ids)).items()))
    tokens = iter(ids)
    for number, texts in enumerate(captions):
        own_tokens = [next(tokens) for _ in texts]
        problems = {}
        if not texts:
            problems["without captions"] = ""
        if empty := sum(not text.strip() for text in texts):
            problems["empty caption"] = f"{empty} of {len(texts)}"
        if repeated := len(texts) - len(set(map(_normalised, texts))):
            problems["repeated caption"] = f"{repeated} of {len(texts)}"
        if longest := max((len(each) for each in own_tokens if len(each) > report.max_caption_length), default=0):
            problems["long caption"] = f"{longest} tokens"
        unknown = [text for text, each in zip(texts, own_tokens, strict=True) if tokenizer.unk_token_id in each]
        if unknown:
            problems["unknown words"] = textwrap.shorten(repr(unknown[0]), 60)
        if problems:
            name = clip_name(clips[number])
            for kind, reason in problems.items():
                found.add(kind, Problem(name, number, reason))


def _normalised(caption: str) -> str:
    """Ignores upper case, space and final full stops."""
    return " ".join(caption.lower().split()).rstrip(". ")


def _histogram(lengths: dict[int, int], longest: int, width: int = 40) -> Iterator[str]:
    """Lines of text: length of captions, number of captions, bar."""
    if not lengths:
        return
    low, high = min(lengths), max(lengths)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, high) if high // step - low // step < 10)
    counts = Counter({place: 0 for place in range(low // step, high // step + 1)})
    for length, count in lengths.items():
        counts[length // step] += count
    yield f"tokens of a caption (at most {longest} are used)"
    for place, count in sorted(counts.items()):
        first, last = place * step, (place + 1) * step - 1
        span = f"{first}" if first == last else f"{first}-{last}"
        yield f"{span:>9} {count:7}  {'#' * -(-width * count // max(counts.values()))}".rstrip()


# --- Between splits ---------------------------------------------------------------------------------------------------


def _find_leaks(report: Report, splits: dict[str, datasets.Dataset], checks: dict[str, dict[int, _Check]]) -> None:
    """Finds clips of one split that are in another: by the contents of their files, by their ids, by their captions."""
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
            # Two videos may share a single caption by chance, but not a set of several.
            if len(caption_set := frozenset(map(_normalised, texts or ()))) > 1:
                by_captions[caption_set].append((split, number))

    leaks: dict[tuple[str, int], tuple[str, str]] = {}  # the worst of each clip
    for clips in by_source.values():
        if len({split for split, *_ in clips}) > 1:
            for split, number, start, end in clips:
                elsewhere = [other for other in clips if other[0] != split]
                overlapping = [other for other in elsewhere if spans_overlap(start, end, *other[2:])]
                kind = "in two splits" if overlapping else "source in two splits"
                if leaks.get((split, number), ("",))[0] != "in two splits":
                    leaks[split, number] = kind, _described(splits, *(overlapping or elsewhere)[0][:2])
    for alike in by_captions.values():
        for split, number in alike:
            if other := next((each for each in alike if each[0] != split), None):
                leaks.setdefault((split, number), ("captions in two splits", _described(splits, *other)))
    for (split, number), (kind, reason) in sorted(leaks.items()):
        report.splits[split].add(kind, Problem(clip_name(splits[split][number]), number, reason))


_COMPARED = ("video_id", "start", "end", "captions")


def _described(splits: dict[str, datasets.Dataset], split: str, number: int) -> str:
    return f"{clip_name(splits[split][number])} of {split}"


# --- The image --------------------------------------------------------------------------------------------------------

_HEIGHT, _MARGIN, _TEXT_WIDTH = 120, 8, 420


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame)
    picture.thumbnail((2 * _HEIGHT, _HEIGHT))
    return np.asarray(picture)


def _draw_clips(path: Path, splits: dict[str, datasets.Dataset], checks: dict[str, dict[int, _Check]]) -> None:
    """Draws some clips of each split, one in each row: frames, name and captions."""
    path.unlink(missing_ok=True)
    rows = []
    for split, found in checks.items():
        drawable = [
            (split, number, check.frames) for number, check in sorted(found.items()) if check.frames is not None
        ]
        rows += [drawable[place] for place in _evenly_spaced(len(drawable), NUM_DRAWN)]
    if not rows:
        return
    widest = max(len(frames) * (frames.shape[2] + _MARGIN) for _, _, frames in rows)
    step = _HEIGHT + _MARGIN
    picture = Image.new("RGB", (widest + 2 * _MARGIN + _TEXT_WIDTH, step * len(rows) + _MARGIN), "white")
    # Pillow's own font has only English letters.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    draw = ImageDraw.Draw(picture)
    for row, (split, number, frames) in enumerate(rows):
        top = _MARGIN + row * step
        for column, frame in enumerate(frames):
            picture.paste(Image.fromarray(frame), (_MARGIN + column * (frames.shape[2] + _MARGIN), top))
        clip = splits[split][number]
        lines = [f"{split}  {clip_name(clip)}"]
        lines += [line for text in clip["captions"] for line in textwrap.wrap(f"- {text}", 62)]
        # Pillow's text layout fails at some control characters.
        lines = ["".join(letter if letter.isprintable() else " " for letter in line) for line in lines]
        if len(lines) > 7:
            lines = [*lines[:6], f"... {len(clip['captions'])} captions"]
        draw.multiline_text((widest + 2 * _MARGIN, top), "\n".join(lines), fill="black", font=font)
    picture.save(path)
