"""The clips of a split, with what their captions are compared with."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from swinbert.captioning import Clip
from swinbert.training.data.sources import clip_source, load_clips
from swinbert.training.evaluation.caption_files import clip_ids, read_references
from swinbert.utils.text import first_names


@dataclass
class EvaluationClips:
    """
    The clips of a split, a sequence of [`Clip`], and the references that their captions are compared with.

    Args:
        dataset, split: where the clips come from.
        rows: all clips of the split, in the columns of `swinbert.training.data.sources`; videos are undecoded.
        ids: one for each clip.
        references: id -> reference captions, of the clips that are scored; `None` if there are none.
        references_from: where the references come from.
        number: how many clips are captioned, from the first.
    """

    dataset: str
    split: str
    rows: datasets.Dataset
    ids: list[str]
    references: dict[str, list[str]] | None
    references_from: str
    number: int

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Clip]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Clip:
        row = self.rows[number]
        return Clip(clip_source(row), row.get("start"), row.get("end"), name=self.ids[number])

    def file_size(self, number: int) -> int | None:
        """Bytes of a clip's file, which reveal another file of the same name; `None` if unknown."""
        row = self.rows[number]
        if row["video"]["bytes"] is not None:
            return len(row["video"]["bytes"])
        try:
            return row["size"] if row.get("shard") else os.stat(row["video"]["path"]).st_size
        except OSError:
            return None

    def settings(self) -> dict[str, Any]:
        """Identifies the clips: a hash of names and ranges."""
        columns = self.rows.column_names
        ranges = (list(self.rows[each]) if each in columns else [None] * len(self) for each in ("start", "end"))
        listing = json.dumps(list(zip(self.ids, *ranges, strict=True))).encode()
        digest = hashlib.sha256(listing).hexdigest()
        return {"name": self.dataset, "split": self.split, "clips": len(self), "clips_sha256": digest}


def load_evaluation_clips(
    dataset: str,
    split: str,
    references: str | Path | None = None,
    *,
    limit: int | None = None,
    allow_missing: bool = False,
) -> EvaluationClips:
    """
    The clips of a split, with their own captions as references, or those of the file `references`.

    Args:
        limit: caption only so many clips, from the first.
        allow_missing: accept a file with references of other clips too.

    Raises:
        ValueError, FileNotFoundError: no such dataset, split or file; the references are not those of the clips.
    """
    clips = load_clips(dataset, split, need_captions=False)
    ids = _ids(clips, f"{dataset}, split {split!r}")
    number = len(ids) if limit is None else min(limit, len(ids))
    captions_of_all = None
    if references is not None:
        captions_of_all = read_references(references, split)
        if lacking := [name for name in ids if name not in captions_of_all]:
            raise ValueError(
                f"{references} has no references for {len(lacking)} of {len(ids)} clips of split {split!r}:"
                f" {first_names(lacking)}. There, clips have such names as {first_names(list(captions_of_all), 3)}."
            )
        check_references(set(ids), captions_of_all, f"{dataset}, split {split!r},", allow_missing)
    elif "captions" in clips.column_names:
        captions_of_all = dict(zip(ids, clips["captions"], strict=True))
    chosen = None if captions_of_all is None else {name: list(captions_of_all[name]) for name in ids[:number]}
    return EvaluationClips(str(dataset), split, clips, ids, chosen, str(references or dataset), number)


def _ids(clips: datasets.Dataset, where: str) -> list[str]:
    """`clip_ids`, or the numbers of clips that have neither a name nor a named file."""
    columns = [name for name in clips.column_names if name not in ("video", "captions")]
    rows = list(clips.select_columns(columns)) if columns else [{} for _ in range(len(clips))]
    if not {"id", "video_id", "image_id", "file_name", "path"} & set(columns):
        videos = clips.select_columns(["video"]).with_format("arrow")
        paths = [path for batch in videos.iter(100) for path in pc.struct_field(batch["video"], "path").to_pylist()]
        if None in paths:
            return [str(number) for number in range(len(clips))]
        rows = [{**row, "file_name": Path(path).name} for row, path in zip(rows, paths, strict=True)]
    return clip_ids(rows, where)


def check_references(found: Iterable[str], references: Mapping[str, Any], where: str, allow_missing: bool) -> None:
    """Refuses references of clips that are not in `found`: the score would be that of fewer clips than it seems."""
    lacking = [name for name in references if name not in found]
    if lacking and not allow_missing:
        raise ValueError(
            f"{where} lacks {len(lacking)} of {len(references)} clips that have references: {first_names(lacking)}."
            " Score the others with --allow-missing."
        )


__all__ = ["EvaluationClips", "check_references", "load_evaluation_clips"]
