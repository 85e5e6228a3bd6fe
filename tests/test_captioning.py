"""The stream of captions: clips in, captions out, in order, whatever is wrong with one of them."""

import os
import queue
from pathlib import Path

import pytest
import torch
from captioning import write_clip, write_git_folder
from transformers import pipeline

from swinbert.captioning import Alternative, Caption, Clip, LoadingError, captions, find_clips, load_captioner
from swinbert.processing import VideoCaptioningPipeline, VideoDecodeError
from swinbert.processing.clip_reading_swinbert import FAMILIES, available_cores, concatenate, family_of


class Captioner:
    """Names its clips; cannot read those called bad, and cannot caption batches with a clip called large."""

    device = torch.device("cpu")
    sampling = {"num_frames": 3}
    collate = staticmethod(concatenate)

    def __init__(self):
        self.family = self
        self.read_clips: list[tuple] = []
        self.batches: list[list[str]] = []
        self.generation: dict = {}

    def check_num_frames(self, num_frames):
        assert num_frames == 3

    def read(self, video, **sampling):
        self.read_clips.append((video, sampling))
        if "bad" in video:
            raise VideoDecodeError(video, "not_video", "expected a video file, found text.")
        return {"pixels": torch.tensor([[ord(letter) for letter in video.ljust(9)]])}

    def forward(self, batch, **generation):
        self.generation = generation
        names = ["".join(map(chr, row)).strip() for row in batch.get("pixels", torch.zeros(0, 9)).int().tolist()]
        self.batches.append(names)
        if len(names) > 1 and any("large" in name for name in names):
            raise RuntimeError("an error\nof some kind")
        if len(names) > 2 and any("huge" in name for name in names):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if "never" in names:
            raise RuntimeError("no such operator")
        rows = iter(names)
        return {"name": [None if error else next(rows) for error in batch["error"]], "error": batch["error"]}

    def postprocess(self, outputs):
        if outputs["error"][0] is not None:
            return [{"generated_text": None, "score": None, "error": outputs["error"][0]}]
        (name,) = outputs["name"]
        return [{"generated_text": f"{each} {name}", "score": -score} for score, each in enumerate(("a", "the"), 1)]


@pytest.fixture
def captioner():
    return Captioner()


def texts(stream):
    return [caption.text for caption in stream]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_one_caption_for_each_clip_in_order(captioner, batch_size):
    clips = ["a", "bad", "b", Clip("c", 1.0, 2.0), Clip("d", name="the last"), Clip("nowhere", error="no such file")]
    results = list(captions(clips, captioner, batch_size=batch_size))
    assert [each.text for each in results] == ["a a", None, "a b", "a c", "a d", None]
    assert results[0] == Caption("a", None, None, "a a", -1.0, None, (Alternative("the a", -2.0),))
    assert results[1].error == "expected a video file, found text." and results[1].score is None
    assert (results[3].clip, results[3].start, results[3].end) == ("c", 1.0, 2.0)
    assert results[4].clip == "the last" and results[5].error == "no such file"
    assert max(map(len, captioner.batches)) <= batch_size
    assert {video for video, _ in captioner.read_clips} == {"a", "bad", "b", "c", "d"}
    assert ("c", {"num_frames": 3, "start": 1.0, "end": 2.0}) in captioner.read_clips
    assert texts(captions((clip for clip in clips), captioner, batch_size=batch_size)) == [e.text for e in results]


def test_rows_and_clips_that_cannot_be_fetched(captioner):
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, number):
            if number == 1:
                raise RuntimeError("broken")
            return {"video": "abc"[number], "start": float("nan"), "end": float("inf")}

    for arguments in ({}, {"only": [0, 1, 2]}, {"num_workers": 1}):
        results = list(captions(Rows(), captioner, **arguments))
        assert [each.text for each in results] == ["a a", None, "a c"]
        assert results[1].clip == "clips[1]" and "broken" in results[1].error
        assert (results[0].start, results[0].end) == (None, None)


def test_a_batch_that_fails_is_repeated_clip_by_clip(captioner):
    with pytest.warns(UserWarning, match="error of some kind.*3 clips are captioned one by one"):
        results = list(captions(["a", "large", "bad", "b"], captioner, batch_size=3))
    assert [each.text for each in results] == ["a a", "a large", None, "a b"]
    failed = list(captions(["never"], captioner))
    assert failed[0].text is None and failed[0].error == "no such operator"


def test_batches_that_need_too_much_memory_are_halved_from_then_on(captioner):
    with pytest.warns(UserWarning, match="out of memory.*at most 2 clips"):
        results = list(captions(["a", "b", "huge", "c", "d", "e", "f"], captioner, batch_size=5))
    assert [each.text for each in results] == ["a a", "a b", "a huge", "a c", "a d", "a e", "a f"]
    assert captioner.batches == [
        ["a", "b", "huge", "c", "d"],
        ["a", "b"],
        ["huge", "c", "d"],
        ["huge"],
        ["c", "d"],
        ["e"],
        ["f"],
    ]


def test_batches_do_not_depend_on_what_is_left_out(captioner):
    clips = list("abcdefg")
    assert texts(captions(clips, captioner, batch_size=3, only=[1, 2, 3, 6])) == ["a b", "a c", "a d", "a g"]
    assert captioner.batches == [["b", "c"], ["d"], ["g"]]
    with pytest.raises(ValueError, match="need a list of clips"):
        captions(iter(clips), captioner, only=[1])


def test_a_clip_is_captioned_before_the_next_one_exists(captioner):
    """A clip may follow from the caption of the last one, as in a live stream."""
    waiting: queue.Queue = queue.Queue()
    stream = iter(captions(iter(lambda: waiting.get(timeout=60), None), captioner))
    for name in "ab":
        waiting.put(name)
        assert next(stream).text == f"a {name}"
    waiting.put(None)
    assert list(stream) == []


def test_arguments_of_generate_are_passed_on(captioner):
    list(captions(["a"], captioner, do_sample=False))
    assert captioner.generation == {"do_sample": False}


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return [write_clip(tmp_path_factory.mktemp("clips") / f"{seed}.mp4", seed) for seed in range(3)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_captions_are_those_of_the_pipeline(git, videos, tmp_path, num_workers):
    pipe = pipeline("video-captioning", model=str(git), device="cpu", num_beams=2)
    clips = [str(videos[0]), Clip(str(videos[1]), 0.5, 1.5), str(tmp_path / "nowhere.mp4"), str(videos[2])]
    results = list(captions(clips, pipe, batch_size=2, num_workers=num_workers))
    expected = [pipe(videos[0]), pipe(videos[1], start=0.5, end=1.5), pipe(videos[2])]
    readable = [results[0], results[1], results[3]]
    assert [each.text for each in readable] == [best["generated_text"] for (best,) in expected]
    assert [each.score for each in readable] == pytest.approx([best["score"] for (best,) in expected], abs=1e-5)
    assert results[2].error == "there is no such file."


def test_settings_are_what_decides_a_caption_and_nothing_else(git):
    pipe = load_captioner(str(git), device="cpu", dtype="float32", num_frames=3)
    settings = captions([], pipe, do_sample=False).settings
    assert captions([], pipe, batch_size=7, do_sample=False).settings == settings
    assert settings["frames"]["frames"] == 3 and settings["model"]["dtype"] == "float32"
    other = captions([], pipe, do_sample=False, num_beams=4).settings
    assert (settings["generation"]["num_beams"], other["generation"]["num_beams"]) == (1, 4)
    assert settings["model"] == other["model"] and settings["model"]["revision"] is None


def test_find_clips(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "a.MKV", "notes.txt", "deep/c.webm", "deep/.hidden.mp4"):
        (tmp_path / name).write_text("not really a video")
    found = list(find_clips([str(tmp_path), "https://host/x.mp4", "nowhere.mp4", f"{tmp_path}/*.mp4"], 1.0, 2.0))
    assert [Path(each.name).name for each in found] == ["a.MKV", "b.mp4", "c.webm", "x.mp4", "nowhere.mp4", "b.mp4"]
    assert [each.error is None for each in found] == [True, True, True, True, False, True]
    assert {(each.start, each.end) for each in found} == {(1.0, 2.0)}


def names_of(found, folder):
    return [os.path.relpath(each.name, folder) for each in found]


def test_linked_folders_are_followed_once(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "b", other / "deep"):
        folder.mkdir(parents=True)
        (folder / "clip.mp4").write_text("not really a video")
    (root / "a").symlink_to(root / "b")  # the folder itself comes first
    (root / "b" / "loop").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "one").symlink_to(other)
    (root / "two").symlink_to(other / "deep")
    (root / "gone.mp4").symlink_to("nowhere.mp4")
    found = list(find_clips([str(root)]))
    assert names_of(found, root) == ["b/clip.mp4", "gone.mp4", "one/deep/clip.mp4"]
    assert not any(each.error for each in found)  # a link that leads nowhere is an error of whoever opens it


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "clip.mp4").write_text("not really a video")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    clip, closed = find_clips([str(tmp_path)])
    assert clip.error is None and Path(closed.name).name == "closed" and "Permission denied" in closed.error


@pytest.mark.parametrize("name", ["", "  ", "n" * 300 + ".mp4", "a\0b.mp4"])
def test_names_that_no_file_can_have(name):
    (clip,) = find_clips([name])
    assert clip.error and "\n" not in clip.error


def test_content_in_the_place_of_a_name_is_left_to_the_reader():
    for content in ("data:video/mp4;base64," + "AAAA" * 5000, "AAAAIGZ0" * 2000):
        (clip,) = find_clips([content])
        assert clip.error is None and len(clip.name) <= 60


def test_a_family_serves_each_type_of_model(git):
    pipe = pipeline("video-captioning", model=str(git), device="cpu")
    assert {"git", "swinbert"} <= FAMILIES.keys() and type(pipe.family) is FAMILIES["git"]

    class Other:
        model_type = "bert"

    with pytest.raises(ValueError, match="git.*swinbert.*chat template.*'bert'.*NoneType"):
        family_of(Other, None)


def test_loading(git, tmp_path):
    bundled = load_captioner("moving-shapes", device="cpu", dtype="float32")
    assert isinstance(bundled, VideoCaptioningPipeline) and bundled.model.config.model_type == "swinbert"
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    for model, complaint in (
        (str(file), "swinbert convert"),
        (str(tmp_path), "config.json"),
        ("no/such/folder", "no such folder"),
    ):
        with pytest.raises(LoadingError, match=complaint):
            load_captioner(model)
    with pytest.raises(ValueError, match="float64"):
        load_captioner(str(git), device="cpu", dtype="float64")
    with pytest.raises(ValueError, match="nonsense"):
        load_captioner(str(git), device="nonsense")


@pytest.mark.parametrize("has_affinity", [True, False])
def test_available_cores(has_affinity, monkeypatch):
    if has_affinity:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    else:
        monkeypatch.delattr("os.sched_getaffinity", raising=False)
        monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert available_cores() == ([1, 5, 6] if has_affinity else [0, 1, 2])
