"""The parts of a job -> one file or data set: what `swinbert doctor`, `swinbert train` and others read."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from swinbert.captioning.bulk.identity import is_remote, local_path
from swinbert.captioning.bulk.parts import Parts
from swinbert.utils.files import new_folder, write_atomically

_CLIPS_OF_A_SHARD = 1000
_FIRST_COLUMNS = ("path", "start", "end", "caption", "score", "error")
# Format -> what it is called in the folder of the parts.
MERGED = {
    "parquet": "captions.parquet",
    "jsonl": "captions.jsonl",
    "csv": "captions.csv",
    "metadata": "dataset",
    "webdataset": "webdataset",
}
_Rows = list[dict[str, Any]]


def merge(folder: str, output_format: str, output: str | None = None) -> tuple[Path, int, int]:
    """
    Writes the results of a job as one file or data set, complete or not at all.

    Rows are in the order of their paths and times. Of two for the same part of the same video (whose file was replaced
    between two runs), the later counts.

    Args:
        folder: of the parts.
        output_format: `parquet`, `jsonl` or `csv` for all rows; for those with a caption `metadata`, a VideoFolder, or
            `webdataset`, tar shards with a copy of each video.
        output: a file, or a new folder for `webdataset`; by default one in `folder`. For `metadata`, a file
            `metadata.jsonl` above all clips; without it a new folder with links to the clips.

    Returns:
        What was written, the number of rows in it, and the number of those that have no caption and are left out.

    Raises:
        ValueError: there are no parts; the clips are not where the format needs them.
        OSError: a clip cannot be read, or the output cannot be written.
    """
    with Parts(folder) as parts:
        rows = _rows(parts)
    if not rows:
        raise ValueError(f"{folder} has no parts: expected the --output of `swinbert bulk`.")
    target = Path(output) if output is not None else Path(folder) / MERGED[output_format]
    if output_format in ("parquet", "jsonl", "csv"):
        write_atomically(target, _document(rows, output_format))
        return target, len(rows), 0
    captioned = [row for row in rows if row["caption"]]
    if output_format == "webdataset":
        _write_shards(captioned, target)
    elif output is None:
        _write_links(captioned, target)
    else:
        write_atomically(target, "".join(_metadata(row, _inner(row, target.parent)) for row in captioned))
    return target, len(captioned), len(rows) - len(captioned)


def _rows(parts: Parts) -> _Rows:
    latest = {(row["uri"], row["start"], row["end"]): row for _, table in parts.tables() for row in table.to_pylist()}
    return sorted(latest.values(), key=lambda row: (row["path"], row["start"] or 0.0, row["end"] or 0.0))


def _document(rows: _Rows, output_format: str) -> bytes:
    if output_format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
        return buffer.getvalue()
    if output_format == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    names = [*_FIRST_COLUMNS, *(name for name in rows[0] if name not in _FIRST_COLUMNS)]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


# --- A VideoFolder ----------------------------------------------------------------------------------------------------


def _metadata(row: dict[str, Any], file_name: str) -> str:
    """A line of `metadata.jsonl`."""
    times = {name: row[name] for name in ("start", "end") if row[name] is not None}
    line = {"file_name": file_name, "captions": [row["caption"]], **times, "clip_id": row["clip_id"]}
    return json.dumps(line) + "\n"


def _inner(row: dict[str, Any], folder: Path) -> str:
    path = Path(local_path(row["uri"]))
    if is_remote(row["uri"]) or not path.is_relative_to(folder.absolute()):
        raise ValueError(
            f"{row['path']} is not in {folder.absolute()}, where the metadata will be: --output FILE names one above"
            " all clips; without --output, a folder of links is made; --format webdataset copies clips from anywhere."
        )
    return path.relative_to(folder.absolute()).as_posix()


def _write_links(rows: _Rows, folder: Path) -> None:
    """Links to the videos, under names that no two have, and their metadata."""
    names: dict[str, str] = {}
    with new_folder(folder) as unfinished:
        (unfinished / "clips").mkdir()
        lines = []
        for row in rows:
            if is_remote(row["uri"]):
                raise ValueError(f"{row['path']} is on another machine: --format webdataset copies from anywhere.")
            path = Path(local_path(row["uri"]))
            if row["uri"] not in names:
                names[row["uri"]] = f"clips/{row['clip_id']}{path.suffix}"
                os.symlink(path, unfinished / names[row["uri"]])
            lines.append(_metadata(row, names[row["uri"]]))
        (unfinished / "metadata.jsonl").write_text("".join(lines))


# --- WebDataset -------------------------------------------------------------------------------------------------------


def _write_shards(rows: _Rows, folder: Path) -> None:
    """Samples `ID.mp4`, `ID.txt` and `ID.json`, in shards that say how many there are."""
    number = -(-len(rows) // _CLIPS_OF_A_SHARD)
    with new_folder(folder) as unfinished:
        for shard in range(number):
            name = f"captions-{shard:05d}-of-{number:05d}.tar"
            with tarfile.open(unfinished / name, "w") as tar:
                for row in rows[shard * _CLIPS_OF_A_SHARD : (shard + 1) * _CLIPS_OF_A_SHARD]:
                    _add_sample(tar, row)


def _add_sample(tar: tarfile.TarFile, row: dict[str, Any]) -> None:
    with fsspec.open(row["uri"], "rb") as file:
        video = file.read()
    fields = {name: value for name, value in row.items() if name not in ("caption", "uri") and value is not None}
    suffix = Path(row["uri"].partition("::")[0]).suffix.lower() or ".mp4"
    members = {suffix: video, ".txt": row["caption"].encode(), ".json": json.dumps(fields).encode()}
    for end, content in members.items():
        info = tarfile.TarInfo(row["clip_id"] + end)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


__all__ = ["MERGED", "merge"]
