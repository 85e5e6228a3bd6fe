"""int8 linear layers: accuracy, models, the command line."""

import copy
from pathlib import Path

import pytest
import torch
from captioning import write_git_folder
from torch import nn
from typer.testing import CliRunner

import swinbert
from swinbert import SwinBertForVideoCaptioning, cli
from swinbert.deployment import quantization
from swinbert.quantization import Int8Linear, quantize_linear

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
    quantise = quantization.quantize_linear
    monkeypatch.setattr(quantization, "quantize_linear", lambda model: used.append(model) or quantise(model))
    argv = ["caption", str(SAMPLE), "--model", str(model), "--device", "cpu", "--max-length", "20", "--dtype", "int8"]
    result = CliRunner().invoke(cli.app, argv)
    assert result.exit_code == 0, result.stderr
    (model,) = used
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    if kind == "bundled":
        assert "a large red cross moves right" in result.stdout
