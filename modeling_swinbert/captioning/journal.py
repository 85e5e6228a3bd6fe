"""A file of captions that is continued after an interruption: each caption is on disk as soon as it is made."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from swinbert.captioning.settings import flattened
from swinbert.utils.files import file_lock, write_atomically, write_json
from swinbert.utils.text import preview

# Where model and dataset were found. Their content is compared instead.
_NOT_COMPARED = ("model.name", "dataset.name")


class CaptionJournal:
    """
    `predictions.jsonl`, with a line `{"id", "caption", "score", "error", "size"}` for each clip, and beside it
    `settings.json`, with all that decides these captions. Lines may have further keys.

    Args:
        folder: created if needed. The lines of an earlier run with the same settings are kept.
        settings: nested dictionaries that JSON can hold.
        output: the file that is made from this journal, if there is one: error messages name it.
        overwrite: drop what the folder holds instead.

    Attributes:
        lines: id of a clip -> its line.

    Raises:
        ValueError: the folder belongs to a run with other settings, or a line has another form.
        BlockingIOError: another process writes to the folder.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], output: Path | None = None, overwrite: bool = False):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"Expected a folder for the output, found the file {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / "predictions.jsonl"
        self._settings_file = folder / "settings.json"
        self._output_name = folder if output is None else output
        self._another = "name another output folder" if output is None else "name another --output"
        self._remedy = f"{self._another}, or " + (
            "delete this one" if output is None else "start over with --overwrite"
        )
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(folder / ".lock"))
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"{self._output_name} is in use by {error.strerror}: wait for it, or {self._another}."
                ) from None
            if overwrite:
                self.file.unlink(missing_ok=True)
                self._settings_file.unlink(missing_ok=True)
            self._check_settings(settings)
            self.lines = self._read()
            self._output = self.file.open("a", encoding="utf-8")
            self._lock = stack.pop_all()

    def __enter__(self) -> "CaptionJournal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._lock:
            try:
                self._output.close()
            except OSError:  # of a full disk: `error` says so already
                if error is None:
                    raise

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        """Compares the settings with those in the folder, or writes them there."""
        settings_file = self._settings_file
        wanted = json.loads(json.dumps(settings))
        if not settings_file.exists():
            if self.file.exists():
                raise ValueError(
                    f"{self.folder} holds a predictions.jsonl without the settings.json that says how it was made:"
                    f" {self._another}."
                )
            write_json(settings_file, wanted)
            return
        try:
            differing = differences(json.loads(settings_file.read_text(encoding="utf-8")), wanted)
        except (ValueError, AttributeError) as error:
            kind = "an evaluation" if self._output_name == self.folder else "captions"
            raise ValueError(f"{settings_file} is not of {kind} ({error}): {self._another}.") from None
        if differing:
            raise ValueError(
                f"{self._output_name} holds captions made with other settings: {'; '.join(differing)}."
                f" {self._remedy.capitalize()}."
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        """Id -> line. An incomplete last line is removed from the file, and its clip is captioned again."""
        if not self.file.exists():
            return {}
        content = self.file.read_bytes()
        *complete, rest = content.split(b"\n")
        lines = {}
        for number, text in enumerate(complete, 1):
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
                f"{self.file} was cut off in line {len(complete) + 1}, whose clip is captioned again.", stacklevel=2
            )
            os.truncate(self.file, len(content) - len(rest))
        return lines

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            self._output.write(json.dumps(line) + "\n")
            self.lines[line["id"]] = line
        self._output.flush()

    def remove(self, is_outdated: Callable[[dict[str, Any]], bool]) -> None:
        """Removes lines whose clips are to be captioned again."""
        self._rewrite([line for line in self.lines.values() if not is_outdated(line)])

    def sort(self, ids: Sequence[str]) -> None:
        """Puts the lines into the order of `ids`."""
        self._rewrite([self.lines[name] for name in ids if name in self.lines])

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        if lines == list(self.lines.values()):
            return
        self._output.close()
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in lines))
        self.lines = {line["id"]: line for line in lines}
        self._output = self.file.open("a", encoding="utf-8")


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_prediction = (
        isinstance(line, dict) and {"id", "caption", "error", "size"} <= line.keys() and isinstance(line["id"], str)
    )
    return line if is_prediction else None


def rounded(score: float | None) -> float | None:
    """A score without the digits that depend on the other clips of a batch."""
    return None if score is None else round(score, 4)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What keeps two runs from sharing a file: for each setting that differs, what it was and what it is."""
    before, now = compared(before), compared(now)
    return [
        f"{name} was {preview(before.get(name))}, is {preview(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common to share a file, as a flat dictionary."""
    return {name: value for name, value in flattened(settings).items() if name not in _NOT_COMPARED}


__all__ = ["CaptionJournal", "compared", "differences", "rounded"]
