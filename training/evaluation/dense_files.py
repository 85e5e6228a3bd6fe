"""Captions of parts of videos in files: the JSON of ActivityNet Captions, our rows with `start` and `end`, datasets.

A video is called as in the JSON; in rows, as its file without folder and suffix.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from swinbert.captioning.writers import video_id
from swinbert.training.data.folders import name_of_file, read_rows
from swinbert.training.data.rows import clean_row
from swinbert.training.data.sources import load_clips
from swinbert.training.evaluation.caption_files import existing_file
from swinbert.training.metrics.dense import Event
from swinbert.training.prepare.annotations import spans_and_sentences
from swinbert.training.prepare.documents import Node, read_text
from swinbert.utils.text import first_names

_Row = tuple[str, dict[str, Any]]  # its place in the file, and its columns
_Events = dict[str, list[Event]]  # video -> its events


def read_dense_predictions(file: str | Path) -> dict[str, list[Event]]:
    """
    Video -> its predicted events, of `{"results": {video: [{"sentence", "timestamp": [start, end]}]}}`, or of JSON
    lines or CSV with `path`, `start`, `end` and `caption`, as `swinbert caption` writes them. A row without a caption
    is no event, but its video counts as one with predictions.

    Raises:
        AnnotationError, ValueError: what was expected, what was found, and where.
        FileNotFoundError, IsADirectoryError: no such file.
    """
    file = existing_file(file, "predictions")
    if _has_rows(file):
        annotators = _of_rows(_rows(file, None), str(file), are_predictions=True)
        if len(annotators) > 1:
            raise ValueError(f"{file}: expected one caption for each row, found several: keep one.")
        found = annotators.get(str(file), {})
    else:
        found = {video: _predicted(events) for video, events in Node.read(file)["results"].items()}
    if not any(found.values()):
        raise ValueError(f"{file}: expected predictions, found none.")
    return found


def read_dense_references(sources: Sequence[str | Path], split: str | None = None) -> dict[str, dict[str, list[Event]]]:
    """
    Annotator -> video -> its events, of files `{video: {"timestamps": [[start, end]], "sentences": [...]}}`, one for
    each annotator; or of the rows of a dataset, of JSON lines or of CSV, with `start`, `end` and captions. The rows of
    several annotators name them in a column `annotator`; where rows have several captions, the first captions are of
    one annotator, the second captions of another.

    References that end before they start, as some of ActivityNet's do, stay, although nothing can match them; a warning
    counts them.

    Args:
        sources: files, and folders or names of datasets.
        split: take only the rows of this split, where rows name theirs.

    Raises:
        AnnotationError, ValueError: what was expected, what was found, and where.
        FileNotFoundError: no such file.
    """
    annotators: dict[str, _Events] = {}
    contents: dict[str, str] = {}
    for source in map(str, sources):
        file = Path(source).expanduser()
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest in contents:
                raise ValueError(f"{source} is the same as {contents[digest]}: name one file for each annotator.")
            contents[digest] = source
        if file.is_file() and not _has_rows(file):
            found = {source: {video: _referred(entry) for video, entry in Node.read(file).items()}}
        else:
            rows = _rows(file, split) if file.is_file() else _rows_of_dataset(source, split)
            found = _of_rows(rows, source, are_predictions=False)
        if not any(found.values()):
            raise ValueError(f"{source}: expected references, found none.")
        if repeated := found.keys() & annotators.keys():
            raise ValueError(f"{source}: expected annotators of its own, found {repeated.pop()!r} of another file.")
        _warn_of_reversed(source, found)
        annotators |= found
    return annotators


# --- The JSON of ActivityNet Captions ---------------------------------------------------------------------------------


def _predicted(events: Node) -> list[Event]:
    return [Event(*_span(event["timestamp"], True), event["sentence"].string()) for event in events.list()]


def _referred(entry: Node) -> list[Event]:
    events = [Event(*_span(span, False), sentence) for span, sentence in spans_and_sentences(entry)]
    return events or entry.fail("an object with a sentence")


def _span(node: Node, is_prediction: bool) -> tuple[float, float]:
    start, end = node.span()
    if fault := _fault(start, end, is_prediction):
        node.fail(fault)
    return start, end


def _fault(start: float, end: float, is_prediction: bool) -> str | None:
    """What a span should be, if it is something else."""
    if not (0 <= start < math.inf and math.isfinite(end)):
        return "start and end in seconds, 0 or more"
    return "a start that is not after the end" if is_prediction and end < start else None


def _warn_of_reversed(source: str, annotators: dict[str, _Events]) -> None:
    names = [
        video
        for videos in annotators.values()
        for video, events in videos.items()
        for event in events
        if event.end < event.start
    ]
    if names:
        warnings.warn(
            f"{source}: {len(names)} references end before they start, so nothing can match them:"
            f" {first_names(list(dict.fromkeys(names)))}.",
            stacklevel=3,
        )


# --- Rows -------------------------------------------------------------------------------------------------------------


def _has_rows(file: Path) -> bool:
    """Whether a file has rows; otherwise it is one JSON document."""
    if file.suffix in (".csv", ".parquet"):
        return True
    try:
        row = json.loads(read_text(file).strip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and any(isinstance(row.get(name), str) for name in ("path", "file_name", "video"))


def _rows(file: Path, split: str | None) -> list[_Row]:
    rows: list[_Row] = []
    for place, row in read_rows(file):
        if isinstance(row, Exception):
            raise ValueError(f"{file}, {place}: {row}.") from row
        rows.append((place, row))
    splits = dict.fromkeys(str(row["split"]) for _, row in rows if row.get("split") is not None)
    if split is None or not splits:
        return rows
    if split not in splits:
        raise ValueError(f"{file}: expected rows of split {split!r}, found {', '.join(splits)}.")
    return [(place, row) for place, row in rows if row.get("split") == split]


def _rows_of_dataset(dataset: str, split: str | None) -> list[_Row]:
    clips = load_clips(dataset, split or "test")
    columns = {"file_name", "start", "end", "captions", "annotator"}
    chosen = clips.select_columns([name for name in clips.column_names if name in columns])
    return [(f"clip {number}", row) for number, row in enumerate(chosen)]


def _of_rows(rows: Iterable[_Row], source: str, are_predictions: bool) -> dict[str, _Events]:
    """Annotator -> video -> events. An annotator without a name is called like the source."""
    annotators: dict[str, _Events] = {}
    paths: dict[str, str] = {}
    for place, row in rows:
        try:
            row = clean_row(row)
            path = str(row[name_of_file(row)])
            video = video_id(path)
            annotator = str((not are_predictions and row.get("annotator")) or source)
            if (former := paths.setdefault(video, path)) != path:
                raise ValueError(f"expected videos of different names, found {path} and {former}")
            if not row["captions"] and not are_predictions:
                raise ValueError(f"expected a caption, found none for {path}")
            annotators.setdefault(annotator, {}).setdefault(video, [])
            for number, caption in enumerate(row["captions"]):
                name = f"{annotator}, caption {number + 1}" if number else annotator
                event = _event(row, caption, are_predictions)
                annotators.setdefault(name, {}).setdefault(video, []).append(event)
        except ValueError as error:
            raise ValueError(f"{source}, {place}: {error}.") from error
    return annotators


def _event(row: dict[str, Any], caption: str, is_prediction: bool) -> Event:
    start = row.get("start") or 0.0
    end = row.get("duration") if row.get("end") is None else row["end"]
    if not isinstance(end, (int, float)):
        raise ValueError("expected `end` in seconds, found none")
    if fault := _fault(start, end, is_prediction):
        raise ValueError(f"expected {fault}, found {start} and {end}")
    return Event(start, end, caption)


__all__ = ["read_dense_predictions", "read_dense_references"]
