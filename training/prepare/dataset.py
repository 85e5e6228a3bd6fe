"""Annotations and videos, put together, checked and written."""

import json
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from swinbert.training.prepare.annotations import (
    SPLITS,
    AnnotationFile,
    Annotations,
    Clip,
    read_msrvtt,
    read_msvd,
    read_tvc,
    read_vatex,
    read_youcook2,
)
from swinbert.training.prepare.report import IncompleteDataset, Report, SplitReport
from swinbert.training.prepare.tsv import BrokenRow, read_tsv
from swinbert.training.prepare.videos import VideoFolder, check_videos, progress, same_content, write_frames

READERS: dict[str, Callable[[Sequence[AnnotationFile]], Annotations]] = {
    "msvd": read_msvd,
    "msrvtt": read_msrvtt,
    "vatex": read_vatex,
    "youcook2": read_youcook2,
    "tvc": read_tvc,
    "tsv": read_tsv,
}
# SwinBERT reads 50 tokens, [CLS] and [SEP] among them; a word is one token or more.
MAX_CAPTION_WORDS = 48


@dataclass
class _Item:
    """A clip and the file, relative to the folder of videos, that shows it from `start` to `end`; of decoded frames
    there is none yet."""

    clip: Clip
    file: PurePosixPath | None = None
    start: float | None = None
    end: float | None = None


def prepare(
    benchmark: str,
    annotations: Iterable[str | Path],
    videos: str | Path | None = None,
    output: str | Path | None = None,
    *,
    allow_missing: bool = False,
    check: bool = True,
) -> Report:
    """
    Writes `metadata.jsonl`, a line for each clip: `file_name`, `video_id`, `split`, `captions`, and `start` and `end`
    in seconds where the clip is a part of its file. A clip of a test set without captions has none.

    Args:
        benchmark: one of `READERS`.
        annotations: the annotation files as published. Where a file is of one split, its name tells which (train, val,
            test), or the argument does: `SPLIT=FILE`.
        videos: folder of the videos, found in it or in a folder in it by their ids, whatever the suffix. Not needed for
            TSV files of decoded frames.
        output: folder that does not exist yet, or is empty. It gets links to the videos, and decoded frames as
            Matroska files of the same JPEGs (sample them as the original does with `sampling="round"`). Without it,
            `metadata.jsonl` is written into `videos`.
        allow_missing: write the data set without the clips that cannot be part of it.
        check: open each video and look for a video stream, and for videos with equal content.

    Returns:
        what is missing, broken, repeated or in two splits, for each split; `str` of it is for people.

    Raises:
        AnnotationError: an annotation file is not as its format says; with file, line, what was expected and found.
        IncompleteDataset: clips would have to be left out; nothing was written. `report` has the whole report.
        FileNotFoundError, FileExistsError, NotADirectoryError: of the arguments.
        ValueError: no such benchmark; a file whose split is not clear; no clip at all.
    """
    if benchmark not in READERS:
        raise ValueError(f"Expected a benchmark of {', '.join(READERS)}, found {benchmark!r}.")
    files = [AnnotationFile.parse(argument) for argument in annotations]
    if not files:
        raise ValueError(f"{benchmark}: expected at least one annotation file, found none.")
    folder = None if videos is None else Path(videos).expanduser()
    if folder and not folder.is_dir():
        raise NotADirectoryError(f"There is no folder of videos {folder}.")
    target = _checked_target(folder, output)

    found = READERS[benchmark](files)
    report = Report({}, found.notes)
    items = _unrepeated(found.clips, report)
    items = _with_captions(items, report)
    items = _with_videos(items, folder, report)
    if folder and check:
        items = _with_readable_videos(items, folder, report)
    _look_for_leaks(items, folder, report, check)
    _refuse(report, items, allow_missing)
    if target == folder:
        if decoded := [item.clip.video_id for item in items if not item.file]:
            raise ValueError(
                f"{decoded[0]} consists of decoded frames: name an output folder, which gets them as videos."
            )
        _write_metadata(folder, [(item, str(item.file)) for item in items], report)
    else:
        _write_folder(target, folder, items, report, allow_missing)
    return report


def _checked_target(folder: Path | None, output: str | Path | None) -> Path:
    """The folder to write to; nothing that is in it will be replaced."""
    target = folder if output is None else Path(output).expanduser()
    if target is None:
        raise ValueError("Expected a folder of videos, or an output folder for decoded frames; found neither.")
    if folder and target.resolve() == folder.resolve():
        if (folder / "metadata.jsonl").exists():
            raise FileExistsError(f"{folder} has a metadata.jsonl: delete it, or name an output folder.")
        return folder
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty: name another output folder, or empty this one.")
    return target.resolve()


# --- From annotations to what can be written, step by step ------------------------------------------------------------


def _unrepeated(clips: list[Clip], report: Report) -> list[Clip]:
    """One clip for each id of a split; those that repeat it give it the captions that it lacks."""
    found: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        split = report.splits.setdefault(clip.split, SplitReport())
        split.annotated += 1
        first = found.setdefault((clip.split, clip.video_id), clip)
        if first is clip:
            continue
        if (first.whole, first.start, first.end) != (clip.whole, clip.start, clip.end):
            split.problems["ambiguous id"].append(clip.video_id)
            continue
        first.captions += [caption for caption in clip.captions if caption not in first.captions]
        split.problems["annotated twice"].append(clip.video_id)
    return list(found.values())


def _with_captions(clips: list[Clip], report: Report) -> list[Clip]:
    """Clips with captions; a test split that has none at all is one whose captions are kept secret."""
    captioned = {clip.split for clip in clips if clip.captions}
    secret = {clip.split for clip in clips} - captioned - {"train", "validation"}
    report.notes += [f"{split} has no captions: it can be captioned, not scored." for split in sorted(secret)]
    kept = []
    for clip in clips:
        problems = report.splits[clip.split].problems
        captions = [caption.strip() for caption in clip.captions]
        if num_empty := captions.count(""):
            problems["empty captions"].append(f"{clip.video_id} ({num_empty})")
        captions = [caption for caption in captions if caption]
        if num_long := sum(len(caption.split()) > MAX_CAPTION_WORDS for caption in captions):
            problems["long captions"].append(f"{clip.video_id} ({num_long})")
        if num_repeated := len(captions) - len(set(captions)):
            problems["repeated captions"].append(f"{clip.video_id} ({num_repeated})")
        clip.captions = captions
        if captions or clip.split in secret:
            kept.append(clip)
        else:
            problems["without captions"].append(clip.video_id)
    return kept


def _with_videos(clips: list[Clip], folder: Path | None, report: Report) -> list[_Item]:
    """Clips whose video is there: by itself, or as a part of a longer one."""
    wanted = [name for clip in clips for name in (clip.cut, clip.whole) if name]
    if wanted and folder is None:
        raise ValueError(f"These annotations name videos, such as {wanted[0]}: name the folder where they are.")
    index = VideoFolder(folder, wanted) if folder else None
    items = []
    for clip in clips:
        problems = report.splits[clip.split].problems
        if clip.frames or index is None:
            items.append(_Item(clip))
            continue
        item = None
        if clip.cut and (files := index.find(clip.cut)):
            item = _Item(clip, files[0])
        elif clip.whole and (files := index.find(clip.whole)):
            item = _Item(clip, files[0], clip.start, clip.end)
        if item is None:
            problems["missing"].append(clip.video_id)
            continue
        if len(files) > 1:
            problems["several files"].append(f"{clip.video_id} ({', '.join(map(str, files))})")
        start, end = item.start or 0, item.end
        if not (index.folder / files[0]).stat().st_size:
            problems["empty"].append(clip.video_id)
        elif start < 0 or (end is not None and end <= start):
            problems["bad range"].append(f"{clip.video_id} ({start} to {end})")
        else:
            items.append(item)
    return items


def _with_readable_videos(items: list[_Item], folder: Path, report: Report) -> list[_Item]:
    """Clips whose video opens and is long enough."""
    checks = check_videos(list(dict.fromkeys(folder / item.file for item in items if item.file)))
    kept = []
    for item in items:
        found = checks[folder / item.file] if item.file else None
        name, problems = item.clip.video_id, report.splits[item.clip.split].problems
        if found and found.wrong:
            problems["unreadable"].append(f"{name} ({found.wrong})")
        elif found and found.seconds and item.start and item.start >= found.seconds:
            problems["bad range"].append(f"{name} (from {item.start} s of {found.seconds:.1f} s)")
        else:
            kept.append(item)
    return kept


def _look_for_leaks(items: list[_Item], folder: Path | None, report: Report, check: bool) -> None:
    """Clips, and other parts of their videos, that are in another split too."""
    files = {folder / item.file: item for item in items if folder and item.file}
    repeats = same_content(files) if check else {}
    for file, earlier in repeats.items():
        clip = files[file].clip
        text = f"{clip.video_id} (as {files[earlier].clip.video_id} of {files[earlier].clip.split})"
        report.splits[clip.split].problems["same content"].append(text)
    by_source: dict[Any, list[tuple[Clip, float | None, float | None]]] = defaultdict(list)
    for item in items:
        clip = item.clip
        by_source[clip.whole or clip.cut or clip.video_id].append((clip, clip.start, clip.end))
        if folder and item.file:
            file = folder / item.file
            by_source[repeats.get(file, file)].append((clip, item.start, item.end))
    found: dict[str, dict[tuple[str, str], str]] = {"in two splits": {}, "source in two splits": {}}
    for parts in by_source.values():
        if len({clip.split for clip, _, _ in parts}) == 1:
            continue
        for clip, start, end in parts:
            others = [part for part in parts if part[0].split != clip.split]
            same = [other for other, first, last in others if _overlap(start, end, first, last)]
            kind = "in two splits" if same else "source in two splits"
            other = (same or [others[0][0]])[0]
            found[kind][clip.split, clip.video_id] = f"{clip.video_id} ({other.video_id} of {other.split})"
    for kind, clips in found.items():
        for (split, name), text in clips.items():
            if kind == "in two splits" or (split, name) not in found["in two splits"]:
                report.splits[split].problems[kind].append(text)


def _overlap(start: float | None, end: float | None, other_start: float | None, other_end: float | None) -> bool:
    ends = [math.inf if each is None else each for each in (end, other_end)]
    return max(start or 0, other_start or 0) < min(ends)


def _refuse(report: Report, items: list[_Item], allow_missing: bool) -> None:
    if report.num_left_out and not allow_missing:
        raise IncompleteDataset(report)
    if not items:
        raise ValueError(f"There is no clip to write.\n{report}")


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write_folder(target: Path, folder: Path | None, items: list[_Item], report: Report, allow_missing: bool) -> None:
    """Makes the whole folder beside `target` under another name and renames it: `target` is never half done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as place:
        made = Path(place, "dataset")
        made.mkdir()
        written: list[tuple[_Item, str]] = []
        num_frames: dict[str, dict[str, int]] = defaultdict(dict)
        for number, item in enumerate(progress(items, "Writing clips", len(items))):
            split, name = item.clip.split, item.clip.video_id
            if folder and item.file:
                file = PurePosixPath("videos") / item.file
                _link(made / file, folder.resolve() / item.file, target / file)
            elif item.clip.frames:
                file = PurePosixPath("clips", split, f"{number:06d}.mkv")
                try:
                    frames = item.clip.frames()
                except BrokenRow as error:
                    report.splits[split].problems["unreadable"].append(f"{name} ({error})")
                    continue
                (made / file).parent.mkdir(parents=True, exist_ok=True)
                write_frames(made / file, frames)
                num_frames[split][name] = len(frames)
            written.append((item, str(file)))
        for split, numbers in num_frames.items():
            usual = Counter(numbers.values()).most_common(1)[0][0]
            short = [f"{name} ({number} of {usual})" for name, number in numbers.items() if number < usual]
            report.splits[split].problems["short"] += short
        _refuse(report, [item for item, _ in written], allow_missing)
        _write_metadata(made, written, report)
        if target.exists():
            target.rmdir()
        made.rename(target)


def _link(link: Path, video: Path, later: Path) -> None:
    """Makes `link`, which will be `later`, lead to `video`; a relative one, so that both can move together."""
    if link.is_symlink():
        return  # another clip of the same video
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(video, later.parent))
    except (OSError, ValueError) as error:  # no right to make links; on another drive
        raise OSError(f"{later} cannot be a link ({error}): leave out the output folder.") from error


def _write_metadata(folder: Path, written: list[tuple[_Item, str]], report: Report) -> None:
    lines = []
    for item, file_name in sorted(written, key=lambda each: SPLITS.index(each[0].clip.split)):
        clip, split = item.clip, report.splits[item.clip.split]
        split.written += 1
        split.captions += len(clip.captions)
        line = {"file_name": file_name, "video_id": clip.video_id, "split": clip.split, "captions": clip.captions}
        span = {"start": item.start, "end": item.end}
        line.update({key: seconds for key, seconds in span.items() if seconds is not None})
        lines.append(json.dumps(line) + "\n")
    unfinished = folder / ".metadata.jsonl.unfinished"
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(folder / "metadata.jsonl")
