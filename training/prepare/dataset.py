"""Preparing a dataset: matching annotations with videos, checking both, and writing the folder."""

import json
import os
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
    read_activitynet,
    read_msrvtt,
    read_msvd,
    read_tvc,
    read_vatex,
    read_youcook2,
)
from swinbert.training.prepare.report import IncompleteDataset, Report, SplitReport
from swinbert.training.prepare.tsv import BrokenRow, read_tsv
from swinbert.training.prepare.videos import VideoFolder, check_videos, write_frames
from swinbert.training.splits import spans_overlap
from swinbert.utils.files import check_new_folder, duplicate_files, new_folder, write_atomically
from swinbert.utils.progress import progress

READERS: dict[str, Callable[[Sequence[AnnotationFile]], Annotations]] = {
    "msvd": read_msvd,
    "msrvtt": read_msrvtt,
    "vatex": read_vatex,
    "youcook2": read_youcook2,
    "tvc": read_tvc,
    "activitynet": read_activitynet,
    "tsv": read_tsv,
}
# SwinBERT reads 50 tokens, [CLS] and [SEP] included, and every word has at least one token.
MAX_CAPTION_WORDS = 48


@dataclass
class _Item:
    """
    A clip with its video.

    Args:
        clip: the annotated clip.
        file: the video, relative to the folder of videos; `None` for decoded frames, whose video is yet to be written.
        start, end: the part of the video that is the clip, in seconds; `None` stands for the video's own start or end.
    """

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
    untrimmed: bool = False,
) -> Report:
    """
    Writes `metadata.jsonl`, with one line for each clip: `file_name`, `video_id`, `split`, `captions`, `start` and
    `end` in seconds if the clip is a part of its file, and `annotator` if several people described the videos of a
    split. Clips of a test set without captions have no captions.

    Args:
        benchmark: a key of `READERS`.
        annotations: the annotation files as published. A file that holds a single split tells it by its name (train,
            val, test), or is given as `SPLIT=FILE`.
        videos: the folder that is searched for the videos, with its subfolders. Videos are found by their ids,
            whatever the suffix. Not needed for TSV files of decoded frames.
        output: a folder that does not exist yet, or is empty. It gets links to the videos, and decoded frames as
            Matroska files of the same JPEGs (sample them as the original does with `sampling="round"`). By default,
            `metadata.jsonl` is written to `videos`.
        allow_missing: write the dataset without the clips that have to be left out, instead of raising.
        check: open each video to look for a video stream, and search for videos with equal content.
        untrimmed: take each clip as a part of its whole video, and not from a file of its own.

    Returns:
        The problems of each split. `str()` of it is what `swinbert prepare` prints.

    Raises:
        AnnotationError: an annotation file does not have the expected format.
        IncompleteDataset: clips have to be left out, so nothing was written. `report` holds the report.
        FileNotFoundError, FileExistsError, NotADirectoryError: for the paths among the arguments.
        ValueError: unknown benchmark, unknown split of a file, no clip at all, or `untrimmed` for clips that are not
            parts of longer videos.
    """
    files, folder, target = _check_arguments(benchmark, annotations, videos, output)
    found = READERS[benchmark](files)
    if untrimmed:
        _leave_whole(benchmark, found.clips)
    report = Report({}, found.notes)
    clips = _with_captions(_merge_repeated(found.clips, report), report)
    items = _with_videos(clips, folder, report)
    if folder and check:
        items = _with_readable_videos(items, folder, report)
    _report_leaks(items, folder, report, check)
    _require_complete(report, len(items), allow_missing)
    if folder and target == folder:
        _write_beside_videos(folder, items, report)
    else:
        _write_folder(target, folder, items, report, allow_missing)
    return report


def _check_arguments(
    benchmark: str, annotations: Iterable[str | Path], videos: str | Path | None, output: str | Path | None
) -> tuple[list[AnnotationFile], Path | None, Path]:
    """The annotation files, the folder of videos, and the folder to write, in which nothing will be overwritten."""
    if benchmark not in READERS:
        raise ValueError(f"Expected a benchmark of {', '.join(READERS)}, found {benchmark!r}.")
    files = [AnnotationFile.parse(argument) for argument in annotations]
    if not files:
        raise ValueError(f"{benchmark}: expected at least one annotation file, found none.")
    folder = None if videos is None else Path(videos).expanduser()
    if folder and not folder.is_dir():
        raise NotADirectoryError(f"There is no folder of videos {folder}.")
    target = folder if output is None else Path(output).expanduser()
    if target is None:
        raise ValueError("Expected a folder of videos, or an output folder for decoded frames; found neither.")
    if folder and target.resolve() == folder.resolve():
        if (folder / "metadata.jsonl").exists():
            raise FileExistsError(f"{folder} has a metadata.jsonl: delete it, or name an output folder.")
        return files, folder, folder
    check_new_folder(target)
    return files, folder, target.resolve()


# --- From annotations to clips that can be written, step by step ------------------------------------------------------


def _leave_whole(benchmark: str, clips: list[Clip]) -> None:
    """Clips that are parts of whole videos, whether or not there are files of the parts."""
    if whole := [clip.video_id for clip in clips if clip.source is None]:
        raise ValueError(f"{benchmark} does not say of which video {whole[0]} is a part: leave out untrimmed.")
    for clip in clips:
        clip.clip_file = None


def _merge_repeated(clips: list[Clip], report: Report) -> list[Clip]:
    """One clip for each id of a split, with the captions of all that have this id."""
    found: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        split = report.splits.setdefault(clip.split, SplitReport())
        split.annotated += 1
        first = found.setdefault((clip.split, clip.video_id), clip)
        if first is clip:
            continue
        if (first.source, first.start, first.end) != (clip.source, clip.start, clip.end):
            split.problems["ambiguous id"].append(clip.video_id)
            continue
        first.captions += [caption for caption in clip.captions if caption not in first.captions]
        split.problems["annotated twice"].append(clip.video_id)
    return list(found.values())


def _with_captions(clips: list[Clip], report: Report) -> list[Clip]:
    """The clips with captions, and those of test splits without any caption, whose captions are not published."""
    captioned = {clip.split for clip in clips if clip.captions}
    unpublished = {clip.split for clip in clips} - captioned - {"train", "validation"}
    report.notes += [f"{split} has no captions: it can be captioned, not scored." for split in sorted(unpublished)]
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
        if captions or clip.split in unpublished:
            kept.append(clip)
        else:
            problems["without captions"].append(clip.video_id)
    return kept


def _with_videos(clips: list[Clip], folder: Path | None, report: Report) -> list[_Item]:
    """The clips whose video exists: as a file of its own, or as a part of a longer one."""
    names = [name for clip in clips for name in (clip.clip_file, clip.source) if name]
    if names and folder is None:
        raise ValueError(f"These annotations name videos, such as {names[0]}: name the folder that holds them.")
    index = VideoFolder(folder, names) if folder else None
    items = []
    for clip in clips:
        problems = report.splits[clip.split].problems
        if clip.frames or index is None:
            items.append(_Item(clip))
            continue
        if clip.clip_file and (files := index.find(clip.clip_file)):
            item = _Item(clip, files[0])
        elif clip.source and (files := index.find(clip.source)):
            item = _Item(clip, files[0], clip.start, clip.end)
        else:
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
    """The clips whose video can be opened and does not end before the clip starts."""
    checks = check_videos(list(dict.fromkeys(folder / item.file for item in items if item.file)))
    kept = []
    for item in items:
        found = checks[folder / item.file] if item.file else None
        name, problems = item.clip.video_id, report.splits[item.clip.split].problems
        if found and found.error:
            problems["unreadable"].append(f"{name} ({found.error})")
        elif found and found.seconds and item.start and item.start >= found.seconds:
            problems["bad range"].append(f"{name} (from {item.start} s of {found.seconds:.1f} s)")
        else:
            kept.append(item)
    return kept


_Part = tuple[Clip, float | None, float | None]  # a clip, and its start and end in a video


def _report_leaks(items: list[_Item], folder: Path | None, report: Report, check: bool) -> None:
    """Reports clips that are in several splits, or whose video has other parts in another split."""
    files = {folder / item.file: item for item in items if folder and item.file}
    duplicates = duplicate_files(files) if check else {}
    for file, earlier in duplicates.items():
        clip, first = files[file].clip, files[earlier].clip
        text = f"{clip.video_id} (as {first.video_id} of {first.split})"
        report.splits[clip.split].problems["same content"].append(text)
    by_source: dict[Any, list[_Part]] = defaultdict(list)
    for item in items:
        clip = item.clip
        by_source[clip.source or clip.clip_file or clip.video_id].append((clip, clip.start, clip.end))
        if folder and item.file:
            file = folder / item.file
            by_source[duplicates.get(file, file)].append((clip, item.start, item.end))
    leaks: dict[str, dict[tuple[str, str], str]] = {"in two splits": {}, "source in two splits": {}}
    for parts in by_source.values():
        for clip, start, end in parts:
            if in_other_splits := [part for part in parts if part[0].split != clip.split]:
                overlapping = [part for part in in_other_splits if spans_overlap(start, end, *part[1:])]
                kind = "in two splits" if overlapping else "source in two splits"
                other = (overlapping or in_other_splits)[0][0]
                leaks[kind][clip.split, clip.video_id] = f"{clip.video_id} ({other.video_id} of {other.split})"
    for kind, clips in leaks.items():
        for (split, name), text in clips.items():
            if kind == "in two splits" or (split, name) not in leaks["in two splits"]:
                report.splits[split].problems[kind].append(text)


def _require_complete(report: Report, num_clips: int, allow_missing: bool) -> None:
    """Raises `IncompleteDataset` for clips that were left out without permission, `ValueError` if no clip is left."""
    if report.num_left_out and not allow_missing:
        raise IncompleteDataset(report)
    if not num_clips:
        raise ValueError(f"There is no clip to write.\n{report}")


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write_beside_videos(folder: Path, items: list[_Item], report: Report) -> None:
    if decoded := [item.clip.video_id for item in items if not item.file]:
        raise ValueError(f"{decoded[0]} consists of decoded frames: name an output folder, which gets them as videos.")
    _write_metadata(folder, [(item, str(item.file)) for item in items], report)


def _write_folder(target: Path, folder: Path | None, items: list[_Item], report: Report, allow_missing: bool) -> None:
    """Writes links to videos, videos of decoded frames and the metadata, all or nothing."""
    with new_folder(target) as temporary:
        written: list[tuple[_Item, str]] = []
        num_frames: dict[str, dict[str, int]] = defaultdict(dict)
        for number, item in enumerate(progress(items, "Writing clips", len(items))):
            split, name = item.clip.split, item.clip.video_id
            if folder and item.file:
                file = PurePosixPath("videos") / item.file
                _link(temporary / file, folder.resolve() / item.file, target / file)
            elif item.clip.frames:
                file = PurePosixPath("clips", split, f"{number:06d}.mkv")
                try:
                    frames = item.clip.frames()
                except BrokenRow as error:
                    report.splits[split].problems["unreadable"].append(f"{name} ({error})")
                    continue
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                write_frames(temporary / file, frames)
                num_frames[split][name] = len(frames)
            written.append((item, str(file)))
        _report_short_clips(num_frames, report)
        _require_complete(report, len(written), allow_missing)
        _write_metadata(temporary, written, report)


def _report_short_clips(num_frames: dict[str, dict[str, int]], report: Report) -> None:
    """Reports clips of decoded frames that have fewer of them than most in their split."""
    for split, counts in num_frames.items():
        usual = Counter(counts.values()).most_common(1)[0][0]
        short = [f"{name} ({count} of {usual})" for name, count in counts.items() if count < usual]
        report.splits[split].problems["short"] += short


def _link(link: Path, video: Path, final: Path) -> None:
    """Makes a link to `video` that is relative to `final`, where `link` will be moved."""
    if link.is_symlink():
        return  # another clip of the same video
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(video, final.parent))
    except (OSError, ValueError) as error:  # no permission for links, or another drive
        raise OSError(f"{final} cannot be a link ({error}): leave out the output folder.") from error


def _write_metadata(folder: Path, written: list[tuple[_Item, str]], report: Report) -> None:
    lines = []
    for item, file_name in sorted(written, key=lambda each: SPLITS.index(each[0].clip.split)):
        clip, split = item.clip, report.splits[item.clip.split]
        split.written += 1
        split.captions += len(clip.captions)
        line: dict[str, Any] = {"file_name": file_name, "video_id": clip.video_id, "split": clip.split}
        line["captions"] = clip.captions
        about = {"start": item.start, "end": item.end, "annotator": clip.annotator}
        line |= {key: value for key, value in about.items() if value is not None}
        lines.append(json.dumps(line) + "\n")
    write_atomically(folder / "metadata.jsonl", "".join(lines))
