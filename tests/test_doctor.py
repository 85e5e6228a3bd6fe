"""`swinbert doctor` reports every problem of a dataset, and none of a good one."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encoded_clips import encode
from PIL import Image
from typer.testing import CliRunner

from swinbert import cli
from swinbert.endurance.self_test import Counts, SelfTest
from swinbert.training.data import doctor
from swinbert.training.data.doctor import examine
from swinbert.training.tokenization import build_tokenizer

BAD = Path(__file__).parent.parent.parent / "shared" / "bad"


def write(folder: Path, lines: list[dict]) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Four files of two seconds, of which `a` and `copy` are the same."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("a", "b", "c")):
        encode(folder / f"{name}.mp4", range(100 * number, 100 * number + 20), 10)
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    return folder


def problems(report, split: str) -> dict[str, list[str]]:
    return {kind: [str(each) for each in found] for kind, found in report.splits[split].problems.items()}


def test_a_good_dataset_has_no_problems(videos, tmp_path):
    lines = [{"file_name": f"{name}.mp4", "captions": [f"a {name}", "the one"]} for name in "ab"]
    lines += [{"file_name": "c.mp4", "captions": ["a c"], "split": "validation", "start": 0.5, "end": 2.3}]
    lines += [{"file_name": "c.mp4", "split": "test", "start": 0.1, "end": 0.4}]
    report = examine(write(videos, lines), workers=0, output=tmp_path)
    assert not report.breaks_training and report.complete
    assert problems(report, "train") == {}
    assert problems(report, "validation") == {"source in two splits": ["c.mp4 [0.5-2.3 s] (c.mp4 [0.1-0.4 s] of test)"]}
    train = report.splits["train"]
    assert (train.clips, train.checked, train.captions, train.distinct_captions) == (2, 2, 4, 3)
    assert train.caption_lengths == {4: 4}
    assert "test has no captions" in str(report)
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["breaks_training"] is False
    assert written["splits"]["train"]["caption_lengths"] == {"4": 4}
    with Image.open(tmp_path / "doctor.png") as picture:
        is_dark = np.asarray(picture.convert("L")) < 128
    rows = np.split(is_dark[: 4 * (doctor._HEIGHT + doctor._MARGIN)], 4)  # one for each clip
    for frames, text in (np.split(row, [-doctor._TEXT_WIDTH], axis=1) for row in rows):
        assert 0.02 < frames.mean() < 0.9 and 0.002 < text.mean() < 0.2


def test_problems_of_captions(videos):
    lines = [
        {"file_name": "a.mp4", "captions": ["A dog runs.", "a dog  runs"]},
        {"file_name": "b.mp4", "captions": []},
        {"file_name": "b.mp4", "captions": ["fine", " "]},
        {"file_name": "c.mp4", "captions": ["word " * 20, "dog " * 12]},
        {"file_name": "c.mp4", "captions": ["犬が走る"]},
    ]
    report = examine(write(videos, lines), max_caption_length=14, workers=0)
    assert problems(report, "train") == {
        "repeated caption": ["a.mp4 (1 of 2)"],
        "without captions": ["b.mp4"],
        "empty caption": ["b.mp4 (1 of 2)"],
        "long caption": ["c.mp4 (22 tokens)"],
    }
    assert report.breaks_training


def test_words_that_a_tokenizer_lacks(videos):
    lines = [{"file_name": "a.mp4", "captions": ["a dog"]}, {"file_name": "b.mp4", "captions": ["犬が走る"]}]
    report = examine(write(videos, lines), tokenizer=build_tokenizer(["a dog"]), workers=0)
    assert problems(report, "train") == {"unknown words": ["b.mp4 ('犬が走る')"]}


def test_problems_of_videos(videos):
    (videos / "text.mp4").write_text("this is no video")
    lines = [
        {"file_name": "text.mp4", "captions": ["a"]},
        {"file_name": "missing.mp4", "captions": ["b"]},
        {"file_name": "a.mp4", "captions": ["c"], "start": 1, "end": 2.2},
        {"file_name": "a.mp4", "captions": ["d"], "start": 1, "end": 3},
        {"file_name": "a.mp4", "captions": ["e"], "start": 7, "end": 8},
        {"file_name": "a.mp4", "captions": ["e"], "start": 2, "end": 1},
    ]
    report = examine(write(videos, lines), workers=0)
    assert [each.kind for each in report.splits["train"].problems["unreadable"]] == [
        *("not_video", "not_found", "bad_range", "bad_range")
    ]
    assert problems(report, "train")["past the end"] == ["a.mp4 [1-3 s] (3 of 2.0 s)"]
    assert report.breaks_training


def test_clips_of_one_colour(videos):
    import av

    with av.open(str(videos / "black.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode())
    report = examine(write(videos, [{"file_name": "black.mp4", "captions": ["night"]}]), workers=0)
    assert problems(report, "train") == {"blank": ["black.mp4"]}
    assert not report.breaks_training


def test_leaks_between_splits(videos):
    def line(name, split, captions=("a", "b"), **more):
        return {"file_name": f"{name}.mp4", "captions": list(captions), "split": split, **more}

    def found(*lines):
        report = examine(write(videos, list(lines)), workers=0)
        assert not report.breaks_training
        return {kind for split in report.splits for kind in problems(report, split)}

    assert found(line("a", "train", "x"), line("copy", "test", "y")) == {"in two splits"}
    assert found(line("a", "train", "x", end=1), line("copy", "test", "y", start=1)) == {"source in two splits"}
    assert found(line("a", "train", "x", end=1.1), line("copy", "test", "y", start=1)) == {"in two splits"}
    assert found(line("a", "train", "x", video_id="1"), line("b", "test", "y", video_id="1")) == {"in two splits"}
    assert found(line("a", "train", ["x", "y"]), line("b", "test", ["Y.", "x"])) == {"captions in two splits"}
    assert (
        found(line("a", "train", ["x"]), line("b", "test", ["x"])) == set()
    )  # a single caption may be equal by chance
    assert found(line("a", "train", "x"), line("copy", "train", "y")) == set()  # within one split


def test_some_splits_and_some_clips(videos):
    lines = [{"file_name": "abc"[n % 3] + ".mp4", "captions": [f"a {n}"], "split": s} for s in "xyz" for n in range(9)]
    write(videos, lines)
    report = examine(videos, splits=["x", "z"], clips_per_split=3, workers=0)
    assert {name: split.checked for name, split in report.splits.items()} == {"x": 3, "z": 3}
    assert report.splits["x"].captions == 9
    with pytest.raises(ValueError, match="no split 'w', only {'x': 9"):
        examine(videos, splits=["w"])


def _die(*arguments, **options):
    os.kill(os.getpid(), 9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the stand-in for a faulty decoder is inherited by fork")
def test_a_clip_that_kills_its_process_is_reported(videos, monkeypatch):
    names = ["a", "b", "c", "copy", "a"]
    lines = [{"file_name": f"{name}.mp4", "captions": [f"{number}"]} for number, name in enumerate(names)]
    decode = doctor.decode_video
    monkeypatch.setattr(
        doctor, "decode_video", lambda source, **kw: (_die if "c.mp4" in source else decode)(source, **kw)
    )
    report = examine(write(videos, lines), workers=2)
    (problem,) = report.splits["train"].problems["unreadable"]
    assert (problem.clip, problem.kind, report.splits["train"].checked) == ("c.mp4", "crashed", 5)


def test_interrupted(videos, monkeypatch):
    lines = [{"file_name": "a.mp4", "captions": [f"{number}"]} for number in range(6)]
    decode, count = doctor.decode_video, iter(range(10))

    def interrupt(source, **options):
        if next(count) == 3:
            raise KeyboardInterrupt
        return decode(source, **options)

    monkeypatch.setattr(doctor, "decode_video", interrupt)
    report = examine(write(videos, lines), workers=0)
    assert not report.complete and report.splits["train"].checked == 3
    assert "Interrupted" in str(report)


@pytest.fixture
def command():
    return lambda *arguments: CliRunner().invoke(cli.app, ["doctor", *map(str, arguments)])


def test_command(command, videos, tmp_path):
    write(
        videos, [{"file_name": "a.mp4", "captions": ["a"]}, {"file_name": "b.mp4", "captions": ["b"], "split": "test"}]
    )
    result = command(videos, "--workers", 0, "--splits", "train,test", "--output", tmp_path / "new" / "out")
    assert result.exit_code == 0, result.output
    assert "train: 1 clips, 1 decoded" in result.stdout and (tmp_path / "new" / "out" / "doctor.png").exists()
    write(videos, [{"file_name": "missing.mp4", "captions": ["a"]}])
    result = command(videos, "--workers", 0)
    assert result.exit_code == 1 and "BREAKS TRAINING" in result.stdout
    result = command(tmp_path / "nothing")
    assert result.exit_code == 1 and "no such folder" in result.stderr and not result.stdout


def test_captions_are_measured_by_a_named_model(command, videos):
    from swinbert import bundled_model

    write(videos, [{"file_name": "a.mp4", "captions": ["circle " * 60, "zebra ☃"]}])
    result = command(videos, "--workers", 0, "--model", bundled_model())
    assert result.exit_code == 0, result.output
    assert "captions that will be truncated: 1" in result.stdout and "does not know: 1" in result.stdout


@pytest.mark.skipif(not BAD.is_dir(), reason="no ../shared/bad")
def test_every_broken_file_is_reported_with_its_kind(tmp_path):
    expected = json.loads((BAD / "expected.json").read_text())
    lines = []
    for name in expected:
        (tmp_path / name).symlink_to(BAD / name)
        lines.append({"file_name": name, "captions": [name]})
    report = examine(write(tmp_path, lines), workers=2, num_frames=12)
    found = {each.clip: each.kind for each in report.splits["train"].problems["unreadable"]}
    assert found == {name: each["kind"] for name, each in expected.items() if each["expect"] == "error"}
    assert [each.clip for each in report.splits["train"].problems["damaged"]] == ["mdat_bitflips.mp4"]
    assert [each.clip for each in report.splits["train"].problems["cut off"]] == ["truncated_half_faststart.mp4"]


# --- Of the installation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "complete", "code"), [({}, True, 0), ({"crash": 2}, True, 1), ({"crash": 2}, False, 130)]
)
def test_self_test(findings, complete, code, monkeypatch):
    counts = Counts(cases=1200, outcomes=Counter(read=1198), findings=Counter(findings))
    given = {}

    def fake(minutes, seed, output, clips, announce):
        given.update(minutes=minutes, seed=seed, output=output, clips=clips)
        return SelfTest(seed, {"video": counts}, complete=complete)

    monkeypatch.setattr("swinbert.endurance.self_test", fake)
    result = CliRunner().invoke(cli.app, ["doctor", "--self-test", "--minutes", "0.5", "--seed", "3"])
    assert result.exit_code == code
    assert given == {"minutes": 0.5, "seed": 3, "output": None, "clips": None}
    assert "1,200  1,198" in result.stdout and ("2 crash" in result.stdout) == bool(findings)
    assert ("--output DIR" in result.stderr) == bool(findings)


def test_doctor_tests_a_dataset_or_the_installation():
    for arguments, complaint in (([], "Expected a DATASET"), (["clips", "--self-test"], "needs no dataset")):
        result = CliRunner().invoke(cli.app, ["doctor", *arguments])
        assert result.exit_code == 2 and complaint in result.stderr
