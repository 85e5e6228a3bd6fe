"""Fewer bits on a CPU: int8 linear layers and float16 decoding weights; accuracy, models, the command line."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from captioning import write_git_folder
from torch import nn
from typer.testing import CliRunner

import swinbert
from swinbert import SwinBertForVideoCaptioning, cli
from swinbert.captioning import loading
from swinbert.quantization import Float16DecodingLinear, Int8Linear, quantize_decoding, quantize_linear

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_near_its_original(bias):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    linear.weight.copy_(torch.randn(40, 96, generator=generator))
    linear.weight[3] *= 1000  # scales are per output, so the others keep their precision
    linear.weight[5] = 0
    states = torch.randn(7, 5, 96, generator=generator)
    found, expected = Int8Linear(linear)(states), linear(states)
    assert found.shape == expected.shape
    error = (found - expected).flatten(0, 1).norm(dim=0) / linear.weight.norm(dim=1).clamp_min(1) / 35**0.5
    assert error.max() < 0.03
    assert not torch.equal(found, expected)


@torch.no_grad()
def test_an_int8_model():
    model = SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model()).eval()
    vision = model.config.vision_config
    pixels = torch.randn(2, vision.num_frames, 3, *vision.frame_size, generator=torch.Generator().manual_seed(0))
    expected = model.model.video_encoder(pixels).last_hidden_state
    linear = sum(type(module) is nn.Linear for module in model.modules())
    skipped = quantize_linear(copy.deepcopy(model), skip=["lm_head.decoder"])
    assert sum(isinstance(module, Int8Linear) for module in skipped.modules()) == linear - 1
    assert type(skipped.lm_head.decoder) is nn.Linear

    small = quantize_linear(model)
    assert small is model and not any(type(module) is nn.Linear for module in small.modules())
    found = small.model.video_encoder(pixels).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 0.05
    assert small.generate(pixel_values_videos=pixels).shape[0] == 2
    assert torch.equal(copy.deepcopy(small).model.video_encoder(pixels).last_hidden_state, found)


def test_an_int8_model_is_not_saved(tmp_path):
    small = quantize_linear(SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model()))
    with pytest.raises(TypeError, match="cannot be saved"):
        small.save_pretrained(tmp_path)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="float32 on a CPU"):
        quantize_linear(nn.Linear(4, 4).bfloat16())


@pytest.mark.parametrize("kind", ["bundled", "GIT"])
def test_the_command_captions_in_int8(kind, tmp_path, monkeypatch):
    model = write_git_folder(tmp_path) if kind == "GIT" else swinbert.bundled_model()
    used = []
    monkeypatch.setattr(loading, "quantize_linear", lambda model: used.append(model) or quantize_linear(model))
    argv = ["caption", str(SAMPLE), "--model", str(model), "--device", "cpu", "--max-length", "20", "--dtype", "int8"]
    result = CliRunner().invoke(cli.app, argv)
    assert result.exit_code == 0, result.stderr
    (model,) = used
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    if kind == "bundled":
        assert "a large red cross moves right" in result.stdout


needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no FBGEMM"
)


@needs_fbgemm
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_decoding_layer_rounds_its_weight_to_float16(bias):
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    layer, rounded = Float16DecodingLinear(linear), copy.deepcopy(linear)
    rounded.weight.copy_(linear.weight.half())
    for shape in [(1, 96), (1, 2, 96), (4, 2, 96), (30, 1, 96)]:
        states = torch.randn(shape)
        torch.testing.assert_close(layer(states), rounded(states), atol=1e-5, rtol=1e-5)
        assert not torch.equal(layer(states), linear(states))
    states = torch.randn(2, 3, 96)
    assert torch.equal(layer(states), linear(states))
    with torch.enable_grad():
        assert torch.equal(layer(states[:, :2]), linear(states[:, :2]))


@needs_fbgemm
@torch.no_grad()
def test_decoding_in_float16(tmp_path):
    """Clips are encoded as before, words nearly so, and what is saved is the model in float32."""
    model = SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model()).eval()
    half = quantize_decoding(copy.deepcopy(model))
    vision = model.config.vision_config
    pixels = torch.randn(2, vision.num_frames, 3, *vision.frame_size, generator=torch.Generator().manual_seed(0))
    video = model.encode_video(pixels).video_key_values
    for found, expected in zip(half.encode_video(pixels).video_key_values, video, strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    options = {"video_key_values": video, "return_dict_in_generate": True, "output_logits": True}
    found, expected = half.generate(**options), model.generate(**options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logits, expected.logits, atol=0.02, rtol=0)
    assert not torch.equal(found.logits[1], expected.logits[1])
    assert torch.equal(copy.deepcopy(half).generate(**options).logits[1], found.logits[1])

    half.save_pretrained(tmp_path)
    saved = SwinBertForVideoCaptioning.from_pretrained(tmp_path).state_dict()
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())


def test_decoding_in_float16_is_refused(monkeypatch):
    model = SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model())
    with pytest.raises(ValueError, match="float32 on a CPU"):
        quantize_decoding(copy.deepcopy(model).bfloat16())
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(supported_engines=["qnnpack"]))
    with pytest.raises(ValueError, match="FBGEMM, which this PyTorch lacks"):
        quantize_decoding(model)
