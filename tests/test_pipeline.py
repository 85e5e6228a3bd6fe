"""`pipeline("video-captioning")` with SwinBERT: every kind of clip, every kind of many, scores, saving and loading."""

import gc
import json
import os
import queue
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captioning import VOCABULARY, write_clip
from golden import TINY, make_clip, tiny_model
from PIL import Image
from transformers import AutoModel, AutoProcessor, BertTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from swinbert.processing import (
    SwinBertProcessor,
    SwinBertVideoProcessor,
    VideoCaptioningPipeline,
    VideoDecodeError,
    decode_video,
    pipeline_swinbert,
)
from swinbert.processing.clip_reading_swinbert import ReadAhead


def make_pipeline(sparse_mask: str, **overrides) -> VideoCaptioningPipeline:
    """The original's tiny reference model on 8 frames of 64 x 64, with words for its 200 tokens."""
    words = VOCABULARY[:104] + [f"word{i}" for i in range(104, 200)]
    words[1:100] = [f"word{i}" for i in range(1, 100)]
    processor = SwinBertProcessor(
        SwinBertVideoProcessor(num_frames=8, size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        BertTokenizer(vocab={word: number for number, word in enumerate(words)}),
    )
    model = tiny_model("e8", sparse_mask, **overrides)
    model.generation_config.max_length = 20
    return VideoCaptioningPipeline(model=model, processor=processor, device="cpu", task="video-captioning")


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline("none")


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported")
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return [write_clip(tmp_path_factory.mktemp("clips") / f"{seed}.mp4", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(pipe, clips):
    """Captions of the clips, each on its own."""
    return texts([pipe(clip) for clip in clips])


def texts(results) -> list[list[str | None]]:
    return [[caption["generated_text"] for caption in captions] for captions in results]


def scores(results) -> list[float]:
    return [caption["score"] for captions in results for caption in captions]


# A second text is not an input of the pipeline.
CASES = [n for n, case in TINY["generation"].items() if case["clip"] == "e8" and "textb" not in case["tensorizer"]]


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_scores_are_the_originals(name):
    case = TINY["generation"][name]
    wanted = case["overrides"]
    pipe = make_pipeline(case["mask"])
    results = pipe(
        [make_clip(seed, 8, 64, 64).numpy() for seed in (0, 1, 2)],
        batch_size=3,
        forced_eos_token_id=102,
        num_beams=wanted.get("num_beams", 1),
        num_return_sequences=wanted.get("num_keep_best", 1),
        length_penalty=float(wanted.get("length_penalty", 1.0)),
        repetition_penalty=float(wanted.get("repetition_penalty", 1.0)),
        early_stopping="never",
    )
    assert texts(results) == [pipe.processor.batch_decode(rows, skip_special_tokens=True) for rows in case["ids"]]
    assert scores(results) == pytest.approx(np.ravel(case["logprobs"]), abs=2e-3 if case["mask"] == "soft" else 1e-4)


def test_is_processor_and_generate(pipe, clips, alone):
    for clip, captions in zip(clips, alone, strict=True):
        ids = pipe.model.generate(**pipe.processor(videos=str(clip), return_tensors="pt"))
        assert captions == pipe.processor.batch_decode(ids, skip_special_tokens=True)
    assert len({captions[0] for captions in alone}) == 3, "clips that look alike to the model prove nothing"


def test_one_clip_in_every_form(pipe, clips, alone):
    frames, _ = decode_video(clips[0])
    forms = {
        "str": str(clips[0]),
        "Path": clips[0],
        "bytes": clips[0].read_bytes(),
        "array": frames,
        "tensor, channels first": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "list of PIL images": [Image.fromarray(frame) for frame in frames],
        "tuple of arrays": tuple(frames),
        "dictionary": {"video": clips[0], "caption": "ignored"},
        "row of an undecoded Video column": {"bytes": None, "path": str(clips[0])},
        "the same, embedded": {"bytes": clips[0].read_bytes(), "path": "0.mp4"},
    }
    for form, clip in forms.items():
        assert texts([pipe(clip)]) == alone[:1], form
    with open(clips[0], "rb") as file:
        assert texts([pipe(file)]) == alone[:1]


def test_one_image_is_a_clip(pipe, clips):
    frame = decode_video(clips[0], num_frames=1)[0][0]
    expected = texts([pipe(np.stack([frame] * 8))])
    assert texts([pipe(Image.fromarray(frame))]) == texts([pipe(frame)]) == expected
    assert texts(pipe([{"video": Image.fromarray(frame)}, {"video": frame}])) == expected * 2


def test_many_clips_in_every_form(pipe, clips, alone):
    paths = [str(clip) for clip in clips]
    frames = np.stack([decode_video(clip, num_frames=8)[0] for clip in clips])
    rows = [{"video": path, "caption": "a caption"} for path in paths]
    assert texts(pipe(paths)) == texts(pipe(tuple(paths))) == texts(pipe(frames)) == texts(pipe(rows)) == alone
    assert texts(pipe([list(map(Image.fromarray, clip)) for clip in frames], batch_size=2)) == alone
    assert texts(pipe(KeyDataset(rows, "video"), batch_size=2, num_workers=1)) == alone
    assert pipe([]) == []


def test_generators_are_read_as_they_are_asked_for(pipe, clips, alone):
    read = []

    def generator():
        for clip in clips * 20:
            read.append(clip)
            yield clip

    results = iter(pipe(generator()))
    assert texts([next(results)]) == alone[:1] and len(read) < 20
    assert texts([next(results), next(results)]) == alone[1:]
    assert texts(pipe(iter(clips), batch_size=2)) == alone


def test_a_clip_that_follows_from_the_last_caption(pipe, clips, alone):
    """Reading ahead must not wait for a clip that is not there yet before it answers."""
    waiting: queue.Queue = queue.Queue()

    def generator():
        while (clip := waiting.get(timeout=60)) is not None:
            yield clip

    waiting.put(clips[0])
    results = iter(pipe(generator()))
    assert texts([next(results)]) == alone[:1]
    waiting.put(clips[1])
    assert texts([next(results)]) == alone[1:2]
    waiting.put(None)
    assert next(results, None) is None  # `list` would begin to iterate again


def comes_true(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def slow_reading(pipe, monkeypatch):
    """Reading takes longer for the earlier clips; notes how many are read at once."""
    preprocess, running, most = pipe.preprocess, [], []

    def slow(clip, **parameters):
        running.append(clip)
        most.append(len(running))
        time.sleep(0.2 / len(most))
        try:
            return preprocess(clip, **parameters)
        finally:
            running.pop()

    monkeypatch.setattr(pipe, "preprocess", slow)
    return most


def test_clips_that_are_read_at_once_keep_their_order(pipe, clips, alone, slow_reading, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert texts(pipe([*clips, "nowhere.mp4", *clips])) == [*alone, [None], *alone]
    assert max(slow_reading) == 3
    assert texts(pipe(clips * 2, batch_size=2)) == alone * 2


def test_reading_while_a_gpu_works(pipe, clips, monkeypatch):
    """The second clip is read before the first has its caption."""
    events, preprocess, forward = [], pipe.preprocess, pipe.forward

    def noted_preprocess(clip, **parameters):
        read = preprocess(clip, **parameters)
        events.append("read")
        return read

    def noted_forward(*arguments, **parameters):
        assert comes_true(lambda: events.count("read") == 2)
        events.append("captioned")
        return forward(*arguments, **parameters)

    monkeypatch.setattr(pipe, "preprocess", noted_preprocess)
    monkeypatch.setattr(pipe, "forward", noted_forward)
    monkeypatch.setattr(pipeline_swinbert, "ReadAhead", lambda *arguments, takes_turns: ReadAhead(*arguments))
    pipe(clips[:2])
    assert events == ["read", "read", "captioned", "captioned"]


@pytest.mark.parametrize("clip, waits", [("{}.mp4", True), ("https://host/{}.mp4", False)])
def test_files_are_read_while_no_model_works_on_the_same_cores(monkeypatch, clip, waits):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    names, begun = [clip.format(number) for number in range(8)], []

    def read(name):
        begun.append(name)
        time.sleep(0.1)
        return name

    readings = iter(ReadAhead(names, read, batch_size=1, takes_turns=True))
    assert next(readings) == names[0]
    time.sleep(0.5)  # what a model would take
    ahead = list(begun)
    assert len(ahead) >= 2
    assert next(readings) == names[1]  # was read beside the first
    assert comes_true(lambda: begun != ahead, seconds=0.5) is not waits
    assert [*readings] == names[2:]


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read-clip", "feed-clips"))]


def gone_within_seconds() -> bool:
    gc.collect()
    return comes_true(lambda: not readers())


def test_no_thread_outlives_its_use(pipe, clips, monkeypatch):
    assert gone_within_seconds()
    results = iter(pipe(clip for clip in clips * 20))
    next(results)
    assert readers()
    del results
    assert gone_within_seconds()
    monkeypatch.setattr(pipe, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(clips * 20)
    assert gone_within_seconds()


def test_a_thread_ends_with_its_clip(pipe, clips, alone):
    """One that waited for the next would keep its OpenMP threads, and these would slow the model down."""
    asked, more = threading.Event(), threading.Event()

    def slow_generator():
        yield clips[0]
        asked.set()
        assert more.wait(60)
        yield clips[1]

    results = iter(pipe(slow_generator()))
    assert texts([next(results)]) == alone[:1]
    assert asked.wait(60)
    assert [name for name in readers() if name != "feed-clips"] == []
    more.set()
    assert texts([next(results)]) == alone[1:2]


def test_one_failure_costs_one_clip(pipe, clips, alone, monkeypatch):
    """Whatever it is: `swinbert caption` goes on after any exception."""
    results = iter(pipe((clip for clip in [clips[0], "nowhere.mp4", None, clips[1]]), on_error="raise"))
    assert texts([next(results)]) == alone[:1]
    with pytest.raises(VideoDecodeError, match="nowhere"):
        next(results)
    with pytest.raises(VideoDecodeError):
        next(results)
    assert texts([next(results)]) == alone[1:2]
    assert list(results) == []


def test_what_a_generator_raises_arrives(pipe, clips, alone):
    def generator():
        yield clips[0]
        raise OSError("the disk is gone")

    results = iter(pipe(generator()))
    assert texts([next(results)]) == alone[:1]
    with pytest.raises(OSError, match="disk is gone"):
        next(results)


def test_hugging_face_datasets(pipe, clips, alone):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"video": [str(clip) for clip in clips], "caption": ["one", "two", "three"]})
    data = data.cast_column("video", datasets.Video(decode=False))
    assert texts(pipe(KeyDataset(data, "video"))) == alone
    assert texts(pipe(data, batch_size=2)) == alone
    assert texts(pipe(data.to_iterable_dataset())) == alone


def test_decoded_video_columns(pipe, clips, alone):
    """They yield torchcodec's decoders, on which `datasets` leaves the file that they were made of."""

    class VideoDecoder:
        metadata = get_frames_at = None

        def __init__(self, path):
            self._hf_encoded = {"path": str(path), "bytes": None}

    assert texts([pipe(VideoDecoder(clips[0]))]) == alone[:1]
    assert texts(pipe([{"video": VideoDecoder(clip)} for clip in clips])) == alone


def test_a_decoder_is_one_clip(pipe, clips, alone):
    class VideoDecoder:
        def __init__(self, path):
            self._frames = torch.from_numpy(decode_video(path)[0]).permute(0, 3, 1, 2)
            self.metadata = SimpleNamespace(average_fps=10.0, height=48, width=72, duration_seconds=2.5)

        def __len__(self):
            return len(self._frames)

        def __getitem__(self, number):
            return self._frames[number]

        def get_frames_at(self, indices):
            return SimpleNamespace(data=self._frames[indices])

    assert texts([pipe(VideoDecoder(clips[0]))]) == alone[:1]
    assert texts(pipe([VideoDecoder(clip) for clip in clips], batch_size=2)) == alone
    assert texts(pipe([{"video": VideoDecoder(clips[1])}])) == alone[1:2]
    expected = texts([pipe(clips[0], start=0.5, end=1.5)])
    assert texts([pipe({"video": VideoDecoder(clips[0]), "start": np.float32(0.5), "end": 1.5})]) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_file_of_a_video_column_costs_one_row(pipe, clips, alone, tmp_path, num_workers):
    datasets = pytest.importorskip("datasets")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    rows = [{"video": str(clip)} for clip in (clips[0], bad, clips[1])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    stream = stream.cast_column("video", datasets.Video())
    data = datasets.Dataset.from_list(rows).cast_column("video", datasets.Video())
    for collection in (data, data["video"], KeyDataset(data, "video"), stream, stream["video"]):
        results = list(pipe(collection, num_workers=num_workers))
        assert texts(results) == [alone[0], [None], alone[1]] and "bad.mp4" in results[1][0]["error"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_that_its_data_set_cannot_give_costs_one_row(pipe, clips, alone, num_workers):
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, number):
            if number == 1:
                raise RuntimeError("Failed to\nopen the file")
            return {"video": clips[number]}

    results = list(pipe(Rows(), num_workers=num_workers))
    assert texts(results) == [alone[0], [None], alone[2]]
    assert "clips[1]" in results[1][0]["error"] and "Failed to open the file" in results[1][0]["error"]
    with pytest.raises(VideoDecodeError, match="Failed to open"):
        list(pipe(Rows(), on_error="raise"))


def test_numbers_of_tables(pipe, clips, alone):
    expected = texts([pipe(clips[0], start=1.0, end=2.0)])
    assert texts(pipe([{"video": clips[0], "start": np.int64(1), "end": torch.tensor(2.0)}])) == expected != alone[:1]
    nan = float("nan")
    assert texts(pipe([{"video": clips[0], "start": nan, "end": nan, "num_frames": nan}])) == alone[:1]
    assert texts(pipe([{"video": clips[0], "end": float("inf"), "num_frames": 8.0}])) == alone[:1]
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"video": [str(clips[0])] * 2, "start": [1, None], "end": [2, None]})
    assert texts(pipe(table.to_dict("records"))) == [expected[0], alone[0]]
    table = table.astype({"start": "Int64", "end": "Int64"})  # whose missing values are pandas.NA
    assert texts(pipe(table.to_dict("records"))) == [expected[0], alone[0]]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_change_nothing(pipe, clips, batch_size):
    expected = [pipe(clip) for clip in clips]
    results = pipe(clips, batch_size=batch_size)
    assert texts(results) == texts(expected) and scores(results) == pytest.approx(scores(expected), abs=1e-4)


def test_ranges(pipe, clips):
    frames, _ = decode_video(clips[0], start=0.5, end=1.5, num_frames=8)
    expected = texts([pipe(frames)])
    assert texts([pipe(clips[0], start=0.5, end=1.5)]) == expected != texts([pipe(clips[0])])
    assert texts(pipe([{"video": clips[0], "start": 0.5}, clips[1]], start=0.0, end=1.5))[:1] == expected


def test_generation_arguments(pipe, clips, alone):
    assert len(pipe(clips[0], num_beams=4, num_return_sequences=3)) == 3
    many = pipe(clips, num_beams=4, num_return_sequences=2, batch_size=2)
    assert [len(captions) for captions in many] == [2, 2, 2]
    assert texts(many)[1] == texts([pipe(clips[1], num_beams=4, num_return_sequences=2)])[0]
    for captions in many:
        assert captions[0]["score"] >= captions[1]["score"]
    assert all(len(caption.split()) <= 3 for (caption,) in texts(pipe(clips, max_new_tokens=3)))
    sampled = pipe(clips[0], do_sample=True, num_return_sequences=4)
    assert len({caption["generated_text"] for caption in sampled}) > 1
    short = VideoCaptioningPipeline(pipe.model, processor=pipe.processor, device="cpu", max_new_tokens=3, num_beams=2)
    assert texts([short(clips[0])]) == texts([pipe(clips[0], max_new_tokens=3, num_beams=2)]) != alone[:1]


def test_bad_clips_cost_the_others_nothing(pipe, clips, alone, tmp_path, caplog):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    nan = np.full((8, 64, 64, 3), np.nan, dtype=np.float32)
    for clip, name in (
        (bad, "bad.mp4"),
        (nan, "ndarray"),
        ("nowhere.mp4", "nowhere.mp4"),
        ("file:///etc/hosts", "file:"),
    ):
        with pytest.raises(VideoDecodeError, match=name):
            pipe(clip)
        assert pipe(clip, on_error="return")[0]["generated_text"] is None
    mixed = [bad, clips[0], nan, "nowhere.mp4", clips[1], clips[2], None]
    for batch_size in (1, 2, 7):
        results = pipe(mixed, batch_size=batch_size)
        assert texts(results) == [[None], alone[0], [None], [None], alone[1], alone[2], [None]]
        assert "bad.mp4" in results[0][0]["error"] and results[0][0]["score"] is None
        assert "error" not in results[1][0]
    assert "nowhere.mp4" in caplog.text
    assert texts(pipe(clip for clip in mixed)) == texts(results)
    with pytest.raises(VideoDecodeError, match="bad.mp4"):
        pipe(mixed, on_error="raise")


@pytest.mark.parametrize(
    "clip, options, complaint",
    [
        ({"path": None, "bytes": None}, {}, "needs `video`"),
        ({"film": "a.mp4"}, {}, "film"),
        ({"video": ["a.mp4", "b.mp4"]}, {}, "got several"),
        (3, {}, "Expected a clip .* got int"),
        ("a.mp4", {"on_error": "ignore"}, "on_error"),
        (np.zeros((8, 64, 64, 3), np.uint8), {"num_frames": 0}, "at least 1"),
        (np.zeros((8, 64, 64, 3), np.uint8), {"start": 2, "end": 1}, "start"),
    ],
)
def test_wrong_use_says_what_is_right(pipe, clip, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        pipe(clip, **options)


def test_a_prompt_is_the_beginning_of_the_caption(pipe, clips, alone):
    ids = torch.tensor([[101, *pipe.processor.tokenizer("word110 word120", add_special_tokens=False).input_ids]])
    pixels = pipe.processor(videos=str(clips[0]), return_tensors="pt").pixel_values_videos
    expected = pipe.model.generate(pixel_values_videos=pixels, input_ids=ids)
    (result,) = pipe(clips[0], prompt="word110 word120")
    assert result["generated_text"] == pipe.processor.batch_decode(expected, skip_special_tokens=True)[0]
    assert result["generated_text"].startswith("word110 word120 ") and [result["generated_text"]] != alone[0]
    together = pipe(clips, prompt="word110 word120", batch_size=3)
    assert texts(together) == texts([pipe(clip, prompt="word110 word120") for clip in clips])
    assert len(pipe(clips[0], prompt="word110 word120", num_beams=3, num_return_sequences=2)) == 2


def test_frames_per_second(pipe, clips):
    """25 frames at 10 a second: two frames of each second are five."""
    assert pipe.preprocess({"video": clips[0]}, fps=2.0)["pixel_values_videos"].shape[1] == 5
    assert pipe(clips[0], fps=2.0) == pipe(clips[0], num_frames=5) != pipe(clips[0], num_frames=4)
    row = {"video": clips[0], "num_frames": 4}
    assert pipe(row, fps=2.0) == pipe(row), "what a clip brings comes first"
    with pytest.raises(ValueError, match="exclude each other"):
        pipe(clips[0], fps=2.0, num_frames=4)
    with pytest.raises(ValueError, match="positive"):
        pipe(clips[0], fps=0)
    with pytest.raises(ValueError, match="learned on 8 frames"):
        make_pipeline("soft")(clips[0], fps=2.0)


def test_other_numbers_of_frames(pipe, clips):
    """A model without a sparse mask captions clips of any length, but not in one batch."""
    frames, _ = decode_video(clips[0], num_frames=4)
    assert texts([pipe(clips[0], num_frames=4)]) == texts([pipe(frames, num_frames=4)])
    with pytest.raises(ValueError, match="equal shapes.*num_frames"):
        pipe([{"video": clips[0], "num_frames": 4}, clips[1]], batch_size=2)


def test_a_sparse_mask_fixes_the_number_of_frames(clips):
    pipe = make_pipeline("soft")
    assert texts([pipe(clips[0], num_frames=8)]) == texts([pipe(clips[0])])
    for clip, options in ((clips[0], {"num_frames": 16}), ({"video": clips[0], "num_frames": 16}, {})):
        with pytest.raises(ValueError, match="learned on 8 frames, got num_frames=16"):
            pipe(clip, **options)


def test_pipelines_of_other_models_are_refused(pipe):
    with pytest.raises(ValueError, match="processor"):
        VideoCaptioningPipeline(pipe.model, device="cpu")
    with pytest.raises(ValueError, match="processor with a video processor"):
        VideoCaptioningPipeline(pipe.model, processor=_NoVideoProcessor(), device="cpu")


class _NoVideoProcessor:
    tokenizer = None


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_exported_folder_with_the_package(folder, clips, alone, trust_remote_code):
    pipe = pipeline("video-captioning", model=str(folder), trust_remote_code=trust_remote_code, device="cpu")
    assert texts(pipe(clips)) == alone
    assert texts([pipe(clips[0])]) == alone[:1]


def test_exported_folder_is_complete(folder, pipe):
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"]["video-captioning"]["impl"] == "pipeline_swinbert.VideoCaptioningPipeline"
    assert isinstance(AutoModel.from_pretrained(folder), type(pipe.model))
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, SwinBertProcessor) and processor.video_processor.num_frames == 8


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["swinbert"] = None  # import swinbert fails
from transformers import pipeline
folder, again, *clips = sys.argv[1:]
pipe = pipeline("video-captioning", model=folder, trust_remote_code=True, device="cpu")
assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
results = pipe([*clips, "nowhere.mp4"], batch_size=2)
try:
    pipe("nowhere.mp4")
except ValueError as error:
    results.append(type(error).__name__)
pipe.save_pretrained(again)
results.append(pipeline("video-captioning", model=again, trust_remote_code=True, device="cpu")(clips[0]))
print(json.dumps(results))
"""


def test_exported_folder_without_the_package(folder, clips, alone, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder), str(tmp_path / "again"), *map(str, clips)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    *results, failed, error, again = json.loads(done.stdout.splitlines()[-1])
    assert texts(results) == alone
    assert failed[0]["generated_text"] is None and "nowhere.mp4" in failed[0]["error"] and error == "VideoDecodeError"
    assert texts([again]) == alone[:1]
