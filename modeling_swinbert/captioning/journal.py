"""The output folder of an evaluation: predictions that are on disk as soon as they are made, and survive a kill."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from swinbert.utils.files import write_json
from swinbert.utils.text import preview

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

# They say where things were found, not what they are.
_NOT_COMPARED = ("model.name", "dataset.name")


class PredictionLog:
    """
    `predictions.jsonl`, a line `{"id", "file", "caption", "score", "error", "size"}` for each clip, and beside it
    `settings.json`: all that decides what the lines say.

    Args:
        folder: made if it is not there. What an earlier call with the same settings wrote is gone on with.
        settings: nested dictionaries that JSON can hold.

    Raises:
        ValueError: the folder belongs to a run with other settings, or a line is none of ours.
        BlockingIOError: another process is writing to it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"Expected a folder for the output, found the file {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / "predictions.jsonl"
        self._lock = (folder / ".lock").open("w")
        try:
            self._claim(settings)
            self.lines = self._read()
            self._output = self.file.open("a", encoding="utf-8")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._output.close()
        except OSError:  # of a full disk: what it kept from being written is known already
            if error is None:
                raise
        finally:
            self._lock.close()

    def _claim(self, settings: Mapping[str, Any]) -> None:
        if fcntl is not None:
            try:
                # Not `flock`: the workers of a killed process would hold that for seconds more.
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise BlockingIOError(
                    f"Another process is writing to {self.folder}: wait for it, or name another output folder."
                ) from None
            except OSError:  # a file system without locks
                pass
        settings_file = self.folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if not settings_file.exists():
            if self.file.exists():
                raise ValueError(
                    f"{self.folder} holds a predictions.jsonl without the settings.json that tells how it was made:"
                    " name another output folder."
                )
            write_json(settings_file, wanted)
            return
        try:
            before, now = compared(json.loads(settings_file.read_text(encoding="utf-8"))), compared(wanted)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{settings_file} is not of an evaluation ({error}): name another output folder."
            ) from None
        differing = [
            f"{name} was {preview(before.get(name))}, is {preview(now.get(name))}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds predictions of another run: {'; '.join(differing)}. Name another output folder,"
                " or delete this one."
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        """Clip -> its line. A last line that was cut off is cut away, and its clip is captioned again."""
        if not self.file.exists():
            return {}
        content = self.file.read_bytes()
        *whole, rest = content.split(b"\n")
        lines = {}
        for number, text in enumerate(whole, 1):
            line = _parse(text)
            if line is None:
                raise ValueError(
                    f"{self.file}, line {number}: expected a prediction, found"
                    f" {preview(text.decode('utf-8', 'replace'))}: delete the line, and its clip is captioned again."
                )
            lines[line["id"]] = line
        if line := _parse(rest):
            lines[line["id"]] = line
            with self.file.open("ab") as file:
                file.write(b"\n")
        elif rest:
            warnings.warn(
                f"{self.file} was cut off in line {len(whole) + 1}, whose clip is captioned again.", stacklevel=2
            )
            os.truncate(self.file, len(content) - len(rest))
        return lines

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            self._output.write(json.dumps(line) + "\n")
            self.lines[line["id"]] = line
        self._output.flush()

    def forget(self, is_out_of_date: Callable[[dict[str, Any]], bool]) -> None:
        """Lines that are to be made again."""
        self._rewrite([line for line in self.lines.values() if not is_out_of_date(line)])

    def sort(self, ids: Sequence[str]) -> None:
        """Lines in the order of `ids`, as if no clip had had to be tried again."""
        self._rewrite([self.lines[name] for name in ids if name in self.lines])

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        if lines == list(self.lines.values()):
            return
        self._output.close()
        unfinished = self.file.with_name(f".{self.file.name}.unfinished")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(unfinished, self.file)
        self.lines = {line["id"]: line for line in lines}
        self._output = self.file.open("a", encoding="utf-8")


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_ours = (
        isinstance(line, dict) and {"id", "caption", "error", "size"} <= line.keys() and isinstance(line["id"], str)
    )
    return line if is_ours else None


def compared(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What two runs must have in common to share a file: `{"a": {"b": 1}}` as `{"a.b": 1}`, without mere names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(compared(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return {name: value for name, value in flat.items() if name not in _NOT_COMPARED}
