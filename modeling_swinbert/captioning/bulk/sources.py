"""What a job is to caption (a folder, a glob, a list on stdin, a manifest, tar shards) -> a table of clips.

The columns of the table:

    clip_id     see `identity`
    path        the clip as it was named
    start, end  seconds, if it is a part of its video
    uri         where a worker, on whatever machine, finds it: `file:///absolute/path`, the URL of a storage, or
                `tar://MEMBER::SHARD` as fsspec has it
    offset, size    of its bytes in the shard
    problem     why there is nothing to fetch
    and the further columns of a manifest
"""

import csv
import glob
import io
import json
import math
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from swinbert.captioning.bulk import storage
from swinbert.captioning.bulk.identity import clip_id, is_remote, local_path, local_version, uri_of
from swinbert.utils.text import first_names, preview

# Columns that a manifest must not have: those of results, and of this table alone, which no result has.
RESULTS = ("caption", "score", "error", "error_kind", "duration", "clip_id", "source_id", "settings")
INTERNAL = ("offset", "size", "problem")
_MANIFESTS = (".parquet", ".jsonl", ".ndjson", ".csv")
_SHARD = ".tar"
_CHUNK_ROWS = 1 << 16


def read_source(source: str) -> pa.Table:
    """
    The clips of a source, each once.

    Args:
        source: a folder, a glob, a file or a URL of a clip; `-` for a list of names on stdin; a manifest, `.parquet`,
            `.jsonl` or `.csv`, with the column `path` or `uri`, and `start`, `end` and others as wanted; tar shards. A
            glob may stand for several manifests or shards. Any of them may be on a storage that fsspec reads.

    Raises:
        ValueError: the source is empty, malformed, or cannot be read.
        FileNotFoundError: there is no such file.
    """
    source = local_path(source)
    kind = _kind(source)
    if kind == _SHARD:
        return identified([_shard_clips(source)])
    if kind is not None:
        return identified([_manifest_clips(name, kind) for name in _names(source)])
    if source != "-" and is_remote(source) and not source.startswith(("http://", "https://")):
        return identified([_stored_clips(source)])
    return identified([_local_clips(source)])


def identified(tables: Sequence[pa.Table]) -> pa.Table:
    """
    Tables with `path` and perhaps `start`, `end`, `version` and the internal columns -> one with `clip_id`, without
    clips that come again.

    Raises:
        ValueError: tables of several manifests whose columns do not fit together.
    """
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"The manifests have columns of different types: {error}.") from error
    seen: set[bytes] = set()
    chunks = [_identified_chunk(pa.Table.from_batches([chunk]), seen) for chunk in table.to_batches(_CHUNK_ROWS)]
    chosen = pa.concat_tables(chunks) if chunks else table
    if again := len(table) - len(chosen):
        warnings.warn(
            f"{again} of {len(table)} rows are of a clip that stands before: it is captioned once.", stacklevel=2
        )
    return chosen


def _identified_chunk(table: pa.Table, seen: set[bytes]) -> pa.Table:
    paths = table["path"].to_pylist()
    names = set(table.column_names)
    columns = {name: table[name].to_pylist() if name in names else [None] * len(table) for name in ("start", "end")}
    uris = table["uri"].to_pylist() if "uri" in names else [uri_of(path) for path in paths]
    problems = table["problem"].to_pylist() if "problem" in names else [None] * len(table)
    versions = table["version"].to_pylist() if "version" in names else _versions(uris)
    ids, kept = [], []
    for row in range(len(paths)):
        ids.append(clip_id(uris[row], columns["start"][row], columns["end"][row], versions[row]))
        if (key := bytes.fromhex(ids[-1])) not in seen:
            seen.add(key)
            kept.append(row)
    fixed = {
        "clip_id": pa.array(ids, pa.string()),
        "path": pa.array(paths, pa.string()),
        **{name: pa.array(values, pa.float64()) for name, values in columns.items()},
        "uri": pa.array(uris, pa.string()),
        "problem": pa.array(problems, pa.string()),
    }
    others = [name for name in table.column_names if name not in fixed and name != "version"]
    result = pa.table({**fixed, **{name: table[name] for name in others}})
    return result if len(kept) == len(table) else result.take(kept)


def _versions(uris: Sequence[str]) -> list[Any]:
    remote = [uri for uri in uris if is_remote(uri)]
    stored = dict(zip(remote, storage.versions(remote), strict=True)) if remote else {}
    return [stored[uri] if uri in stored else local_version(uri) for uri in uris]


# --- Folders, globs, lists --------------------------------------------------------------------------------------------


def _kind(source: str) -> str | None:
    """The suffix of manifests and shards, also of a local folder that holds nothing but shards; `None` for clips."""
    suffix = Path(source).suffix.lower()
    if suffix in (*_MANIFESTS, _SHARD):
        return suffix
    if suffix in (".tgz", ".gz") and ".t" in source.lower():
        raise ValueError(f"{source}: expected uncompressed tar shards, whose clips can be read one by one.")
    return None


def _names(source: str) -> list[str]:
    """The files that one name, or a glob, stands for."""
    if is_remote(source):
        return [source] if source.startswith("http") else [name for name, _ in storage.list_files(source)]
    if glob.has_magic(source) and not os.path.exists(source):
        names = sorted(glob.glob(source, recursive=True))
        if not names:
            raise FileNotFoundError(f"{source}: no file matches this pattern.")
        return names
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source}: there is no such file.")
    return [source]


def _local_clips(source: str) -> pa.Table:
    from swinbert.captioning.clips import find_clips

    if os.path.isdir(source) and (shards := sorted(Path(source).glob(f"*{_SHARD}"))):
        return _shard_clips(*map(str, shards))
    clips = list(find_clips([source]))
    if source != "-" and all(clip.error is not None for clip in clips):
        raise ValueError(f"{clips[0].name}: {clips[0].error}")
    if source == "-" and len(clips) == 1 and clips[0].name == "-":
        raise ValueError(str(clips[0].error))
    return pa.table(
        {
            "path": pa.array([_text(clip.name) for clip in clips], pa.string()),
            "problem": pa.array([clip.error for clip in clips], pa.string()),
        }
    )


def _text(name: str) -> str:
    """A name as Arrow can hold it: bytes that are no text become backslash sequences, and the file is not found."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _stored_clips(source: str) -> pa.Table:
    from swinbert.processing.video_sources_swinbert import VIDEO_SUFFIXES

    files = storage.list_files(source)
    if len(files) > 1:
        files = [each for each in files if Path(each[0]).suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise ValueError(f"{source}: there is no video; looked for {' '.join(sorted(VIDEO_SUFFIXES))}")
    names, versions = zip(*files, strict=True)
    return pa.table({"path": pa.array(names, pa.string()), "version": pa.array(map(str, versions), pa.string())})


# --- Tar shards -------------------------------------------------------------------------------------------------------


def _shard_clips(*sources: str) -> pa.Table:
    """The videos in tar shards, by where their bytes are."""
    names = [name for source in sources for name in _names(source)]
    with ThreadPoolExecutor(8) as pool:
        rows = [row for each in pool.map(_members, names) for row in each]
    if not rows:
        raise ValueError(f"{first_names(list(sources))}: there is no video in the shards.")
    return pa.Table.from_pylist(rows)


def _members(shard: str) -> list[dict[str, Any]]:
    from swinbert.processing.video_sources_swinbert import VIDEO_SUFFIXES

    location = uri_of(shard)
    try:
        with (
            storage.explained(shard),
            fsspec.open(location, "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            return [
                {
                    "path": f"tar://{_text(member.name)}::{shard}",
                    "id": _text(member.name).rpartition("/")[2].partition(".")[0],
                    "uri": f"tar://{_text(member.name)}::{location}",
                    "offset": member.offset_data,
                    "size": member.size,
                    "version": str(member.size),
                }
                for member in tar
                if member.isfile() and Path(member.name).suffix.lower() in VIDEO_SUFFIXES
            ]
    except ValueError as error:
        if isinstance(error.__cause__, tarfile.TarError):
            raise ValueError(f"{shard}: expected an uncompressed tar shard: {error.__cause__}.") from error
        raise


# --- Manifests --------------------------------------------------------------------------------------------------------


def _manifest_clips(name: str, kind: str) -> pa.Table:
    with storage.explained(name), fsspec.open(uri_of(name), "rb") as file:
        content = file.read()
    try:
        table = _READERS[kind](content)
    except (pa.ArrowException, ValueError, csv.Error) as error:
        raise ValueError(f"{name}: expected a manifest, {kind}: {error}") from error
    column = next((each for each in ("path", "uri") if each in table.column_names), None)
    if not len(table):
        raise ValueError(f"{name}: the manifest has no rows.")
    if column is None:
        raise ValueError(f"{name}: expected a column `path` or `uri`, found {first_names(table.column_names)}.")
    if taken := [each for each in table.column_names if each in (*RESULTS, *INTERNAL)]:
        raise ValueError(f"{name}: the job itself writes the column {first_names(taken)}: rename it in the manifest.")
    folder = None if is_remote(name) else os.path.dirname(os.path.abspath(name))
    return _checked(name, table, column, folder)


def _checked(name: str, table: pa.Table, column: str, folder: str | None) -> pa.Table:
    """The manifest with `path`, `uri` and times as numbers; what is wrong with a row is its `problem`."""
    paths, uris, problems = [], [], []
    times: dict[str, list[float | None]] = {"start": [], "end": []}
    given = {each: table[each].to_pylist() if each in table.column_names else [None] * len(table) for each in times}
    for row, path in enumerate(table[column].to_pylist()):
        problem = None
        if not isinstance(path, str) or not path.strip():
            path, problem = "", f"expected the {column} of a clip, found {preview(path)}"
        for each, values in times.items():
            try:
                values.append(_seconds(given[each][row]))
            except ValueError as error:
                values.append(None)
                problem = f"expected `{each}` in seconds from 0, {error}"
        paths.append(path)
        # A row that cannot be used is told from others by its place.
        uris.append(f"{uri_of(name)}#{row}" if problem else uri_of(_from_manifest(path, folder)))
        problems.append(problem)
    for each in (*times, "path", "uri"):
        if each in table.column_names:
            table = table.drop_columns(each)
    columns = {
        "path": pa.array(paths, pa.string()),
        **{each: pa.array(values, pa.float64()) for each, values in times.items()},
        "uri": pa.array(uris, pa.string()),
        "problem": pa.array(problems, pa.string()),
    }
    if "etag" in table.column_names:  # known already: no request for each clip
        columns["version"] = table["etag"].cast(pa.string())
    return pa.table({**columns, **{each: table[each] for each in table.column_names}})


def _from_manifest(path: str, folder: str | None) -> str:
    """A relative path is one from the manifest's folder, or else from the working directory."""
    if folder is None or is_remote(path) or os.path.isabs(path) or path.startswith(("file://", "~")):
        return path
    beside = os.path.join(folder, path)
    return path if not os.path.exists(beside) and os.path.exists(path) else beside


def _seconds(value: Any) -> float | None:
    """`start` or `end` of a manifest, in which a text of CSV is a number too; NaN and nothing are no limit."""
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"found {preview(value)}") from None
    if math.isnan(seconds):
        return None
    if not 0 <= seconds < math.inf:
        raise ValueError(f"found {seconds:g}")
    return seconds


def _read_csv(content: bytes) -> pa.Table:
    """All columns as text: an `id` of 007 stays what it is."""
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(reader, [])
    rows = []
    for fields in reader:
        if fields and len(fields) != len(header):
            raise ValueError(f"line {reader.line_num}: {len(header)} fields expected, {len(fields)} found.")
        if fields:
            rows.append(fields)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return pa.table({name: pa.array(values, pa.string()) for name, values in zip(header, columns, strict=True)})


def _read_json_lines(content: bytes) -> pa.Table:
    return pa.Table.from_pylist(list(_objects(content)))


def _objects(content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected an object, found {preview(line)}.")
        yield row


_READERS: dict[str, Callable[[bytes], pa.Table]] = {
    ".parquet": lambda content: pq.read_table(io.BytesIO(content)),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_csv,
}

__all__ = ["INTERNAL", "RESULTS", "identified", "read_source"]
