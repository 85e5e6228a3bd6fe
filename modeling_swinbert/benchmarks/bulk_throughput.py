"""
Clips a second of `swinbert bulk` and of `swinbert caption`, on the cores of this machine.

    python modeling_swinbert/benchmarks/bulk_throughput.py CLIPS [--model moving-shapes] [--rounds 3] [--cores 2]

In each round in turn: one worker on one core, a worker on each of the cores, and `swinbert caption` on all of them. The
speed is that of the clips after the first results, so that loading the model, which takes as long for ten clips as for
a million, is no part of it. CLIPS should keep one worker busy for a minute. Prints one line of JSON: the median of the
speeds, and the medians of the rounds' ratios `workers_to_one` and `workers_to_caption`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_Speeds = dict[str, float]


def bulk_speed(clips: str, model: str, workers: int, cores: list[int], batch_size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = ["bulk", clips, "--output", folder, "--workers", str(workers), "--model", model]
        _run([*command, "--batch-size", str(batch_size)], cores)
        return json.loads(Path(folder, "report.json").read_text())["clips_per_second"]


def caption_speed(clips: str, model: str, cores: list[int], batch_size: int) -> float:
    """From the lines on stdout as they come."""
    command = ["caption", clips, "--model", model, "--batch-size", str(batch_size)]
    process = subprocess.Popen(_command(command, cores), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    times = []
    while process.stdout.readline():
        times.append(time.monotonic())
    process.wait()
    first = min(len(times) - 2, batch_size - 1)  # results come batch by batch
    return (len(times) - 1 - first) / (times[-1] - times[first])


def _command(arguments: list[str], cores: list[int]) -> list[str]:
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable, "-m", "swinbert", *arguments]


def _run(arguments: list[str], cores: list[int]) -> None:
    subprocess.run(_command(arguments, cores), check=True, stderr=subprocess.DEVNULL)


def measure(clips: str, model: str, rounds: int, num_cores: int, batch_size: int) -> _Speeds:
    """See this file's docstring."""
    cores = sorted(os.sched_getaffinity(0))[:num_cores]
    results: list[_Speeds] = []
    for _ in range(rounds):
        one = bulk_speed(clips, model, 1, cores[:1], batch_size)
        workers = bulk_speed(clips, model, num_cores, cores, batch_size)
        caption = caption_speed(clips, model, cores, batch_size)
        speeds = {"one_worker": one, "workers": workers, "caption": caption}
        results.append({**speeds, "workers_to_one": workers / one, "workers_to_caption": workers / caption})
        print(json.dumps(results[-1]), file=sys.stderr)
    return {name: round(statistics.median(each[name] for each in results), 3) for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Clips a second of bulk and caption, in turn.")
    parser.add_argument("clips", help="folder of clips")
    parser.add_argument("--model", default="moving-shapes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    options = (arguments.rounds, arguments.cores, arguments.batch_size)
    print(json.dumps(measure(arguments.clips, arguments.model, *options)))


if __name__ == "__main__":
    main()
