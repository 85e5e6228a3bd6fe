"""Jobs of many clips on Ray, which is started on this machine: what dies is made up for, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioning import write_clip

from swinbert.captioning.bulk import CaptionerSpec, Job, SharedFailure, caption_dataset
from swinbert.captioning.bulk.parts import Parts

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.ray, pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux")]


@pytest.fixture(scope="module")
def running_ray():
    """Ray for the jobs in this process; at the end, none of its processes is left."""
    from swinbert.captioning.bulk.clusters import ray_started

    before = psutil.Process().children(recursive=True)
    with ray_started():
        yield
        started = [each for each in psutil.Process().children(recursive=True) if each not in before]
    assert not still_running(started, seconds=20)


def still_running(processes: list, seconds: float) -> list:
    deadline = time.monotonic() + seconds
    while running := [each for each in processes if _is_running(each)]:
        if time.monotonic() > deadline:
            return running
        time.sleep(0.1)
    return []


def command_of(process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _is_running(process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- The command ------------------------------------------------------------------------------------------------------


def manifest_of(folder: Path, *names: str) -> Path:
    pq.write_table(pa.table({"path": list(names), "label": [name[::-1] for name in names]}), folder / "m.parquet")
    return folder / "m.parquet"


def rows_in(output: Path) -> list[dict]:
    with Parts(str(output)) as parts:
        return [row for _, table in parts.tables() for row in table.to_pylist()]


def bulk(source: Path, output: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "swinbert",
        "bulk",
        str(source),
        "--output",
        str(output),
        "--model",
        "moving-shapes",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": ""}
    return subprocess.Popen([*command, "--workers", "2", "--batch-size", "4"], stderr=subprocess.PIPE, env=environment)


def wait_for_parts(output: Path, number: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while len(list(output.glob("part-*"))) < number:
        assert job.poll() is None, job.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exactly_once_after_the_death_of_a_worker_and_of_the_driver(tmp_path):
    """One clip is a pipe, and so its worker waits, and the job with it, until this test writes the clip into it."""
    names = [str(write_clip(tmp_path / f"clip-{number:02d}.mp4", number)) for number in range(30)]
    names += [str(tmp_path / f"broken-{number}.mp4") for number in range(3)]
    for name in names[-3:]:
        Path(name).write_bytes(b"no video")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    source, output = manifest_of(tmp_path, str(pipe), *names), tmp_path / "out"

    job = bulk(source, output)
    try:
        wait_for_parts(output, 1, job)
        started = psutil.Process(job.pid).children(recursive=True)
        workers = [each for each in started if "Captioner" in command_of(each)]
        workers[0].kill()
        time.sleep(1)
        started += psutil.Process(job.pid).children(recursive=True)
    finally:
        job.kill()
        job.communicate()
    before = rows_in(output)
    assert 0 < len(before) < 34

    threading.Thread(target=lambda: pipe.write_bytes(Path(names[0]).read_bytes()), daemon=True).start()
    job = bulk(source, output)
    _, messages = job.communicate(timeout=180)
    assert job.returncode == 0, messages.decode()
    rows = rows_in(output)
    assert sorted(row["path"] for row in rows) == sorted([str(pipe), *names])
    assert all(row in rows for row in before)
    assert {row["error_kind"] for row in rows if row["path"] in names[-3:]} == {"not_video"}
    assert not still_running(started, seconds=20)

    from swinbert.captioning import captions, load_captioner

    expected = {each.clip: each.text for each in captions(names, load_captioner("moving-shapes"), batch_size=4)}
    assert {row["path"]: row["caption"] for row in rows if row["path"] != str(pipe)} == expected
    assert next(row["caption"] for row in rows if row["path"] == str(pipe)) == expected[names[0]]


def test_a_stopped_job_keeps_what_is_done(tmp_path):
    names = [str(write_clip(tmp_path / f"clip-{each:02d}.mp4", each)) for each in range(30)]
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    output = tmp_path / "out"
    job = bulk(manifest_of(tmp_path, str(pipe), *names), output)
    try:
        wait_for_parts(output, 1, job)
        started = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGTERM)
        _, messages = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 128 + signal.SIGTERM, messages.decode()
    assert "the same command goes on" in messages.decode()
    assert 0 < len(rows_in(output)) <= len(names)
    assert not [file.name for file in output.iterdir() if not file.name.startswith(("part-", "settings", "."))]
    assert not still_running(started, seconds=20)


# --- Jobs of workers without a model ----------------------------------------------------------------------------------


def scripted_worker() -> type:
    """A class of workers that do what the name of a clip says; pickled by value, since workers have no such module."""

    class Captioner:
        def __init__(self, spec):
            self._spec = spec

        def __call__(self, clips):
            from swinbert.captioning.bulk.supervision import SharedFailure
            from swinbert.captioning.bulk.worker import result_table

            if "failure" in self._spec.loading:
                raise SharedFailure(self._spec.loading["failure"])
            rows = []
            for path in clips["path"].to_pylist():
                kind = next((kind for kind in ("not_found", "not_video") if kind in path), None)
                row = {"caption": f"caption of {path}", "score": -1.0}
                rows.append([row if kind is None else {"error": "it is wrong", "error_kind": kind}])
            return result_table(clips, rows, self.settings(self._spec))

        @staticmethod
        def settings(spec):
            return json.dumps({"model": {"sha256": spec.loading.get("model", "abc")}})

    return Captioner


def run_job(source: Path, output: Path, **options) -> dict:
    loading = {name: options.pop(name) for name in ("failure", "model") if name in options}
    messages: list[str] = []
    job = Job(
        str(source), str(output), CaptionerSpec(loading), worker_class=scripted_worker(), say=messages.append, **options
    )
    return job.run()


def test_a_job_does_what_is_not_done(running_ray, tmp_path):
    names = [f"clip-{number:03d}{'-not_video' if number % 10 == 3 else ''}.mp4" for number in range(60)]
    output = tmp_path / "out"
    report = run_job(manifest_of(tmp_path, *names[:40]), output)
    assert (report["clips"], report["captioned"], report["errors"]) == (40, 36, {"not_video": 4})
    shown = []
    report = run_job(manifest_of(tmp_path, *names), output, show=lambda progress: shown.append(str(progress)))
    assert (report["clips_before"], report["rows"], report["errors"]) == (40, 60, {"not_video": 6})
    assert "60 of 60" in shown[-1]
    rows = rows_in(output)
    assert sorted(row["path"] for row in rows) == names and len({row["clip_id"] for row in rows}) == 60
    assert all(row["label"] == row["path"][::-1] for row in rows) and "settings" not in rows[0]
    assert json.loads((output / "report.json").read_text()) == report
    assert run_job(manifest_of(tmp_path, *names), output)["clips_before"] == 60
    report = run_job(manifest_of(tmp_path, *names), output, retry_failed=True)
    assert (report["clips_before"], report["rows"]) == (54, 60)


def test_results_of_another_model_are_refused(running_ray, tmp_path):
    output = tmp_path / "out"
    run_job(manifest_of(tmp_path, "a.mp4"), output, file_format="jsonl")
    for names in (("a.mp4",), ("a.mp4", "b.mp4")):
        with pytest.raises(
            ValueError, match=r'model\.sha256 was "abc", is "xyz"|model\.sha256 was \'abc\', is \'xyz\''
        ):
            run_job(manifest_of(tmp_path, *names), output, model="xyz")
    assert len(rows_in(output)) == 1


def test_what_every_clip_shares_stops_the_job(running_ray, tmp_path):
    with pytest.raises(SharedFailure) as raised:
        run_job(manifest_of(tmp_path, "a.mp4"), tmp_path / "out", failure="there is no such model: name another")
    assert str(raised.value) == "there is no such model: name another"
    names = [f"not_found-{number}.mp4" for number in range(300)]
    with pytest.raises(SharedFailure, match="not_found"):
        run_job(manifest_of(tmp_path, *names), tmp_path / "out")


# --- With the bundled model -------------------------------------------------------------------------------------------


def test_a_dataset_of_segments(running_ray, tmp_path):
    clips = [{"path": str(write_clip(tmp_path / f"{number}.mp4", number)), "number": number} for number in range(2)]
    results = caption_dataset(ray.data.from_items(clips), "moving-shapes", workers=1, segments=1.0, batch_size=2)
    rows = sorted(results.take_all(), key=lambda row: (row["path"], row["start"]))
    assert [(row["number"], row["start"], row["end"]) for row in rows] == [
        (number, *times) for number in range(2) for times in ((0.0, 1.0), (1.0, 2.0), (2.0, 2.5))
    ]
    assert len({row["clip_id"] for row in rows}) == 6 and len({row["source_id"] for row in rows}) == 2
    assert all(row["caption"] and row["error"] is None for row in rows)
    assert json.loads(rows[0]["settings"])["segments"]
