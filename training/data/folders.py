"""Folders of videos whose captions are in a metadata file (JSON lines, CSV, parquet) or in a text file beside each."""

import ast
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swinbert.processing import VIDEO_SUFFIXES
from swinbert.training.data.rows import CAPTION_NAMES, TAR_COLUMNS, clean_row, path_inside, split_of
from swinbert.utils.text import first_names

_PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises of damaged files
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Columns that name the video of a clip, by precedence.
_FILE_NAMES = ("file_name", "path", "video")


def metadata_files(dataset: Path) -> list[Path]:
    """
    The metadata of a folder: the file in it, else those in its subfolders; or `dataset` itself, if it is such a file.

    Raises:
        ValueError: a folder has metadata in two formats.
    """
    if dataset.is_file():
        return [dataset] if dataset.suffix in (".jsonl", ".csv") or _names_videos(dataset) else []
    found: dict[Path, list[Path]] = defaultdict(list)
    in_folder = [dataset / name for name in _METADATA if (dataset / name).is_file()]
    for file in in_folder or _visible(dataset):
        if file.name in _METADATA and (file.suffix != ".parquet" or _names_videos(file)):
            found[file.parent].append(file)
    for folder, files in found.items():
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise ValueError(f"{folder} has {names}: expected one file of metadata; keep the right one.")
    return [files[0] for _, files in sorted(found.items())]


def _names_videos(file: Path) -> bool:
    """Whether a parquet file has the names of video files; otherwise it may hold the videos themselves."""
    if file.name != _METADATA[2]:
        return False
    try:
        schema = pq.read_schema(file)
    except _PARQUET_ERRORS as error:
        raise ValueError(f"{file}: expected a parquet file: {error}.") from error
    names = [name for name in _FILE_NAMES if name in schema.names]
    types = (pa.string(), pa.large_string())
    return bool(names) and schema.field(names[0]).type in types


def _visible(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders, without hidden ones."""
    for file in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and file.is_file():
            yield file


def read_metadata(dataset: Path, file: Path) -> Iterator[dict[str, Any]]:
    """
    The rows of a metadata file. Names of videos are relative to the folder of `file`; a row without `split` has the
    split that the names of folders between `dataset` and `file` say, if they do.

    Raises:
        ValueError: rows are malformed; the message has the first of them.
    """
    folder = file.parent
    inner = folder.relative_to(dataset) if dataset.is_dir() else Path()
    errors = []
    for place, row in read_rows(file):
        try:
            if isinstance(row, Exception):
                raise row
            name = name_of_file(row)
            path = path_inside(folder, row[name])
            row = {key: value for key, value in row.items() if key not in TAR_COLUMNS and key != name}
            row["file_name"] = (inner / Path(path).relative_to(folder)).as_posix()
            if row.get("split") is None and inner.parts:
                row["split"] = split_of(inner / "clip")
            yield clean_row({**row, "video": {"path": path, "bytes": None}})
        except ValueError as error:
            errors.append(f"{place}: {error}")
    if errors:
        raise ValueError(f"{file}, {first_names(errors)}.")


def name_of_file(row: Mapping[str, Any]) -> str:
    """The column that names the video of a row; raises `ValueError` if it has none."""
    name = next((name for name in _FILE_NAMES if row.get(name) is not None), None)
    if name is None:
        raise ValueError(f"expected an object with `file_name`, found {list(row)}")
    return name


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """
    The rows of a `.csv` or `.parquet` file, or of the JSON lines of any other, as they stand there: each with its
    place, or what is wrong.
    """
    return _READERS.get(file.suffix, _read_json_lines)(file)


def _read_json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    # `splitlines` also splits at other characters, which captions may contain
    for number, text in enumerate(_read_text(file).split("\n"), 1):
        if text.strip():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # no JSON, too many digits or brackets
                line = None
            malformed = ValueError(f"expected an object with `file_name`, found {text[:200]!r}")
            yield f"line {number}", line if isinstance(line, dict) else malformed


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """The rows of a CSV file (RFC 4180); empty fields are left out, times become numbers."""
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        if not set(_FILE_NAMES) & set(header):
            raise ValueError(f"{file}: expected a comma-separated header with `file_name`, found {list(header)}.")
        for fields in reader:
            place = f"line {reader.line_num}"
            if None in fields:
                yield (
                    place,
                    ValueError(f"{len(header)} fields expected, more found: put captions with commas in quotes"),
                )
                continue
            yield place, {name: _value(name, text) for name, text in fields.items() if text}
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: expected comma-separated values: {error}.") from error


def _value(name: str, text: str) -> Any:
    """A field of a CSV file: several captions in one field are a list in JSON, or in Python, as pandas writes it."""
    if name in ("start", "end"):
        try:
            return float(text)
        except ValueError:
            return text
    if name in ("captions", *CAPTION_NAMES) and text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                captions = parse(text)
            except (ValueError, SyntaxError):
                continue
            if isinstance(captions, list) and all(isinstance(caption, str) for caption in captions):
                return captions
    return text


def _read_parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(file).to_pylist()
    except _PARQUET_ERRORS as error:
        raise ValueError(f"{file}: expected a parquet file: {error}.") from error
    for number, row in enumerate(rows):
        # Tables of pandas have NaN where there is no number.
        is_nan = {name for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
        yield f"row {number}", {name: value for name, value in row.items() if name not in is_nan}


_READERS: dict[str, Any] = {".csv": _read_csv, ".parquet": _read_parquet}


def _read_text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            return opened.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8 text: {error}.") from error


# --- Text files beside videos -----------------------------------------------------------------------------------------


def has_sidecars(folder: Path) -> bool:
    """Whether a folder has a video with a text file of the same stem beside it."""
    return any(video.with_suffix(".txt").is_file() for video in _videos(folder))


def read_sidecars(folder: Path) -> Iterator[dict[str, Any]]:
    """
    A row for each video of a folder and its subfolders: the caption is the text of the file `STEM.txt` beside it, the
    split is in the names of the folders. Videos without such a file have no captions.

    Raises:
        ValueError: two videos share a text file, or it is not UTF-8.
    """
    former: dict[Path, Path] = {}
    for video in _videos(folder):
        sidecar = video.with_suffix(".txt")
        if (other := former.setdefault(sidecar, video)) is not video and sidecar.is_file():
            raise ValueError(f"{other} and {video} share {sidecar.name}: rename one of them, with a text of its own.")
        text = _read_text(sidecar).strip() if sidecar.is_file() else ""
        inner = video.relative_to(folder)
        row = {"file_name": inner.as_posix(), "split": split_of(inner.parent / "clip"), "captions": text or None}
        yield clean_row({**row, "video": {"path": str(video), "bytes": None}})


def _videos(folder: Path) -> Iterable[Path]:
    return (file for file in _visible(folder) if file.suffix.lower() in VIDEO_SUFFIXES)
