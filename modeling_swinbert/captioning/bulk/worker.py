"""A worker of the job, which Ray runs as an actor: a model of its own, in a process that it watches."""

from typing import TYPE_CHECKING, Any

from swinbert.captioning.bulk.identity import clip_id
from swinbert.captioning.bulk.supervision import CaptionerSpec, Request, Supervisor

if TYPE_CHECKING:
    import pyarrow as pa


class Captioner:
    """
    Captions blocks of the table that `sources` describes.

    Args:
        spec: how to load and use the model.

    Raises:
        SharedFailure: no clip can be captioned here.
    """

    def __init__(self, spec: CaptionerSpec):
        self._spec = spec
        self._supervisor = Supervisor(spec)

    def __call__(self, clips: "pa.Table") -> "pa.Table":
        fields = Request.__dataclass_fields__.keys() & set(clips.column_names)
        requests = [Request(**row) for row in clips.select(sorted(fields)).to_pylist()]
        rows, has_segments = self._supervisor.caption(requests), self._spec.captioning.get("segments") is not None
        return result_table(clips, rows, self._supervisor.settings(), has_segments)

    @staticmethod
    def settings(spec: CaptionerSpec) -> str:
        """All that decides a caption here, as JSON."""
        return Supervisor(spec).settings()


def result_table(
    clips: "pa.Table", rows: list[list[dict[str, Any]]], settings: str, has_segments: bool = False
) -> "pa.Table":
    """
    The rows of results, with the columns that the clips bring along.

    Args:
        rows: for each clip its rows.
        settings: all that decides a caption, as JSON, for the column `settings`.
        has_segments: a row is a segment with a `clip_id` of its own; `source_id` is that of the clip.
    """
    import pyarrow as pa

    from swinbert.captioning.bulk.sources import INTERNAL

    source = [number for number, results in enumerate(rows) for _ in results]
    results = [row for each in rows for row in each]
    carried = clips.take(source)
    ids = carried["clip_id"].to_pylist()
    columns: dict[str, Any] = {"path": carried["path"]}
    types = {"start": pa.float64(), "end": pa.float64(), "caption": pa.string(), "score": pa.float64()}
    for name, kind in {**types, "error": pa.string(), "error_kind": pa.string(), "duration": pa.float64()}.items():
        columns[name] = pa.array([row.get(name) for row in results], kind)
    if has_segments:
        columns["source_id"] = pa.array(ids, pa.string())
        ids = [clip_id(each, row.get("start"), row.get("end")) for each, row in zip(ids, results, strict=True)]
    columns["clip_id"] = pa.array(ids, pa.string())
    for name in carried.column_names:
        if name not in columns and name not in INTERNAL:
            columns[name] = carried[name]
    columns["settings"] = pa.array([settings] * len(results), pa.string()).dictionary_encode()
    return pa.table(columns)


__all__ = ["Captioner", "result_table"]
