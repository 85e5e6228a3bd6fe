"""Conversion: every tensor of a released checkpoint is mapped; anything else is refused, and nothing is written."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from golden import arrays, tiny_pixels, tiny_text
from original_checkpoint import (
    TINY_ARGS,
    original_shapes,
    original_tiny_state_dict,
    position_index,
    write_vocabulary,
)
from safetensors.torch import load_file, save_file
from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d

from swinbert import SwinBertForVideoCaptioning, VideoSwinConfig, VideoSwinModel
from swinbert.conversion import (
    ConversionError,
    convert,
    inflate_swin,
    mask_statistics,
    parse_overrides,
    read_state_dict,
)
from swinbert.conversion.configs import infer_swinbert_config, infer_video_swin_config
from swinbert.conversion.names import map_names
from swinbert.processing import SwinBertProcessor

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def without(tensors, *parts):
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


@pytest.fixture(scope="module")
def tensors():
    return original_tiny_state_dict()


@pytest.fixture
def vocabulary(tmp_path):
    return write_vocabulary(tmp_path / "vocabulary")


@pytest.fixture
def model_bin(tmp_path, tensors):
    torch.save(tensors, tmp_path / "model.bin")
    return tmp_path / "model.bin"


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tensors):
    """A converted folder and its report; the source is laid out like the archives of the original's authors."""
    root = tmp_path_factory.mktemp("released")
    for folder in ("best-checkpoint", "log"):
        (root / folder).mkdir()
    torch.save(tensors, root / "best-checkpoint" / "model.bin")
    (root / "log" / "args.json").write_text(json.dumps(TINY_ARGS))
    write_vocabulary(root / "tokenizer")
    return root / "converted", convert(root / "best-checkpoint" / "model.bin", root / "converted")


# --- whole conversions ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference run's own weights are not part of the repository")
def test_the_recipe_gives_the_weights_of_the_reference_run(tensors):
    reference = load_file(GOLDEN / "tiny_reference_state_dict.safetensors")
    assert set(reference) == {name for name in tensors if not name.endswith("relative_position_index")}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in reference.items())
    base = json.loads((GOLDEN / "base_state_dict_keys.json").read_text())["keys"]
    assert original_shapes("base") == {name: tuple(shape) for name, (shape, *_) in base.items()}


@pytest.mark.parametrize("mask", ["soft", "hard", "none"])
def test_logits_are_those_of_the_original(mask, tmp_path, vocabulary):
    torch.save(original_tiny_state_dict(with_mask=mask != "none"), tmp_path / "model.bin")
    args = {**TINY_ARGS, "learn_mask_enabled": mask != "none", "sparse_mask_soft2hard": mask == "hard"}
    convert(tmp_path / "model.bin", tmp_path / "out", args=args, tokenizer=vocabulary)

    model = SwinBertForVideoCaptioning.from_pretrained(tmp_path / "out").eval()
    assert model.config.sparse_mask == mask
    text = tiny_text("train_s2s" if mask == "none" else "train_learn")
    predicted = text.pop("labels") != -100
    with torch.no_grad():
        logits = model(pixel_values_videos=tiny_pixels("e8"), **text).logits[predicted]
    expected = arrays("tiny_e2e")[f"e8_{mask}.masked_logits"]
    torch.testing.assert_close(logits, expected, atol=2e-5 if mask == "none" else 3e-4, rtol=0)


def test_converted_folder_is_complete(converted):
    folder, report = converted
    assert len(report.mapped) + len(report.dropped) == len(original_shapes("tiny"))
    assert report.num_parameters == sum(
        torch.Size(shape).numel() for name, shape in original_shapes("tiny").items() if name in report.mapped
    )
    assert report.args == str(folder.parent / "log" / "args.json")
    assert report.tokenizer == str(folder.parent / "tokenizer")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert {"configuration_swinbert.py", "modeling_swinbert.py", "pipeline_swinbert.py"} <= names
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]

    model = SwinBertForVideoCaptioning.from_pretrained(folder)
    assert (model.config.num_attention_heads, model.config.max_caption_length) == (4, 24)
    assert model.config.sparsity_loss_weight == 0.1
    assert model.generation_config.max_length == 20
    processor = SwinBertProcessor.from_pretrained(folder)
    pixels = processor(videos=[torch.zeros(9, 3, 40, 80, dtype=torch.uint8)], return_tensors="pt").pixel_values_videos
    assert pixels.shape == (1, 8, 3, 64, 64)
    assert len(processor.tokenizer) == 200


def test_converted_folder_loads_where_the_package_is_not(converted):
    folder, _ = converted
    script = (
        "import sys; sys.modules['swinbert'] = None\n"
        "import torch\n"
        "from transformers import AutoModel, AutoProcessor, pipeline\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "captioner = pipeline('video-captioning', model=sys.argv[1], trust_remote_code=True, device='cpu')\n"
        "clip = torch.full((9, 3, 64, 64), 100, dtype=torch.uint8)\n"
        "ids = model.generate(**processor(videos=[clip], return_tensors='pt'))\n"
        "print(ids[0, 0].item(), ids[0, -1].item())\n"
        "print(captioner(clip.numpy())[0]['generated_text'] == processor.decode(ids[0], skip_special_tokens=True))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")}
    result = subprocess.run([sys.executable, "-c", script, folder], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["101", "102", "True"]


def test_report_counts_tensors_and_live_entries_of_the_mask(converted):
    _, report = converted
    weights = original_tiny_state_dict()["learn_vid_att.weight"].reshape(16, 16)
    off_diagonal = ~torch.eye(16, dtype=torch.bool)
    values = torch.sigmoid(weights)[off_diagonal]
    assert report.mask.share_below_half == pytest.approx((values < 0.5).float().mean().item())
    # float32 exp is 0 below the logarithm of the smallest subnormal number, about -103.97
    assert report.mask.alive == int(((1 - values) * -10000 > -103.97).sum())
    assert 0 < report.mask.alive < 240
    text = str(report)
    for fact in ("183 tensors", "8 x relative_position_index", f"{report.mask.alive} of 240"):
        assert fact in text


def test_mask_statistics_of_hard_and_absent_masks(converted):
    folder, report = converted
    hard = SwinBertForVideoCaptioning.from_pretrained(folder, sparse_mask="hard")
    assert mask_statistics(hard).alive == 240 - report.mask.below_half
    none = SwinBertForVideoCaptioning.from_pretrained(folder, sparse_mask="none")
    assert mask_statistics(none) is None


def test_card_of_a_conversion_names_no_path_of_the_machine(converted):
    folder, _ = converted
    assert str(folder.parent) not in (folder / "README.md").read_text()


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "total", "dropped"), [("base", 567, 32), ("tiny", 199, 16)])
def test_every_key_is_mapped_once_or_dropped(size, total, dropped):
    shapes = original_shapes(size)
    assert len(shapes) == total
    mapping, reasons = map_names(shapes, "swinbert")
    assert len(mapping) == total - dropped and len(reasons) == dropped
    assert len(set(mapping.values())) == len(mapping)
    assert mapping["fc.weight"] == "model.projector.linear_1.weight"
    assert mapping["trans_encoder.cls.predictions.bias"] == "lm_head.decoder.bias"


def test_base_keys_and_shapes_are_those_of_the_default_model():
    from swinbert import SwinBertConfig

    config = SwinBertConfig(num_frames=8)
    with torch.device("meta"):
        ours = {name: tuple(t.shape) for name, t in SwinBertForVideoCaptioning(config).state_dict().items()}
    shapes = original_shapes("base")
    mapping, _ = map_names(shapes, "swinbert")
    theirs = {new: shapes[old] for old, new in mapping.items()}
    theirs["model.sparse_mask.weight"] = (196, 196)
    assert ours == theirs


def test_unknown_key_is_an_error(tmp_path, tensors, vocabulary):
    torch.save({**tensors, "trans_encoder.bert.adapter.weight": torch.ones(2)}, tmp_path / "model.bin")
    with pytest.raises(ConversionError, match="trans_encoder.bert.adapter.weight"):
        convert(tmp_path / "model.bin", tmp_path / "out", args=TINY_ARGS, tokenizer=vocabulary)


# --- forms of a checkpoint ------------------------------------------------------------------------------------------


def test_wrapped_prefixed_half_precision_checkpoint(tmp_path, tensors, vocabulary):
    """As DeepSpeed writes it under fp16 from several GPUs."""
    half = {f"module.{name}": t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    torch.save({"module": half, "global_steps": 7, "optimizer": None}, tmp_path / "mp_rank_00_model_states.pt")
    report = convert(tmp_path, tmp_path / "out", args=TINY_ARGS, tokenizer=vocabulary)
    assert report.stored_dtypes == {"float16": 183}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["model.projector.linear_1.weight"], tensors["fc.weight"].half().float())


def test_safetensors_checkpoint_without_buffers(tmp_path, tensors, vocabulary):
    save_file(without(tensors, "relative_position_index"), tmp_path / "weights.safetensors")
    report = convert(tmp_path / "weights.safetensors", tmp_path / "out", args=TINY_ARGS, tokenizer=vocabulary)
    assert list(report.config.vision_config.window_size) == [8, 7, 7]


def test_legacy_pickle_checkpoint(tmp_path, tensors):
    torch.save(tensors, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "model.bin")["fc.weight"], tensors["fc.weight"])


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(8, 7, 7), (8, 12, 12), (2, 7, 5), (1, 1, 1), (4, 3, 3)])
def test_window_is_determined_by_the_position_index(window):
    rows = torch.Size(2 * side - 1 for side in window).numel()
    config, _ = infer_video_swin_config(
        {
            "patch_embed.proj.weight": torch.empty(8, 3, 2, 4, 4),
            "layers.0.blocks.0.attn.relative_position_bias_table": torch.empty(rows, 2),
            "layers.0.blocks.0.attn.relative_position_index": position_index(window),
            "layers.0.blocks.0.mlp.fc1.weight": torch.empty(32, 8),
        }
    )
    assert tuple(config.window_size) == window


def test_ambiguous_window_must_be_given(tensors):
    name = "swin.backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    changed = {**without(tensors, "relative_position_index"), name: torch.empty(225, 1)}  # 5 x 3 x 3 or 13 x 2 x 2
    with pytest.raises(ConversionError, match=r"--set vision_config.window_size"):
        infer_swinbert_config(changed, TINY_ARGS)


def test_base_is_inferred_without_args():
    shapes = {name: torch.empty(shape, device="meta") for name, shape in original_shapes("base").items()}
    config, notes = infer_swinbert_config(without(shapes, "relative_position_index"))
    assert (config.num_frames, config.image_size, config.sparse_mask) == (8, 224, "soft")
    assert (config.num_attention_heads, config.num_hidden_layers, config.vocab_size) == (12, 12, 30522)
    assert config.vision_config.to_dict() == VideoSwinConfig(num_frames=8).to_dict()
    assert any("num_frames 8" in note for note in notes) and any("num_attention_heads 12" in note for note in notes)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({"max_num_frames": 32}, ("16", "max_num_frames", "learn_vid_att.weight")),
        ({"img_res": 224}, ("16", "img_res", "learn_vid_att.weight")),
        ({"max_img_seq_length": 784}, ("784", "max_img_seq_length", "learn_vid_att.weight")),
        ({"img_feature_dim": 512}, ("512", "img_feature_dim", "fc.weight")),
        ({"num_hidden_layers": 12}, ("12", "num_hidden_layers", "layers in the checkpoint")),
        ({"learn_mask_enabled": False}, ("learn_mask_enabled", "learn_vid_att.weight", "--set sparse_mask")),
        ({"vidswin_size": "base"}, ("128", "vidswin_size base", "patch_embed")),
        ({"max_num_frames": "many"}, ("max_num_frames", "'many'")),
    ],
)
def test_contradiction_names_both_sources(tensors, args, names):
    with pytest.raises(ConversionError) as error:
        infer_swinbert_config(tensors, {**TINY_ARGS, **args})
    assert all(name in str(error.value) for name in names), error.value


def test_overrides_settle_contradictions_and_gaps(tensors):
    args = {**TINY_ARGS, "max_num_frames": 32, "num_attention_heads": -1}
    with pytest.raises(ConversionError, match="num_frames"):
        infer_swinbert_config(tensors, args, {"num_attention_heads": 8})
    overrides = parse_overrides(["num_attention_heads=8", "num_frames=8", "sparse_mask_form=gate"])
    config, _ = infer_swinbert_config(tensors, args, overrides)
    assert (config.num_attention_heads, config.num_frames, config.sparse_mask_form) == (8, 8, "gate")


def test_undetermined_heads_must_be_given(tensors):
    name = "trans_encoder.bert.embeddings.word_embeddings.weight"
    with pytest.raises(ConversionError, match="--set num_attention_heads"):
        infer_swinbert_config({**tensors, name: torch.empty(200, 96)}, {"max_num_frames": 8, "img_res": 64})


def test_undetermined_frames_must_be_given():
    with pytest.raises(ConversionError, match="--set num_frames"):
        infer_swinbert_config(original_tiny_state_dict(with_mask=False))


@pytest.mark.parametrize(("setting", "message"), [("num_heds=4", "num_hidden_layers"), ("heads", "KEY=VALUE")])
def test_wrong_override(tensors, setting, message):
    with pytest.raises(ConversionError, match=message):
        infer_swinbert_config(tensors, TINY_ARGS, parse_overrides([setting]))


def test_mask_can_be_dropped(model_bin, tmp_path, vocabulary):
    overrides = {"sparse_mask": "none"}
    report = convert(model_bin, tmp_path / "out", args=TINY_ARGS, tokenizer=vocabulary, overrides=overrides)
    assert "sparse_mask=none" in report.dropped["learn_vid_att.weight"] and report.mask is None
    assert SwinBertForVideoCaptioning.from_pretrained(tmp_path / "out").model.sparse_mask is None


# --- what is refused -------------------------------------------------------------------------------------------------


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def damaged(path, tensors, start, replacement):
    """Writes a checkpoint of which everything from `start` (a fraction of its length) is overwritten or cut off."""
    torch.save(tensors, path)
    content = path.read_bytes()
    start = int(start * len(content))
    rest = content[start + len(replacement) :] if replacement else b""
    path.write_bytes(content[:start] + replacement + rest)


BAD = {
    "code": (lambda path, _: torch.save({"weight": RunsCode(path.parent / "ran")}, path), "would run code"),
    "module": (lambda path, _: torch.save(torch.nn.Linear(2, 2), path), "would run code"),
    "old pickle with code": (
        lambda path, _: path.write_bytes(pickle.dumps({"weight": RunsCode(path.parent / "ran")}, protocol=2)),
        "would run code|not a torch checkpoint",
    ),
    "empty": (lambda path, _: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path, tensors: damaged(path, tensors, 0.5, b""), "truncated"),
    "flipped": (lambda path, tensors: damaged(path, tensors, 0.5, b"\xff" * 64), "checksum"),
    "text": (lambda path, _: path.write_text("no checkpoint"), "begins with b'no checkpoint'"),
    "pointer": (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "archive": (lambda path, _: zip_of(path, "best-checkpoint/model.bin"), "unpack it"),
    "optimizer": (lambda path, _: torch.save({"state": {}, "param_groups": []}, path), "not hold a state dict"),
    "number": (lambda path, _: torch.save(7, path), "found int"),
    "bert": (
        lambda path, _: torch.save({"bert.encoder.layer.0.attention.self.query.weight": torch.ones(2, 2)}, path),
        "a plain BERT",
    ),
    "video swin": (
        lambda path, _: torch.save(
            {"state_dict": {"backbone.patch_embed.proj.weight": torch.ones(2, 3, 2, 4, 4)}}, path
        ),
        "a Video Swin checkpoint",
    ),
    "other model": (lambda path, _: torch.save({"conv1.weight": torch.ones(2)}, path), "unknown architecture"),
    "lacks a layer's output": (lambda path, t: torch.save(without(t, "layer.1.output"), path), "layer.1.output"),
    "lacks words": (lambda path, tensors: torch.save(without(tensors, "word_embeddings"), path), "word_embeddings"),
    "misshaped": (
        lambda path, tensors: torch.save({**tensors, "swin.backbone.norm.weight": torch.ones(3)}, path),
        r"swin.backbone.norm.weight is \(3,\) instead of \(128,\)",
    ),
    "not finite": (lambda path, t: torch.save({**t, "fc.bias": torch.full((48,), float("nan"))}, path), "fc.bias"),
    "shard": (lambda path, tensors: torch.save({name: torch.empty(0) for name in tensors}, path), "ZeRO-3"),
}


def zip_of(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"inside")


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_and_nothing_is_written(case, tmp_path, tensors, vocabulary):
    write, message = BAD[case]
    write(tmp_path / "model.bin", tensors)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "model.bin", tmp_path / "new" / "out", args=TINY_ARGS, tokenizer=vocabulary)
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "vocabulary"}


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"), ("model.safetensors", b"short")]
)
def test_bad_safetensors(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match="model.safetensors"):
        convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(ConversionError, match="No checkpoint at"):
        convert(tmp_path / "absent.bin", tmp_path / "out")
    with pytest.raises(ConversionError, match="No checkpoint in the folder"):
        convert(tmp_path, tmp_path / "out")


def test_output_that_is_not_empty_is_left_as_it_is(model_bin, tmp_path, vocabulary):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{output} exists and is not empty"):
        convert(model_bin, output, args=TINY_ARGS, tokenizer=vocabulary)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_failure_while_writing_leaves_nothing(model_bin, tmp_path, vocabulary, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(SwinBertProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        convert(model_bin, tmp_path / "new" / "out", args=TINY_ARGS, tokenizer=vocabulary)
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "vocabulary"}


def test_args_that_are_no_json(model_bin, tmp_path, vocabulary):
    (tmp_path / "args.json").write_text("max_num_frames: 8")
    with pytest.raises(ConversionError, match="args.json"):
        convert(model_bin, tmp_path / "out", tokenizer=vocabulary)


def test_tokenizer_must_have_the_words_of_the_checkpoint(model_bin, tmp_path):
    with pytest.raises(ConversionError, match="201 words.*200.*--tokenizer"):
        convert(model_bin, tmp_path / "out", args=TINY_ARGS, tokenizer=write_vocabulary(tmp_path / "v", 201))


def test_absent_tokenizer_says_how_to_pass_one(model_bin, tmp_path):
    with pytest.raises(ConversionError, match="--tokenizer DIR"):
        convert(model_bin, tmp_path / "out", args=TINY_ARGS, tokenizer=tmp_path / "absent")


def test_default_tokenizer_offline(model_bin, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match="(?s)bert-base-uncased.*--tokenizer DIR"):
        convert(model_bin, tmp_path / "out", args=TINY_ARGS)
    assert not (tmp_path / "out").exists()


# --- Video Swin and 2D Swin -----------------------------------------------------------------------------------------


@pytest.fixture
def backbone(tensors):
    prefix = "swin.backbone."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def features(model, clip):
    with torch.no_grad():
        return model.eval()(clip).last_hidden_state


def test_video_swin_of_mmaction(tmp_path, backbone, converted):
    stored = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    stored |= {"cls_head.fc_cls.weight": torch.ones(400, 128), "cls_head.fc_cls.bias": torch.ones(400)}
    torch.save({"meta": {"epoch": 30, "config": "model = dict()"}, "state_dict": stored}, tmp_path / "k400.pth")
    report = convert(tmp_path / "k400.pth", tmp_path / "out", overrides={"image_size": 64, "num_frames": 8})
    assert set(report.dropped) == {name for name in stored if "cls_head" in name or "position_index" in name}

    model = VideoSwinModel.from_pretrained(tmp_path / "out")
    whole = SwinBertForVideoCaptioning.from_pretrained(converted[0])
    assert model.config.depths == [2, 2, 2, 2] and model.config.window_size == [8, 7, 7]
    assert torch.equal(features(model, tiny_pixels("e8")), features(whole.model.video_encoder, tiny_pixels("e8")))


def test_video_swin_with_objects_in_its_meta(tmp_path, backbone):
    stored = {
        "meta": {"env": RunsCode(tmp_path / "ran")},
        "state_dict": {f"backbone.{k}": v for k, v in backbone.items()},
    }
    torch.save(stored, tmp_path / "k400.pth")
    with pytest.raises(ConversionError, match=r"checkpoint\['state_dict'\]"):
        convert(tmp_path / "k400.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_video_swin_of_torchvision(tmp_path):
    torch.manual_seed(0)
    theirs = SwinTransformer3d(
        [2, 4, 4], 16, [2, 2, 2], [1, 2, 4], [4, 3, 3], norm_layer=torch.nn.LayerNorm, patch_embed=PatchEmbed3d
    ).eval()
    for parameter in theirs.parameters():  # biases and norms start at 0 and 1, where a mix-up would not show
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "swin3d.pth")
    report = convert(tmp_path / "swin3d.pth", tmp_path / "out")
    assert set(report.dropped.values()) == {
        "relative_position_index: follows from the window size",
        "head: classification head, not part of the backbone",
    }
    clip = torch.randn(1, 10, 3, 64, 48)
    with torch.no_grad():
        expected = theirs.norm(theirs.features(theirs.patch_embed(clip.transpose(1, 2)))).flatten(1, 3)
    torch.testing.assert_close(features(VideoSwinModel.from_pretrained(tmp_path / "out"), clip), expected)


@pytest.fixture(scope="module")
def image_swin():
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=64, window_size=4, embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4), num_classes=5
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def still(model):
    """An image and the 2D model's features of it, (1, N, C)."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return image, model.forward_features(image).flatten(1, 2)


def test_inflated_swin_sees_a_still_clip_as_the_image(image_swin):
    image, expected = still(image_swin)
    model = inflate_swin(image_swin, {"num_frames": 2})
    assert model.config.window_size == [8, 4, 4] and model.config.patch_size == [2, 4, 4]
    clip = image[:, None].repeat(1, 2, 1, 1, 1)
    torch.testing.assert_close(features(model, clip), expected, atol=1e-5, rtol=1e-5)
    # Over two whole windows in time a still clip gives the same tokens at every moment: the bias ignores time.
    tokens = features(model, image[:, None].repeat(1, 32, 1, 1, 1)).unflatten(1, (16, -1))
    torch.testing.assert_close(tokens, expected[:, None].expand_as(tokens), atol=1e-4, rtol=1e-4)


def test_swin_2d_of_the_original_layout(image_swin, tmp_path):
    """There, patches are merged at the end of a stage, and buffers are stored."""
    state = {}
    for name, tensor in image_swin.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts)] = tensor
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    torch.save({"model": state}, tmp_path / "swin.pth")
    report = convert(tmp_path / "swin.pth", tmp_path / "out")
    assert len(report.dropped) == 4
    image, expected = still(image_swin)
    model = VideoSwinModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(features(model, image[:, None].repeat(1, 2, 1, 1, 1)), expected, atol=1e-5, rtol=1e-5)


def test_inflation_interpolates_the_bias_to_another_window(image_swin):
    model = inflate_swin(image_swin, {"window_size": [4, 7, 7]})
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    table, source = model.state_dict()[name], image_swin.state_dict()[name]
    assert table.shape == (7 * 13 * 13, 1)
    by_time = table.view(7, 13, 13)
    assert torch.equal(by_time[0], by_time[6])
    torch.testing.assert_close(by_time[0, 6, 6], source.view(7, 7)[3, 3])  # the centre stays the centre


def test_inflation_refuses_other_models(tmp_path):
    with pytest.raises(ConversionError, match="unknown architecture"):
        inflate_swin(torch.nn.Linear(2, 2))
    version_2 = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=64, window_size=4, embed_dim=16, depths=(2,), num_heads=(1,)
    )
    with pytest.raises(ConversionError, match="expected a 2D Swin"):
        inflate_swin(version_2)
