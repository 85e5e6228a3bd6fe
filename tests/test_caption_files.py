"""Files of captions: their formats, what is done already after an interruption, and what is refused."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from captioning import write_clip, write_git_folder
from typer.testing import CliRunner

from swinbert.captioning import Alternative, Caption, Clip, captions, load_captioner
from swinbert.captioning import batching as batching_module
from swinbert.captioning.batching import MeasuredBatching
from swinbert.captioning.labelling import Destination, Labelling
from swinbert.captioning.writers import Row, beside_document, make_writer, read_beside
from swinbert.cli import app
from swinbert.processing import VideoCaptioningPipeline
from swinbert.processing.clip_reading_swinbert import concatenate
from swinbert.training.data.sources import load_clips

DOG = Caption("a.mp4", None, None, "a dog", -0.5, duration=2.5)


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{number}.mp4", number) for number in range(4)]


@pytest.fixture
def folder(clips, tmp_path, monkeypatch):
    """The current folder, with `videos/` of four clips and a broken one."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    for clip in clips:
        os.link(clip, Path("videos", clip.name))
    Path("videos/bad.mp4").write_text("no video")
    return tmp_path


@pytest.fixture
def caption(git):
    def run(*arguments):
        options = ("--model", git, "--device", "cpu", "--dtype", "float32", "--max-length", 12)
        return CliRunner().invoke(app, ["caption", *map(str, (*arguments, *options))], catch_exceptions=False)

    return run


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# ------------------------------------------------------------------------------------------------------------ formats


def test_csv():
    failed = Caption('a "b",\nc.mp4', 1.5, 3.0, error="no such file")
    duplicate = Row(DOG, duplicate_of="b.mp4")
    text = make_writer("csv").document([Row(DOG), Row(failed), duplicate])
    assert text == (
        "path,start,end,caption,score,error\r\n"
        "a.mp4,,,a dog,-0.5,\r\n"
        '"a ""b"",\nc.mp4",1.5,3.0,,,no such file\r\n'
        "a.mp4,,,a dog,-0.5,duplicate of b.mp4\r\n"
    )
    assert list(csv.DictReader(io.StringIO(text, newline="")))[1]["path"] == failed.clip


def test_jsonl():
    best = Caption("a.mp4", None, None, "a dog", -0.5, None, (Alternative("a cat", -1.0),), duration=2.5)
    row = json.loads(make_writer("jsonl").row(Row(best)))
    assert list(row) == ["path", "caption", "score", "error", "start", "end", "duration", "alternatives"]
    assert row["duration"] == 2.5 and row["alternatives"] == [{"caption": "a cat", "score": -1.0}]
    marked = json.loads(make_writer("jsonl").row(Row(DOG, duplicate_of="b.mp4")))
    assert marked["duplicate_of"] == "b.mp4" and marked["error"] is None and marked["caption"] == "a dog"


def test_a_line_of_text_stays_one_line():
    strange = Caption("a\tb\nc\r\\d.mp4", text="a dog\nruns\taway")
    assert make_writer("text").row(Row(strange)) == "a\\tb\\nc\\r\\\\d.mp4\ta dog runs away\n"
    assert make_writer("text", only_caption=True).row(Row(strange)) == "a dog runs away\n"


def test_subtitles():
    rows = [
        Row(Caption("a.mp4", text="x --> y & <z>", duration=2.5)),
        Row(Caption("a.mp4", text="", duration=2.5)),
        Row(Caption("a.mp4", error="failed")),
        Row(Caption("a.mp4", 3661.0005, 400_000.0, "late", duration=360_000.25)),
        Row(Caption("a.mp4", 4.0, 4.0, "no time", duration=9.0)),
    ]
    assert make_writer("srt").document(rows) == (
        "1\n00:00:00,000 --> 00:00:02,500\nx -> y & <z>\n\n"
        "2\n01:01:01,000 --> 100:00:00,250\nlate\n\n"
        "3\n00:00:04,000 --> 00:00:04,001\nno time\n\n"
    )
    assert make_writer("vtt").document(rows[:1]) == ("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nx -> y &amp; &lt;z>\n\n")
    with pytest.raises(ValueError, match="duration"):
        make_writer("srt").row(Row(Caption("a.mp4", text="a dog")))


@pytest.mark.parametrize("kind", ["txt", "json", "srt", "vtt"])
def test_files_beside_clips_are_read_back(kind, tmp_path):
    file = tmp_path / f"a.{kind}"
    file.write_text(beside_document(kind, [Row(Caption("a.mp4", text="a dog & a cat", duration=2.5))]))
    assert read_beside(file) == "a dog & a cat"
    file.write_text("\n\n\n")
    assert read_beside(file) is None


# ------------------------------------------------------------------------------------------- durations and failures


def test_a_caption_has_the_duration_of_its_video(git, clips):
    captioner = load_captioner(str(git), device="cpu", dtype="float32", max_length=6)
    whole, part, bad = captions([clips[0], Clip(clips[0], 1.0, 2.0), __file__], captioner)
    assert (whole.duration, part.duration, bad.duration) == (2.5, 2.5, None)
    assert (whole.error_kind, bad.error_kind) == (None, "not_video")
    assert captioner.postprocess(captioner.forward(captioner.preprocess(clips[0])))[0]["generated_text"] == whole.text
    shapes = load_captioner("moving-shapes", device="cpu", dtype="float32", max_length=6)
    assert [each.duration for each in captions([clips[0]], shapes)] == [2.5]


def test_the_end_is_reported(caption, folder):
    result = caption("videos", "nowhere.mp4")
    assert result.exit_code == 1 and len(result.stdout.splitlines()) == 4
    report, failed = result.stderr.splitlines()[-2:]
    assert "6 clips, 4 captioned, 2 failed" in report and "not_video 1" in report and "not_found 1" in report
    assert "distinct captions" in report and "s a clip" in report
    assert failed == "swinbert: 2 of 6 clips could not be captioned."


# ---------------------------------------------------------------------------------------------- the same command again


def test_killed_in_the_middle_and_run_again(git, caption, captioned, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(40):
        write_clip(videos / f"{number:02d}.mp4", number)
    (videos / "bad.mp4").write_text("no video")
    table, journal = tmp_path / "captions.csv", tmp_path / ".captions.csv.journal/predictions.jsonl"
    arguments = [videos, "--format", "csv", "--output", table, "--write-beside", "txt", "--write-beside", "json"]
    slow = (
        "import sys, time; from swinbert.cli import app; from swinbert.processing import VideoCaptioningPipeline as V\n"
        "forward = V.forward; V.forward = lambda *a, **k: (time.sleep(0.2), forward(*a, **k))[1]\n"
        "app(sys.argv[1:])"
    )
    options = f"--model {git} --device cpu --dtype float32 --max-length 12 --batch-size 4 --threads 1"
    command = [sys.executable, "-c", slow, "caption", *map(str, arguments), *options.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not table.exists()
    done = {line["path"] for line in map(json.loads, journal.read_text().splitlines()) if line["caption"]}
    assert 8 <= len(done) < 40

    result = caption(*arguments, "--batch-size", 4, "--threads", 1)
    assert result.exit_code == 1 and result.stdout == "" and "bad.mp4" in result.stderr
    assert sum(captioned) == 41 - len(done)
    rows = rows_of(table)
    assert [row["path"] for row in rows] == [
        *(str(videos / f"{number:02d}.mp4") for number in range(40)),
        *[f"{videos}/bad.mp4"],
    ]
    assert rows[-1]["error"] and not rows[-1]["caption"]
    fresh = load_captioner(str(git), device="cpu", dtype="float32", max_length=12)
    expected = {each.clip: each for each in captions(sorted(videos.glob("[0-9]*.mp4")), fresh, batch_size=8)}
    for row in rows[:-1]:
        path = Path(row["path"])
        assert row["caption"] == expected[row["path"]].text == path.with_suffix(".txt").read_text().strip()
        assert json.loads(path.with_suffix(".json").read_text())["caption"] == row["caption"]
        assert float(row["score"]) == pytest.approx(expected[row["path"]].score, abs=1e-3)
    assert Counter(path.suffix for path in videos.iterdir()) == {".mp4": 41, ".txt": 40, ".json": 40}

    captioned.clear()
    before = table.read_bytes()
    caption(*arguments)
    assert sum(captioned) == 1 and table.read_bytes() == before  # the broken clip is tried again

    metadata = videos / "metadata.jsonl"
    caption(videos, "--format", "metadata", "--output", metadata)
    rows_to_train = load_clips(videos, "train")
    assert len(rows_to_train) == 40
    assert list(rows_to_train["captions"]) == [[expected[str(videos / f"{n:02d}.mp4")].text] for n in range(40)]


def test_ctrl_c_says_how_to_go_on(caption, folder, monkeypatch):
    forward = VideoCaptioningPipeline.forward
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    monkeypatch.setattr(VideoCaptioningPipeline, "forward", interrupted)
    arguments = ("videos/[0-3].mp4", "--output", "captions.csv", "--format", "csv", "--batch-size", 1)
    result = caption(*arguments)
    assert result.exit_code != 0 and "the same command continues" in result.stderr
    assert not Path("captions.csv").exists()
    assert caption(*arguments).exit_code == 0 and len(calls) == 5 and len(rows_of("captions.csv")) == 4


def test_a_file_whose_clip_was_replaced_is_captioned_again(caption, captioned, folder, clips):
    arguments = ("videos", "--output", "captions.jsonl", "--format", "jsonl", "--write-beside", "txt")
    caption(*arguments)
    Path("videos/bad.mp4").unlink()
    os.link(clips[3], "videos/bad.mp4")
    Path("videos/0.mp4").unlink()
    Path("videos/0.mp4").write_bytes(clips[2].read_bytes() + b"\0")
    captioned.clear()
    assert caption(*arguments).exit_code == 0 and sum(captioned) == 2
    texts = {row["path"]: row["caption"] for row in map(json.loads, Path("captions.jsonl").read_text().splitlines())}
    assert texts["videos/0.mp4"] == texts["videos/2.mp4"] and texts["videos/bad.mp4"] == texts["videos/3.mp4"]
    assert Path("videos/0.txt").read_text() == texts["videos/0.mp4"] + "\n"


def test_other_settings_are_refused_into_the_same_file(caption, captioned, folder):
    caption("videos/0.mp4", "--output", "captions.txt")
    before = Path("captions.txt").read_bytes()
    captioned.clear()
    for options, difference in (
        (("--beams", 2), "num_beams was 1, is 2"),
        (("--num-frames", 3), "frames.frames was 6, is 3"),
        (("--start", 1), "range.start was null, is 1.0"),
        (("--sample", "--seed", 1), "seed was null, is 1"),
    ):
        result = caption("videos/0.mp4", "--output", "captions.txt", *options)
        assert result.exit_code == 1 and difference in result.stderr and "--overwrite" in result.stderr
    assert captioned == [] and Path("captions.txt").read_bytes() == before
    assert caption("videos/0.mp4", "--output", "captions.txt", "--beams", 2, "--overwrite").exit_code == 0
    assert captioned == [1]


def test_further_clips_join_those_in_the_file(caption, captioned, folder, monkeypatch):
    for name in ("2.mp4", "0.mp4"):
        caption(f"videos/{name}", "--output", "captions.csv", "--format", "csv")
    assert [row["path"] for row in rows_of("captions.csv")] == ["videos/0.mp4", "videos/2.mp4"]
    assert captioned == [1, 1]
    Path("videos/2.mp4").unlink()
    caption("videos/0.mp4", "./videos/0.mp4", "--output", "captions.csv", "--format", "csv")
    assert [row["path"] for row in rows_of("captions.csv")] == ["videos/0.mp4"]
    monkeypatch.chdir("videos")
    caption("0.mp4", "--output", "../captions.csv", "--format", "csv")
    assert [row["path"] for row in rows_of("../captions.csv")] == ["0.mp4"]
    assert captioned == [1, 1]


def test_clips_with_files_beside_them_are_skipped(caption, captioned, folder):
    Path("videos/1.txt").write_text("by hand\n")
    result = caption("videos", "--write-beside", "txt")
    assert result.exit_code == 1 and "1 of 5 clips are skipped" in result.stderr
    assert Path("videos/1.txt").read_text() == "by hand\n" and sum(captioned) == 4
    assert [Path(line.split("\t")[0]).name for line in result.stdout.splitlines()] == ["0.mp4", "2.mp4", "3.mp4"]
    assert Path("videos/0.txt").read_text().strip() == result.stdout.splitlines()[0].split("\t")[1]
    Path("videos/bad.mp4").unlink()
    captioned.clear()
    assert caption("videos", "--write-beside", "txt").exit_code == 0 and captioned == []
    assert caption("videos", "--write-beside", "txt", "--overwrite").exit_code == 0 and sum(captioned) == 4
    assert Path("videos/1.txt").read_text() != "by hand\n"


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_written_is_refused_before_anything_is(caption, captioned, folder, clips):
    os.link(clips[0], "videos/0.mkv")
    Path("mine.csv").write_text("my own")
    Path("videos/1.txt").write_text("by hand\n")
    files = sorted(folder.rglob("*"))
    for arguments, complaint in (
        (("videos", "--write-beside", "txt"), "videos/0.mkv and videos/0.mp4 would both have videos/0.txt"),
        (("videos", "--format", "srt", "--output", "all.srt"), "--write-beside srt"),
        (("videos/0.mp4", "--format", "csv", "--output", "mine.csv"), "mine.csv exists"),
        (("videos/0.mp4", "--output", "videos"), "found the folder videos"),
        (("videos/0.mp4", "--output", "videos/0.mp4", "--overwrite"), "videos/0.mp4 is a clip"),
        (("videos/0.mp4", "--output", "videos/0.txt", "--write-beside", "txt"), "also beside videos/0.mp4"),
        (("videos/0.mp4", "--format", "metadata", "--output", "elsewhere/metadata.jsonl"), "is not in"),
    ):
        result = caption(*arguments)
        assert result.exit_code == 1 and complaint in result.stderr and len(result.stderr.splitlines()) == 1
    assert sorted(folder.rglob("*")) == files and captioned == []
    result = caption("videos/1.mp4", "--output", "new.csv", "--write-beside", "txt")
    assert result.exit_code == 1 and "videos/1.txt" in result.stderr and captioned == []
    assert Path("videos/1.txt").read_text() == "by hand\n" and not Path("new.csv").exists()


@pytest.mark.parametrize("options", ["--seed 1", "--temperature 0.5", "--sample --temperature 0", "--min-length 9"])
def test_wrong_usage_exits_with_2(options, folder):
    arguments = ["caption", "videos/0.mp4", "--max-length", "8", *options.split()]
    assert CliRunner().invoke(app, arguments).exit_code == 2


# ------------------------------------------------------------------------------------------------- a choice of captions


class Captioner:
    """Captions clips by the first letter of their names, with the score -1, -2... in their order."""

    device, sampling = torch.device("cpu"), {}
    collate = staticmethod(concatenate)

    def __init__(self):
        self.family, self.names = self, []

    def read(self, video, **sampling):
        self.names.append(Path(video).name)
        return {"number": torch.tensor([len(self.names) - 1])}

    def forward(self, batch):
        return {"numbers": batch["number"].tolist(), "error": batch["error"]}

    def postprocess(self, outputs):
        (number,) = outputs["numbers"]
        return [{"generated_text": self.names[number][0], "score": -1.0 - number}]


def test_duplicates_and_low_scores_are_left_out(tmp_path):
    names = ["x/a1.mp4", "x/a2.mp4", "y/a3.mp4", "x/b4.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    files = [str(tmp_path / name) for name in names]
    shown = []
    destination = Destination("jsonl", write_beside=("txt",), skip_duplicates=True, min_score=-3.5)
    summary = Labelling([Clip(file) for file in files], destination).run(Captioner(), shown.append)
    rows = [json.loads(line) for line in shown]
    assert [row["caption"] for row in rows] == ["a", "a", "a", "b"] and not any(row["error"] for row in rows)
    assert [row.get("duplicate_of") for row in rows] == [None, files[0], None, None]
    assert "-4 is below -3.5" in rows[3]["rejected"]
    assert sorted(each.name for each in tmp_path.rglob("*.txt")) == ["a1.txt", "a3.txt"]
    assert (summary.num_captioned, summary.num_duplicates, summary.num_rejected, len(summary.texts)) == (4, 1, 1, 2)
    metadata = make_writer("metadata", tmp_path / "metadata.jsonl")
    marked = Row(Caption(files[1], text="a"), duplicate_of=files[0])
    assert metadata.row(marked) == "" and make_writer("text").row(marked) == ""
    # An earlier clip that is done already counts.
    (tmp_path / "x/a2.mp4").rename(tmp_path / "x/a9.mp4")
    again = Labelling([Clip(str(tmp_path / "x/a1.mp4")), Clip(str(tmp_path / "x/a9.mp4"))], destination, print)
    assert again.run(Captioner()).num_duplicates == 1


def test_nothing_is_written_beside_a_url(tmp_path):
    messages = []
    (tmp_path / "b.mp4").write_text("")
    clips = [Clip("https://host/a.mp4"), Clip(str(tmp_path / "b.mp4"))]
    labelling = Labelling(clips, Destination(write_beside=("txt",)), messages.append)
    labelling.clips[0] = Clip("local/a.mp4", name="https://host/a.mp4")
    summary = labelling.run(Captioner())
    assert summary.failed == {"https://host/a.mp4"} and "https://host/a.mp4: " in messages[0]
    assert (tmp_path / "b.txt").read_text() == "b\n"


def test_n_best(caption, folder):
    result = caption("videos/0.mp4", "--format", "jsonl", "--n-best", 3)
    row = json.loads(result.stdout)
    assert len(row["alternatives"]) == 2
    scores = [row["score"], *(each["score"] for each in row["alternatives"])]
    assert scores == sorted(scores, reverse=True)
    caption("videos/0.mp4", "--format", "metadata", "--output", "metadata.jsonl", "--n-best", 3)
    assert json.loads(Path("metadata.jsonl").read_text())["captions"] == [
        row["caption"],
        *(each["caption"] for each in row["alternatives"]),
    ]


def test_a_seed_decides_what_is_sampled(git, clips):
    captioner = load_captioner(str(git), device="cpu", dtype="float32", max_length=12, do_sample=True)
    once = [each.text for each in captions(clips, captioner, batch_size=1, seed=0)]
    state = torch.get_rng_state()
    assert [each.text for each in captions(clips, captioner, batch_size=3, seed=0)] == once
    assert [each.text for each in captions(clips[2:], captioner, batch_size="auto", seed=0)] == once[2:]
    assert [each.text for each in captions(clips, captioner, batch_size=3, seed=1)] != once
    assert torch.equal(torch.get_rng_state(), state)
    assert captions(clips, captioner, seed=1).settings["seed"] == 1


# ------------------------------------------------------------------------------------------------- batches and threads


class Machine:
    """A processor on which a pass of `size` clips of `values` on `threads` threads takes what `seconds` says."""

    def __init__(self, monkeypatch, threads=4, is_busy=False):
        self.now, self.threads = 0.0, threads
        monkeypatch.setattr(batching_module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(batching_module, "_is_busy", lambda: is_busy)
        monkeypatch.setattr(batching_module.torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(batching_module.torch, "set_num_threads", lambda number: setattr(self, "threads", number))

    def run(self, values, seconds, num_passes=8, device="cpu", threads=None):
        passes = []
        batching = MeasuredBatching(torch.device(device), threads)
        with batching.active():
            for _ in range(num_passes):
                size = batching.batch_size
                passes.append((size, self.threads))
                with batching.measured([values] * size):
                    self.now += seconds(size, self.threads)
        return passes


def test_small_clips_go_in_batches_on_one_thread_if_that_is_faster(monkeypatch):
    machine = Machine(monkeypatch)
    passes = machine.run(400_000, lambda size, threads: 0.01 * size + 0.1 * (threads - 1))
    assert passes[:3] == [(1, 4), (4, 1), (4, 4)] and passes[3:] == [(32, 1)] * 5
    assert machine.threads == 4  # restored


def test_all_threads_are_used_where_they_are_faster(monkeypatch):
    passes = Machine(monkeypatch).run(2_000_000, lambda size, threads: size * 4.0 / threads)
    assert passes == [(1, 4), (4, 1), (4, 4), *[(8, 4)] * 5]
    # Nearly equal: each is tried twice, and one thread leaves the other cores alone.
    passes = Machine(monkeypatch).run(2_000_000, lambda size, threads: size * (1.0 if threads == 1 else 0.95))
    assert passes == [(1, 4), *[(4, 1), (4, 4)] * 2, *[(8, 1)] * 3]
    # Where they are not, they are not tried again.
    passes = Machine(monkeypatch).run(2_000_000, lambda size, threads: size * (1.0 if threads == 1 else 1.05))
    assert passes == [(1, 4), (4, 1), (4, 4), *[(8, 1)] * 5]


def test_large_clips_go_one_by_one_on_all_threads(monkeypatch):
    passes = Machine(monkeypatch).run(16_000_000, lambda size, threads: 9.0)
    assert passes == [(1, 4)] * 8


def test_a_busy_machine_gets_one_thread_at_once(monkeypatch):
    passes = Machine(monkeypatch, is_busy=True).run(400_000, lambda size, threads: 1.0)
    assert passes[0] == (1, 1) and passes[1:] == [(32, 1)] * 7


def test_threads_that_are_given_stay(monkeypatch):
    assert Machine(monkeypatch).run(400_000, lambda size, threads: 1.0, threads=2)[1:] == [(32, 2)] * 7
