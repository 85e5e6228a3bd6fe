"""GIT through our pipeline: the same as its own processor and `generate` on frames that were picked by hand."""

import av
import numpy as np
import pytest
import torch
from captioning import write_clip, write_git_folder
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, GitConfig, GitForCausalLM, pipeline
from transformers.utils import logging as transformers_logging

from swinbert import cpu_swinbert
from swinbert.captioning.families import git_generation
from swinbert.captioning.families.git_generation import generate_captions
from swinbert.processing import VideoCaptioningPipeline, VideoDecodeError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return [write_clip(tmp_path_factory.mktemp("clips") / f"{seed}.mp4", seed) for seed in range(3)]


@pytest.fixture(
    scope="module", params=["VideoMAEImageProcessor", "CLIPImageProcessor"], ids=["video-processor", "image-processor"]
)
def folder(request, tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"), image_processor_type=request.param)


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("video-captioning", model=str(folder), device="cpu")


def all_frames(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def reference(folder, frames: list[np.ndarray], **generation) -> list[str]:
    """GIT as its documentation uses it: frames, its processor, `generate`."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    pixels = processor(images=frames, return_tensors="pt").pixel_values
    if model.config.num_image_with_embedding is not None:
        pixels = pixels.reshape(1, len(frames), 3, 32, 32)
    ids = model.generate(pixel_values=pixels, **{"max_length": 51, **generation})
    return processor.batch_decode(ids, skip_special_tokens=True)


def six_frames(path) -> list[np.ndarray]:
    return list(all_frames(path)[[0, 4, 9, 14, 19, 24]])  # linspace(0, 24, 6), truncated


def test_pipeline_is_the_reference(pipe, folder, clips):
    assert isinstance(pipe, VideoCaptioningPipeline)
    expected = [reference(folder, six_frames(clip)) for clip in clips]
    assert len({caption for (caption,) in expected}) == 3, "clips that look alike to the model prove nothing"
    for clip, captions in zip(clips, expected, strict=True):
        (result,) = pipe(str(clip))
        assert result["generated_text"] == captions[0] and result["score"] < 0
    (result,) = pipe(str(clips[0]), max_length=6, num_beams=3)
    assert [result["generated_text"]] == reference(folder, six_frames(clips[0]), max_length=6, num_beams=3)


def test_batches_lists_generators_and_datasets_agree(pipe, clips):
    alone = [pipe(clip) for clip in clips]
    batched = pipe([*clips], batch_size=2)
    assert texts(batched) == texts(alone)
    assert [b[0]["score"] for b in batched] == pytest.approx([a[0]["score"] for a in alone], abs=1e-5)
    assert texts(pipe(clip for clip in clips)) == texts(alone)
    rows = [{"video": str(clip), "caption": "ignored"} for clip in clips]
    assert texts(pipe(rows, batch_size=3)) == texts(alone)


def texts(results) -> list[list[str]]:
    return [[caption["generated_text"] for caption in captions] for captions in results]


def test_scores(pipe, folder, clips):
    """Greedy: the mean log-probability that one forward pass over the finished caption gives its tokens."""
    processor, model = pipe.processor, pipe.model
    pixels = processor(images=six_frames(clips[1]), return_tensors="pt").pixel_values.reshape(1, 6, 3, 32, 32)
    ids = model.generate(pixel_values=pixels, max_length=51)
    with torch.no_grad():
        log_probabilities = model(input_ids=ids, pixel_values=pixels).logits[0, -ids.shape[1] :].log_softmax(-1)
    expected = log_probabilities[:-1].gather(-1, ids[0, 1:, None]).mean().item()
    assert pipe(clips[1])[0]["score"] == pytest.approx(expected, abs=1e-5)
    beams = pipe(clips[1], num_beams=3, num_return_sequences=3)
    assert len(beams) == 3 and [b["score"] for b in beams] == sorted((b["score"] for b in beams), reverse=True)


def test_fewer_frames_and_a_range(pipe, folder, clips):
    frames = all_frames(clips[2])
    assert pipe(clips[2], num_frames=3)[0]["generated_text"] == reference(folder, list(frames[[0, 12, 24]]))[0]
    # From 1.0 s up to and with the frame after 1.5 s, at ten frames a second.
    part = list(frames[10:17][[0, 1, 2, 3, 4, 6]])
    assert pipe(clips[2], start=1.0, end=1.5)[0]["generated_text"] == reference(folder, part)[0]
    assert texts([pipe({"video": clips[2], "start": 1.0, "end": 1.5})]) == texts([pipe(clips[2], start=1.0, end=1.5)])


def test_decoded_clips(pipe, clips):
    frames = all_frames(clips[0])
    expected = pipe(clips[0])
    forms = {
        "array": frames,
        "channels first": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "PIL images": [Image.fromarray(frame) for frame in frames],
        "arrays": list(frames),
        "floats": frames.astype(np.float32) / 255,
        "bytes": clips[0].read_bytes(),
    }
    for form, clip in forms.items():
        assert pipe(clip)[0]["generated_text"] == expected[0]["generated_text"], form
    with open(clips[0], "rb") as file:
        assert texts([pipe(file)]) == texts([expected])


def test_a_prompt_is_the_beginning_of_the_caption(pipe, folder, clips):
    processor, model = pipe.processor, pipe.model
    ids = torch.tensor([[101, *processor.tokenizer("the red dog", add_special_tokens=False).input_ids]])
    pixels = processor(images=six_frames(clips[0]), return_tensors="pt").pixel_values.reshape(1, 6, 3, 32, 32)
    expected = model.generate(pixel_values=pixels, input_ids=ids, max_length=51)
    (result,) = pipe(clips[0], prompt="the red dog")
    assert result["generated_text"] == processor.batch_decode(expected, skip_special_tokens=True)[0]
    assert result["generated_text"].startswith("the red dog ") and result != pipe(clips[0])[0]
    with torch.no_grad():
        logits = model(input_ids=expected, pixel_values=pixels).logits[0, -expected.shape[1] :].log_softmax(-1)
    words = logits[ids.shape[1] - 1 : -1].gather(-1, expected[0, ids.shape[1] :, None])
    assert result["score"] == pytest.approx(words.mean().item(), abs=1e-5), "the prompt has no score"
    together = pipe([*clips], prompt="the red dog", batch_size=2)
    assert texts(together) == texts([pipe(clip, prompt="the red dog") for clip in clips])


def test_frames_per_second_are_refused(pipe, clips):
    with pytest.raises(ValueError, match="6 frames .*whatever its length"):
        pipe(clips[0], fps=2.0)
    with pytest.raises(ValueError, match="exclude each other"):
        pipe(clips[0], fps=2.0, num_frames=3)


@pytest.mark.parametrize("num_frames", [7, 32])
def test_more_frames_than_embeddings_are_refused(pipe, folder, clips, num_frames):
    with pytest.raises(ValueError, match=f"6 frames .*got num_frames={num_frames}.*at most 6"):
        pipe(clips[0], num_frames=num_frames)
    with pytest.raises(ValueError, match="at most 6"):
        pipe({"video": clips[0], "num_frames": num_frames})
    with pytest.raises(ValueError, match="at most 6"):
        pipeline("video-captioning", model=str(folder), device="cpu", num_frames=num_frames)


def test_image_models_caption_the_middle_frame_and_say_so(tmp_path, clips, caplog):
    folder = write_git_folder(tmp_path, num_image_with_embedding=None, image_processor_type="CLIPImageProcessor")
    pipe = pipeline("video-captioning", model=str(folder), device="cpu")
    transformers_logging.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        captions = pipe([*clips], batch_size=2)
    assert texts(captions) == [reference(folder, [all_frames(clip)[12]]) for clip in clips]
    assert "middle frame" in caplog.text
    with pytest.raises(ValueError, match="a single image.*at most 1"):
        pipe(clips[0], num_frames=2)


def test_an_unreadable_clip_costs_the_others_nothing(pipe, clips, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(VideoDecodeError, match="bad.mp4"):
        pipe(bad)
    many = pipe([clips[0], bad, clips[1], bad], batch_size=3)
    assert texts([many[0], many[2]]) == texts([pipe(clips[0]), pipe(clips[1])])
    for (failed,) in (many[1], many[3]):
        assert failed["generated_text"] is None and failed["score"] is None and "bad.mp4" in failed["error"]
    assert texts(pipe([bad, bad], batch_size=2)) == [[None], [None]]
    with pytest.raises(VideoDecodeError, match="bad.mp4"):
        pipe([clips[0], bad], on_error="raise")


def test_saved_pipeline_is_whole(pipe, clips, tmp_path):
    """GIT is part of transformers: the folder needs no code, and loads without trusting any."""
    pipe.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"processor_config.json", "tokenizer.json"} <= names and not list(tmp_path.glob("*.py"))
    again = pipeline("video-captioning", model=str(tmp_path), device="cpu")
    assert again(clips[0]) == pipe(clips[0])


# --- The faster `generate` --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(write_git_folder(tmp_path_factory.mktemp("git"))).eval()


def random_clips(model: GitForCausalLM, number: int = 3, num_frames: int = 6) -> torch.Tensor:
    side = model.config.vision_config.image_size
    pixels = torch.randn(number, num_frames, 3, side, side, generator=torch.Generator().manual_seed(1))
    return pixels[:, 0] if model.config.num_image_with_embedding is None else pixels


def assert_generates_the_same(model: GitForCausalLM, pixels: torch.Tensor, **kwargs) -> None:
    kwargs = {"max_length": 30, **kwargs, "return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    expected = model.generate(pixel_values=pixels, **kwargs)
    torch.manual_seed(0)
    found = generate_captions(model, pixels, **kwargs)
    assert len({tuple(row) for row in expected.sequences.tolist()}) > 1, "equal captions of all clips prove nothing"
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-3, rtol=1e-4)


SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "several captions": {"num_beams": 4, "num_return_sequences": 3},
    "samples": {"do_sample": True, "num_return_sequences": 5},
    "prompt": {"input_ids": torch.tensor([[101, 104, 106]]).expand(3, 3), "num_beams": 2},
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_tokens_are_those_of_plain_generate(model, search, monkeypatch):
    monkeypatch.setattr(git_generation, "_ROOM", 5)  # captions outgrow the room behind their clips
    assert_generates_the_same(model, random_clips(model), **search)


def test_tokens_of_fewer_frames_single_images_and_chunks(model, tmp_path, monkeypatch):
    assert_generates_the_same(model, random_clips(model, num_frames=2), num_beams=2)
    folder = write_git_folder(tmp_path, num_image_with_embedding=None, image_processor_type="CLIPImageProcessor")
    images = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert_generates_the_same(images, random_clips(images), num_beams=2)
    monkeypatch.setattr(cpu_swinbert, "CHUNK_BYTES", 1 << 14)
    assert_generates_the_same(model, random_clips(model, 5))


def test_each_frame_is_encoded_once(model):
    encoded = []
    hook = model.git.image_encoder.register_forward_pre_hook(lambda encoder, args: encoded.append(len(args[0])))
    generate_captions(model, random_clips(model), num_beams=3, max_length=5)
    assert encoded == [18]
    encoded.clear()
    generate_captions(model, random_clips(model), use_cache=False, max_length=5)
    hook.remove()
    assert set(encoded) == {3} and len(encoded) > 6, "without a cache, plain `generate` encodes the clips"
    assert not model.git._forward_pre_hooks and model.git.image_encoder.config._attn_implementation == "eager"


@pytest.mark.slow
def test_tokens_of_base_size():
    torch.manual_seed(0)
    model = GitForCausalLM(GitConfig(num_image_with_embedding=6, initializer_range=0.1)).eval()
    for search in ({}, {"num_beams": 3}):
        # Random weights repeat one word for ever.
        assert_generates_the_same(model, random_clips(model, 2), no_repeat_ngram_size=1, max_length=12, **search)
