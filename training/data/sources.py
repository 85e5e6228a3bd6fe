"""Where clips with captions come from: folders, parquet files, tar shards and the Hub, each read into the same columns.

    video      {"path", "bytes"}, undecoded (`datasets.Video(decode=False)`); `clip_source` gives what a decoder reads
    captions   list of texts; in the source also one text, or under the name of caption, sentences, sentence or text
    start, end seconds, where a clip is a part of its file
    video_id   and whatever else the source has

`datasets` reads the Hub and parquet. Two layouts are read here, since its builders lose clips without a word (5.2):
VideoFolder takes the names of folders for splits and then drops every clip and all captions outside of them, and knows
five suffixes; WebDataset drops what no one of the first five samples has, such as a later `start`, and copies all
videos into its cache.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from swinbert.processing import VIDEO_SUFFIXES
from swinbert.training.splits import SPLIT_WORDS, splits_in_name
from swinbert.utils.files import inner_path
from swinbert.utils.text import first_names

# As `datasets` names the shards of a split.
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")
# Where `clip_source` finds a video in a tar: no source may say so itself.
_PLACE = ("shard", "offset", "size")
# Other names of captions, taken where there are no `captions` and only one of these.
_CAPTION_NAMES = ("caption", "sentences", "sentence", "text")
# A sample of a tar is what has one name up to the first dot of its last part, as in WebDataset.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<field>[^/]+)")


def load_clips(
    dataset: str | Path, split: str, need_captions: bool = True, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """
    The clips of one split, in the columns of this module.

    Args:
        dataset: a folder with `metadata.jsonl` (the house format), `.parquet` files or `.tar` shards; one such
            file; or the id of a dataset on the Hub.
        split: as in the column `split` where there is one, else as the names of the files say.
        need_captions: `False` takes a split too of which no clip has captions, such as a private test set; it comes
            without the column `captions`.
        streaming: an `IterableDataset`, read from the Hub or from parquet as it is consumed, without a copy on this
            machine; captions are then checked clip by clip.

    Raises:
        FileNotFoundError: there is nothing to read, or a folder holds none of these.
        ValueError: no such split; a clip without captions; a line, a column or a value that is none of these; a path
            that leads out of the dataset.
    """
    if streaming and (files := _remote_or_parquet(dataset)) is not None:
        return _stream(dataset, split, need_captions, files)
    splits = load_splits(dataset, split)
    if split not in splits:
        raise no_split(dataset, split, splits)
    clips = splits[split]
    if not need_captions and not any(clips["captions"]):
        clips = clips.remove_columns("captions")
    else:
        _check_captions(dataset, split, clips)
    # One shard for each of the workers that may share it.
    return clips.to_iterable_dataset(num_shards=min(64, len(clips))) if streaming else clips


def load_splits(dataset: str | Path, wanted: str | None = None) -> dict[str, datasets.Dataset]:
    """
    All splits of a dataset by name, those with clips; clips may lack captions. See `load_clips`.

    Args:
        wanted: others may be left out where that saves work.
    """
    folder = Path(dataset).expanduser()
    if folder.is_dir() and (folder / "metadata.jsonl").is_file():
        splits = _group(_read_metadata(folder))
    elif (files := _remote_or_parquet(dataset)) is not None:
        if wanted in files and not _has_split_column(files):
            files = {wanted: files[wanted]}  # `datasets` copies all that it is given
        splits = _read_builder(dataset, files)
    else:
        splits = _group(row for shard in _files(folder, ".tar") for row in _read_tar(folder, shard))
    if not splits:
        raise ValueError(f"{dataset} has no clips.")
    return splits


def no_split(dataset: str | Path, split: str, splits: dict[str, datasets.Dataset]) -> ValueError:
    counts = {name: len(clips) for name, clips in splits.items()}
    return ValueError(f"{dataset} has no split {split!r}, only {counts} clips.")


def clip_source(clip: dict[str, Any]) -> Any:
    """What `decode_video` reads of a clip: its path, or `{"path", "bytes"}` where it is no file of its own."""
    video = clip["video"]
    if video["bytes"] is not None:
        return video
    if clip.get("shard") is not None:
        with open(clip["shard"], "rb") as shard:
            shard.seek(clip["offset"])
            return {"path": video["path"], "bytes": shard.read(clip["size"])}
    if _is_on_hub(video["path"]):
        import fsspec

        with fsspec.open(video["path"], "rb") as file:
            return {"path": video["path"], "bytes": file.read()}
    return video["path"]


def clip_name(clip: dict[str, Any]) -> str:
    """For messages: the clip's file, or its id where it has no name, and its part of it."""
    name = clip.get("file_name") or clip["video"]["path"] or clip.get("video_id") or "a clip without a name"
    if clip.get("start") is None and clip.get("end") is None:
        return name
    end = "end" if clip.get("end") is None else f"{clip['end']:g}"
    return f"{name} [{clip.get('start') or 0:g}-{end} s]"


def is_stream(clips: Any) -> bool:
    return isinstance(clips, datasets.IterableDataset)


def missing_videos(clips: datasets.Dataset) -> list[str]:
    """The files that are not there, or are empty, of clips that are files; opens none."""
    in_shards = "shard" in clips.column_names
    if in_shards or not pc.struct_field(clips.data.column("video"), "bytes").null_count:
        return []
    paths = {
        path
        for batch in clips.select_columns(["video"]).with_format("arrow").iter(1000)
        for path in pc.struct_field(batch["video"], "path").to_pylist()
    }
    return sorted(path for path in paths if path and not _is_on_hub(path) and not _has_content(path))


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


# --- One clip, whatever it was read from ------------------------------------------------------------------------------


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `captions` as a list and `start` and `end` as numbers.

    Raises:
        ValueError: they are something else; the message goes on after the name of the row.
    """
    named = [name for name in _CAPTION_NAMES if row.get(name) is not None] if row.get("captions") is None else []
    if len(named) > 1:
        raise ValueError(f"expected `captions`, found {' and '.join(named)}: name the right one so")
    name = named[0] if named else "captions"
    captions = row.get(name)
    captions = [] if captions is None else [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"expected `{name}` to be a text or a list of captions, found {captions!r}")
    row = {**row, "captions": captions}
    if named:
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


def _inside(folder: Path, name: Any) -> str:
    """The path of a file of the dataset. (A link in the folder may lead anywhere: `swinbert prepare` makes such.)"""
    if not isinstance(name, str):
        raise ValueError(f"expected `file_name` to be a path, found {name!r}")
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    inner = inner_path(str(path))
    if inner is None:
        raise ValueError(f"expected a file within {folder}, found {name!r}, which leads out of it")
    return str(folder / inner)


def _check_captions(dataset: str | Path, split: str, clips: datasets.Dataset) -> None:
    captions = clips["captions"]
    if not any(captions):
        raise ValueError(
            f"{dataset} ({split}) has no `captions`: name the column so, with a list of captions for each clip; found"
            f" {clips.column_names}."
        )
    for number, texts in enumerate(captions):
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(_without_captions(dataset, split, clips[number]))


def _without_captions(dataset: str | Path, split: str, clip: dict[str, Any]) -> str:
    return f"{clip_name(clip)} of {dataset} ({split}): expected a list of captions, found {clip['captions']!r}."


def _group(rows: Iterable[dict[str, Any]]) -> dict[str, datasets.Dataset]:
    """A dataset for each value of `split`, in the order of their first rows."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("split") or "train"].append(row)
    return {split: _dataset(group) for split, group in groups.items()}


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    # All keys for every row: `datasets` would look at the first one's alone.
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"Expected values of one type under each of the names {list(names)}: {error}") from error


# --- Folders and tar shards -------------------------------------------------------------------------------------------


def _read_metadata(folder: Path) -> Iterator[dict[str, Any]]:
    metadata = folder / "metadata.jsonl"
    wrong = []
    try:
        lines = metadata.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` would cut some captions too
    except UnicodeDecodeError as error:
        raise ValueError(f"{metadata}: expected UTF-8 text: {error}.") from error
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or "file_name" not in line:
                raise ValueError(f"expected an object with `file_name`, found {text!r}")
            line = {name: value for name, value in line.items() if name not in _PLACE}
            yield _clean({**line, "video": {"path": _inside(folder, line["file_name"]), "bytes": None}})
        except json.JSONDecodeError:
            wrong.append(f"line {number}: expected an object with `file_name`, found {text!r}")
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise ValueError(f"{metadata}, {first_names(wrong)}.")


def _read_tar(folder: Path, shard: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard; a video is where it is in it, read when it is wanted."""
    sample: dict[str, Any] = {}
    key = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or match is None:
                    continue
                if match["key"] != key:
                    yield from _sample(folder, shard, key, sample)
                    key, sample = match["key"], {}
                field = match["field"].lower()
                if f".{field}" in VIDEO_SUFFIXES:
                    sample["video"] = member
                elif field in ("json", "txt"):
                    sample[field] = tar.extractfile(member).read().decode("utf-8")  # type: ignore[union-attr]
            yield from _sample(folder, shard, key, sample)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{shard}: expected an uncompressed tar of clips and texts; after {key}: {error}.") from error


def _sample(folder: Path, shard: Path, key: str | None, sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not sample:
        return
    video = sample.get("video")
    if video is None:
        raise ValueError(f"{shard}, {key}: expected a video beside {sorted(sample)}, found none.")
    try:
        row: dict[str, Any] = {"split": _split_of(shard.relative_to(folder) if shard != folder else Path(shard.name))}
        row |= {"video": {"path": f"{shard}/{video.name}", "bytes": None}}
        row |= {"shard": str(shard), "offset": video.offset_data, "size": video.size}
        yield _clean(_with_texts(row, sample.get("json"), sample.get("txt")))
    except ValueError as error:
        raise ValueError(f"{shard}, {key}: {error}.") from error


def _with_texts(row: dict[str, Any], about: Any, text: str | None) -> dict[str, Any]:
    """A sample of a tar with what its `json` says; its `txt` is the caption where that says none."""
    about = json.loads(about) if isinstance(about, (str, bytes)) else about or {}
    if not isinstance(about, dict):
        raise ValueError(f"expected the json to be an object, found {about!r}")
    row = {**row, **{name: value for name, value in about.items() if name not in ("video", *_PLACE)}}
    if row.get("captions") is None:
        row["captions"] = text.strip() if text else None
    return row


def _files(path: Path, suffix: str) -> list[Path]:
    return [path] if path.is_file() else sorted(each for each in path.rglob(f"*{suffix}") if each.is_file())


def _split_of(path: Path) -> str:
    """The split that the name of a file tells, or of the folders above it; else `train`."""
    for part in (path.stem, *path.parts[-2::-1]):
        if match := _SHARD.fullmatch(part):
            return SPLIT_WORDS.get(match["split"], match["split"])
        if found := splits_in_name(part):
            return found[0]
    return "train"


# --- Parquet and the Hub, by `datasets` -------------------------------------------------------------------------------


def _remote_or_parquet(dataset: str | Path) -> dict[str, list[str]] | None:
    """Files of each split of a local parquet dataset; none where it is on the Hub; `None` where it is neither."""
    path = Path(dataset).expanduser()
    if not path.exists():
        name = str(dataset)
        if name.count("/") > 1 or name.startswith((".", "~", "/")):
            raise FileNotFoundError(f"There is no dataset {name}: no such folder, and not a name on the Hub.")
        return {}
    if path.is_dir() and (path / "metadata.jsonl").is_file() or _files(path, ".tar") and path.suffix != ".parquet":
        return None
    files: dict[str, list[str]] = defaultdict(list)
    for file in _files(path, ".parquet"):
        files[_split_of(file.relative_to(path) if path.is_dir() else Path(file.name))].append(str(file))
    if not files:
        raise FileNotFoundError(
            f"{path} has no metadata.jsonl with `file_name` and `captions` of each clip, and no .parquet or .tar files."
        )
    return dict(files)


def _has_split_column(files: dict[str, list[str]]) -> bool:
    return bool(files) and "split" in pq.read_schema(next(iter(files.values()))[0]).names


def _open(dataset: str | Path, files: dict[str, list[str]], streaming: bool) -> tuple[Any, Callable[[Any], str]]:
    """What `datasets` makes of the files, by split, and how the path of a video in it is found."""
    if not files:
        return datasets.load_dataset(str(dataset), streaming=streaming), _in_cache
    folder = Path(dataset).expanduser()
    parts = datasets.load_dataset("parquet", data_files=files, streaming=streaming)
    return parts, partial(_inside, folder if folder.is_dir() else folder.parent)


def _in_cache(path: Any) -> str:
    """A path that `datasets` gives for a video of the Hub: there, or where it keeps what it loaded."""
    caches = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    if isinstance(path, str):
        plain = os.path.normpath(path)
        if _is_on_hub(path) or any(Path(plain).is_relative_to(Path(cache).absolute()) for cache in caches):
            return path
    raise ValueError(f"expected the bytes of a video or a file of the dataset, found the path {path!r}")


def _is_on_hub(path: str) -> bool:
    return path.rpartition("::")[2].startswith("hf://")


def _video_column(dataset: str | Path, clips: Any) -> str:
    names = clips.column_names or list(next(iter(clips.take(1)), {}))
    found = [name for name in names if name in ("video", "file_name") or f".{name}" in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(f"{dataset} has no column `video`, only {names}.")
    return "video" if "video" in found else found[0]


def _read_builder(dataset: str | Path, files: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    parts, path_of = _open(dataset, files, streaming=False)
    clips = {name: _normalised(dataset, part, path_of) for name, part in parts.items() if len(part)}
    if not any("split" in part.column_names for part in clips.values()):
        return clips
    whole = datasets.concatenate_datasets(list(clips.values()))
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, split in enumerate(whole["split"]):
        numbers[split or "train"].append(number)
    return {split: whole.select(chosen) for split, chosen in numbers.items()}


def _normalised(dataset: str | Path, clips: datasets.Dataset, path_of: Callable[[Any], str]) -> datasets.Dataset:
    """The columns of this module. Videos that are there as bytes stay where `datasets` has mapped them."""
    column = _video_column(dataset, clips)
    videos = clips.select_columns([column]).cast_column(column, datasets.Video(decode=False))
    if column != "video":
        videos = videos.rename_column(column, "video")
    rows = []
    for number, row in enumerate(clips.remove_columns([column]).to_list() if len(clips.column_names) > 1 else []):
        try:
            rows.append(_clean(_flat(row)))
        except ValueError as error:
            raise ValueError(f"{dataset}, row {number}: {error}.") from error
    if pc.struct_field(videos.data.column("video"), "bytes").null_count:
        videos = videos.map(partial(_with_path, str(dataset), path_of), features=videos.features)
    texts = _dataset(rows) if rows else datasets.Dataset.from_dict({"captions": [[]] * len(videos)})
    return datasets.concatenate_datasets([videos, texts], axis=1)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what is in the `json` and `txt` of a sample of a tar, if it is one."""
    rest = {name: value for name, value in row.items() if name not in ("json", "txt", *_PLACE)}
    return _with_texts(rest, row.get("json"), row.get("txt"))


def _with_path(dataset: str, path_of: Callable[[Any], str], row: dict[str, Any]) -> dict[str, Any]:
    video = row["video"]
    if isinstance(video, bytes):
        video = {"path": None, "bytes": video}
    elif not isinstance(video, dict):
        video = {"path": video, "bytes": None}
    row["video"] = video
    if video["bytes"] is None:
        try:
            row["video"] = {"path": path_of(video["path"]), "bytes": None}
        except ValueError as error:
            raise ValueError(f"{dataset}: {error}.") from error
    return row


def _stream(
    dataset: str | Path, split: str, need_captions: bool, files: dict[str, list[str]]
) -> datasets.IterableDataset:
    if _has_split_column(files):
        files = {"train": [file for part in files.values() for file in part]}
    parts, path_of = _open(dataset, files, streaming=True)
    name = split if split in parts else next(iter(parts)) if len(parts) == 1 else None
    if name is None:
        raise ValueError(f"{dataset} has no split {split!r}, only {list(parts)}.")
    clips = parts[name]
    column = _video_column(dataset, clips)
    clips = clips.cast_column(column, datasets.Video(decode=False))
    if column != "video":
        clips = clips.rename_column(column, "video")
    clips = clips.map(partial(_streamed, str(dataset), path_of))
    if "split" in next(iter(clips), {}):
        clips = clips.filter(partial(_is_of_split, split))
    elif name != split:
        raise ValueError(f"{dataset} has no split {split!r}, only {list(parts)}.")
    return clips.map(partial(_with_captions, str(dataset), split)) if need_captions else clips


def _streamed(dataset: str, path_of: Callable[[Any], str], row: dict[str, Any]) -> dict[str, Any]:
    try:
        # `map` would keep what the row no longer has.
        return {**dict.fromkeys(row), **_clean(_flat(_with_path(dataset, path_of, row)))}
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}.") from error


def _is_of_split(split: str, row: dict[str, Any]) -> bool:
    return (row["split"] or "train") == split


def _with_captions(dataset: str, split: str, row: dict[str, Any]) -> dict[str, Any]:
    if not row["captions"] or not all(caption.strip() for caption in row["captions"]):
        raise ValueError(_without_captions(dataset, split, row))
    return row
