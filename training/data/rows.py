"""Rows of datasets: the columns of captions, types of values, paths within a dataset, splits in names of files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swinbert.training.splits import SPLIT_WORDS, splits_in_name
from swinbert.utils.files import inner_path

# Columns by which `clip_source` finds a video in a tar; a source must not set them itself.
TAR_COLUMNS = ("shard", "offset", "size")
# Other names of the column `captions`; a clip without `captions` may have one of them.
CAPTION_NAMES = ("caption", "sentences", "sentence", "text")
# Shards of a split, as `datasets` names them.
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")


def captions_in(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """
    The column of a row that holds its captions, and these as a list, which is empty if the row has none.

    Raises:
        ValueError: the column is neither a text nor a list of texts, or several columns could be it.
    """
    named = [name for name in CAPTION_NAMES if row.get(name) is not None] if row.get("captions") is None else []
    if len(named) > 1:
        raise ValueError(f"expected `captions`, found {' and '.join(named)}: rename the right one to `captions`")
    name = named[0] if named else "captions"
    captions = row.get(name)
    captions = [] if captions is None else [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"expected `{name}` to be a text or a list of captions, found {captions!r}")
    return name, captions


def clean_row(row: dict[str, Any]) -> dict[str, Any]:
    """
    A row with `captions` as a list, and `start` and `end` as floats.

    Raises:
        ValueError: a value has another type; callers put the name of the row before the message.
    """
    name, captions = captions_in(row)
    row = {**row, "captions": captions}
    if name != "captions":
        del row[name]
    for name in ("start", "end"):
        value = row.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"expected `{name}` in seconds, found {value!r}")
            row[name] = float(value)
    for name in ("video_id", "split"):
        if row.get(name) is not None:
            row[name] = str(row[name])
    return row


def path_inside(folder: Path, name: Any) -> str:
    """The path of a file within the dataset. Symbolic links may lead out of it: `swinbert prepare` makes such links."""
    if not isinstance(name, str):
        raise ValueError(f"expected `file_name` to be a path, found {name!r}")
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    inner = inner_path(str(path))
    if inner is None:
        raise ValueError(f"expected a file within {folder}, found {name!r}, which leads out of it")
    return str(folder / inner)


def split_of(path: Path) -> str:
    """The split in the name of a file or of a folder above it; by default `train`."""
    for part in (path.stem, *path.parts[-2::-1]):
        if match := _SHARD.fullmatch(part):
            return SPLIT_WORDS.get(match["split"], match["split"])
        if found := splits_in_name(part):
            return found[0]
    return "train"
