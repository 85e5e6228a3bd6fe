"""Films: one pass, segments with the pixels of clips, damaged files, files of captions, going on after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pysubs2
import pytest
import torch
import webvtt
from captioning import write_clip, write_git_folder
from chat_models import write_qwen
from encoded_clips import GROUPS, GROUPS_WITHOUT_B_FRAMES, encode, read_numbers
from transformers import pipeline
from typer.testing import CliRunner

from swinbert.captioning import Clip, Segmentation, captions, load_captioner
from swinbert.cli import app
from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError, VideoReader, VideoSegment, decode_video
from swinbert.processing import video_backends_swinbert as backends
from swinbert.processing import video_decoding_swinbert as decoding
from swinbert.training.data.sources import load_clips
from swinbert.training.moving_shapes.contents import all_contents, wordings
from swinbert.training.moving_shapes.rendering import render
from swinbert.training.moving_shapes.rendering import write_clip as write_shapes
from swinbert.training.moving_shapes.scoring import exact_content


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def captioner(git):
    return load_captioner(str(git), device="cpu", dtype="float32", max_length=8)


@pytest.fixture
def decoded(monkeypatch):
    """Packets that are decoded, and files that are opened, from now on."""
    counts = {"packets": 0, "files": 0}
    decode, opened = backends.StreamDecoder._decode, av.open

    def counted(self, packet):
        counts["packets"] += packet is not None
        return decode(self, packet)

    def counted_open(*arguments, **options):
        counts["files"] += 1
        return opened(*arguments, **options)

    monkeypatch.setattr(backends.StreamDecoder, "_decode", counted)
    monkeypatch.setattr(av, "open", counted_open)
    return counts


# ------------------------------------------------------------------------------------------------- segments as clips


def test_a_segment_is_read_as_a_clip_of_its_own(numbered_clip):
    processor = SwinBertVideoProcessor(num_frames=5, size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    whole, _ = decode_video(numbered_clip)
    with VideoReader(numbered_clip) as reader:
        for part in (range(10, 40), range(40, 43), range(43, 60)):
            inputs = processor(VideoSegment(reader, part), return_tensors="pt", return_metadata=True)
            expected = processor(list(whole[part.start : part.stop]), return_tensors="pt", return_metadata=True)
            assert torch.equal(inputs.pixel_values_videos, expected.pixel_values_videos)
            (metadata,) = inputs.video_metadata
            assert metadata.frames_indices == expected.video_metadata[0].frames_indices
            assert metadata.total_num_frames == len(part) and metadata.duration == pytest.approx(len(part) / 30)
            assert metadata.frame_times == pytest.approx([number / 30 for number in metadata.frames_indices])
        frames, _ = VideoSegment(reader, range(50, 60)).read_frames(start=0.1, end=0.2)
        assert read_numbers(frames) == [53, 54, 55, 56, 57]


@pytest.mark.parametrize("family", ["git", "chat"])
def test_every_family_reads_segments(family, git, numbered_clip, tmp_path):
    folder = git if family == "git" else write_qwen(tmp_path / "chat")
    captioner = load_captioner(str(folder), device="cpu", dtype="float32", max_length=4, num_frames=4)
    whole, _ = decode_video(numbered_clip)
    with captioner.family.open_video(numbered_clip) as reader:
        inputs = captioner.family.read(VideoSegment(reader, range(20, 50)), num_frames=4)
    expected = captioner.family.read(whole[20:50], num_frames=4)
    pixels = [name for name in inputs if name.startswith("pixel_values")]
    assert pixels and all(torch.equal(inputs[name], expected[name]) for name in pixels)


@pytest.mark.parametrize("kept_bytes", [0, backends._KEPT_BYTES], ids=["read again", "kept"])
@pytest.mark.parametrize("stride", [0.5, 0.2])
def test_overlapping_windows_are_decoded_once(captioner, numbered_clip, decoded, stride, kept_bytes, monkeypatch):
    monkeypatch.setattr(backends, "_KEPT_BYTES", kept_bytes)
    found = list(captions([numbered_clip], captioner, segments=Segmentation(length=0.5, stride=stride), batch_size=4))
    assert len(found) == round(1.5 / stride) + 1 and not any(each.error for each in found)
    assert decoded["packets"] <= 60 and decoded["files"] <= 2  # of those packets that are not kept
    monkeypatch.setattr(decoding, "_SHARED_BYTES", 0)
    again = list(captions([numbered_clip], captioner, segments=Segmentation(length=0.5, stride=stride), batch_size=4))
    assert again == found  # slower, and nothing else


# --------------------------------------------------------------------------------------------------- captions of films


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_caption_for_each_segment(captioner, numbered_clip, tmp_path, batch_size):
    (tmp_path / "bad.mp4").write_text("no video")
    films = [numbered_clip, tmp_path / "bad.mp4", Clip(numbered_clip, 0.5, 1.5), Clip("nowhere", error="no such file")]
    found = list(captions(films, captioner, segments=0.75, batch_size=batch_size))
    third = float(Fraction(23, 30))
    assert [(each.start, each.end) for each in found] == [
        *[(0, third), (third, 1.5), (1.5, 2)],
        (None, None),
        *[(0.5, float(Fraction(38, 30))), (float(Fraction(38, 30)), 1.5)],
        (None, None),
    ]
    assert [each.error_kind for each in found] == [None, None, None, "not_video", None, None, "not_found"]
    assert {each.duration for each in found} == {2.0, None}
    clip = decode_video(numbered_clip)[0][23:45]
    (expected,) = captions([clip], captioner)
    assert found[1].text == expected.text and found[1].score == pytest.approx(expected.score, abs=1e-5)


def test_segments_are_read_ahead_where_the_model_has_its_own_processor(captioner, numbered_clip, monkeypatch):
    expected = list(captions([numbered_clip] * 2, captioner, segments=0.5))
    monkeypatch.setattr("swinbert.captioning.caption.available_cores", lambda: range(1000))
    assert list(captions([numbered_clip] * 2, captioner, segments=0.5)) == expected
    stream = iter(captions([numbered_clip] * 100, captioner, segments=0.1))
    next(stream)
    stream.close()


def test_batches_do_not_depend_on_what_is_done(captioner, captioned, numbered_clip):
    films, options = [numbered_clip, Clip(numbered_clip, 0.5)], {"segments": 0.25, "batch_size": 3}
    everything = list(captions(films, captioner, **options))
    assert captioned == [3, 3, 3, 3, 2]
    captioned.clear()
    done = {(each.start, each.end) for each in everything[:4]}
    rest = list(captions(films, captioner, is_done=lambda clip: (clip.start, clip.end) in done, **options))
    assert [(each.start, each.text) for each in rest] == [
        (each.start, each.text) for each in everything if (each.start, each.end) not in done
    ]
    assert captioned[0] == 2


def test_a_range_of_the_captioner_is_that_of_the_film(git, numbered_clip):
    captioner = load_captioner(str(git), device="cpu", dtype="float32", max_length=4, start=0.5, end=1.0)
    assert [(each.start, each.end) for each in captions([numbered_clip], captioner, segments=0.25)] == [
        (0.5, float(Fraction(23, 30))),
        (float(Fraction(23, 30)), 1.0),
    ]


def test_what_cannot_be_cut_is_refused(captioner):
    with pytest.raises(ValueError, match="Workers read whole clips"):
        captions(["a.mp4"], captioner, segments=1.0, num_workers=1)
    with pytest.raises(ValueError, match='seconds or "scenes"'):
        captions(["a.mp4"], captioner, segments="scene")
    (failed,) = captions([np.zeros((8, 32, 32, 3), np.uint8)], captioner, segments=1.0)
    assert failed.error_kind == "bad_source"


# ----------------------------------------------------------------------------------------- what is wrong with a file


def destroy(path: Path, packets: range) -> Path:
    """Overwrites packets of a file with zeros."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size]
    for number in packets:
        content[found[number].pos : found[number].pos + found[number].size] = bytes(found[number].size)
    path.write_bytes(content)
    return path


@pytest.fixture
def long_clip(tmp_path):
    return encode(tmp_path / "long.mp4", range(180), options=GROUPS_WITHOUT_B_FRAMES)


def test_a_damaged_span_costs_its_own_segments_alone(captioner, long_clip):
    whole = list(captions([long_clip], captioner, segments=1.0))
    found = list(captions([destroy(long_clip, range(60, 90))], captioner, segments=1.0))
    assert [(each.start, each.end) for each in found] == [(number, number + 1) for number in range(6)]
    assert [each.error_kind for each in found] == [None, None, "undecodable", None, None, None]
    good = [0, 1, 4, 5]  # the fourth begins within a group of which the beginning is damaged
    assert [found[number].text for number in good] == [whole[number].text for number in good]


def test_frames_of_other_segments_replace_none(long_clip):
    destroy(long_clip, range(60, 84))  # two groups
    with VideoReader(long_clip) as reader:
        with pytest.warns(UserWarning, match="wanted frames could not be decoded"):
            frames, metadata = VideoSegment(reader, range(60, 90)).read_frames()
        assert min(read_numbers(frames)) == 84 and metadata.missing_frames == 24
        assert read_numbers(VideoSegment(reader, range(90, 100)).read_frames()[0]) == list(range(90, 100))


def test_a_film_without_a_readable_frame_is_one_error(captioner, long_clip):
    destroy(long_clip, range(180))
    (failed,) = captions([long_clip], captioner, segments=1.0)
    assert (failed.start, failed.end, failed.text) == (None, None, None) and failed.error_kind == "undecodable"
    assert "none of its 6 segments" in failed.error and "\n" not in failed.error


def test_a_file_that_ends_in_the_middle_of_a_group(captioner, tmp_path):
    path = encode(tmp_path / "cut.ts", range(180), options=GROUPS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])
    found = list(captions([path], captioner, segments=1.0))
    assert 3 <= len(found) <= 4 and not any(each.error for each in found)
    assert found[-1].end == found[-1].duration and [each.start for each in found] == list(range(len(found)))


def test_time_stamps_that_jump_back(captioner, tmp_path):
    """Two transport streams, one behind the other."""
    parts = [encode(tmp_path / f"{number}.ts", range(60), options=GROUPS) for number in range(2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = list(captions([joined], captioner, segments=1.0))
    assert [each.start for each in found] == pytest.approx([0, 1, 2, 3], abs=0.04)
    assert all(one.end == other.start for one, other in zip(found, found[1:], strict=False))
    assert found[0].text == found[2].text and found[-1].end == pytest.approx(4, abs=0.04)


def test_sound_that_is_longer_than_the_picture(captioner, tmp_path):
    path = tmp_path / "sound.mp4"
    silence = np.zeros((1, 1024), np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 96, 32, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for _ in range(30):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 96, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        for number in range(64):  # four seconds
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, number * 1024
            container.mux(sound.encode(frame))
        container.mux([*video.encode(), *sound.encode()])
    found = list(captions([path], captioner, segments=0.6))
    assert [(each.start, each.end) for each in found] == [(0, 0.6), (0.6, 1.0)] and found[0].duration == 1.0


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def command(git, numbered_clip, tmp_path, monkeypatch):
    """`swinbert caption` in a folder with the films a.mp4, of 2 s, and b.mp4, of 2.5 s."""
    monkeypatch.chdir(tmp_path)
    os.link(numbered_clip, "a.mp4")
    write_clip(Path("b.mp4"), 0)

    def run(*arguments):
        options = ("--model", git, "--device", "cpu", "--dtype", "float32", "--max-length", 6)
        return CliRunner().invoke(app, ["caption", *map(str, (*arguments, *options))], catch_exceptions=False)

    return run


def test_text(command, captioner):
    result = command("a.mp4", "--segments", 0.75, "--no-merge")
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    assert [when for when, _ in lines] == [
        "00:00:00.00 - 00:00:00.77",
        "00:00:00.77 - 00:00:01.50",
        "00:00:01.50 - 00:00:02.00",
    ]
    several = command("a.mp4", "b.mp4", "missing.mp4", "--segments", 0.75, "--no-merge")
    assert several.stdout.splitlines()[0] == f"a.mp4\t00:00:00.00 - 00:00:00.77  {lines[0][1]}"
    assert len(several.stdout.splitlines()) == 7 and several.exit_code == 1
    assert "8 segments, 7 captioned, 1 failed (not_found 1)" in several.stderr


def test_rows_have_exact_times_and_neighbours_merge(command):
    command("a.mp4", "--segments", 0.75, "--format", "jsonl", "--output", "rows.jsonl", "--no-merge")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [(row["start"], row["end"], row["duration"]) for row in rows] == [
        (0.0, float(Fraction(23, 30)), 2.0),
        (float(Fraction(23, 30)), 1.5, 2.0),
        (1.5, 2.0, 2.0),
    ]
    # The same journal, merged.
    result = command("a.mp4", "--segments", 0.75, "--format", "csv", "--output", "rows.jsonl", "--merge-similar", 0)
    with open("rows.jsonl", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["start"]), float(row["end"])) == (0.0, 2.0)
    seconds = [row["end"] - row["start"] for row in rows]
    score = sum(row["score"] * each for row, each in zip(rows, seconds, strict=True)) / 2.0
    assert float(row["score"]) == pytest.approx(score, abs=1e-4)
    assert "3 segments have their captions" in result.stderr


def test_subtitles_of_a_film(command):
    command("a.mp4", "--segments", 0.5, "--format", "srt", "--output", "a.srt", "--no-merge")
    command("a.mp4", "b.mp4", "--segments", 0.5, "--no-merge", "--write-beside", "vtt", "--write-beside", "txt")
    cues = list(pysubs2.load("a.srt"))
    assert [(cue.start, cue.end) for cue in cues] == [(0, 500), (500, 1000), (1000, 1500), (1500, 2000)]
    others = list(webvtt.read("a.vtt"))
    assert [cue.text for cue in others] == [cue.text for cue in cues]
    assert [others[1].start, others[1].end] == ["00:00:00.500", "00:00:01.000"]
    assert len(webvtt.read("b.vtt")) == 5
    assert Path("a.txt").read_text().splitlines()[3] == f"00:00:01.50 - 00:00:02.00  {cues[3].text}"
    assert "expected" not in command("a.mp4", "b.mp4", "--segments", 1, "--format", "srt").stdout


def test_a_labelled_film_trains(command, tmp_path):
    command("a.mp4", "--segments", 0.5, "--format", "metadata", "--output", "metadata.jsonl", "--no-merge")
    rows = load_clips(tmp_path, "train")
    assert len(rows) == 4 and [row["start"] for row in rows] == [0, 0.5, 1, 1.5] and rows[3]["end"] == 2


def test_activitynet(command):
    result = command("a.mp4", "b.mp4", "--segments", 1, "--format", "activitynet", "--no-merge")
    document = json.loads(result.stdout)
    assert document["results"].keys() == {"a", "b"} and {"version", "external_data"} <= document.keys()
    assert [each["timestamp"] for each in document["results"]["b"]] == [[0, 1], [1, 2], [2, 2.5]]
    assert all(each["sentence"] for each in document["results"]["a"])
    os.link("a.mp4", "a.mkv")
    result = command("a.mp4", "a.mkv", "--segments", 1, "--format", "activitynet")
    assert result.exit_code == 1 and "would both be called a" in result.stderr


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--segments 0", "positive"),
        ("--segments 2 --stride 3", "stride"),
        ("--segments 2 --stride 0", "stride"),
        ("--segments scenes --min-segment 3 --max-segment 2", "min_segment"),
        ("--segments two", "seconds or"),
        ("--stride 2", "--stride needs --segments"),
        ("--no-merge", "--no-merge needs --segments"),
        ("--segments 2 --scene-threshold 2", "--segments scenes"),
        ("--segments 2 --no-merge --merge-similar 0.5", "exclude"),
    ],
)
def test_wrong_usage_exits_with_2(command, options, complaint):
    result = command("a.mp4", *options.split())
    assert result.exit_code == 2 and complaint in result.stderr


# ---------------------------------------------------------------------------------------------- the same command again


def shapes_film(path: Path, number: int, seed: int = 5) -> list:
    """A film of that many clips of moving shapes, two seconds each; returns what they show."""
    rng = np.random.default_rng(seed)
    contents = all_contents()
    chosen = [contents[index] for index in rng.choice(len(contents), number, replace=False)]
    write_shapes(path, np.concatenate([render(content, rng) for content in chosen]))
    return chosen


def test_killed_in_the_middle_of_a_film_and_run_again(command, git, captioned):
    whole = encode(Path("film.mp4"), range(600), options=GROUPS)
    arguments = ["a.mp4", whole, "--segments", 0.5, "--no-merge", "--format", "jsonl", "--output", "film.jsonl"]
    options = f"--model {git} --device cpu --dtype float32 --max-length 6 --batch-size 4 --threads 1"
    slow = (
        "import sys, time; from swinbert.cli import app; from swinbert.processing import VideoCaptioningPipeline as V\n"
        "forward = V.forward; V.forward = lambda *a, **k: (time.sleep(0.2), forward(*a, **k))[1]\n"
        "app(sys.argv[1:])"
    )
    process = [sys.executable, "-c", slow, "caption", *map(str, arguments), *options.split()]
    journal = Path(".film.jsonl.journal/predictions.jsonl")
    with subprocess.Popen(process, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 300
        while not journal.exists() or journal.read_bytes().count(b"\n") < 18:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    assert not Path("film.jsonl").exists()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    done = [line for line in lines if "segments" not in line]
    assert [line["segments"] for line in lines if "segments" in line] == [4] and 17 <= len(done) < 44

    result = command(*arguments, "--batch-size", 4, "--threads", 1)
    assert result.exit_code == 0 and f"{len(done)} segments have their captions" in result.stderr
    assert sum(captioned) == 44 - len(done)
    rows = [json.loads(line) for line in Path("film.jsonl").read_text().splitlines()]
    assert [(row["path"], row["start"]) for row in rows] == [
        *(("a.mp4", number / 2) for number in range(4)),
        *(("film.mp4", number / 2) for number in range(40)),
    ]
    fresh = load_captioner(str(git), device="cpu", dtype="float32", max_length=6)
    expected = [each.text for each in captions(["a.mp4", whole], fresh, segments=0.5, batch_size=4)]
    assert [row["caption"] for row in rows] == expected

    captioned.clear()
    before = Path("film.jsonl").read_bytes()
    assert command(*arguments).exit_code == 0 and captioned == [] and Path("film.jsonl").read_bytes() == before
    result = command(*arguments[:3], 0.25, *arguments[4:])
    assert result.exit_code == 1 and "segments.length was 0.5, is 0.25" in result.stderr


def test_failed_segments_are_tried_again(command, captioned, tmp_path):
    film = encode(tmp_path / "film.mp4", range(180), options=GROUPS_WITHOUT_B_FRAMES)
    content = film.read_bytes()
    destroy(film, range(60, 90))
    arguments = ("film.mp4", "--segments", 1, "--no-merge", "--format", "csv", "--output", "film.csv")
    result = command(*arguments)
    assert result.exit_code == 1 and "film.mp4, 00:00:02.00 - 00:00:03.00: expected frames" in result.stderr
    film.write_bytes(content)  # of the same size
    captioned.clear()
    assert command(*arguments).exit_code == 0 and sum(captioned) == 1
    with open("film.csv", newline="") as file:
        assert [float(row["start"]) for row in csv.DictReader(file) if row["caption"]] == [0, 1, 2, 3, 4, 5]
    film.write_bytes(content + b"\0")
    captioned.clear()
    assert command(*arguments).exit_code == 0 and sum(captioned) == 6


# ---------------------------------------------------------------------------------------------------- the bundled model


def test_a_film_of_sixty_clips(tmp_path):
    chosen = shapes_film(tmp_path / "film.mp4", 60)
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    found = list(captions([tmp_path / "film.mp4"], captioner, segments=2.0, batch_size="auto"))
    assert [(each.start, each.end) for each in found] == [(2 * number, 2 * number + 2) for number in range(60)]
    assert sum(exact_content([each.text for each in found], [wordings(content)[0] for content in chosen])) >= 57


# ------------------------------------------------------------------------------------------------------------- pipeline


def test_the_pipeline_captions_films(captioner, numbered_clip):
    found = captioner(numbered_clip, segments=0.5, merge=False, batch_size=2)
    expected = list(captions([numbered_clip], captioner, segments=0.5, batch_size=2))
    assert found == [
        {"generated_text": each.text, "score": each.score, "timestamp": (each.start, each.end)} for each in expected
    ]
    assert captioner([numbered_clip, numbered_clip], segments=0.5, merge=False, batch_size=2) == [found, found]
    part = captioner({"video": numbered_clip, "start": 0.5, "end": 1.0}, segments=0.25, merge=False)
    assert part[0]["timestamp"][0] == 0.5 and part[-1]["timestamp"][1] == 1.0
    best = captioner(numbered_clip, segments=1.0, num_beams=2, num_return_sequences=2, merge=False)
    assert len(best) == 2 and [len(each["alternatives"]) for each in best] == [1, 1]


def test_the_names_of_speech_recognition(captioner, git, numbered_clip):
    windows = captioner(numbered_clip, segments=1.0, stride=0.5, merge=False)
    for overlap in (0.25, (0.0, 0.5), [0.5, 0]):
        arguments = {"chunk_length_s": 1.0, "stride_length_s": overlap, "return_timestamps": True, "merge": False}
        assert captioner(numbered_clip, **arguments) == windows
    assert len(captioner(numbered_clip, chunk_length_s=0)) == 1 and "timestamp" not in captioner(numbered_clip)[0]
    stored = pipeline("video-captioning", model=str(git), device="cpu", dtype="float32", max_length=8, chunk_length_s=1)
    assert [each["timestamp"] for each in stored(numbered_clip, merge=False)] == [(0, 1), (1, 2)]
    for wrong in (
        {"stride": 0.5},
        {"return_timestamps": True},
        {"stride_length_s": 0.5},
        {"merge": True},
        {"segments": 1.0, "chunk_length_s": 1.0},
        {"chunk_length_s": 1.0, "stride_length_s": 0.5},
        {"segments": "scenes", "stride_length_s": 0.5},
        {"segments": 1.0, "stride": 2.0},
        {"segments": "scene"},
    ):
        with pytest.raises(ValueError, match="`|scenes"):
            captioner(numbered_clip, **wrong)


def test_segments_are_given_while_the_film_is_read(captioner, captioned, numbered_clip):
    segments = captioner.stream(numbered_clip, 0.25, merge=False)
    assert next(segments)["timestamp"][0] == 0.0 and captioned == [1]
    segments.close()


def test_the_pipeline_raises_for_a_film_and_not_for_a_segment(captioner, long_clip, tmp_path):
    destroy(long_clip, range(60, 90))
    found = captioner(long_clip, segments=1.0)
    (failed,) = [each for each in found if "error" in each]
    assert failed["timestamp"] == (2, 3) and failed["generated_text"] is None
    with pytest.raises(VideoDecodeError):
        captioner(long_clip, segments=1.0, on_error="raise")
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError):
        captioner(str(tmp_path / "bad.mp4"), segments=1.0)
    (bad,), good = captioner([str(tmp_path / "bad.mp4"), long_clip], segments=3.0)
    assert bad["error"] and len(good) == 2
