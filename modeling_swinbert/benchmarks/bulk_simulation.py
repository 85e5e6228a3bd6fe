"""
What a job of a million clips costs the process that runs it: `swinbert bulk` with workers that sleep.

    python modeling_swinbert/benchmarks/bulk_simulation.py [--clips N] [--workers N] [--seconds S]

All is as in a real job (manifest, identities, Ray Data, parts, going on), but a worker sleeps for the time that a clip
takes instead of captioning it. Sleeping takes no core: there can be more workers than cores. Prints one line of JSON:

    ideal_seconds       clips * seconds / workers
    seconds             from the first results to the last, for the clips between them
    overhead            how much longer than ideal these took, as a share
    driver_cpu_share    processor time of the driver, from the start to the end, as a share of the ideal time
    driver_peak_mib     the driver's memory at its highest; `driver_start_mib` is that of Python, Ray and this package
    object_store_mib    the highest use of the object store that was seen
    again_seconds       the same command once more, when all is done: reading manifest and parts
"""

import argparse
import contextlib
import json
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swinbert.captioning.bulk.job import Job, Progress
from swinbert.captioning.bulk.supervision import CaptionerSpec
from swinbert.captioning.bulk.worker import result_table

_ROWS_AT_A_TIME = 100_000
_CAPTION = "a man is standing in a kitchen and cutting vegetables with a knife"


class SleepingCaptioner:
    """In the place of `Captioner`: sleeps `spec.loading["seconds"]` a clip."""

    def __init__(self, spec: CaptionerSpec):
        self._seconds = spec.loading["seconds"]
        self._model = threading.Lock()  # calls of an actor run side by side, but it has one model

    def __call__(self, clips: pa.Table) -> pa.Table:
        with self._model:
            time.sleep(self._seconds * len(clips))
        row = {"caption": _CAPTION, "score": -0.5, "duration": 10.0}
        return result_table(clips, [[row]] * len(clips), self.settings(None))

    @staticmethod
    def settings(spec: CaptionerSpec | None) -> str:
        return "{}"


def write_manifest(file: Path, number: int) -> None:
    schema = pa.schema({"path": pa.string(), "etag": pa.string(), "start": pa.float64(), "end": pa.float64()})
    with pq.ParquetWriter(file, schema) as writer:
        for first in range(0, number, _ROWS_AT_A_TIME):
            numbers = range(first, min(number, first + _ROWS_AT_A_TIME))
            paths = [f"s3://bucket/videos/{each // 1000:05d}/{each:09d}.mp4" for each in numbers]
            etags = [f"{each:032x}" for each in numbers]
            times = pa.nulls(len(numbers), pa.float64())
            writer.write_table(pa.table([pa.array(paths), pa.array(etags), times, times], schema=schema))


class _ObjectStore:
    """Looks at the use of the object store now and then."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        import ray
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        while not self._stop.wait(2.0):
            with contextlib.suppress(Exception):  # Ray ends just now
                if not ray.is_initialized():
                    continue
                state = get_state_from_address(ray.get_runtime_context().gcs_address)
                self.peak = max(self.peak, get_memory_info_reply(state).store_stats.object_store_bytes_used)

    def close(self) -> float:
        self._stop.set()
        return self.peak / (1 << 20)


def simulate(clips: int, workers: int, seconds: float) -> dict[str, Any]:
    """See this file's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        manifest, output = Path(folder, "manifest.parquet"), str(Path(folder, "captions"))
        write_manifest(manifest, clips)
        first: tuple[float, int] | None = None
        last = (0.0, 0)

        def watch(progress: Progress) -> None:
            nonlocal first, last
            last = (time.monotonic(), progress.num_done)
            if first is None and progress.num_done:
                first = last

        job: dict[str, Any] = {"worker_class": SleepingCaptioner, "workers": workers, "say": lambda message: None}
        spec = CaptionerSpec({"seconds": seconds})
        start_mib, cpu, store = _peak_mib(), time.process_time(), _ObjectStore()
        begin = time.monotonic()
        report = Job(str(manifest), output, spec, show=watch, **job).run()
        total, cpu = time.monotonic() - begin, time.process_time() - cpu
        begin = time.monotonic()
        again = Job(str(manifest), output, spec, **job).run()
        again_seconds = time.monotonic() - begin
        assert report["captioned"] == again["clips_before"] == clips and first is not None
        ideal = (last[1] - first[1]) * seconds / workers
        return {
            "clips": clips,
            "workers": workers,
            "seconds_a_clip": seconds,
            "parts": len(list(Path(output).glob("part-*"))),
            "ideal_seconds": round(ideal, 1),
            "seconds": round(last[0] - first[0], 1),
            "overhead": round((last[0] - first[0]) / ideal - 1, 4),
            "total_seconds": round(total, 1),
            "driver_cpu_share": round(cpu / ideal, 4),
            "driver_start_mib": round(start_mib),
            "driver_peak_mib": round(_peak_mib()),
            "object_store_mib": round(store.close(), 1),
            "again_seconds": round(again_seconds, 1),
        }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="A job of very many clips with workers that sleep.")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.01, help="that a clip takes")
    arguments = parser.parse_args()
    print(json.dumps(simulate(arguments.clips, arguments.workers, arguments.seconds)))


if __name__ == "__main__":
    main()
