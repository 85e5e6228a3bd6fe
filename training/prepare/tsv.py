"""
Reader for SwinBERT's own datasets: a YAML file that names TSV files of videos, or of decoded frames, and of captions.

- `img`: rows `key, path` of a video, or `key, JSON, JPEG, JPEG, ...` with the frames in base64;
- `caption`: rows `key, [{"caption", "start", "end"}]` in the order of the videos; absent if captions are not published;
- `caption_linelist`: rows `row of the video, index of the caption in its row`, both from 0; by default, all captions;
- `composite: true`: `img` and `caption` are lists of TSV files (in the YAML file, or in a text file with one name per
  line), and the line list has three columns: file, row, caption.

An index beside a TSV file, `.lineidx.8b` (uint64, little-endian) or `.lineidx` (numbers as text), gives the offsets of
its rows.
"""

import base64
import binascii
import functools
import io
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from swinbert.training.prepare.annotations import AnnotationFile, Annotations, Clip
from swinbert.training.prepare.documents import INNER_PATH, AnnotationError, Node, read_lines, read_text
from swinbert.utils.files import inner_path
from swinbert.utils.text import preview

# A longer row holds decoded frames.
_PATH_ROW_BYTES = 1 << 16
# Names of the clips of TVC: a video with start and end.
_TIMED_PATH = re.compile(r"(?P<path>.+\.\w{2,4})_(?P<start>\d+(\.\d+)?)_(?P<end>\d+(\.\d+)?)")


def read_tsv(files: Sequence[AnnotationFile]) -> Annotations:
    """Reads SwinBERT's YAML files, one for each split. Every time range in a row of captions becomes a clip."""
    clips, notes = [], []
    for file in files:
        images, captions, wanted = _open_set(file.path)
        for (source, row), numbers in wanted.items():
            clips += _row_clips(file.split, images[source], captions[source] if captions else None, row, numbers)
        total = sum(map(len, images))
        if len(wanted) < total:
            notes.append(f"{file.path} uses {len(wanted)} of its {total} rows of videos.")
    return Annotations(clips, notes)


class BrokenRow(ValueError):
    """A row of decoded frames cannot be used; the message says why."""


class Tsv:
    """A TSV file whose rows are read one by one: it may be larger than memory."""

    def __init__(self, path: Path):
        self.path = path
        index = path.with_suffix(".lineidx")
        binary_index = path.with_suffix(".lineidx.8b")
        if binary_index.is_file():
            content = binary_index.read_bytes()
            self._starts = array("Q", content[: len(content) // 8 * 8])
            if sys.byteorder == "big":
                self._starts.byteswap()
            self._check_starts(binary_index)
        elif index.is_file():
            self._starts = array("Q")
            for number, line in read_lines(index):
                if not line.isdecimal() or len(line) > 18:
                    raise AnnotationError(index, number, "the number of a byte", preview(line))
                self._starts.append(int(line))
            self._check_starts(index)
        else:
            self._starts = array("Q", _find_rows(path))

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, number: int) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            return self._columns(number, file.readline())

    def key_and_path(self, number: int) -> tuple[str, str | None]:
        """The key of a row, and the path of its video: `None` if it holds decoded frames, which are not read here."""
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            line = file.readline(_PATH_ROW_BYTES)
        if len(line) == _PATH_ROW_BYTES:
            key, _, _ = line.partition(b"\t")
            columns = [*self._columns(number, key), "", ""]
        else:
            columns = self._columns(number, line)
        if not columns[0]:
            raise AnnotationError(self.path, number + 1, "a row that begins with a key", "none")
        # The original writes the path to both columns.
        is_path = len(columns) <= 2 or columns[0] == columns[-1]
        return columns[0], columns[-1] if is_path else None

    def _columns(self, number: int, line: bytes) -> list[str]:
        try:
            return line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x}"
            raise AnnotationError(self.path, number + 1, "text in UTF-8", found) from error

    def _check_starts(self, index: Path) -> None:
        """Raises `AnnotationError` if an offset is not the start of a row: an outdated index would skip or cut rows."""
        expected = f"the byte where a row of {self.path.name} begins (delete {index.name} if it is out of date)"
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            previous = -1
            for number, start in enumerate(self._starts, 1):
                is_next = start == 0 if number == 1 else previous < start < size
                if is_next and start:
                    file.seek(start - 1)
                    is_next = file.read(1) == b"\n"
                if not is_next:
                    raise AnnotationError(index, number, expected, str(start))
                previous = start
            if self._starts:
                file.seek(self._starts[-1])
                file.readline()
            if file.tell() < size:
                raise AnnotationError(index, len(self._starts) + 1, expected, "the end of the index")


def _find_rows(path: Path) -> Iterator[int]:
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield start
            start += len(line)


# --- One YAML file ----------------------------------------------------------------------------------------------------

# (file, row) of a video -> the indices of the captions to read from its row; `None` stands for all.
Wanted = dict[tuple[int, int], list[int] | None]


@dataclass
class _Setting:
    """A value, or a list of values, and its line in the file."""

    file: Path
    line: int
    values: list[str]

    def paths(self, folder: Path) -> list[Path]:
        """The files in `folder` that the values name."""
        return [self._path(folder, value) for value in self.values]

    def _path(self, folder: Path, value: str) -> Path:
        name = inner_path(value)
        if name is None:
            raise AnnotationError(self.file, self.line, INNER_PATH, preview(value))
        if not (folder / name).is_file():
            raise AnnotationError(self.file, self.line, "the name of a file", f"{name!r}, but no file {folder / name}")
        return folder / name


def _open_set(file: Path) -> tuple[list[Tsv], list[Tsv], Wanted]:
    """Opens the TSV files of videos and of captions (equally many, or none), and reads which rows are used."""
    settings = _read_yaml(file)
    composite = "composite" in settings and settings["composite"].values[0].lower() in ("true", "yes", "on", "1")

    def open_all(key: str) -> list[Tsv]:
        if key not in settings:
            return []
        paths = settings[key].paths(file.parent)
        if composite and len(paths) == 1 and paths[0].suffix.lower() != ".tsv":
            listed = [_Setting(paths[0], number, [name]) for number, name in read_lines(paths[0])]
            paths = [path for each in listed for path in each.paths(file.parent)]
        if len(paths) != 1 and not composite:
            raise AnnotationError(file, settings[key].line, "one file (or `composite: true`)", str(len(paths)))
        return [Tsv(path) for path in paths]

    images, captions = open_all("img"), open_all("caption")
    if captions and len(captions) != len(images):
        found = f"{len(captions)} for {len(images)}"
        raise AnnotationError(file, settings["caption"].line, "as many files of captions as of videos", found)
    for pictures, texts in zip(images, captions, strict=False):
        if len(texts) != len(pictures):
            expected = f"{len(pictures)} rows, as in {pictures.path}"
            raise AnnotationError(texts.path, min(len(texts), len(pictures)) + 1, expected, str(len(texts)))
    if "caption_linelist" in settings:
        (line_list,) = settings["caption_linelist"].paths(file.parent)
        return images, captions, _read_line_list(line_list, images, composite)
    return images, captions, {(source, row): None for source, tsv in enumerate(images) for row in range(len(tsv))}


def _read_yaml(file: Path) -> dict[str, _Setting]:
    """The known keys that the file holds."""
    import yaml

    text = read_text(file)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        found = str(getattr(error, "problem", None) or error)
        raise AnnotationError(file, mark.line + 1 if mark else 1, "YAML", found) from error
    except RecursionError as error:
        raise AnnotationError(file, 1, "YAML", "too many brackets within each other") from error
    settings = {}
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value not in ("img", "caption", "caption_linelist", "composite"):
            continue
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        line = value.start_mark.line + 1
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            raise AnnotationError(file, line, f"`{key.value}` to be the name of a file, or a list of them", "a mapping")
        if values := [part.value for part in parts if part.tag != "tag:yaml.org,2002:null"]:
            settings[key.value] = _Setting(file, line, values)
    if "img" not in settings:
        raise AnnotationError(file, 1, "YAML with a key `img`, the TSV file of the videos", preview(text.strip()))
    return settings


def _read_line_list(file: Path, images: list[Tsv], composite: bool) -> Wanted:
    columns = ("file", "row", "caption") if composite else ("row", "caption")
    wanted: dict[tuple[int, int], list[int]] = {}
    for number, line in read_lines(file):
        numbers = line.split("\t")
        if len(numbers) < len(columns) or not all(each.isdecimal() for each in numbers[: len(columns)]):
            raise AnnotationError(file, number, f"numbers of {', '.join(columns)} with tabs between", preview(line))
        source, row, caption = ([] if composite else [0]) + [int(each) for each in numbers[: len(columns)]]
        if source >= len(images):
            raise AnnotationError(file, number, f"a file from 0 to {len(images) - 1}", str(source))
        if row >= len(images[source]):
            expected = f"a row from 0 to {len(images[source]) - 1} of {images[source].path}"
            raise AnnotationError(file, number, expected, str(row))
        wanted.setdefault((source, row), []).append(caption)
    return dict(wanted)


# --- One row ----------------------------------------------------------------------------------------------------------


def _row_clips(split: str, images: Tsv, captions: Tsv | None, row: int, wanted: list[int] | None) -> list[Clip]:
    """The clips of a row: one for each time range of its captions, or a single one."""
    key, path = images.key_and_path(row)
    entries = _row_captions(captions, row, key, wanted) if captions else []
    if path is None:
        texts = [text for text, _, _ in entries if text is not None]
        return [Clip(key, split, texts, frames=functools.partial(read_frames, images, row))]
    name = inner_path(path)
    if name is None:
        raise AnnotationError(images.path, row + 1, INNER_PATH, preview(path))
    timed = _TIMED_PATH.fullmatch(name)
    by_time: dict[tuple[float | None, float | None], list[str]] = {} if entries else {(None, None): []}
    for text, start, end in entries:
        by_time.setdefault((start, end), []).extend([] if text is None else [text])
    clips = []
    for (start, end), texts in by_time.items():
        clip_id = key if len(by_time) == 1 else f"{key}_{start}_{end}"
        source = timed["path"] if timed else name
        if start is None and end is None:
            # A file that holds this clip alone or, if the name has start and end, a part of another file.
            start, end = (float(timed["start"]), float(timed["end"])) if timed else (None, None)
            clips.append(
                Clip(clip_id, split, texts, clip_file=name, source=source if timed else None, start=start, end=end)
            )
        else:
            clips.append(Clip(clip_id, split, texts, source=source, start=start, end=end))
    return clips


def _row_captions(
    captions: Tsv, row: int, key: str, wanted: list[int] | None
) -> list[tuple[str | None, float | None, float | None]]:
    """Reads (caption, start, end) of those captions of a row that are used."""
    columns = captions.row(row)
    if columns[0] != key or len(columns) != 2:
        expected = f"two columns, the key {key!r} of the video and a list of captions"
        raise AnnotationError(captions.path, row + 1, expected, preview(columns))
    entries = Node.parse(captions.path, columns[1], row + 1).list()
    if wanted is not None:
        if max(wanted) >= len(entries):
            expected = f"a caption {max(wanted)}, which the line list names"
            raise AnnotationError(captions.path, row + 1, expected, f"{len(entries)} captions")
        entries = [entries[number] for number in wanted]
    found = []
    for entry in entries:
        text, start, end = entry.get("caption"), entry.get("start"), entry.get("end")
        found.append(
            (text.string() if text else None, start.seconds() if start else None, end.seconds() if end else None)
        )
    return found


def read_frames(images: Tsv, row: int) -> list[bytes]:
    """
    Reads the decoded frames of a row as JPEG files.

    Raises:
        BrokenRow: a column is not a JPEG in base64, or the frames differ in size.
    """
    frames, sizes = [], set()
    for number, column in enumerate(images.row(row)[2:], 3):
        try:
            frame = base64.b64decode(column, validate=True)
            with Image.open(io.BytesIO(frame)) as picture:
                kind, size = picture.format, picture.size
        except (binascii.Error, UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError):
            kind, size = "something else", (0, 0)
        if kind != "JPEG" or not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            found = "a truncated one" if kind == "JPEG" else kind
            raise BrokenRow(f"column {number}: expected a JPEG in base64, found {found}")
        frames.append(frame)
        sizes.add(size)
    if len(sizes) != 1:
        raise BrokenRow(f"expected frames of one size, found {sorted(sizes) or 'none'}")
    return frames
