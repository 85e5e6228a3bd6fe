"""Jobs of many clips, without Ray and without a model: sources, identities, parts, the process that is watched."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swinbert.captioning.bulk import merge
from swinbert.captioning.bulk.cores import own_cores
from swinbert.captioning.bulk.fetching import Fetcher
from swinbert.captioning.bulk.identity import clip_id, uri_of
from swinbert.captioning.bulk.job import Progress
from swinbert.captioning.bulk.parts import Parts
from swinbert.captioning.bulk.sources import read_source
from swinbert.captioning.bulk.supervision import CaptionerSpec, Request, SharedFailure, Supervisor
from swinbert.captioning.bulk.worker import result_table


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """`videos/` with a.mp4, b.mp4 and sub/a.mp4, which nobody decodes here, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.mp4", "b.mp4", "sub/a.mp4")):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"x" * (number + 1))
    return tmp_path / "videos"


# --- Sources and identities -------------------------------------------------------------------------------------------


def test_two_files_of_one_name_stay_two_and_one_file_is_one_however_it_is_named(clips):
    table = read_source("videos")
    assert table["path"].to_pylist() == ["videos/a.mp4", "videos/b.mp4", "videos/sub/a.mp4"]
    assert len(set(table["clip_id"].to_pylist())) == 3
    for name in (str(clips), "videos/**/*.mp4", "videos/../videos"):
        assert read_source(name)["clip_id"].to_pylist() == table["clip_id"].to_pylist()
    assert read_source(f"file://{clips}/a.mp4")["clip_id"][0] == table["clip_id"][0]
    (clips / "a.mp4").write_bytes(b"another file")
    assert read_source("videos")["clip_id"].to_pylist()[0] != table["clip_id"].to_pylist()[0]


def test_a_range_is_part_of_the_identity():
    ids = {clip_id("file:///a.mp4", *times) for times in ((None, None), (0.0, None), (0.0, 1.0), (1.0, 2.0))}
    assert len(ids) == 4


ROWS = [
    {"path": "videos/a.mp4", "id": "007", "start": None, "end": None, "title": "one, two"},
    {"path": "videos/a.mp4", "id": "008", "start": 1.5, "end": 2.5, "title": "three"},
    {"path": "videos/sub/a.mp4", "id": "009", "start": None, "end": None, "title": "vier"},
]


def write_manifest(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_manifest_keeps_its_columns(clips, suffix):
    table = read_source(str(write_manifest(clips.parent / f"m{suffix}", ROWS)))
    kept = table.select(list(ROWS[0])).to_pylist()
    assert kept == ROWS
    assert table["uri"].to_pylist()[1] == uri_of("videos/a.mp4")
    assert table["problem"].null_count == 3


def test_a_manifest_of_uris_in_another_folder(clips):
    (clips.parent / "lists").mkdir()
    rows = [{"uri": "../videos/a.mp4"}, {"uri": "videos/b.mp4"}, {"uri": "https://example.org/c.mp4"}]
    table = read_source(str(write_manifest(clips.parent / "lists" / "m.csv", rows)))
    # Relative to the manifest; or else to the working directory.
    assert table["uri"].to_pylist() == [uri_of("videos/a.mp4"), uri_of("videos/b.mp4"), "https://example.org/c.mp4"]


def test_what_is_wrong_with_a_row_costs_the_row(clips):
    rows = [
        {"path": "videos/a.mp4", "start": "0"},
        {"path": "", "start": "0"},
        {"path": "videos/b.mp4", "start": "soon"},
        {"path": "videos/b.mp4", "start": "-1"},
        {"path": "videos/nowhere.mp4", "start": ""},
    ]
    table = read_source(str(write_manifest(clips.parent / "m.csv", rows)))
    problems = table["problem"].to_pylist()
    assert [problem is None for problem in problems] == [True, False, False, False, True]
    assert "soon" in problems[2] and "-1" in problems[3]


def test_a_clip_that_stands_twice_is_captioned_once(clips):
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        table = read_source(str(write_manifest(clips.parent / "m.jsonl", [*ROWS, ROWS[0]])))
    assert len(table) == 3


def test_a_list_on_stdin(clips, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"videos/a.mp4\nvideos/nowhere.mp4\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    table = read_source("-")
    assert [problem is None for problem in table["problem"].to_pylist()] == [True, False]


def test_tar_shards(clips):
    with tarfile.open("shard-000.tar", "w") as tar:
        for name in ("k1.mp4", "k1.txt", "k2.mp4"):
            content = name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for source in ("shard-000.tar", "shard-*.tar", f"file://{clips.parent}/shard-000.tar"):
        table = read_source(source)
        assert table["id"].to_pylist() == ["k1", "k2"]
    row = table.select(["path", "uri", "start", "end", "offset", "size", "problem"]).to_pylist()[1]
    assert Fetcher().submit(Request(**row)).result().video == b"k2.mp4"


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("empty.csv", "path\n", "no rows"),
        ("empty.jsonl", "", "no rows"),
        ("other.csv", "file,label\na,b\n", "`path` or `uri`, found file, label"),
        ("taken.csv", "path,caption\na.mp4,b\n", "caption"),
        ("short.csv", "path,start\na.mp4\n", "line 2"),
        ("broken.jsonl", '{"path": "a.mp4"}\n{"path"\n', "line 2"),
        ("broken.parquet", "PAR1", "broken.parquet"),
        ("broken.tar", "no tar" * 200, "uncompressed tar"),
        ("packed.tar.gz", "x", "uncompressed tar"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as raised:
        read_source(str(tmp_path / name))
    assert told in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


def test_sources_that_lead_nowhere(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("nowhere", "empty", "nowhere.csv", "*.mp4", "nosuchscheme://bucket/videos/*.mp4"):
        if not source.startswith("nosuch"):
            source = str(tmp_path / source)
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            read_source(source)
        assert source.rstrip("*") in str(raised.value) and "\n" not in str(raised.value)


def test_storages_of_fsspec(clips):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("/bucket/a.mp4", "/bucket/deep/b.mp4", "/bucket/readme.txt"):
        memory.pipe_file(name, b"video")
    table = read_source("memory://bucket/")
    assert table["path"].to_pylist() == ["memory:///bucket/a.mp4", "memory:///bucket/deep/b.mp4"]
    assert read_source("memory:///bucket/deep/*.mp4")["clip_id"][0] == table["clip_id"][1]
    fetched = Fetcher().submit(Request(path="a", uri="memory:///bucket/a.mp4")).result()
    assert Path(fetched.video).read_bytes() == b"video"
    fetched.discard()
    assert not os.path.exists(fetched.video)
    missing = Fetcher().submit(Request(path="a", uri="memory:///bucket/c.mp4")).result()
    assert missing.error_kind == "not_found"


# --- Parts ------------------------------------------------------------------------------------------------------------

SETTINGS = {"model": {"sha256": "abc"}, "versions": {"swinbert": "1"}}


def results(*names: str, error: str | None = None) -> pa.Table:
    table = pa.table(
        {
            "clip_id": [clip_id(uri_of(name), None, None) for name in names],
            "path": list(names),
            "start": pa.nulls(len(names), pa.float64()),
            "end": pa.nulls(len(names), pa.float64()),
            "uri": [uri_of(name) for name in names],
            "label": [name.upper() for name in names],
        }
    )
    row = {"error": error, "error_kind": "not_video"} if error else {"caption": "a dog", "score": -0.5}
    return result_table(table, [[row]] * len(names), "{}").drop_columns("settings")


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_parts_are_read_back(tmp_path, file_format):
    with Parts(str(tmp_path / "out"), file_format) as parts:
        parts.write_settings(SETTINGS)
        parts.write(results("a", "b"), "digest")
        parts.write(results("c", error="expected a video"), "digest")
    (tmp_path / "out" / ".part-000009.parquet.12.unfinished").write_bytes(b"PAR1")
    with Parts(str(tmp_path / "out"), file_format) as parts:
        ids, num_rows, errors = parts.done()
        assert len(ids) == num_rows == 3 and errors == {"not_video": 1}
        assert parts.settings() == SETTINGS
        parts.remove_failed()
        assert parts.done()[1:] == (2, {})
        assert [name.split("-")[1] for name in parts.names()] == ["000000"]
    assert not list((tmp_path / "out").glob(".*.unfinished"))


def test_a_part_that_a_dying_machine_left_is_captioned_again(tmp_path):
    with Parts(str(tmp_path)) as parts:
        parts.write_settings(SETTINGS)
        parts.write(results("a"), "digest")
        (tmp_path / "part-000001-00000000.parquet").write_bytes(b"")
        with pytest.warns(UserWarning, match="part-000001"):
            assert parts.done()[1] == 1
        assert len(parts.names()) == 1


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"), Parts(str(tmp_path / "file")):
        pass
    pq.write_table(results("a"), tmp_path / "part-000000-1.parquet")
    with pytest.raises(ValueError, match=r"settings\.json"), Parts(str(tmp_path)):
        pass


def test_parts_on_a_storage(tmp_path):
    with Parts("memory://jobs/one") as parts:
        parts.write_settings(SETTINGS)
        parts.write(results("a", "b"), "digest")
    with Parts("memory://jobs/one") as parts:
        assert parts.done()[1] == 2 and parts.settings() == SETTINGS


def test_a_full_disk_leaves_nothing_of_a_part(tmp_path, monkeypatch):
    with Parts(str(tmp_path)) as parts:
        parts.write(results("a"), "digest")

        def no_space(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(Path, "write_bytes", no_space)
            parts.write(results("b"), "digest")
        assert parts.names() == sorted(file.name for file in tmp_path.glob("*.parquet"))
        assert parts.done()[1] == 1


def test_segments_are_rows_of_their_own(tmp_path):
    table = results("a", "b").select(["clip_id", "path", "start", "end", "uri", "label"])
    segments = [
        [{"start": 0.0, "end": 5.0, "caption": "x"}, {"start": 5.0, "end": 9.0, "caption": "y"}],
        [{"error": "e"}],
    ]
    rows = result_table(table, segments, "{}", has_segments=True)
    assert len(set(rows["clip_id"].to_pylist())) == 3
    assert rows["source_id"].to_pylist() == [table["clip_id"][0].as_py()] * 2 + [table["clip_id"][1].as_py()]
    with Parts(str(tmp_path)) as parts:
        parts.write_settings(SETTINGS)
        parts.write(rows.drop_columns("settings"), "digest")
        assert parts.done()[0] == set(table["clip_id"].to_pylist())


# --- Merging ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(clips) -> Path:
    """The output of a job on `clips`: two captions, an error, and an outdated caption of the first clip."""
    with Parts("out") as parts:
        parts.write_settings(SETTINGS)
        old = results("videos/a.mp4")
        parts.write(old.set_column(old.column_names.index("caption"), "caption", pa.array(["a cat"])), "digest")
        parts.write(results("videos/a.mp4", "videos/sub/a.mp4"), "digest")
        parts.write(results("videos/b.mp4", error="expected a video"), "digest")
    return clips.parent / "out"


def test_merged_tables(finished):
    with (finished / "x.csv").open("w"):
        target, number, left_out = merge(str(finished), "csv")
    rows = list(csv.DictReader(target.open(newline="")))
    assert (number, left_out) == (3, 0) and list(rows[0])[:6] == ["path", "start", "end", "caption", "score", "error"]
    assert [row["caption"] for row in rows] == ["a dog", "", "a dog"]
    assert rows[0]["label"] == "VIDEOS/A.MP4"
    lines = [json.loads(line) for line in merge(str(finished), "jsonl", "out.jsonl")[0].open()]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert pq.read_table(merge(str(finished), "parquet")[0]).num_rows == 3


@pytest.mark.parametrize(
    "output_format, output", [("metadata", None), ("metadata", "videos/metadata.jsonl"), ("webdataset", None)]
)
def test_merged_data_sets_are_read_by_training(finished, output_format, output):
    load_splits = pytest.importorskip("swinbert.training.data.sources").load_splits
    target, number, left_out = merge(str(finished), output_format, output)
    assert (number, left_out) == (2, 1)
    (rows,) = load_splits(target.parent if output else target).values()
    assert sorted(rows["captions"]) == [["a dog"], ["a dog"]]
    with pytest.raises((ValueError, OSError)):  # nothing is replaced
        merge(str(finished), output_format, "elsewhere/metadata.jsonl" if output else None)


def test_merging_nothing(tmp_path):
    with pytest.raises(ValueError, match="no parts"):
        merge(str(tmp_path), "csv")


# --- The process that is watched --------------------------------------------------------------------------------------


@pytest.fixture
def supervise(monkeypatch):
    """Starts a `Supervisor` of `scripted_captioner`, whose process ends with the test."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    supervisors = []

    def start(**spec) -> Supervisor:
        supervisors.append(Supervisor(CaptionerSpec(**spec), "scripted_captioner"))
        return supervisors[-1]

    yield start
    for supervisor in supervisors:
        if supervisor._process is not None:
            supervisor._process.kill()


def outcomes(supervisor: Supervisor, *names: str) -> list[str]:
    rows = supervisor.caption([Request(path=name, uri=name) for name in names])
    return [row.get("caption") or row["error_kind"] for (row,) in rows]


def test_a_clip_that_crashes_or_hangs_costs_itself_alone(supervise):
    supervisor = supervise(timeout=2.0)
    names = ["a", "b", "crash", "c", "d"]
    expected = [f"caption of {name}" for name in names]
    expected[2] = "crashed"
    assert outcomes(supervisor, *names) == expected
    assert outcomes(supervisor, "e", "hang", "f") == ["caption of e", "timeout", "caption of f"]
    assert outcomes(supervisor, "g") == ["caption of g"]


def test_calls_of_several_threads_share_the_process(supervise):
    supervisor = supervise()
    assert outcomes(supervisor, "first") == ["caption of first"]
    found = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: outcomes(supervisor, name, f"{name}-crash")}))
        for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [f"caption of {name}", "crashed"] for name in ("a", "b", "c")}


@pytest.mark.parametrize(
    "loading, told", [({"failure": "there is no such model"}, "no such model"), ({"dies": True}, "signal 9")]
)
def test_what_all_clips_share_is_raised(supervise, loading, told):
    supervisor = supervise(loading=loading)
    for _ in range(2):
        with pytest.raises(SharedFailure, match=told):
            outcomes(supervisor, "a", "b")


def test_a_worker_whose_first_clips_all_crash_is_broken(supervise):
    with pytest.raises(SharedFailure, match="first 3 clips"):
        outcomes(supervise(), *(f"crash-{number}" for number in range(5)))


def test_the_process_ends_with_the_worker(supervise):
    """Whatever it is doing, it notices that its stdin is closed."""
    supervisor = supervise()
    process = json.loads(supervisor.settings())["process"]
    threading.Thread(target=lambda: outcomes(supervisor, "hang"), daemon=True).start()
    while not supervisor._sent:
        time.sleep(0.01)
    child = supervisor._process._child  # the supervisor will replace it
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


OWN_CORES = """
import os
from swinbert.captioning.bulk import cores
cores.available_cores = lambda: [0, 1, 2]
os.sched_setaffinity = lambda process, cores: None
with cores.own_cores(1) as own:
    print(own, flush=True)
    input()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_workers_have_cores_of_their_own(tmp_path, monkeypatch):
    """As long as there are enough; those of a worker that is killed become free."""
    pinned = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("swinbert.captioning.bulk.cores.available_cores", lambda: [0, 1, 2])
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pinned.append(list(cores)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", OWN_CORES], env={**os.environ, "TMPDIR": str(tmp_path)}, **pipes
    ) as other:
        assert other.stdout.readline() == b"[0]\n"
        with own_cores(2) as cores:
            assert cores == [1, 2] and pinned == [[1, 2]]
        assert pinned.pop() == [0, 1, 2]
        pinned.clear()
        with own_cores(3) as cores:
            assert cores == [0, 1, 2] and not pinned
        other.kill()
    with own_cores(2) as cores:
        assert cores == [0, 1]


# --- Progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_one_line():
    progress = Progress(1000, 100)
    with warnings.catch_warnings(action="error"):
        progress.count(results(*map(str, range(10))), 10)
        progress.count(results(*map(str, range(10, 15)), error="no"), 5)
    text = str(progress)
    assert "115 of 1,000 clips" in text and "left" in text and "not_video 5" in text
