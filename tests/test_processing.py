"""The processor: clips and captions together, captions as the original writes them, and `AutoProcessor`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoded_clips import encode
from transformers import AutoProcessor, AutoTokenizer, BertTokenizer

import swinbert  # noqa: F401 - registers the classes
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor, VideoDecodeError

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "preprocess.json").read_text())
# Token ids of bert-base-uncased for the words that are used here.
WORDS = {
    "[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "'": 1005, ",": 1010, ".": 1012, "?": 1029,
    "a": 1037, "s": 1055, "the": 1996, "and": 1998, "is": 2003, "in": 1999, "you": 2017, "are": 2024, "not": 2025,
    "there": 2045, "do": 2079, "down": 2091, "know": 2113, "man": 2158, "street": 2395, "woman": 2450,
    "special": 2569, "playing": 2652, "guitar": 2858, "walking": 3788, "un": 4895, "cat": 4937, "##chen": 8661,
    "toy": 9121,
}  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> SwinBertProcessor:
    numbered = {number: word for word, number in WORDS.items()}
    vocabulary = {numbered.get(number, f"[unused{number}]"): number for number in range(max(WORDS.values()) + 1)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=50)
    geometry = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return SwinBertProcessor(SwinBertVideoProcessor(num_frames=4, **geometry), tokenizer)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", range(30))


def test_clips_and_captions(processor, clip):
    inputs = processor(videos=[clip, clip], text=["a man is playing", "the cat"], return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    assert inputs["input_ids"].tolist() == [[101, 1037, 2158, 2003, 2652, 102], [101, 1996, 4937, 102, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert set(processor(videos=str(clip), return_tensors="pt")) == {"pixel_values_videos"}
    assert "pixel_values_videos" not in processor(text="the cat")


def test_long_captions_are_truncated_as_in_the_original(processor):
    caption, length = GOLDEN["truncation"]["caption"], GOLDEN["truncation"]["max_seq_a_length"]
    assert length == 50 and processor(text=caption)["input_ids"] == GOLDEN["truncation"]["ids"]
    assert processor(text=caption, max_length=5)["input_ids"] == [101, 1037, 2158, 1998, 102]


def test_video_arguments_reach_the_video_processor(processor, clip):
    inputs = processor(videos=[clip, clip], start=[0, 0.5], end=[0.5, 1], num_frames=3, return_metadata=True)
    assert [about.frames_indices for about in inputs["video_metadata"]] == [[0, 8, 16], [15, 22, 29]]
    nested = processor(videos=clip, videos_kwargs={"start": 0.5, "num_frames": 2}, return_tensors="pt")
    assert nested["pixel_values_videos"].shape[1] == 2


def test_a_generator_advances_from_call_to_call(processor, clip):
    def draws(generator):
        inputs = processor(videos=[clip, clip], frame_sampling="random", generator=generator, return_metadata=True)
        return [tuple(about.frames_indices) for about in inputs["video_metadata"]]

    generator = torch.Generator().manual_seed(0)
    drawn = draws(generator) + draws(generator)
    assert len(set(drawn)) == 4  # 7 ** 4 are possible
    assert draws(torch.Generator().manual_seed(0)) == drawn[:2]
    assert draws(5) == draws(5)


def test_captions_are_written_as_by_the_original(processor):
    for case in GOLDEN["captions"]:
        assert processor.decode(case["ids"], skip_special_tokens=True) == case["text"]
    several = [case["ids"] for case in GOLDEN["captions"][:2]]
    longest = max(map(len, several))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in several])
    captions = [case["text"] for case in GOLDEN["captions"][:2]]
    assert processor.batch_decode(padded, skip_special_tokens=True) == captions
    assert processor.decode(padded, skip_special_tokens=True) == captions
    assert processor.batch_decode(padded) == processor.tokenizer.batch_decode(padded)


def test_invalid_calls_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(ValueError, match="not `images`"):
        processor(images=[], text="the cat")
    with pytest.raises(VideoDecodeError, match="absent.mp4: there is no such file"):
        processor(videos=tmp_path / "absent.mp4")


def test_a_text_that_is_none_is_refused(processor, clip):
    for text in ([1], ["the cat", None], 1, b"the cat", [["the", 1]]):
        with pytest.raises(ValueError, match="Expected `text"):
            processor(videos=clip, text=text)
    with pytest.raises(VideoDecodeError, match="expected a path") as raised:
        processor(videos=[2], text=["the cat"])
    assert raised.value.kind == "bad_source"


def test_columns_of_datasets(processor, clip):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"video": [str(clip)] * 2, "caption": ["the cat", "a man"]})
    rows = rows.cast_column("video", datasets.Video(decode=False))
    expected = processor(videos=[clip, clip], text=["the cat", "a man"], return_tensors="pt", padding=True)
    found = processor(videos=rows["video"], text=rows["caption"], return_tensors="pt", padding=True)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_save_and_load(processor, clip, tmp_path):
    before = processor.to_dict()
    processor.save_pretrained(tmp_path)
    assert processor.to_dict().keys() == before.keys()  # saving does not change the processor
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SwinBertProcessor
    expected = processor(videos=clip, text="the cat", return_tensors="pt")
    for name, value in loaded(videos=clip, text="the cat", return_tensors="pt").items():
        assert torch.equal(value, expected[name])
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 50


REMOTE = """
import sys
sys.modules["swinbert"] = None  # as if it were not installed
from transformers import AutoProcessor, AutoVideoProcessor
folder, clip = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
print(type(processor).__name__, type(processor.video_processor).__name__, type(processor.tokenizer).__name__)
print(processor(videos=clip, return_tensors="pt")["pixel_values_videos"].double().sum().item())
print(type(AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)).__name__)
"""


def test_a_saved_folder_works_without_the_package(processor, clip, tmp_path):
    folder = tmp_path / "model"
    processor.save_pretrained(folder)
    assert (folder / "pipeline_swinbert.py").is_file()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(clip)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    classes, total, video_processor = done.stdout.split("\n")[:3]
    assert classes.split()[:2] == ["SwinBertProcessor", "SwinBertVideoProcessor"] and "Tokenizer" in classes
    assert video_processor == "SwinBertVideoProcessor"
    assert float(total) == processor(videos=clip, return_tensors="pt")["pixel_values_videos"].double().sum().item()
