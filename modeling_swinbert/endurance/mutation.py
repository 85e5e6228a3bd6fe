"""
Mutations of files, as lists of operations: JSON values that can be drawn, applied, dropped one by one and written down.

An operation is a list of a name and its arguments. Places count modulo the length of the content, so that any part of
a list of operations can be applied too.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from swinbert.utils.text import is_json

Operation = list[Any]

# Beside these, there are numbers that lie well: boxes of mp4 and mov, chunks of AVI, elements of Matroska and so on.
_FIELDS = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|vmhd|stbl|stsd|stts|ctts|stss|stsc|stsz|stco|co64|sdtp"
    rb"|avc1|avcC|hvcC|mp4v|esds|pasp|colr|moof|mfhd|traf|tfhd|tfdt|trun|mvex|trex|sidx|mdat|free"
    rb"|RIFF|LIST|avih|strh|strf|movi|idx1|00dc"
    rb"|\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x1f\x43\xb6\x75|\x16\x54\xae\x6b|\x15\x49\xa9\x66|\x1c\x53\xbb\x6b|\xae|\xe0"
    rb"|\x44\x89|\x2a\xd7\xb1|\x23\xe3\x83|\x63\xa2"
    rb"|\x47[\x00-\x7f][\x00-\xff][\x10-\x3f]|\x00\x00\x01|\x21\xf9|\x2c"
)
_LIES = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_DAMAGE = ("flip", "flip", "put", "field", "field", "field", "zero", "cut", "remove", "repeat", "swap", "insert")
# Values that a JSON document does not expect.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 1e-9, 1e308, math.nan, math.inf, 2**31, 2**63, 10**30),
    *(
        "",
        " ",
        "x",
        "1",
        "-1",
        "nan",
        "true",
        "\0",
        "\ud800",
        "é",
        "a" * 300,
        "../x",
        "/etc/passwd",
        "http://127.0.0.1:9/",
    ),
    *([], {}, [None], [[]], [0], ["x"], {"": 0}, {"x": []}, [1, "x"], [2, 1], [-1, -1], [1e9, 1e10]),
)
_TEXTS = (
    *(",", "\t", "\n", "\r", "\r\n", '"', "'", "\0", "\ufeff", "[", "]", "{", "}", ":", "\\", "\\u", "\\ud800", "-"),
    *("\x85", "\u2028", "nan", "NaN", "-1", "1e999", "9" * 5000, "[" * 3000, "null", "true", "../", "/", "#", "="),
    *("  ", "&a", "*a"),
)

# --- Applying ---------------------------------------------------------------------------------------------------------


def mutate(content: bytes, operations: list[Operation]) -> bytes:
    """`content` after all operations, one after the other."""
    for name, *arguments in operations:
        content = _OPERATIONS[name](content, *arguments)
    return content


def _place(content: bytes, place: int) -> int:
    return place % (len(content) + 1)


def _flip(content: bytes, bit: int) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(changed)


def _put(content: bytes, place: int, replacement: str) -> bytes:
    place, new = _place(content, place), bytes.fromhex(replacement)
    return content[:place] + new + content[place + len(new) :]


def _insert(content: bytes, place: int, replacement: str) -> bytes:
    place = _place(content, place)
    return content[:place] + bytes.fromhex(replacement) + content[place:]


def _zero(content: bytes, place: int, length: int) -> bytes:
    place = _place(content, place)
    length = min(length, len(content) - place)
    return content[:place] + bytes(length) + content[place + length :]


def _remove(content: bytes, place: int, length: int) -> bytes:
    place = _place(content, place)
    return content[:place] + content[place + length :]


def _repeat(content: bytes, place: int, length: int) -> bytes:
    place = _place(content, place)
    return content[: place + length] + content[place:]


def _cut(content: bytes, length: int) -> bytes:
    return content[:length]


def _swap(content: bytes, first: int, second: int, length: int) -> bytes:
    first, second = sorted((_place(content, first), _place(content, second)))
    length = min(length, second - first, len(content) - second)
    between = content[first + length : second]
    return (
        content[:first]
        + content[second : second + length]
        + between
        + content[first : first + length]
        + content[second + length :]
    )


def _swap_lines(content: bytes, first: int, second: int) -> bytes:
    lines = content.split(b"\n")
    first, second = first % len(lines), second % len(lines)
    lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def _change_json(content: bytes, path: list[str | int], action: str, value: Any = None) -> bytes:
    """
    Sets, deletes or renames what `path` leads to; its first step is the number of a line where the content is no single
    document. Content that has no such place stays as it is.
    """
    try:
        text = content.decode()
        lines = text.split("\n")
        is_document = is_json(text)
        if is_document:
            return json.dumps(_changed(json.loads(text), path, action, value)).encode()
        number = int(path[0]) % len(lines)
        lines[number] = json.dumps(_changed(json.loads(lines[number]), path[1:], action, value))
        return "\n".join(lines).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return content


def _changed(document: Any, path: list[str | int], action: str, value: Any) -> Any:
    if not path:
        return value if action == "set" else document
    *steps, last = path
    holder = document
    for step in steps:
        holder = holder[step]
    if action == "set":
        holder[last] = value
    elif action == "delete":
        del holder[last]
    elif action == "rename":
        holder[value] = holder.pop(last)
    return document


def _change_header(content: bytes, path: list[str | int], action: str, value: Any = None) -> bytes:
    """As `_change_json`, in the header of a safetensors file, whose length is set right again."""
    length = int.from_bytes(content[:8], "little")
    header = _change_json(content[8 : 8 + length], path, action, value)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


_OPERATIONS: dict[str, Callable[..., bytes]] = {
    "flip": _flip,
    "put": _put,
    "insert": _insert,
    "zero": _zero,
    "remove": _remove,
    "repeat": _repeat,
    "cut": _cut,
    "swap": _swap,
    "swap lines": _swap_lines,
    "json": _change_json,
    "header": _change_header,
}


# --- Drawing ----------------------------------------------------------------------------------------------------------


def draw_bytes(random: Random, content: bytes) -> list[Operation]:
    """One to eight operations on a binary file: damage of storage and transport, and lying fields."""
    return [_draw_damage(random, content) for _ in range(_how_many(random))]


def _how_many(random: Random) -> int:
    return min(8, 1 + int(random.expovariate(0.7)))


def _draw_damage(random: Random, content: bytes) -> Operation:
    size = max(len(content), 1)
    length = 1 << random.randrange(max(size.bit_length() - 1, 1))
    place = random.randrange(size)
    kind = random.choice(_DAMAGE)
    if kind == "flip":
        return ["flip", random.randrange(8 * size)]
    if kind == "field":
        fields = [match.start() for match in _FIELDS.finditer(content[: 1 << 16])] or [0]
        width = random.choice((1, 2, 4, 4, 8))
        number = random.choice((*_LIES, random.getrandbits(8 * width)))
        value = (number & (1 << 8 * width) - 1).to_bytes(width, random.choice(("big", "big", "little")))
        return ["put", max(0, random.choice(fields) + random.randrange(-4, 40)), value.hex()]
    if kind in ("put", "insert"):
        return [kind, place, random.randbytes(min(length, 64)).hex()]
    if kind == "cut":
        return ["cut", random.randrange(size)]
    if kind == "swap":
        return ["swap", place, random.randrange(size), length]
    return [kind, place, length]


def draw_text(random: Random, content: bytes) -> list[Operation]:
    """One to eight operations on a text file: of its structure if it holds JSON, of its lines and of its characters."""
    places = _json_places(content)
    return [_draw_edit(random, content, places) for _ in range(_how_many(random))]


def _draw_edit(random: Random, content: bytes, places: list[list[str | int]]) -> Operation:
    size = max(len(content), 1)
    if places and random.random() < 0.75:
        return ["json", *_draw_change(random, places)]
    kind = random.choice(("insert", "insert", "insert", "swap lines", "flip", "remove", "repeat", "cut"))
    if kind == "insert":
        return ["insert", random.randrange(size), random.choice(_TEXTS).encode("utf-8", "surrogatepass").hex()]
    if kind == "swap lines":
        return ["swap lines", random.randrange(99), random.randrange(99)]
    if kind == "flip":
        return ["flip", random.randrange(8 * size)]
    if kind == "cut":
        return ["cut", random.randrange(size)]
    return [kind, random.randrange(size), 1 << random.randrange(6)]


def _draw_change(random: Random, places: list[list[str | int]]) -> list[Any]:
    """Path, action and value of `_change_json`."""
    path = random.choice(places)
    action = random.choice(("set", "set", "set", "delete", "rename"))
    value = None if action == "delete" else random.choice(_VALUES)
    return [path, action, str(value) if action == "rename" else value]


def draw_header(random: Random, content: bytes) -> list[Operation]:
    """One to eight operations on a safetensors file, most of them on its header."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    places = _json_places(header)
    return [_draw_header_edit(random, header, len(content), places) for _ in range(_how_many(random))]


def _draw_header_edit(random: Random, header: bytes, size: int, places: list[list[str | int]]) -> Operation:
    kind = random.choice(("header", "header", "header", "length", "flip", "flip", "cut", "damage"))
    if kind == "header":
        return ["header", *_draw_change(random, places)]
    if kind == "length":
        number = random.choice((*_LIES, 1 << 40, (1 << 64) - 1, len(header) + random.randrange(-9, 9)))
        return ["put", 0, number.to_bytes(8, "little").hex()]
    if kind == "flip":
        return ["flip", random.randrange(8 * (8 + len(header)))]
    if kind == "cut":
        return ["cut", random.randrange(size)]
    return ["put", random.randrange(size), random.randbytes(64).hex()]


def _json_places(content: bytes) -> list[list[str | int]]:
    """Paths to all values of a JSON document, or of the lines of JSON."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return []
    if is_json(text):
        return _paths(json.loads(text))
    lines = text.split("\n")
    return [[number, *path] for number, line in enumerate(lines) if is_json(line) for path in _paths(json.loads(line))]


def _paths(value: Any) -> list[list[str | int]]:
    inner: Iterable[tuple[str | int, Any]]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([step, *path] for step, each in inner for path in _paths(each))]
