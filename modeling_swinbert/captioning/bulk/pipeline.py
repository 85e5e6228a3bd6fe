"""The pipeline on Ray Data: blocks of clips -> a pool of `Captioner` actors -> blocks of results."""

import dataclasses
import logging
import math
import os
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from swinbert.captioning.bulk.clusters import Workers, choose_workers, start_ray
from swinbert.captioning.bulk.sources import identified, read_source
from swinbert.captioning.bulk.supervision import CaptionerSpec
from swinbert.captioning.bulk.worker import Captioner

if TYPE_CHECKING:
    import ray.data

# Clips of a block, which one call of an actor captions: small enough that little is lost with a worker and that the
# last blocks keep all workers busy, large enough that scheduling costs little.
_LARGEST_BLOCK = 128
_BLOCKS_FOR_EACH_WORKER = 32
# Clips that wait in a worker, so that batches are full and the next are read beside the model.
_CLIPS_AHEAD = 48
_MOST_CALLS_AT_ONCE = 16


def caption_dataset(
    source: "str | os.PathLike | pa.Table | ray.data.Dataset",
    model: str | None = None,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    batch_size: int | Literal["auto"] = "auto",
    segments: Any = None,
    timeout: float = 300.0,
    isolate: bool = True,
    address: str | None = None,
    seed: int | None = None,
    **loading: Any,
) -> "ray.data.Dataset":
    """
    Captions of many clips as a Ray `Dataset`, which is lazy: it captions when it is consumed.

    ```python
    captions = caption_dataset("s3://bucket/manifest.parquet", "microsoft/git-base-vatex")
    captions.filter(expr="score > -1").write_parquet("s3://bucket/captions")
    ```

    Rows have `path`, `start`, `end`, `caption`, `score`, `error`, `error_kind`, `duration`, `clip_id`, the further
    columns of the source, and `settings`, all that decides the caption, as JSON. A clip that cannot be captioned is a
    row with an error. A run of `swinbert bulk` adds to this: what is done already is left out, and each clip is in the
    output exactly once.

    Args:
        source: see `read_source`; or a table or a Ray `Dataset` with the column `path` (and `start`, `end`).
        model, loading: see `load_captioner`.
        workers, gpus_per_worker: see `choose_workers`.
        batch_size, segments, seed: see `captions`.
        timeout: seconds; a clip that takes longer is an error of kind `timeout`. With segments, each has so long.
        isolate: decode in processes of their own, so that the model survives a decoder that hangs or crashes.
        address: of a cluster, if Ray does not run in this process; `None` starts it on this machine.

    Raises:
        ValueError, FileNotFoundError: the source cannot be read. While the dataset is consumed, Ray raises what all
            clips share (`SharedFailure`), such as a model that cannot be loaded.
    """
    import ray

    start_ray(address)
    chosen = choose_workers(workers, gpus_per_worker)
    # In Ray's accounts half of the cores remain for the tasks before and after, which would else never begin.
    chosen = dataclasses.replace(chosen, cpus=chosen.cpus / 2 if chosen.cpus <= 1 else chosen.cpus // 2)
    captioning = {"batch_size": batch_size, "segments": segments, "seed": seed}
    spec = CaptionerSpec.of({"model": model, **loading}, captioning, timeout, isolate)
    spec = dataclasses.replace(spec, cores=chosen.cores)
    if isinstance(source, ray.data.Dataset):
        return captioned(source.map_batches(_identified, batch_format="pyarrow"), spec, chosen)
    clips = identified([source]) if isinstance(source, pa.Table) else read_source(os.fspath(source))
    block_rows = rows_of_block(len(clips), chosen.number)
    return captioned(dataset_of(clips, block_rows), spec, chosen, block_rows)


def _identified(clips: pa.Table) -> pa.Table:
    return identified([clips])


def rows_of_block(num_clips: int, workers: int) -> int:
    """Clips of a block for a job of so many."""
    return max(1, min(_LARGEST_BLOCK, num_clips // (workers * _BLOCKS_FOR_EACH_WORKER)))


def dataset_of(clips: pa.Table, rows: int) -> "ray.data.Dataset":
    """The clips in blocks of so many rows. `from_arrow` would run a task for each to count them."""
    import ray

    clips = clips.combine_chunks()
    return ray.data.from_blocks([_own_memory(clips.slice(start, rows)) for start in range(0, len(clips), rows)])


def _own_memory(block: pa.Table) -> pa.Table:
    """A slice without the rest of its table, which would be pickled along."""
    return block.take(pa.array(range(len(block))))


def captioned(
    clips: "ray.data.Dataset",
    spec: CaptionerSpec,
    workers: Workers,
    block_rows: int = _LARGEST_BLOCK,
    worker_class: type[Any] = Captioner,
) -> "ray.data.Dataset":
    """Clips, in blocks of so many rows, -> results, by actors of `worker_class`, each constructed with `spec`."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    calls = max(2, min(_MOST_CALLS_AT_ONCE, math.ceil(_CLIPS_AHEAD / block_rows)))
    return clips.map_batches(
        worker_class,
        fn_constructor_args=(spec,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        # Calls of an actor share its batches.
        compute=ray.data.ActorPoolStrategy(
            size=workers.number,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + 1,
            enable_true_multi_threading=True,
        ),
    )


__all__ = ["caption_dataset", "captioned", "dataset_of", "rows_of_block"]
