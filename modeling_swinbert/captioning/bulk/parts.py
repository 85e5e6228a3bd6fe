"""
The folder of a job: parts of results that appear whole or not at all, and what they were made with.

    settings.json       all that decides a caption; a run with others is refused
    part-000000-1a2b3c4d.parquet (or .jsonl)    results, each clip in one part
    report.json         what the last run did

One process writes, so that a clip is in one part, whatever died: what a worker had not handed over is captioned again,
what it had is in a part or is captioned again.
"""

import contextlib
import io
import json
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from swinbert.captioning.bulk.identity import is_remote
from swinbert.captioning.bulk.storage import explained
from swinbert.utils.files import file_lock, write_atomically
from swinbert.utils.text import one_line

_SETTINGS = "settings.json"
_REPORT = "report.json"
# Digest of the settings, in the metadata of a parquet part.
_DIGEST = b"swinbert.settings"


class Parts:
    """
    The parts in a folder, on this machine or on a storage of fsspec, where a file appears whole too.

    Args:
        folder: created if needed.
        file_format: parquet or jsonl, of new parts.

    Raises:
        ValueError: the folder cannot be used, or holds something else.
        BlockingIOError: another process writes there. Storages have no locks: there nothing warns.
    """

    def __init__(self, folder: str, file_format: str = "parquet"):
        self.folder, self._format = folder, file_format
        self._local = None if is_remote(folder) else Path(folder.removeprefix("file://")).expanduser()
        with explained(folder):
            self._system, self._root = fsspec.core.url_to_fs(folder if self._local is None else str(self._local))
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> "Parts":
        if self._local is not None:
            if self._local.exists() and not self._local.is_dir():
                raise ValueError(f"Expected a folder for --output, found the file {self._local}.")
            self._local.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.enter_context(file_lock(self._local / ".lock"))
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"{self.folder} is in use by {error.strerror}: wait for it, or name another --output."
                ) from None
            for unfinished in self._local.glob(".*.unfinished"):
                unfinished.unlink()
        if self.names() and self.settings() is None:
            raise ValueError(
                f"{self.folder} holds parts without the {_SETTINGS} that says how they were made: name another."
            )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._lock.close()

    def names(self) -> list[str]:
        """Names of the parts, oldest first."""
        with explained(self.folder):
            if not self._system.exists(self._root):
                return []
            files = (Path(file).name for file in self._system.ls(self._root, detail=False))
        return sorted(name for name in files if name.startswith("part-") and name.endswith((".parquet", ".jsonl")))

    def settings(self) -> dict[str, Any] | None:
        """The settings of the captions in the folder; `None` if there are none yet."""
        content = self._read_file(_SETTINGS)
        return None if content is None else json.loads(content)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self._write_file(_SETTINGS, json.dumps(settings, indent=2).encode() + b"\n")

    def write_report(self, report: Mapping[str, Any]) -> None:
        self._write_file(_REPORT, json.dumps(report, indent=2).encode() + b"\n")

    def write(self, table: pa.Table, digest: str) -> None:
        """
        Writes a part.

        Raises:
            OSError: it cannot be written; there is nothing of it.
        """
        names = self.names()
        number = 1 + int(names[-1].split("-")[1]) if names else 0
        self._write(f"part-{number:06d}-{secrets.token_hex(4)}.{self._format}", table, digest)

    def tables(self, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Name and content of each part. One that a dying machine left incomplete is removed, with a warning."""
        for name in self.names():
            content = self._read_file(name) or b""
            try:
                yield name, _table(name, content, columns)
            except (pa.ArrowException, ValueError) as error:
                warnings.warn(
                    f"{self.folder}/{name} is no part ({one_line(error)}): its clips are captioned again.", stacklevel=2
                )
                self._system.rm_file(f"{self._root}/{name}")

    def done(self) -> tuple[set[str], int, Counter[str]]:
        """The ids of the clips that have their rows; how many rows there are; and the errors among them by kind."""
        ids: set[str] = set()
        num_rows, errors = 0, Counter[str]()
        for _, table in self.tables():
            ids.update(source_ids(table))
            num_rows += len(table)
            errors += errors_by_kind(table)
        return ids, num_rows, errors

    def remove_failed(self) -> None:
        """Removes the clips with an error, part by part, so that they are captioned again."""
        for name, table in self.tables():
            ids = source_ids(table)
            failed = {each for each, error in zip(ids, table["error"].to_pylist(), strict=True) if error is not None}
            kept = table.filter(pa.array([each not in failed for each in ids], pa.bool_()))
            if not len(kept):
                self._system.rm_file(f"{self._root}/{name}")
            elif failed:
                self._write(name, kept, (table.schema.metadata or {}).get(_DIGEST, b"").decode())

    def _write(self, name: str, table: pa.Table, digest: str) -> None:
        if name.endswith(".jsonl"):
            content = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        else:
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({_DIGEST: digest.encode()}), buffer, compression="zstd")
            content = buffer.getvalue()
        self._write_file(name, content)

    def _write_file(self, name: str, content: bytes) -> None:
        if self._local is not None:
            write_atomically(self._local / name, content)
        else:
            with explained(self.folder):
                self._system.pipe_file(f"{self._root}/{name}", content)

    def _read_file(self, name: str) -> bytes | None:
        try:
            return self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None


def _table(name: str, content: bytes, columns: list[str] | None) -> pa.Table:
    if name.endswith(".parquet"):
        return pq.read_table(io.BytesIO(content), columns=columns)
    table = pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])
    if "clip_id" not in table.column_names:
        raise ValueError("expected rows with `clip_id`")
    return table if columns is None else table.select(columns)


def source_ids(table: pa.Table) -> list[str]:
    """For each row the `clip_id` of the clip that it belongs to, which with segments is not its own."""
    return table["source_id" if "source_id" in table.column_names else "clip_id"].to_pylist()


def errors_by_kind(table: pa.Table) -> Counter[str]:
    return Counter(table["error_kind"].drop_null().to_pylist())


__all__ = ["Parts", "errors_by_kind", "source_ids"]
