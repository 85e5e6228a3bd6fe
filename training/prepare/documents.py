"""Reading annotation files as text, lines and JSON, with errors that name file and line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from swinbert.utils.files import inner_path
from swinbert.utils.text import preview

# What `inner_path` accepts, for error messages.
INNER_PATH = "a name, or a relative path that stays in its folder"
_SPACE = re.compile(r"[ \t\r\n]*")


class AnnotationError(ValueError):
    """
    An annotation file does not have the expected format.

    Args:
        file, line: the place; lines count from 1.
        expected, found: what the format requires there, and what the file contains.
    """

    def __init__(self, file: Path, line: int, expected: str, found: str):
        self.file, self.line, self.expected, self.found = file, line, expected, found
        super().__init__(f"{file}, line {line}: expected {expected}, found {found}.")

    def __reduce__(self):
        return type(self), (self.file, self.line, self.expected, self.found)


def read_text(file: Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AnnotationError(file, line, "text in UTF-8", f"byte 0x{content[error.start]:02x}") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields number (from 1) and stripped text of the lines that are not blank."""
    # Not `splitlines`, which also splits at characters that may occur in a caption.
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


class Node:
    """
    A value in a JSON text that knows its place in the file. Its methods check the type of the value and raise
    `AnnotationError` if it is wrong.

    Args:
        file: the file.
        text: the JSON text, which begins in line `first_line` of the file.
        value: the parsed value.
        path: the keys and indices that lead to the value from the outermost one.
    """

    __slots__ = ("file", "first_line", "path", "text", "value")

    def __init__(self, file: Path, text: str, value: Any, path: tuple[str | int, ...] = (), first_line: int = 1):
        self.file, self.text, self.value, self.path, self.first_line = file, text, value, path, first_line

    @classmethod
    def read(cls, file: Path) -> "Node":
        return cls.parse(file, read_text(file))

    @classmethod
    def parse(cls, file: Path, text: str, first_line: int = 1) -> "Node":
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                (key, *_) = [key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])]
                line = text.count("\n", 0, text.rfind(json.dumps(key, ensure_ascii=False))) + first_line
                raise AnnotationError(file, line, "every key of an object once", f"{key!r} again")
            return found

        try:
            return cls(file, text, json.loads(text, object_pairs_hook=unique), first_line=first_line)
        except json.JSONDecodeError as error:
            line = error.lineno + first_line - 1
            around = preview(text[error.pos : error.pos + 40]) if error.pos < len(text) else "the end"
            raise AnnotationError(file, line, f"JSON ({error.msg})", around) from error
        except AnnotationError:
            raise
        except (RecursionError, ValueError) as error:  # too many nested brackets, or digits
            raise AnnotationError(file, first_line, "JSON", str(error)) from error

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, _offset(self.text, self.path)) + self.first_line

    def fail(self, expected: str) -> NoReturn:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        raise AnnotationError(
            self.file, self.line, f"{place} to be {expected}" if place else expected, preview(self.value)
        )

    def get(self, key: str) -> "Node | None":
        """The value of a key, or `None` if it is absent or null."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        value = self.value.get(key)
        return None if value is None else self._inner(key, value)

    def __getitem__(self, key: str) -> "Node":
        return self.get(key) or self.fail(f"an object with {key!r}")

    def items(self) -> list[tuple[str, "Node"]]:
        if not isinstance(self.value, dict):
            self.fail("an object")
        return [(key, self._inner(key, value)) for key, value in self.value.items()]

    def list(self) -> "list[Node]":
        if not isinstance(self.value, list):
            self.fail("a list")
        return [self._inner(index, value) for index, value in enumerate(self.value)]

    def string(self) -> str:
        # Half a surrogate pair is not a character: it cannot be written or tokenised.
        if not isinstance(self.value, str) or any("\ud800" <= each <= "\udfff" for each in self.value):
            self.fail("text")
        return self.value

    def name(self) -> str:
        """The value as an id, or as a relative path that stays in its folder."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return str(self.value)
        return inner_path(self.string()) or self.fail(INNER_PATH)

    def seconds(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not -1e9 < self.value < 1e9:
            self.fail("a number of seconds")
        return self.value

    def span(self) -> tuple[float, float]:
        both = self.list()
        if len(both) != 2:
            self.fail("a list of start and end in seconds")
        return both[0].seconds(), both[1].seconds()

    def _inner(self, step: str | int, value: Any) -> "Node":
        return Node(self.file, self.text, value, (*self.path, step), self.first_line)


def _offset(text: str, path: tuple[str | int, ...]) -> int:
    """The offset in a valid JSON text of the value that `path` leads to."""
    decoder = json.JSONDecoder()

    def skip_space(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    def skip_separator(at: int) -> int:  # a colon or a comma
        return skip_space(skip_space(at) + 1)

    at = skip_space(0)
    for step in path:
        at = skip_space(at + 1)
        if isinstance(step, int):
            for _ in range(step):
                at = skip_separator(decoder.raw_decode(text, at)[1])
            continue
        while True:
            key, at = decoder.raw_decode(text, at)
            at = skip_separator(at)
            if key == step:
                break
            at = skip_separator(decoder.raw_decode(text, at)[1])
    return at
