"""Reads datasets of clips with captions: folders, parquet files, tar shards and the Hub, all into the same columns.

    video      {"path", "bytes"}, undecoded (`datasets.Video(decode=False)`); `clip_source` makes an input of a decoder
    captions   list of texts; a source may have a single text, or name the column caption, sentences, sentence or text
    start, end seconds, if the clip is a part of its file
    video_id   and all other columns of the source

`datasets` reads the Hub and parquet. Two layouts are read here, because its builders (5.2) lose data silently:
VideoFolder takes names of folders for splits, drops all clips and captions outside of them, and knows five file
suffixes; WebDataset drops fields that none of the first five samples has, such as `start`, and copies all videos to its
cache.
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
from swinbert.training.data.folders import has_sidecars, metadata_files, read_metadata, read_sidecars
from swinbert.training.data.rows import TAR_COLUMNS, clean_row, path_inside, split_of
from swinbert.utils.files import no_such_folder, refuse_missing_folder
from swinbert.utils.text import one_line

# As in WebDataset, the files of a sample share their name up to the first dot of its last part.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<field>[^/]+)")


def load_clips(
    dataset: str | Path, split: str, need_captions: bool = True, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """
    The clips of one split, in the columns of this module.

    Args:
        dataset: a folder with `metadata.jsonl`, `.csv` or `.parquet`, with videos and a `.txt` beside each, with
            `.parquet` files or with `.tar` shards; such a file; or the id of a dataset on the Hub.
        split: a value of the column `split` if there is one, else from the names of the files (of folders only, if
            captions are in files of their own).
        need_captions: if false, no clip of the split needs captions (a private test set, say); the result then has no
            column `captions`.
        streaming: return an `IterableDataset`, which is read from the Hub or from parquet on demand, without a local
            copy; captions are then checked clip by clip.

    Raises:
        FileNotFoundError: there is no such dataset, or a folder has no files of these kinds.
        ValueError: there is no such split; a clip has no captions; a line, column or value is malformed; or a path
            leads out of the dataset.
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
    # Workers share the dataset by shards.
    return clips.to_iterable_dataset(num_shards=min(64, len(clips))) if streaming else clips


def load_splits(dataset: str | Path, wanted: str | None = None) -> dict[str, datasets.Dataset]:
    """
    Name -> clips, for all splits of a dataset that have clips. Clips may lack captions. See `load_clips`.

    Args:
        wanted: the split that is needed; others are omitted if that saves work.
    """
    folder = Path(dataset).expanduser()
    if metadata := metadata_files(folder):
        splits = _group(row for file in metadata for row in read_metadata(folder, file))
    elif (files := _remote_or_parquet(dataset)) is not None:
        if wanted in files and not _has_split_column(files):
            files = {wanted: files[wanted]}  # `datasets` copies all files to its cache
        splits = _read_builder(dataset, files)
    elif shards := _files(folder, ".tar"):
        splits = _group(row for shard in shards for row in _read_tar(folder, shard))
    else:
        splits = _group(read_sidecars(folder))
    if not splits:
        raise ValueError(f"{dataset} has no clips.")
    return splits


def no_split(dataset: str | Path, split: str, splits: dict[str, datasets.Dataset]) -> ValueError:
    """The error for a split that does not exist."""
    counts = {name: len(clips) for name, clips in splits.items()}
    return ValueError(f"{dataset} has no split {split!r}, only {counts} clips.")


def clip_source(clip: dict[str, Any]) -> Any:
    """
    The input of `decode_video` for a clip: its path, or `{"path", "bytes"}` if it is not a file of its own. A video
    that is not such a record is returned as it is.
    """
    video = clip["video"]
    if not isinstance(video, dict) or video.get("bytes") is not None:
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
    """The name of a clip for messages: its file, or its id if it has none, and its time range."""
    name = clip.get("file_name") or clip["video"]["path"] or clip.get("video_id") or "a clip without a name"
    if clip.get("start") is None and clip.get("end") is None:
        return name
    end = "end" if clip.get("end") is None else f"{clip['end']:g}"
    return f"{name} [{clip.get('start') or 0:g}-{end} s]"


def is_stream(clips: Any) -> bool:
    return isinstance(clips, datasets.IterableDataset)


def missing_videos(clips: datasets.Dataset) -> list[str]:
    """The video files of a dataset that do not exist or are empty, without opening any."""
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


# --- Captions and splits ---------------------------------------------------------------------------------------------


def _check_captions(dataset: str | Path, split: str, clips: datasets.Dataset) -> None:
    captions = clips["captions"]
    if not any(captions):
        raise ValueError(
            f"{dataset} ({split}) has no `captions`: expected a column with a list of captions for each clip; found"
            f" {[name for name in clips.column_names if name != 'captions']}."
        )
    for number, texts in enumerate(captions):
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(_no_captions_message(dataset, split, clips[number]))


def _no_captions_message(dataset: str | Path, split: str, clip: dict[str, Any]) -> str:
    return f"{clip_name(clip)} of {dataset} ({split}): expected a list of captions, found {clip['captions']!r}."


def _group(rows: Iterable[dict[str, Any]]) -> dict[str, datasets.Dataset]:
    """A dataset for each value of `split`, in the order of their first rows."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("split") or "train"].append(row)
    return {split: _dataset(group) for split, group in groups.items()}


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    # `datasets` takes the columns from the first row: every row gets all of them.
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError, datasets.table.CastError, KeyError) as error:
        raise ValueError(f"Expected values of one type under each of the names {list(names)}: {error}") from error
    except UnicodeEncodeError as error:  # JSON can name half of a pair of code units
        raise ValueError(f"Expected Unicode text, found {error.object!r}: {error.reason}.") from error


# --- Folders and tar shards -------------------------------------------------------------------------------------------


def _read_tar(folder: Path, shard: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard. Videos stay in the shard: a row has their offset and size."""
    sample: dict[str, Any] = {}
    key = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or match is None:
                    continue
                if match["key"] != key:
                    yield from _sample_row(folder, shard, key, sample)
                    key, sample = match["key"], {}
                field = match["field"].lower()
                if f".{field}" in VIDEO_SUFFIXES:
                    sample["video"] = member
                elif field in ("json", "txt"):
                    sample[field] = tar.extractfile(member).read().decode("utf-8")  # type: ignore[union-attr]
            yield from _sample_row(folder, shard, key, sample)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{shard}: expected an uncompressed tar of clips and texts; after {key}: {error}.") from error


def _sample_row(folder: Path, shard: Path, key: str | None, sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row of a sample; none if the sample is empty."""
    if not sample:
        return
    video = sample.get("video")
    if video is None:
        raise ValueError(f"{shard}, {key}: expected a video beside {sorted(sample)}, found none.")
    try:
        row: dict[str, Any] = {"split": split_of(shard.relative_to(folder) if shard != folder else Path(shard.name))}
        row |= {"video": {"path": f"{shard}/{video.name}", "bytes": None}}
        row |= {"shard": str(shard), "offset": video.offset_data, "size": video.size}
        yield clean_row(_with_texts(row, sample.get("json"), sample.get("txt")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}, {key}: {error}.") from error


def _with_texts(row: dict[str, Any], fields: Any, text: str | None) -> dict[str, Any]:
    """A row with the fields in the `json` of a sample; its `txt` is the caption if these have none."""
    fields = json.loads(fields) if isinstance(fields, (str, bytes)) else fields or {}
    if not isinstance(fields, dict):
        raise ValueError(f"expected the json to be an object, found {fields!r}")
    row = {**row, **{name: value for name, value in fields.items() if name not in ("video", *TAR_COLUMNS)}}
    if row.get("captions") is None:
        row["captions"] = text.strip() if text else None
    return row


def _files(path: Path, suffix: str) -> list[Path]:
    return [path] if path.is_file() else sorted(each for each in path.rglob(f"*{suffix}") if each.is_file())


# --- Parquet and the Hub, by `datasets` -------------------------------------------------------------------------------


def _remote_or_parquet(dataset: str | Path) -> dict[str, list[str]] | None:
    """Split -> files of a local parquet dataset; empty for a dataset on the Hub; `None` for folders and tar shards."""
    path = Path(dataset).expanduser()
    if not path.exists():
        refuse_missing_folder(str(dataset), needs_owner=True)
        return {}
    if metadata_files(path) or _files(path, ".tar") and path.suffix != ".parquet":
        return None
    files: dict[str, list[str]] = defaultdict(list)
    for file in _files(path, ".parquet"):
        files[split_of(file.relative_to(path) if path.is_dir() else Path(file.name))].append(str(file))
    if not files:
        if path.is_dir() and has_sidecars(path):
            return None
        raise FileNotFoundError(
            f"{path} has no metadata.jsonl, .csv or .parquet with `file_name` and `captions` of each clip, no .parquet"
            " or .tar files with clips, and no video with a .txt of the same name beside it."
        )
    return dict(files)


def _has_split_column(files: dict[str, list[str]]) -> bool:
    return bool(files) and "split" in pq.read_schema(next(iter(files.values()))[0]).names


def _open(dataset: str | Path, files: dict[str, list[str]], streaming: bool) -> tuple[Any, Callable[[Any], str]]:
    """Split -> dataset of `datasets`, and a function that checks and resolves paths of videos in it."""
    if not files:
        try:
            return datasets.load_dataset(str(dataset), streaming=streaming), _in_cache
        except OSError as error:
            raise FileNotFoundError(f"{no_such_folder(str(dataset))} On the Hub: {one_line(error)}") from error
    folder = Path(dataset).expanduser()
    try:
        parts = datasets.load_dataset("parquet", data_files=files, streaming=streaming)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{dataset}: expected parquet files: {one_line(error.__cause__ or error)}") from error
    return parts, partial(path_inside, folder if folder.is_dir() else folder.parent)


def _in_cache(path: Any) -> str:
    """Checks that the path of a video of a Hub dataset is on the Hub or in a cache; `ValueError` otherwise."""
    caches = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    if isinstance(path, str):
        normalised = os.path.normpath(path)
        if _is_on_hub(path) or any(Path(normalised).is_relative_to(Path(cache).absolute()) for cache in caches):
            return path
    raise ValueError(f"expected the bytes of a video or a file of the dataset, found the path {path!r}")


def _is_on_hub(path: str) -> bool:
    return path.rpartition("::")[2].startswith("hf://")


def _video_column(dataset: str | Path, clips: Any) -> str:
    names = clips.column_names or list(next(iter(clips.take(1)), {}))
    found = [name for name in names if name in ("video", "file_name") or f".{name}" in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(f"{dataset} has no column `video`; found {names}.")
    return "video" if "video" in found else found[0]


def _read_builder(dataset: str | Path, files: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    parts, path_of = _open(dataset, files, streaming=False)
    clips = {name: _normalised(dataset, part, path_of) for name, part in parts.items() if len(part)}
    if not any("split" in part.column_names for part in clips.values()):
        return clips
    everything = datasets.concatenate_datasets(list(clips.values()))
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, split in enumerate(everything["split"]):
        numbers[split or "train"].append(number)
    return {split: everything.select(rows) for split, rows in numbers.items()}


def _normalised(dataset: str | Path, clips: datasets.Dataset, path_of: Callable[[Any], str]) -> datasets.Dataset:
    """Clips in the columns of this module. Bytes of videos stay in the memory-mapped files of `datasets`."""
    column = _video_column(dataset, clips)
    videos = clips.select_columns([column]).cast_column(column, datasets.Video(decode=False))
    if column != "video":
        videos = videos.rename_column(column, "video")
    rows = []
    for number, row in enumerate(clips.remove_columns([column]).to_list() if len(clips.column_names) > 1 else []):
        try:
            rows.append(clean_row(_flat(row)))
        except ValueError as error:
            raise ValueError(f"{dataset}, row {number}: {error}.") from error
    if pc.struct_field(videos.data.column("video"), "bytes").null_count:
        videos = videos.map(partial(_with_path, str(dataset), path_of), features=videos.features)
    texts = _dataset(rows) if rows else datasets.Dataset.from_dict({"captions": [[]] * len(videos)})
    return datasets.concatenate_datasets([videos, texts], axis=1)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the contents of its `json` and `txt`, if it is a sample of a tar."""
    rest = {name: value for name, value in row.items() if name not in ("json", "txt", *TAR_COLUMNS)}
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
        # `map` would keep the former values of columns that are missing.
        return {**dict.fromkeys(row), **clean_row(_flat(_with_path(dataset, path_of, row)))}
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}.") from error


def _is_of_split(split: str, row: dict[str, Any]) -> bool:
    return (row["split"] or "train") == split


def _with_captions(dataset: str, split: str, row: dict[str, Any]) -> dict[str, Any]:
    if not row["captions"] or not all(caption.strip() for caption in row["captions"]):
        raise ValueError(_no_captions_message(dataset, split, row))
    return row
