"""Chat models through our pipeline: the same as their processor and `generate` on frames that were picked by hand."""

import json

import av
import numpy as np
import pytest
import torch
from captioning import write_clip
from chat_models import WRITERS
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.video_utils import VideoMetadata
from typer.testing import CliRunner

from swinbert.captioning import Clip, LoadingError, captions, load_captioner
from swinbert.cli import app

PROMPT = "Describe in one plain sentence what happens in this video."
QUESTION = "How many dogs are there?"
# 16 of 25 frames, uniformly: linspace(0, 24, 16), truncated.
PICKED = [0, 1, 3, 4, 6, 8, 9, 11, 12, 14, 16, 17, 19, 20, 22, 24]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return [write_clip(tmp_path_factory.mktemp("clips") / f"{seed}.mp4", seed) for seed in range(3)]


@pytest.fixture(scope="module", params=WRITERS)
def folder(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp("chat") / request.param)


@pytest.fixture(scope="module")
def pipe(folder):
    return load_captioner(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    return WRITERS["smolvlm"](tmp_path_factory.mktemp("chat") / "smolvlm")


def picked_frames(path, picked) -> torch.Tensor:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return torch.from_numpy(frames[picked]).permute(0, 3, 1, 2)


def reference_inputs(folder, frames, metadata, prompt=PROMPT):
    """The processor as the library documents it: a conversation with the frames in it."""
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": prompt}]
    options = {"do_sample_frames": False, "video_metadata": [metadata]}
    if hasattr(processor.video_processor, "cap_pixels_per_frame"):
        options["cap_pixels_per_frame"] = True
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )


def metadata_of(times, fps=10.0, duration=2.5):
    """Of a video at ten frames a second, of which the frames at `times` were taken."""
    indices = [round(time * fps) for time in times]
    return VideoMetadata(round(duration * fps), fps, 72, 48, duration, "pyav", indices)


def text_of(result):
    return [caption["generated_text"] for caption in result]


def test_inputs_are_those_of_the_processor_on_our_frames(pipe, folder, clips):
    read = pipe.preprocess({"video": clips[0]})
    expected = reference_inputs(folder, picked_frames(clips[0], PICKED), metadata_of([at / 10 for at in PICKED]))
    assert read.keys() - {"error"} == expected.keys()
    for name, value in expected.items():
        assert torch.equal(read[name], torch.as_tensor(value)), name


def test_a_range_is_a_video_of_its_own(pipe, folder, clips):
    """Times count from its start, and its length is that of the range, which ends with the frame after its end."""
    read = pipe.preprocess({"video": clips[1], "start": 1.0, "end": 2.0, "num_frames": 4})
    frames = picked_frames(clips[1], [10, 13, 17, 21])
    expected = reference_inputs(folder, frames, metadata_of([0.0, 0.3, 0.7, 1.1], duration=1.0))
    for name, value in expected.items():
        assert torch.equal(read[name], torch.as_tensor(value)), name


def test_captions_are_the_answers_and_scores_their_mean_log_probability(pipe, folder, clips):
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    seen = set()
    for clip in clips[:2]:
        inputs = reference_inputs(folder, picked_frames(clip, PICKED), metadata_of([at / 10 for at in PICKED]))
        ids = model.generate(**inputs, max_new_tokens=64, do_sample=False, pad_token_id=0)
        answer = ids[:, inputs["input_ids"].shape[1] :]
        (result,) = pipe(clip)
        assert result["generated_text"] == processor.decode(answer[0], skip_special_tokens=True)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in whole:
            whole["mm_token_type_ids"] = torch.cat([whole["mm_token_type_ids"], torch.zeros_like(answer)], 1)
        with torch.no_grad():
            logits = model(**whole).logits[:, inputs["input_ids"].shape[1] - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, answer[..., None]).mean().item()
        assert result["score"] == pytest.approx(expected, abs=1e-4)
        seen.add(result["generated_text"])
    assert len(seen) == 2, "clips that look alike to the model prove nothing"


def test_batches_equal_single_clips(pipe, clips):
    """Texts of unequal length (times in words, frames by the second) are padded on the left."""
    alone = [pipe(clip) for clip in clips]
    together = pipe([str(clip) for clip in clips], batch_size=3)
    assert [text_of(each) for each in together] == [text_of(each) for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one[0]["score"] == pytest.approx(other[0]["score"], abs=1e-3)
    parts = [Clip(str(clips[0])), Clip(str(clips[1]), 0.5, 1.2), Clip(str(clips[2]), 1.0)]
    by_second = load_captioner(pipe.model.name_or_path, device="cpu", dtype="float32", fps=5.0)
    lengths = [
        by_second.preprocess({"video": part.video, "start": part.start, "end": part.end}, fps=5.0) for part in parts
    ]
    assert len({inputs["input_ids"].shape[1] for inputs in lengths}) == 3
    singly = [caption.text for caption in captions(parts, by_second)]
    if "pixel_values_videos" in lengths[0] and lengths[0]["pixel_values_videos"].ndim == 5:
        # LLaVA-OneVision has no padding for clips of fewer frames: they go one by one.
        with pytest.warns(UserWarning, match="one by one"):
            batched = [caption.text for caption in captions(parts, by_second, batch_size=3)]
    else:
        batched = [caption.text for caption in captions(parts, by_second, batch_size=3)]
    assert batched == singly and None not in batched


def test_prompt_and_limits(pipe, folder, clips):
    frames, metadata = picked_frames(clips[0], PICKED), metadata_of([at / 10 for at in PICKED])
    asked = pipe.preprocess({"video": clips[0]}, prompt=QUESTION)["input_ids"]
    assert torch.equal(asked, reference_inputs(folder, frames, metadata, QUESTION)["input_ids"])
    assert not torch.equal(asked, pipe.preprocess({"video": clips[0]})["input_ids"])
    (short,) = pipe(clips[0], max_length=2)
    assert pipe(clips[0])[0]["generated_text"].startswith(short["generated_text"])
    assert len(short["generated_text"].split()) <= 2
    beams = pipe(clips[0], num_beams=2, num_return_sequences=2, max_length=6)
    assert len(beams) == 2 and beams[0]["score"] >= beams[1]["score"]


def test_settings_name_prompt_and_frames(pipe, folder):
    settings = captions([], pipe).settings
    assert settings["prompt"] == PROMPT and settings["frames"]["frames"] == 16
    assert settings["generation"]["max_new_tokens"] == 64
    other = captions([], load_captioner(str(folder), device="cpu", dtype="float32", fps=2.0, prompt=QUESTION)).settings
    assert other["prompt"] == QUESTION and other["frames"]["frames_per_second"] == 2.0
    assert "frames" not in other["frames"] and other["model"] == settings["model"]
    json.dumps(settings)


def test_the_models_own_sampling_is_not_used(smolvlm, clips):
    """A model that would sample words, and frames, by its own configuration captions the same clip in the same way."""
    pipe = pipeline("video-captioning", model=str(smolvlm), device="cpu")
    expected = pipe(clips[0])
    pipe.model.generation_config.do_sample, pipe.model.generation_config.temperature = True, 5.0
    assert [pipe(clips[0]) for _ in range(3)] == [expected] * 3
    assert pipe.processor.video_processor.do_sample_frames, "the processor would sample frames by itself"


def test_arrays_and_answers_of_several_lines(smolvlm, clips):
    pipe = pipeline("video-captioning", model=str(smolvlm), device="cpu")
    frames = picked_frames(clips[0], list(range(25)))
    floats = frames.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255
    assert pipe(floats) == pipe(frames)
    pipe.processor.batch_decode = lambda *_, **__: [" A dog.\n\nIt runs. "]
    assert pipe(frames)[0]["generated_text"] == "A dog. It runs."


def test_a_template_without_videos_is_refused(smolvlm, tmp_path):
    processor = AutoProcessor.from_pretrained(smolvlm)
    model = AutoModelForImageTextToText.from_pretrained(smolvlm)
    processor.apply_chat_template = lambda *_, **__: "User: what is this?"
    with pytest.raises(ValueError, match="no place for a video"):
        pipeline("video-captioning", model=model, processor=processor, device="cpu")
    processor.chat_template = None
    with pytest.raises(ValueError, match="'smolvlm'"):
        pipeline("video-captioning", model=model, processor=processor, device="cpu")


@pytest.mark.parametrize(("load_in", "library"), [("8bit", "torchao"), ("4bit", "bitsandbytes")])
def test_quantised_weights(smolvlm, clips, load_in, library, monkeypatch):
    pytest.importorskip(library)
    plain = load_captioner(str(smolvlm), device="cpu", dtype="float32")
    pipe = load_captioner(str(smolvlm), device="cpu", dtype="float32", load_in=load_in)
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    assert type(pipe.model.get_parameter(name)) is not type(plain.model.get_parameter(name))
    (result,) = pipe(clips[0])
    assert result["generated_text"] and result["score"] < 0
    settings = captions([], pipe).settings["model"]
    assert settings["load_in"] == load_in and settings["sha256"] != captions([], plain).settings["model"]["sha256"]
    monkeypatch.setattr("swinbert.captioning.loading.find_spec", lambda name: None)
    with pytest.raises(LoadingError, match=rf"{library}.*swinbert\[quantization\]"):
        load_captioner(str(smolvlm), device="cpu", load_in=load_in)


def test_caption_and_evaluate_commands(smolvlm, clips, tmp_path):
    runner = CliRunner()
    common = ["--model", smolvlm, "--device", "cpu", "--prompt", QUESTION]
    result = runner.invoke(app, list(map(str, ["caption", clips[0], *common, "--fps", 4, "--max-length", 8])))
    assert result.exit_code == 0, result.stderr
    expected = load_captioner(str(smolvlm), device="cpu", dtype="float32", fps=4.0, prompt=QUESTION, max_length=8)
    assert result.stdout == expected(clips[0])[0]["generated_text"] + "\n"

    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number, clip in enumerate(clips):
        (data / f"{number}.mp4").write_bytes(clip.read_bytes())
        rows.append({"file_name": f"{number}.mp4", "split": "test", "captions": ["a dog runs"]})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--dataset", data, "--output", tmp_path / "out", "--num-workers", 0, "--batch-size", 2]
    done = runner.invoke(app, list(map(str, ["evaluate", *where, *common, "--num-frames", 4, "--metrics", "cider"])))
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[0])
    assert summary["clips"] == 3 and summary["seconds_per_clip"] > 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["prompt"] == QUESTION and settings["frames"]["frames"] == 4
    refused = runner.invoke(app, list(map(str, ["evaluate", *where, *common, "--num-frames", 5, "--metrics", "cider"])))
    assert refused.exit_code == 1 and "frames.frames was 4, is 5" in refused.stderr
    again = runner.invoke(app, list(map(str, ["evaluate", *where, *common, "--num-frames", 4, "--metrics", "cider"])))
    assert "seconds_per_clip" not in json.loads(again.stdout.splitlines()[0]), "nothing was captioned"
