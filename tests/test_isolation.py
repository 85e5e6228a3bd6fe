"""Decoding in processes of its own: the same frames and errors, and a process that dies costs its clip alone."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from captioning import write_clip
from typer.testing import CliRunner

from swinbert.captioning import Clip, captions, load_captioner
from swinbert.captioning.demo.service import Demo, DemoError
from swinbert.captioning.explaining import explain
from swinbert.captioning.isolation import IsolatedReader
from swinbert.cli import app
from swinbert.processing import VideoDecodeError, VideoReader, decode_video, sample_indices
from swinbert.processing.video_decoding_swinbert import header_duration
from swinbert.processing.video_pictures_swinbert import FrameResizer

DECODING = {"backend": "auto"}


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("moving-shapes")


@pytest.fixture(scope="module")
def isolation():
    with IsolatedReader() as reader:
        yield reader


@pytest.fixture
def scripted(monkeypatch):
    """Makes an `IsolatedReader` whose processes do what the names of files say."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    readers = []

    def make(seconds: float = 60.0) -> IsolatedReader:
        readers.append(IsolatedReader(seconds, "scripted_reader"))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`good.mp4`; copies by the names of what the scripted process does; files that cannot be used, or not in full."""
    folder = tmp_path_factory.mktemp("clips")
    content = write_clip(folder / "good.mp4", seed=1).read_bytes()
    for name in ("hang", "crash", "memory", "failure", "garbage", "long", "list", "much", "liar", "other", "worn"):
        (folder / f"{name}.mp4").write_bytes(content)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "truncated.mp4").write_bytes(content[: len(content) * 3 // 4])
    damaged = bytearray(content)
    damaged[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    (folder / "damaged.mp4").write_bytes(damaged)
    return folder


def outcome(video, **wanted) -> tuple:
    """Frames, metadata and warnings; or the kind and the text of an error."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            frames, metadata = decode_video(video, **wanted)
        except VideoDecodeError as error:
            return error.kind, str(error)
    texts = [str(each.message) for each in warned if each.category is UserWarning]
    return frames.tolist(), metadata, texts


def kind(reader: IsolatedReader, path: Path) -> str:
    """`"read"`, or the kind of error that a clip gets."""
    try:
        decode_video(reader.video(path, DECODING), num_frames=2)
    except VideoDecodeError as error:
        return error.kind
    return "read"


def sampled(metadata) -> np.ndarray:
    return sample_indices(metadata.total_num_frames, 5)


# --- The same frames, errors and captions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        {"num_frames": 3},
        {"indices": sampled, "transform": FrameResizer(shortest_edge=20)},
        {"indices": [0, 0, 7], "start": 0.5, "end": 2.0, "transform": lambda frame: frame[::2]},
        {"indices": [0, 100]},
        {"start": 99.0},
        {"indices": sampled, "strict": True},
    ],
)
def test_frames_and_errors_are_the_same(isolation, folder, wanted):
    for name in ("good", "damaged", "truncated", "empty", "text", "missing"):
        path = folder / f"{name}.mp4"
        assert outcome(isolation.video(path, DECODING), **wanted) == outcome(path, **wanted), name


def test_every_kind_of_source(isolation, folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "good.mp4"
    expected = outcome(path, num_frames=2)
    with path.open("rb") as file, path.open("rb") as other:
        descriptor = f"/dev/fd/{other.fileno()}"
        content = path.read_bytes()
        sources = ["good.mp4", path, content, memoryview(content), file, io.BytesIO(content), descriptor]
        sources += [{"path": str(path), "bytes": None}, {"path": None, "bytes": content}]
        for source in sources:
            assert outcome(isolation.video(source, DECODING), num_frames=2) == expected, source
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    with VideoReader(path) as reader:
        for source in (frames, None, 7, reader.segment(range(5))):
            assert isolation.video(source, DECODING) is source


def test_warnings_name_the_clip(isolation, folder, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    content = Path("damaged.mp4").read_bytes()
    for source, name in (("damaged.mp4", "damaged.mp4"), (content, f"<{len(content)} bytes>")):
        *_, texts = outcome(isolation.video(source, DECODING))
        assert texts and texts[0].startswith(f"{name}: ")


def test_a_film_that_is_open_in_a_process(isolation, numbered_clip):
    parts = [range(0, 20), range(10, 30), range(30, 60)]
    resizer = FrameResizer(shortest_edge=20)
    found = []
    opened = isolation.open(numbered_clip, DECODING)
    for reader in (VideoReader(numbered_clip), opened):
        with reader as film:
            times = [film.timeline.time_of(number) for number in (0, 7, len(film.timeline))]
            segments = [
                film.segment(part, parts[number + 1 : number + 2]).read_frames(indices=sampled)
                for number, part in enumerate(parts)
            ]
            pictures = [
                (number, preview.tolist(), picture().tolist())
                for number, preview, picture in film.preview_frames(range(10, 20), 16, resizer)
            ]
            shown = [(frames.tolist(), metadata) for frames, metadata in segments]
            found.append((film.name, times, film.metadata, shown, pictures))
    assert found[0] == found[1] and len(found[0][-1]) == 10
    assert isolation.header_duration(numbered_clip) == header_duration(numbered_clip)


def test_what_the_caller_raises_is_raised(isolation, folder):
    def refuse(metadata):
        raise ValueError("not these frames")

    with pytest.raises(ValueError, match="not these frames"):
        decode_video(isolation.video(folder / "good.mp4", DECODING), indices=refuse)
    assert kind(isolation, folder / "good.mp4") == "read"
    with isolation.open(folder / "good.mp4", DECODING) as film:
        next(film.preview_frames(range(10), 16))  # and no more
    assert kind(isolation, folder / "good.mp4") == "read"


@pytest.mark.parametrize("segments", [None, 1.0, "scenes"])
def test_captions_are_the_same(captioner, isolation, folder, segments):
    if segments == "scenes":
        pytest.importorskip("scenedetect")
    names = ["good.mp4", "text.mp4", "damaged.mp4", "missing.mp4", "empty.mp4", "other.mp4"]
    clips = [Clip(folder / names[0], 0.5, 2.0), *(folder / name for name in names[1:])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [
            list(captions(clips, captioner, batch_size=2, segments=segments, isolation=each))
            for each in (None, isolation)
        ]
    assert rows[0] == rows[1] and len(rows[0]) >= len(clips)
    assert {row.error_kind for row in rows[0]} >= {None, "not_video", "empty", "not_found"}


def test_workers_and_isolation_exclude_each_other(captioner, isolation, folder):
    with pytest.raises(ValueError, match="num_workers"):
        captions([folder / "good.mp4"], captioner, num_workers=1, isolation=isolation)


# --- A process that does not do what it should ------------------------------------------------------------------------


def test_a_process_that_misbehaves_costs_its_clip(scripted, folder):
    reader = scripted()
    expected = {"crash": "crashed", "memory": "too_large", "failure": "KeyError"}
    expected |= dict.fromkeys(("garbage", "long", "list", "much", "liar"), "crashed")
    for name, found in expected.items():
        assert kind(reader, folder / f"{name}.mp4") == found, name
        assert kind(reader, folder / "good.mp4") == "read"
    for name, text in (("crash", r"crash\.mp4: the process .* ended \(SIGSEGV\)"), ("memory", "0.25 GiB")):
        with pytest.raises(VideoDecodeError, match=text):
            decode_video(reader.video(folder / f"{name}.mp4", DECODING), num_frames=2)


def test_captions_of_the_other_clips(scripted, captioner, folder):
    names = ["good", "crash", "other", "hang", "good", "much"]
    clips = [folder / f"{name}.mp4" for name in names]
    rows = list(captions(clips, captioner, batch_size=2, isolation=scripted(seconds=4.0)))
    assert [row.error_kind for row in rows] == [None, "crashed", None, "timeout", None, "crashed"]
    assert rows[0].text == rows[4].text and "SIGSEGV" in rows[1].error and "within 4 s" in rows[3].error


def test_a_crash_within_a_film_costs_the_rest_of_it(scripted, captioner, folder):
    rows = list(captions([folder / "crash.mp4", folder / "good.mp4"], captioner, segments=1.0, isolation=scripted()))
    assert [row.error_kind for row in rows] == [None, "crashed", None, None, None]
    assert (rows[1].start, rows[1].end) == (1.0, None)


def test_a_new_process_reads_again_what_a_used_one_died_of(scripted, folder):
    reader = scripted()
    assert [kind(reader, folder / f"{name}.mp4") for name in ("good", "worn", "good")] == ["read"] * 3
    assert [each.num_calls for each in reader._idle] == [2]
    reader._idle[0]._child.kill()  # as a system does that is short of memory
    reader._idle[0]._child.wait()
    with reader.open(folder / "good.mp4", DECODING) as film:
        assert len(film.timeline) == 25


def test_a_process_that_cannot_be_started(scripted, folder, monkeypatch):
    monkeypatch.setenv("SCRIPTED_READER", "dies")
    with pytest.raises(RuntimeError, match="exit code 3"):
        scripted().start()
    with pytest.raises(RuntimeError, match="exit code 3"):
        kind(scripted(), folder / "good.mp4")


def test_the_demo_survives(scripted, captioner, folder):
    with Demo(captioner) as demo:
        assert isinstance(demo._isolation, IsolatedReader)
        demo._isolation = scripted()
        with pytest.raises(DemoError, match=r"crash\.mp4: the process .* \(SIGSEGV\)"):
            list(demo.caption(folder / "crash.mp4"))
        *_, progress = demo.caption(folder / "good.mp4")
        assert progress.captions[0].text


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_same(folder):
    command = ["caption", str(folder / "good.mp4"), str(folder / "text.mp4"), "--model", "moving-shapes"]
    results = [CliRunner().invoke(app, [*command, *options]) for options in ([], ["--isolate"])]
    assert results[0].stdout == results[1].stdout and results[0].exit_code == results[1].exit_code == 1
    assert "text.mp4: expected a video file" in results[1].stderr


def test_explanations_are_the_same(captioner, isolation, folder):
    found = [
        explain(captioner.model, captioner.processor, folder / "good.mp4", method="attention", isolation=each)
        for each in (None, isolation)
    ]
    assert found[0].to_dict() == found[1].to_dict() and np.array_equal(found[0].pictures, found[1].pictures)


def test_bulk_isolates_unless_it_is_told_not_to(monkeypatch):
    bulk = pytest.importorskip("swinbert.captioning.bulk", exc_type=ImportError)
    serving = pytest.importorskip("swinbert.captioning.bulk.serving", exc_type=ImportError)
    specs = []

    class Job:
        def __init__(self, source, output, spec, **options):
            specs.append(spec)

        def run(self):
            return {"errors": {}, "clips_per_second": None, "clips": 0, "captioned": 0}

    monkeypatch.setattr(bulk, "Job", Job)
    for options in ([], ["--no-isolate"]):
        assert CliRunner().invoke(app, ["bulk", "clips", "--output", "out", *options]).exit_code == 0
    assert [spec.isolate for spec in specs] == [True, False]
    isolations = [serving._Serving(SimpleNamespace(spec=spec))._isolation for spec in specs]
    # A reader is replaced before the process that captions is.
    assert isolations[0]._seconds < specs[0].timeout and isolations[1] is None


def test_the_demo_isolates_unless_it_is_told_not_to(monkeypatch):
    served = []
    application = SimpleNamespace(serve=lambda demo, **options: served.append(demo))  # without Gradio
    monkeypatch.setitem(sys.modules, "swinbert.captioning.demo.app", application)
    for options in ([], ["--no-isolate"]):
        assert CliRunner().invoke(app, ["demo", "--model", "moving-shapes", *options]).exit_code == 0
    assert [demo._isolation is None for demo in served] == [False, True]
    for demo in served:
        demo.files.close()


# --- Nothing is left behind -------------------------------------------------------------------------------------------


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_closing_leaves_no_process_and_no_file(folder, scripted):
    before, threads = open_files(), threading.active_count()
    reader = scripted(seconds=30.0)
    hanging = threading.Thread(target=kind, args=(reader, folder / "hang.mp4"))
    hanging.start()
    assert kind(reader, folder / "good.mp4") == "read" and kind(reader, folder / "crash.mp4") == "crashed"
    processes = [each._child for each in [*reader._idle, *reader._busy]]
    assert processes
    reader.close()
    hanging.join(timeout=10)
    assert not hanging.is_alive() and all(each.returncode is not None for each in processes)
    assert open_files() == before
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    with pytest.raises(ValueError, match="closed"):
        kind(reader, folder / "good.mp4")


READ_AND_TELL = """
import sys, threading
from swinbert.captioning import reading_process
decoding = reading_process.import_decoding()  # without torch
from swinbert.captioning.isolation import IsolatedReader
reader = IsolatedReader(60.0, "scripted_reader")
def read(name):
    decoding.decode_video(reader.video(f"{sys.argv[1]}/{name}.mp4", {}), num_frames=2)
threading.Thread(target=read, args=("hang",)).start()
read("good")
print(*(each._child.pid for each in (*reader._idle, *reader._busy)), flush=True)
threading.Event().wait()
"""


def test_no_process_outlives_one_that_is_killed(folder):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", READ_AND_TELL, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as parent:
        processes = list(map(int, parent.stdout.readline().split()))
        assert len(processes) == 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_process_imports_little():
    code = "import sys; from swinbert.captioning import reading_process as p; p.import_decoding(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "huggingface_hub", "pyarrow"} & set(done.stdout.split())
