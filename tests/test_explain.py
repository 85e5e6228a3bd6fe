"""Which frames and places a word was read from: the numbers, and the pictures, pages and files that show them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captioning import write_clip, write_git_folder
from PIL import Image
from typer.testing import CliRunner

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning, bundled_model
from swinbert.captioning import Clip, explain, load_captioner
from swinbert.captioning.explaining import attribution
from swinbert.captioning.explaining.attribution import DEFAULT_METHOD, METHODS
from swinbert.captioning.explaining.encoded_clips import encode_clip
from swinbert.captioning.explaining.files import explain_clips, folder_names
from swinbert.captioning.explaining.frames import shown_box
from swinbert.captioning.explaining.masks import mask_figure, masks_of_run
from swinbert.captioning.explaining.page import page
from swinbert.captioning.explaining.pictures import lit, moments, words_figure
from swinbert.captioning.explaining.words import words_of
from swinbert.cli import app
from swinbert.processing import VideoDecodeError

SAMPLE = Path(bundled_model()).parent / "sample.mp4"
# Of the moving shapes in the sample.
CAPTION = "a large red cross moves right and next it gets larger"


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("moving-shapes", device="cpu")


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return load_captioner(str(write_git_folder(tmp_path_factory.mktemp("git"))), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "noise.mp4", seed=3)


@pytest.fixture(scope="module")
def explanation(captioner):
    return explain(captioner.model, captioner.processor, SAMPLE)


def encoded(captioner, clip):
    """A clip, and the ids (1, L + 1) of its caption."""
    inputs = captioner.family.read(str(clip))
    inputs.pop("video_metadata")
    read = encode_clip(captioner.model, inputs)
    return read, captioner.model.generate(**inputs, max_new_tokens=8), inputs


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_an_explanation_has_the_pipelines_caption_and_probabilities(captioner, explanation):
    (result,) = captioner(str(SAMPLE))
    assert explanation.caption == result["generated_text"] == CAPTION
    assert [word.word for word in explanation.words] == CAPTION.split()
    # The score is the mean log-probability of the words and the end.
    assert np.exp(result["score"]) ** 12 == pytest.approx(
        np.prod([word.probability for word in explanation.words]), rel=0.05
    )
    for word in explanation.words:
        assert word.tokens.shape == (8, 2, 2) and word.frames.shape == (16,) and (word.tokens >= 0).all()
        assert word.tokens.sum() == pytest.approx(1, abs=1e-5) == word.frames.sum()
        np.testing.assert_allclose(word.frames.reshape(8, 2).sum(1), word.tokens.sum((1, 2)), atol=1e-6)
        assert word.word not in [other.word for other in word.alternatives]
    next_word = explanation.words[7]
    assert {other.word for other in next_word.alternatives[:2]} == {"after", "then"}
    assert next_word.probability + sum(other.probability for other in next_word.alternatives) == pytest.approx(
        1, abs=1e-2
    )
    assert explanation.words[2].blind_probability < 0.1 < 0.9 < explanation.words[2].probability  # red


@pytest.mark.parametrize("family", ["swinbert", "git"])
def test_hidden_tokens_are_as_if_they_were_not_there(family, captioner, git, clip):
    captioner = {"swinbert": captioner, "git": git}[family]
    read, ids, inputs = encoded(captioner, clip)
    visible = torch.rand(2, *read.grid, generator=torch.Generator().manual_seed(0)) < 0.5
    visible[1] = True
    hidden, whole = read.log_probs(ids, visible)
    if family == "swinbert":
        shown = visible[0].flatten()
        short = tuple((key[:, :, shown], value[:, :, shown]) for key, value in read._key_values)
        logits = captioner.model(input_ids=ids[:, :-1], video_key_values=short, predict_next=True).logits
    else:
        places = torch.cat([visible[0].flatten(1).any(1, keepdim=True), visible[0].flatten(1)], dim=1).flatten()
        whole_clip = read._key_values
        read._key_values = [(key[:, :, places], value[:, :, places]) for key, value in whole_clip]
        grid, read._prefix_length = read.grid, int(places.sum())
        logits = read._forward(ids, None)[0]
        read._key_values, read.grid, read._prefix_length = whole_clip, grid, len(places)
        plain = captioner.model(input_ids=ids[:, :-1], pixel_values=inputs["pixel_values"]).logits[:, len(places) :]
        expected = plain.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(whole, expected, atol=1e-2, rtol=1e-3)
    expected = logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(hidden, expected, atol=1e-2 if family == "git" else 1e-4, rtol=1e-3)


def test_gradient_times_attention_is_what_autograd_says(captioner):
    """Of one word, with respect to the attention weights of the only layer."""
    read, ids, _ = encoded(captioner, SAMPLE)
    products = read.gradient_times_attention(ids)
    with torch.enable_grad():
        logits, (weights,) = read._forward(ids, None, attentions=True)
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[0, 3, ids[0, 4]], weights)
    length = ids.shape[1] - 1
    expected = (gradient * weights)[0, :, length + 3, :32].unflatten(1, read.grid)
    torch.testing.assert_close(products[0, :, 3], expected)
    assert not any(parameter.grad is not None for parameter in captioner.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_swinbert_and_git(method, captioner, git, clip, monkeypatch):
    monkeypatch.setattr(attribution, "NUM_HALVES", 8)
    for each, grid in ((captioner, (8, 2, 2)), (git, (6, 2, 2))):
        words = explain(each.model, each.processor, clip, method=method, caption="a red circle").words
        assert words[1].tokens.shape == grid and words[1].tokens.sum() == pytest.approx(1, abs=1e-4)
        assert len(words[1].frames) == each.family.num_frames


def test_rollout_of_one_layer_is_its_attention_and_a_deep_model_has_one(captioner):
    read, ids, _ = encoded(captioner, SAMPLE)
    torch.testing.assert_close(read.rollout(ids), read.attention(ids).mean((0, 1)) / 2)
    config = SwinBertConfig(**{**captioner.model.config.to_dict(), "num_hidden_layers": 3})
    torch.manual_seed(0)
    deep = encode_clip(SwinBertForVideoCaptioning(config).eval(), {"pixel_values_videos": torch.rand(1, 16, 3, 32, 32)})
    weights = deep.attention(ids)
    torch.testing.assert_close(attribution.attention(deep, ids, layers=[-1]), weights[2].mean(0))
    torch.testing.assert_close(attribution.attention(deep, ids), weights.mean((0, 1)))
    flow = deep.rollout(ids)
    assert flow.shape == (ids.shape[1] - 1, 8, 2, 2) and (flow >= 0).all() and (flow.flatten(1).sum(1) < 1).all()


def test_hiding_pixels_changes_the_hidden_places_alone(captioner):
    read, _, inputs = encoded(captioner, SAMPLE)
    visible = torch.ones(1, *read.grid, dtype=torch.bool)
    visible[0, 2, 0, 1] = False
    hidden = read.with_hidden_pixels(visible)._pixels
    changed = (hidden != inputs["pixel_values_videos"]).any(2)[0]  # (T, H, W)
    assert changed[4:6, :16, 16:].float().mean() > 0.9 and changed.sum() == changed[4:6, :16, 16:].sum()


def test_order_of_two_actions(captioner):
    """Of fresh two-action clips, at least nine in ten have their second action read after the first."""
    from swinbert.training.moving_shapes import all_contents, held_out
    from swinbert.training.studies.attribution import measure_clip

    contents = [each for each in all_contents() if held_out(each) and each.kind == "sequence"]
    in_order, pointing = [], []
    for number in range(12):
        rng = np.random.default_rng([7, number])
        measured = measure_clip(captioner.model, captioner.processor, contents[rng.integers(len(contents))], rng)
        if measured is not None:
            in_order += measured[DEFAULT_METHOD]["order"]
            pointing += measured[DEFAULT_METHOD]["point_subject"]
    assert len(in_order) >= 10 and np.mean(in_order) >= 0.9
    assert np.mean(pointing) > 0.4  # a random one of four places: 0.25


# --- Words ------------------------------------------------------------------------------------------------------------


def test_words_are_those_of_the_caption_without_punctuation(captioner, git):
    explanation = explain(captioner.model, captioner.processor, SAMPLE, caption="a red ring, then it blinks twice.")
    assert [word.word for word in explanation.words] == "a red ring then it blinks twice".split()
    assert len(explanation.words) == len(explanation.caption.split())
    tokenizer = git.processor.tokenizer
    ids = torch.tensor(tokenizer("the man runs and balls .").input_ids)
    assert tokenizer.convert_ids_to_tokens(ids)[5:8] == ["ball", "##s", "."]
    assert words_of(git.processor, ids) == [("the", [0]), ("man", [1]), ("runs", [2]), ("and", [3]), ("balls", [4, 5])]


def test_an_empty_caption_and_a_long_one(captioner):
    explanation = explain(captioner.model, captioner.processor, SAMPLE, caption=" ")
    assert explanation.words == () and explanation.to_dict()["words"] == []
    assert "no words" in page(explanation) and words_figure(explanation) is not None
    with pytest.raises(ValueError, match="42 tokens, and the model takes 32"):
        explain(captioner.model, captioner.processor, SAMPLE, caption="red " * 40)


# --- Clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 72), (100, 40), (64, 64), (33, 47)])
def test_the_box_is_what_the_model_sees(size, captioner, git):
    """Of a picture whose colours are coordinates, the model's pixels have those of the box."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    shares = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, np.zeros_like(x)], -1)
    frames = np.repeat(shares.round().astype(np.uint8)[None], 8, 0)
    for each, name in ((captioner, "pixel_values_videos"), (git, "pixel_values")):
        pixels = each.family.read(frames)[name][0, 0]
        settings = getattr(each.processor, "video_processor", None) or each.processor.image_processor
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (settings.image_mean, settings.image_std))
        seen = (pixels * std + mean).numpy()
        left, top, right, bottom = shown_box(each, size)
        assert (right + left, bottom + top) == pytest.approx((1, 1))
        half = 0.5 * (right - left) / 32, 0.5 * (bottom - top) / 32
        assert seen[0].min(0)[[0, -1]] == pytest.approx([left + half[0], right - half[0]], abs=0.03)
        assert seen[1].min(1)[[0, -1]] == pytest.approx([top + half[1], bottom - half[1]], abs=0.03)


def test_clips_of_all_kinds(captioner, clip):
    model, processor = captioner.model, captioner.processor
    whole = explain(model, processor, clip, method="attention")
    assert whole.pictures.shape == (16, 48, 72, 3) and whole.times[0] == 0 and whole.times[-1] == pytest.approx(2.4)
    part = explain(model, processor, Clip(str(clip), 1.0, 2.0), method="attention")
    assert part.times[0] == pytest.approx(1.0) and 1.9 <= part.times[-1] <= 2.1
    assert explain(model, processor, {"video": clip, "start": 1.0, "end": 2.0}, method="attention").times == part.times
    with clip.open("rb") as opened:
        assert explain(model, processor, opened, method="attention").caption == whole.caption
    frames = [Image.fromarray(picture) for picture in whole.pictures]
    pictures = explain(model, processor, frames, method="attention")
    assert pictures.times is None and (pictures.pictures == whole.pictures).all()
    json.dumps(pictures.to_dict())
    with pytest.raises(VideoDecodeError, match="no such file"):
        explain(model, processor, Clip("x.mp4", error="there is no such file"))
    with pytest.raises(VideoDecodeError, match="x.mp4"):
        explain(model, processor, "x.mp4")


def test_one_frame_and_64_frames(captioner):
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    one = explain(captioner.model, captioner.processor, picture, method="attention")
    assert len(one.pictures) == 16 and moments(one) == [list(range(8))]
    assert words_figure(one).get_size_inches()[0] == 10
    config = captioner.model.config.to_dict() | {"num_video_tokens": None}
    config["vision_config"] |= {"num_frames": 64, "window_size": [8, 2, 2]}
    torch.manual_seed(0)
    long_model = SwinBertForVideoCaptioning(SwinBertConfig(**config)).eval()
    processor = load_captioner("moving-shapes").processor
    processor.video_processor.num_frames = 64
    frames = np.random.default_rng(0).integers(0, 256, (70, 40, 60, 3), dtype=np.uint8)
    many = explain(long_model, processor, frames, method="attention", caption="a red ring")
    assert many.words[0].tokens.shape == (32, 2, 2) and [len(group) for group in moments(many)] == [4] * 8
    assert words_figure(many).get_size_inches()[0] == 10 and page(many).count("data:image/jpeg") == 64


# --- Models -----------------------------------------------------------------------------------------------------------


def test_the_model_is_as_it_was(captioner, monkeypatch):
    model = captioner.model
    assert model.config._attn_implementation == "sdpa"
    model.train()
    try:
        first = explain(model, captioner.processor, SAMPLE, method="rollout")
        second = explain(model, captioner.processor, SAMPLE, method="rollout")
        assert model.training and model.config._attn_implementation == "sdpa"
        np.testing.assert_array_equal(first.words[2].tokens, second.words[2].tokens)

        encode = type(model).encode_video

        def broken(self, *args, output_attentions=False, **kwargs):
            if output_attentions:
                assert self.config._attn_implementation == "eager"
                raise RuntimeError("out of memory")
            return encode(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "encode_video", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            explain(model, captioner.processor, SAMPLE, method="rollout")
        assert model.training and model.config._attn_implementation == "sdpa"
        assert model.config.vision_config._attn_implementation == "sdpa"
    finally:
        model.eval()


def test_other_models_and_methods_are_refused(captioner):
    class Chat:
        config = type("Config", (), {"model_type": "qwen2_5_vl"})

    with pytest.raises(ValueError, match="SwinBERT and GIT models, got a 'qwen2_5_vl'"):
        explain(Chat(), captioner.processor, SAMPLE)
    with pytest.raises(ValueError, match="`layers` belong to the method attention"):
        explain(captioner.model, captioner.processor, SAMPLE, layers=[0])
    with pytest.raises(ValueError, match="Expected as `method` one of"):
        explain(captioner.model, captioner.processor, SAMPLE, method="magic")


# --- Pictures and pages -----------------------------------------------------------------------------------------------


def test_a_frame_is_bright_where_the_word_was_read(explanation):
    picture = np.full((40, 80, 3), 100, dtype=np.uint8)
    weights = np.array([[0.0, 1.0], [0.5, 0.0]])
    shown = lit(picture, weights, (0.25, 0.0, 0.75, 1.0), (40, 80)).astype(int).sum(-1)
    unseen, dark, half, bright = shown[5, 5], shown[5, 30], shown[30, 30], shown[5, 50]
    assert unseen < dark < half < bright and shown[30, 50] == dark and shown[30, 75] == unseen
    assert words_figure(explanation).get_size_inches()[0] * 100 == 1000


def test_the_page_names_no_address_and_escapes_names(explanation):
    import dataclasses

    named = dataclasses.replace(explanation, clip="<img src=x onerror=alert(1)>.mp4")
    text = page(named, SAMPLE)
    without_data = re.sub(r"[A-Za-z0-9+/=]{200,}", "", text)
    assert not re.search(r"https?:|//[a-z]|<img src=x|@import|<link", without_data)
    assert "&lt;img src=x" in text and "default-src 'none'" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [word["word"] for word in data["words"]] == CAPTION.split() and data["video_type"] == "video/mp4"
    word = dataclasses.replace(explanation.words[0], word="</script>")
    hostile = page(dataclasses.replace(explanation, words=(word,), caption="</script>"))
    assert hostile.count("</script>") == page(explanation).count("</script>")
    assert text.count('<button type="button" aria-pressed') == 11


def test_only_small_files_that_browsers_play_are_embedded(explanation, tmp_path, monkeypatch, clip):
    def embeds(file):
        return bool(json.loads(re.search(r'id="data">(.*?)</script>', page(explanation, file), re.S)[1])["video"])

    assert embeds(SAMPLE) and embeds(clip)
    shutil.copy(SAMPLE, tmp_path / "sample.ts")
    monkeypatch.setattr("swinbert.captioning.explaining.page.MAX_VIDEO_BYTES", 100)
    assert not embeds(SAMPLE)


def test_mask_pictures(captioner, tmp_path):
    mask, grid = captioner.model.model.sparse_mask, (8, 2, 2)
    assert len(mask_figure(mask, grid).subfigs) == 2
    for step in (10, 20):
        captioner.model.save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 10, "eval_mask_below_half": 0.3}]}')
    masks = masks_of_run(tmp_path)
    assert list(masks) == [10, 20]
    np.testing.assert_allclose(masks[10], mask.values().detach(), atol=1e-6)
    assert len(mask_figure(mask, grid, run=tmp_path).subfigs) == 3


# --- Files and the command --------------------------------------------------------------------------------------------


def test_each_clip_has_a_folder_of_its_own():
    names = [
        "a/clip.mp4",
        "b/clip.mkv",
        "clip-2.mp4",
        "CLIP.mp4",
        "https://h.example/x/z.mp4?q=/b.mp4",
        "..",
        "é\n.mp4",
    ]
    folders = folder_names([Clip(name) for name in names])
    assert folders[:5] == ["clip", "clip-3", "clip-2", "CLIP-4", "z"] and folders[6] == "é_"
    assert len({folder.casefold() for folder in folders}) == len(names)


def test_the_command_explains_what_it_can(tmp_path, clip, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "out"
    arguments = ["explain", str(SAMPLE), str(broken), str(clip), "--model", "moving-shapes", "--method", "attention"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(out)])
    assert result.exit_code == 1 and result.stdout.splitlines() == [str(out / "sample"), str(out / "noise")]
    assert "broken.mp4: expected a video file" in result.stderr and not (out / "broken").exists()
    assert sorted(file.name for file in (out / "sample").iterdir()) == [
        "explanation.html", "explanation.json", "mask.png", "words.png",
    ]  # fmt: skip
    written = json.loads((out / "sample" / "explanation.json").read_text())
    assert (
        written["caption"] == CAPTION and len(written["times"]) == 16 and written["settings"]["method"] == "attention"
    )
    assert set(written["words"][0]) >= {"word", "probability", "frames", "tokens", "alternatives"}
    assert Image.open(out / "sample" / "words.png").width == 1000

    before = (out / "sample" / "explanation.html").stat().st_mtime_ns
    assert CliRunner().invoke(app, [*arguments, "--output", str(out)]).exit_code == 1
    assert (out / "sample" / "explanation.html").stat().st_mtime_ns == before  # not explained again
    other = [word.replace("attention", "gradient") for word in arguments]
    refused = CliRunner().invoke(app, [*other, "--output", str(out)])
    assert refused.exit_code == 1 and refused.stdout == "" and "--overwrite" in refused.stderr
    assert CliRunner().invoke(app, [*other, "--output", str(out), "--overwrite"]).stdout.count("\n") == 2
    assert json.loads((out / "sample" / "explanation.json").read_text())["method"] == "gradient"
    (tmp_path / "file").write_text("")
    failed = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "file")])
    assert failed.exit_code == 1 and "file" in failed.stderr


def test_a_failure_leaves_no_folder(captioner, tmp_path, monkeypatch):
    monkeypatch.setattr("swinbert.captioning.explaining.files.words_figure", lambda _: 1 / 0)
    (result,) = explain_clips([Clip(str(SAMPLE))], captioner, tmp_path, method="attention")
    assert result.error == "division by zero" and not list(tmp_path.iterdir())


def test_info_draws_the_mask(tmp_path):
    result = CliRunner().invoke(app, ["info", "--picture", str(tmp_path / "mask.png")])
    assert result.exit_code == 0 and Image.open(tmp_path / "mask.png").width == 1000
    write_git_folder(tmp_path / "git")
    refused = CliRunner().invoke(app, ["info", str(tmp_path / "git"), "--picture", str(tmp_path / "x.png")])
    assert refused.exit_code == 1 and "no sparse mask" in refused.stderr and not (tmp_path / "x.png").exists()
    lost = CliRunner().invoke(app, ["info", "--picture", str(tmp_path / "no" / "mask.png")])
    assert lost.exit_code == 1 and "cannot be written" in lost.stderr


# --- The study --------------------------------------------------------------------------------------------------------


def test_the_study_measures_and_resumes(tmp_path, monkeypatch, capsys):
    from swinbert.training.studies import attribution as study

    monkeypatch.setattr(attribution, "NUM_HALVES", 4)
    study.main(["--output_dir", str(tmp_path), "--clips", "2", "--seeds", "1"])
    (world,) = json.loads((tmp_path / "attribution.json").read_text())
    assert set(world["methods"]) == {*METHODS, "random"} and world["clips"] == 2 and world["sequences"] == 1
    monkeypatch.setattr(study, "measure_world", None)
    study.main(["--output_dir", str(tmp_path), "--clips", "2", "--seeds", "1"])
    assert "| random |" in capsys.readouterr().out


def test_a_scene_says_where_its_shape_is():
    from swinbert.training.moving_shapes import Content, render, render_scene

    wanted = Content("red", "circle", "small", ("left", "grow"))
    scene = render_scene(wanted, np.random.default_rng(0))
    assert (scene.frames == render(wanted, np.random.default_rng(0))).all() and 11 <= scene.turn <= 13
    is_red = (scene.frames[..., 0] > 180) & (scene.frames[..., 1] < 80)
    assert (is_red == (scene.shape > 0.5)).mean() > 0.99
    columns = (scene.shape * np.arange(64)).sum((1, 2)) / scene.shape.sum((1, 2))
    assert (np.diff(columns[: scene.turn]) < 0).all()
    passage = Content("red", "circle", "small", ("right",), "behind", "blue")
    covered = render_scene(passage, np.random.default_rng(0)).shape.sum((1, 2))
    assert covered[12] < 0.3 * covered[2]
