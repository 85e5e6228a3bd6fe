"""
What goes wrong around a command: signals, full disks, read-only folders, file systems without rename or locks, clocks
that jump, forks. Nothing that is done is lost, no file under its final name is cut off, and the same command continues.

Commands run in forked processes, which have faults of their own and start at once.
"""

import contextlib
import ctypes
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import tiny_run

import swinbert
from swinbert import cli, loading_swinbert
from swinbert.captioning import captions, load_captioner
from swinbert.captioning.demo import service
from swinbert.processing import VideoCaptioningPipeline
from swinbert.utils import files

if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -signal.SIGKILL}
SECONDS = 300


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


def forked(function: Callable[[], None], folder: Path, meanwhile: Callable[[int], None] = lambda pid: None) -> Ended:
    """Calls a function in a forked process. `folder` gets its output; `meanwhile` is called with the process's id."""
    outputs = [folder / "stdout", folder / "stderr"]
    pid = os.fork()
    if not pid:
        code = 99
        try:
            for number, output in enumerate(outputs, 1):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            function()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    meanwhile(pid)
    deadline = time.monotonic() + SECONDS
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return Ended(os.waitstatus_to_exitcode(done[1]), *(output.read_text() for output in outputs))


@pytest.fixture(scope="module", autouse=True)
def captioner():
    """A process that has a captioner can be forked."""
    return load_captioner("moving-shapes", device="cpu", dtype="float32")


@pytest.fixture
def command(tmp_path):
    """Runs the `swinbert` command; `fault` is called in its process before."""
    folder = tmp_path / "streams"
    folder.mkdir()

    def run(*arguments: object, fault: Callable[[], None] = lambda: None, **options: Callable) -> Ended:
        def main() -> None:
            sys.argv = ["swinbert", *map(str, arguments)]
            fault()
            cli.main()

        return forked(main, folder, **options)

    return run


def at(action: Callable[[], None], owner: object, name: str, is_moment: Callable[..., bool]) -> Callable[[], None]:
    """A fault: `action` happens when a function is called with arguments for which `is_moment` is true."""

    def fault() -> None:
        function = getattr(owner, name)

        def watched(*arguments: object, **options: object) -> object:
            if is_moment(*arguments):
                action()
            return function(*arguments, **options)

        setattr(owner, name, watched)

    return fault


def signal_at(number: int, *moment: object) -> Callable[[], None]:
    """A fault: the process gets a signal."""
    return at(lambda: os.kill(os.getpid(), number), *moment)


def when_named(name: str) -> Callable[..., bool]:
    """Whether the file that is about to get its final name is called so."""
    return lambda unfinished, final: Path(final).name == name


def nth_call(wanted: int) -> Callable[..., bool]:
    calls = iter(range(1, 1000))
    return lambda *_: next(calls) == wanted


# --- Signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return tiny_run.make_shapes(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def clips(shapes, tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, clip in enumerate(sorted(shapes.rglob("*.mp4"))[:5]):
        shutil.copy(clip, folder / f"{number}.mp4")
    return folder


@pytest.fixture(scope="module")
def expected(shapes, captioner) -> list[str]:
    """The captions of `clips`."""
    return [caption.text for caption in captions(sorted(shapes.rglob("*.mp4"))[:5], captioner)]


def caption_arguments(clips: Path, *options: object) -> list[object]:
    model = ["--model", "moving-shapes", "--device", "cpu", "--dtype", "float32"]
    return ["caption", clips, *model, "--batch-size", 1, *options]


MOMENTS = {
    "while it captions": (VideoCaptioningPipeline, "forward", lambda: nth_call(3)),
    "while it writes beside": (Path, "replace", lambda: when_named("2.txt")),
    "while it writes the output": (Path, "replace", lambda: when_named("captions.jsonl")),
}


@pytest.mark.parametrize("number", EXIT_CODES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_caption_is_stopped(command, clips, expected, tmp_path, moment, number):
    if number == signal.SIGHUP and moment != "while it captions":
        pytest.skip("handled as SIGTERM is")
    owner, name, when = MOMENTS[moment]
    output = tmp_path / "captions.jsonl"
    arguments = caption_arguments(clips, "--format", "jsonl", "--output", output, "--write-beside", "txt")
    stopped = command(*arguments, fault=signal_at(number, owner, name, when()))
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert not output.exists()
    written = sorted(clips.glob("*.txt"))
    assert [file.read_text().strip() for file in written] == expected[: len(written)]
    journal = tmp_path / ".captions.jsonl.journal" / "predictions.jsonl"
    num_done = len(journal.read_text().splitlines())
    assert num_done >= max(2, len(written))
    if number != signal.SIGKILL:
        assert f"Stopped. The captions so far are kept, and the same command continues with {output}." in stopped.stderr
        assert not [path for path in tmp_path.rglob("*.unfinished")]
    again = command(*arguments)
    assert again.code == 0, again.stderr
    assert f"{num_done} of 5 clips have their captions" in again.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["caption"] for row in rows] == expected
    assert [file.read_text().strip() for file in sorted(clips.glob("*.txt"))] == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_captions_beside_their_clips_are_stopped(command, clips, expected, number):
    arguments = caption_arguments(clips, "--write-beside", "json")
    moment = (VideoCaptioningPipeline, "forward", nth_call(3))
    stopped = command(*arguments, fault=signal_at(number, *moment))
    assert stopped.code == EXIT_CODES[number]
    assert ("Stopped. The files so far are complete" in stopped.stderr) == (number != signal.SIGKILL)
    written = [json.loads(file.read_text())["caption"] for file in sorted(clips.glob("*.json"))]
    assert written == expected[: len(written)] and len(written) in (1, 2)
    again = command(*arguments)
    assert again.code == 0 and f"{len(written)} of 5 clips are skipped" in again.stderr
    assert [json.loads(file.read_text())["caption"] for file in sorted(clips.glob("*.json"))] == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_evaluate_is_stopped(command, shapes, tmp_path, number):
    output = tmp_path / "evaluation"
    arguments = [
        "evaluate",
        "--dataset",
        shapes,
        "--split",
        "validation",
        "--model",
        "moving-shapes",
        "--device",
        "cpu",
    ]
    arguments += ["--batch-size", 1, "--num-workers", 0, "--metrics", "cider", "--output", output]
    fault = signal_at(number, VideoCaptioningPipeline, "forward", nth_call(3))
    stopped = command(*arguments, fault=fault)
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert stopped.stdout == "" and not (output / "scores.json").exists()
    assert ("The captions so far are kept" in stopped.stderr) == (number != signal.SIGKILL)
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2
    scoring = command(*arguments, fault=signal_at(number, Path, "replace", when_named("scores.json")))
    assert scoring.code == EXIT_CODES[number] and "2 of 3 clips have their captions" in scoring.stderr
    assert not (output / "scores.json").exists()
    again = command(*arguments)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["clips"] == 3 == json.loads((output / "scores.json").read_text())["clips"]
    assert number == signal.SIGKILL or not list(output.rglob("*.unfinished"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_explain_is_stopped(command, clips, tmp_path, number):
    pytest.importorskip("matplotlib")
    output = tmp_path / "explained"
    arguments = ["explain", clips / "0.mp4", clips / "1.mp4", "--output", output, "--model", "moving-shapes"]
    arguments += ["--device", "cpu", "--method", "attention"]
    moment = (Path, "rename", lambda unfinished, final: Path(final).name == "1")
    stopped = command(*arguments, fault=signal_at(number, *moment))
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert (f"Explanations so far are in {output}" in stopped.stderr) == (number != signal.SIGKILL)
    assert sorted(path.name for path in output.glob("[!.]*")) == ["0"]
    assert number == signal.SIGKILL or len(list(output.iterdir())) == 1
    first = {file.name: file.read_bytes() for file in (output / "0").iterdir()}
    # What is replaced stays until there is something in its place.
    replacing = command(*arguments, "--overwrite", fault=signal_at(number, Path, "rename", nth_call(1)))
    assert replacing.code == EXIT_CODES[number]
    assert {file.name: file.read_bytes() for file in (output / "0").iterdir()} == first
    again = command(*arguments)
    assert again.code == 0 and again.stdout.split() == [str(output / "0"), str(output / "1")]
    assert {file.name for file in (output / "1").iterdir()} == first.keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_push_is_stopped(command, hub, captioner, tmp_path, number):
    folder = tmp_path / "model"
    captioner.save_pretrained(folder)

    def card(unfinished: object, final: object) -> bool:
        return Path(final).name == "README.md"

    writing = command("push", folder, "org/model", fault=signal_at(number, Path, "replace", card))
    assert writing.code == EXIT_CODES[number], writing.stderr
    assert not (folder / "README.md").exists() and not hub.repositories

    class Uploads(list):
        """Sends the signal when the first file has arrived."""

        pid = 0

        def append(self, name: str) -> None:
            super().append(name)
            if self.pid:
                os.kill(self.pid, number)
                self.pid = 0
                time.sleep(0.5)

    hub.uploads = uploads = Uploads()
    stopped = command("push", folder, "org/model", meanwhile=lambda pid: setattr(uploads, "pid", pid))
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert ("the same command uploads the rest" in stopped.stderr) == (number != signal.SIGKILL)
    assert set(hub.repositories["org/model"].files()) == {".gitattributes"}, "one commit, or none"
    hub.uploads = []
    again = command("push", folder, "org/model")
    assert again.code == 0 and "/commit/" in again.stdout, again.stderr
    files = hub.repositories["org/model"].files()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not set(uploads) & set(hub.uploads), "what has arrived is not sent again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_trained_model_is_saved_whole(command, shapes, tmp_path, number):
    """Signals of the steps before are in test_resume.py."""
    output = tmp_path / "run"
    changes = {"max_steps": 2, "eval_strategy": "no", "eval_split": "none", "keep_frames": False}
    arguments = ["train", *tiny_run.arguments(shapes, output, **changes)]

    def final(file: Path, target: object) -> bool:
        return Path(target) == output / "model.safetensors"

    stopped = command(*arguments, fault=signal_at(number, Path, "replace", final))
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert not (output / "model.safetensors").exists() and (output / "checkpoint-2").is_dir()
    again = command(*arguments)
    assert again.code == 0, again.stderr
    trained = (output / "model.safetensors").read_bytes()
    assert trained == (output / "checkpoint-2" / "model.safetensors").read_bytes()
    assert not list(output.glob("_saving")) and not (output / "training_args.bin").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_new_folder_is_not_written(command, tmp_path, number):
    from swinbert.training.moving_shapes import dataset

    arguments = ["make-shapes", tmp_path / "shapes", "--train", 2, "--validation", 0, "--test", 0]
    stopped = command(*arguments, fault=signal_at(number, dataset, "write_clip", nth_call(2)))
    assert stopped.code == EXIT_CODES[number], stopped.stderr
    assert f"Stopped. {tmp_path / 'shapes'} is not written" in stopped.stderr
    assert not [path for path in tmp_path.iterdir() if "shapes" in path.name]


def test_a_forked_worker_does_not_speak_for_the_command(tmp_path):
    def work(started: Any) -> None:
        started.set()
        time.sleep(60)

    def main() -> None:
        with cli.messages.stopped_by_signals():
            fork = multiprocessing.get_context("fork")
            started = fork.Event()
            worker = fork.Process(target=work, args=(started,))
            worker.start()
            started.wait()  # Python forgets signals that arrive in the middle of a fork
            worker.terminate()
            worker.join(30)
            sys.exit(0 if worker.exitcode == -signal.SIGTERM else 1)

    assert forked(main, tmp_path) == (0, "", "")


# --- Disks ------------------------------------------------------------------------------------------------------------


def test_caption_on_a_full_disk(command, clips, expected, tmp_path):
    output = tmp_path / "captions.csv"
    arguments = caption_arguments(clips, "--format", "csv", "--output", output)

    def limit_file_size() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = journal.stat().st_size + 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    journal = tmp_path / ".captions.csv.journal" / "predictions.jsonl"
    full = command(*arguments, fault=at(limit_file_size, VideoCaptioningPipeline, "forward", nth_call(3)))
    assert full.code == 1 and not output.exists()
    assert journal.read_bytes().count(b"\n") == 2 and not journal.read_bytes().endswith(b"\n"), "cut off in a line"
    assert "the same command continues with" in full.stderr and "Traceback" not in full.stderr, full.stderr
    again = command(*arguments)
    assert again.code == 0 and "2 of 5 clips have their captions" in again.stderr, again.stderr
    assert [line.split(",")[3] for line in output.read_text().splitlines()[1:]] == expected


def mounted(folder: Path, size: str) -> None:
    """
    Puts a file system of its own on a folder; only this process sees it.

    Raises:
        PermissionError: only root may.
    """
    new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
    if ctypes.CDLL(None).unshare(new_namespace):
        raise PermissionError("unshare")
    _mount(Path("/"), private | recursive)
    _mount(folder, 0, size)


def remounted(folder: Path, size: str, is_read_only: bool = False) -> None:
    remount, read_only = 32, 1
    _mount(folder, remount | read_only * is_read_only, size)


def _mount(folder: Path, flags: int, size: str = "0") -> None:
    name, options = b"tmpfs", f"size={size}".encode()
    if ctypes.CDLL(None).mount(name, os.fsencode(folder), name, ctypes.c_ulong(flags), options):
        raise PermissionError("mount")


@pytest.fixture
def may_mount(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    if forked(lambda: mounted(tmp_path, "64k"), tmp_path).code:
        pytest.skip("needs the right to mount file systems")


def test_a_disk_that_is_really_full(may_mount, command, clips, expected, tmp_path):
    """It is full from the third clip on: the journal ends in its page, and there is none for the output."""
    disk = tmp_path / "disk"
    disk.mkdir()
    output = disk / "captions.jsonl"
    arguments = caption_arguments(clips, "--format", "jsonl", "--output", output)

    def fill() -> None:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def run() -> None:
        mounted(disk, "64k")
        at(fill, VideoCaptioningPipeline, "forward", nth_call(3))()
        codes = [_code_of(arguments)]
        remounted(disk, "1m")
        assert not output.exists()
        codes.append(_code_of(arguments))
        print(json.dumps([codes, [json.loads(line)["caption"] for line in output.read_text().splitlines()]]))

    ended = forked(run, tmp_path)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout) == [[1, 0], expected]
    assert "No space left on device" in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def _code_of(arguments: list[object]) -> int:
    sys.argv = ["swinbert", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_read_only_folders(may_mount, clips, shapes, tmp_path):
    """Each command says in one line where it cannot write."""
    disk = tmp_path / "disk"
    disk.mkdir()
    commands = [
        caption_arguments(clips, "--format", "csv", "--output", disk / "captions.csv"),
        caption_arguments(disk / "clip.mp4", "--write-beside", "txt"),
        ["evaluate", "--dataset", shapes, "--model", "moving-shapes", "--device", "cpu", "--output", disk / "scores"],
        ["explain", clips / "0.mp4", "--output", disk / "explained", "--model", "moving-shapes"],
        ["train", *tiny_run.arguments(shapes, disk / "run")],
        ["make-shapes", disk / "shapes", "--train", 1],
    ]

    def run() -> None:
        mounted(disk, "1m")
        shutil.copy(clips / "0.mp4", disk / "clip.mp4")
        remounted(disk, "1m", is_read_only=True)
        print([_code_of(arguments) for arguments in commands])

    ended = forked(run, tmp_path)
    assert ended.code == 0 and ended.stdout.splitlines()[-1] == str([1] * len(commands)), ended
    assert ended.stderr.count("Read-only file system") == len(commands), ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr


def test_a_file_system_without_rename(command, clips, expected, shapes, tmp_path):
    def without_rename() -> None:
        rename = os.rename

        def refused(source: object, target: object, **_: object) -> None:
            if not Path(target).is_relative_to(tmp_path):
                return rename(source, target)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

        os.replace = os.rename = refused

    output = tmp_path / "captions.csv"
    arguments = caption_arguments(clips, "--format", "csv", "--output", output)
    # The journal's settings were written while renaming worked.
    stopped = command(*arguments, fault=signal_at(signal.SIGTERM, VideoCaptioningPipeline, "forward", nth_call(2)))
    assert stopped.code == 143
    refused = command(*arguments, fault=without_rename)
    assert refused.code == 1 and not output.exists() and not list(tmp_path.rglob("*.unfinished"))
    assert "Operation not permitted" in refused.stderr and "The captions so far are kept" in refused.stderr
    again = command(*arguments)
    assert again.code == 0 and "5 of 5 clips have their captions" in again.stderr
    changes = {"max_steps": 2, "eval_strategy": "no", "eval_split": "none"}
    training = command("train", *tiny_run.arguments(shapes, tmp_path / "run", **changes), fault=without_rename)
    assert training.code == 1 and "could not be written" in training.stderr and "Traceback" not in training.stderr


def test_a_file_system_without_locks(command, clips, expected, tmp_path, monkeypatch):
    def without_locks() -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        files.fcntl = SimpleNamespace(**{**vars(files.fcntl), "lockf": refused})

    output = tmp_path / "captions.jsonl"
    done = command(*caption_arguments(clips, "--format", "jsonl", "--output", output), fault=without_locks)
    assert done.code == 0, done.stderr
    assert [json.loads(line)["caption"] for line in output.read_text().splitlines()] == expected
    for number, is_locked in ((errno.EACCES, True), (errno.EAGAIN, True), (errno.EPERM, False), (errno.ENOLCK, False)):

        def refused(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.fcntl, "lockf", refused)
        if is_locked:
            with pytest.raises(BlockingIOError), files.file_lock(tmp_path / "lock"):
                pass
        else:
            with files.file_lock(tmp_path / "lock") as locked:
                assert not locked


# --- Clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps(command, clips, expected, tmp_path):
    def jumping_clock() -> None:
        true_time, calls = time.time, iter(range(10**9))
        time.time = lambda: true_time() + (86400 if next(calls) % 2 else -86400)

    output = tmp_path / "captions.jsonl"
    done = command(*caption_arguments(clips, "--format", "jsonl", "--output", output), fault=jumping_clock)
    assert done.code == 0 and "5 clips, 5 captioned, 0 failed" in done.stderr
    assert [json.loads(line)["caption"] for line in output.read_text().splitlines()] == expected
    (seconds,) = (part.split()[0] for part in done.stderr.split(", ") if part.endswith("s a clip.\n"))
    assert 0 < float(seconds) < 100


def test_files_of_visitors_survive_a_clock_that_jumps(monkeypatch):
    temporary = service.TemporaryFiles()
    file = temporary.new_folder("visitor") / "clip.mp4"
    file.write_bytes(b"")
    for seconds in (time.time() + 1e6, time.time() - 1e6):
        monkeypatch.setattr(service.time, "time", lambda seconds=seconds: seconds)
        temporary.sweep()
        assert file.exists()
    monkeypatch.setattr(service, "_OLD", 0.0)
    temporary.sweep()
    assert not file.exists()
    temporary.close()


def test_a_download_is_checked_although_the_clock_was_set_back(monkeypatch):
    checked, seconds = [], iter([5000.0, 1400.0])
    clock = SimpleNamespace(time=lambda: next(seconds), monotonic=iter([10.0, 15.0]).__next__)
    monkeypatch.setattr(loading_swinbert, "time", clock)
    monkeypatch.setattr(loading_swinbert, "check_downloads", lambda source, since, *_: checked.append(since))
    with pytest.raises(OSError):
        swinbert.SwinBertForVideoCaptioning.from_pretrained("org/nothing")
    assert checked == [1395.0], "5 s before, by the clock as it is now"


# --- Forks ------------------------------------------------------------------------------------------------------------

FORKED = """
import multiprocessing, os, sys, time, torch
from swinbert.captioning import captions, load_captioner

torch.set_num_threads(2)
clip, captioner = sys.argv[1], load_captioner("moving-shapes", device="cpu")
begun = iter(captions([clip] * 20, captioner))
expected = next(begun).text
time.sleep(1)  # its threads have read ahead, and hold no lock of a decoder

class Captions(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return captioner(clip)[0]["generated_text"]

def in_a_fork(answers):
    answers.put((captioner(clip)[0]["generated_text"], [each.text for each in captions([clip] * 3, captioner)]))
    for refused in (lambda: next(begun), lambda: list(captions([clip], captioner, threads=2))):
        try:
            refused()
        except (RuntimeError, ValueError) as error:
            answers.put(str(error))
    answers.put(captioner(clip)[0]["generated_text"])

context = multiprocessing.get_context("fork")
answers = context.Queue()
process = context.Process(target=in_a_fork, args=(answers,))
process.start()
assert answers.get() == (expected, [expected] * 3)
assert "begin to iterate in one process only" in answers.get()
assert "Expected one thread, got 2" in answers.get()
assert answers.get() == expected
process.join()
assert process.exitcode == 0
loaded = torch.utils.data.DataLoader(Captions(), batch_size=None, num_workers=1, multiprocessing_context="fork")
assert list(loaded) == [expected] * 2
assert torch.get_num_threads() == 2 and next(begun).text == expected
begun.close()
"""


def test_a_forked_process_captions(tmp_path):
    """In a new process with two threads: those of OpenMP do not survive a fork, and the child would wait for them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(SAMPLE)], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
