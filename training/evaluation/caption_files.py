"""Captions in files: our JSON lines, and the result and annotation files of the COCO tools.

A prediction is one caption of a clip, references are several. Ids are text: image 7 of a COCO file is clip "7".
"""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swinbert.processing.video_sources_swinbert import as_seconds
from swinbert.training.prepare.documents import AnnotationError, Node, read_text
from swinbert.utils.files import write_json
from swinbert.utils.text import first_names, is_json

# What may name a clip, the most telling first; `path` is that of `swinbert caption --format jsonl`.
_ID_KEYS = ("id", "video_id", "image_id", "file_name", "path")


def clip_ids(rows: Sequence[Mapping[str, Any]], where: str | Path) -> list[str]:
    """
    One id for each clip: the first of `id`, `video_id`, `image_id`, `file_name`, `path` that all clips have and no two
    share; else the file with the range that the clip cuts from it, such as `a.mp4#3.5-8.0`.

    Raises:
        ValueError: two clips are the same part of the same file, or nothing names them.
    """
    repeated: list[str] = []
    for key in (*_ID_KEYS, "range"):
        if key == "range":
            ids = [_file_and_range(row) for row in rows]
        else:
            ids = [row.get(key) for row in rows]
        if all(isinstance(each, (str, int)) and each != "" for each in ids):
            repeated = [name for name, count in Counter(map(str, ids)).items() if count > 1]
            if not repeated:
                return [str(each) for each in ids]
    if repeated:
        raise ValueError(f"{where}: expected clips that differ, found several times: {first_names(repeated)}.")
    raise ValueError(f"{where}: expected one of {', '.join(_ID_KEYS)} for each clip, to tell them apart; found none.")


def _file_and_range(row: Mapping[str, Any]) -> str | None:
    if not row.get("file_name"):
        return None
    ends = []
    for name in ("start", "end"):
        value = None if row.get(name) is None else float(row[name])
        seconds = as_seconds(row["file_name"], name, value)  # none for the NaN of a table
        ends.append("" if seconds is None else str(seconds))
    return f"{row['file_name']}#{'-'.join(ends)}"


def read_references(file: str | Path, split: str | None = None) -> dict[str, list[str]]:
    """
    Clip -> its captions, of a COCO annotation file, or of JSON lines with `captions` (as in `metadata.jsonl`) or
    `caption`, one or more lines to a clip.

    Args:
        split: take only lines of this split, where lines name theirs.

    Raises:
        AnnotationError, ValueError: what was expected, what was found, and where.
        FileNotFoundError, IsADirectoryError: no such file.
    """
    file = existing_file(file, "references")
    rows = _rows(file)
    splits = Counter(node.string() for row in rows if (node := row.get("split")))
    if split is not None and splits:
        if split not in splits:
            raise ValueError(f"{file}: expected captions of split {split!r}, found {dict(splits)}.")
        rows = [row for row in rows if row.value.get("split") == split]
    references: dict[str, list[str]] = {}
    if all(row.get("captions") for row in rows):
        for name, row in zip(clip_ids([row.value for row in rows], file), rows, strict=True):
            references[name] = [caption.string() for caption in row["captions"].list()]
    else:
        for row in rows:
            references.setdefault(_id(row), []).append(row["caption"].string())
    if empty := [name for name, captions in references.items() if not any(map(str.strip, captions))]:
        raise ValueError(f"{file}: expected a caption for each clip, found none for {first_names(empty)}.")
    return references


def read_predictions(file: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """
    Clip -> its caption, and clip -> why it has none, of a COCO result file, or of JSON lines with `caption`: those of
    `swinbert evaluate` and of `swinbert caption --format jsonl`, for two. A clip whose `caption` is null has none.

    Raises:
        AnnotationError, ValueError: what was expected, what was found, and where.
        FileNotFoundError, IsADirectoryError: no such file.
    """
    file = existing_file(file, "predictions")
    captions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for row in _rows(file):
        name, caption, error = _id(row), row.get("caption"), row.get("error")
        if name in captions or name in missing:
            row.fail(f"one prediction for each clip, not a second one for {name!r},")
        if caption is not None:
            captions[name] = caption.string()
        elif error is not None:
            missing[name] = error.string()
        elif "caption" in row.value:
            missing[name] = "its caption is null"
        else:
            row.fail("an object with `caption`")
    return captions, missing


def existing_file(file: str | Path, what: str) -> Path:
    """The path of a file of captions; raises `FileNotFoundError` or `IsADirectoryError` if it is none."""
    file = Path(file).expanduser()
    if file.is_dir():
        raise IsADirectoryError(f"Expected a file of {what}, found the folder {file}: name a file in it.")
    if not file.exists():
        raise FileNotFoundError(f"Expected a file of {what}, found no {file}.")
    return file


def _rows(file: Path) -> list[Node]:
    """The objects with captions: the lines, the entries of a COCO result file, the `annotations` of a COCO file."""
    text = read_text(file)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise AnnotationError(file, 1, "captions", "an empty file")
    if not _is_line_of_its_own(lines[0][1]):
        document = Node.parse(file, text)
        rows = (document if isinstance(document.value, list) else document["annotations"]).list()
    else:
        if not text.endswith("\n") and not is_json(lines[-1][1]):
            warnings.warn(f"{file} was cut off in its last line, which is left out.", stacklevel=2)
            del lines[-1]
        rows = [Node.parse(file, line, number) for number, line in lines]
    if not rows:
        raise AnnotationError(file, 1, "captions", "none")
    return rows


def _is_line_of_its_own(line: str) -> bool:
    """Whether the first line of a file is an object with captions, not the beginning, or all, of a COCO file."""
    return is_json(line) and isinstance(value := json.loads(line), dict) and "annotations" not in value


def _id(row: Node) -> str:
    for key in _ID_KEYS if row.get("image_id") is None else ("image_id",):  # `id` of an annotation is its own
        if node := row.get(key):
            if isinstance(node.value, bool) or not isinstance(node.value, (str, int)):
                node.fail("a text or a whole number")
            return str(node.value)
    return row.fail(f"an object with one of {', '.join(_ID_KEYS)}")


def write_coco(folder: Path, captions: Mapping[str, str], references: Mapping[str, Sequence[str]] | None) -> None:
    """`coco_results.json` and, with references, `coco_annotations.json` of the same clips."""
    write_json(folder / "coco_results.json", [{"image_id": name, "caption": text} for name, text in captions.items()])
    if references is None:
        return
    pairs = [(name, text) for name in captions for text in references[name]]
    annotations = {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": name} for name in captions],
        "annotations": [{"id": number, "image_id": name, "caption": text} for number, (name, text) in enumerate(pairs)],
    }
    write_json(folder / "coco_annotations.json", annotations)
