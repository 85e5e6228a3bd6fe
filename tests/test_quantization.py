"""Quantised weights by `from_pretrained(quantization_config=...)` on a CPU."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, TorchAoConfig

import swinbert

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"


def needs(package: str):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def int8_weights():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def int8_weights_and_activations():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


@pytest.fixture(scope="module")
def pixels():
    processor = AutoProcessor.from_pretrained(swinbert.bundled_model())
    return processor(videos=SAMPLE, return_tensors="pt")["pixel_values_videos"]


def check(model, pixels):
    """First words are those of the float32 model, and their probabilities are close to its."""
    float32 = AutoModelForImageTextToText.from_pretrained(swinbert.bundled_model())
    options = {"return_dict_in_generate": True, "output_scores": True}
    expected = float32.generate(pixel_values_videos=pixels, **options)
    found = model.generate(pixel_values_videos=pixels, **options)
    assert torch.equal(found.sequences[:, :2], expected.sequences[:, :2])
    torch.testing.assert_close(found.scores[0].softmax(-1), expected.scores[0].softmax(-1), atol=0.05, rtol=0)


@needs("torchao")
@pytest.mark.parametrize("config", [int8_weights, int8_weights_and_activations])
def test_torchao(config, pixels):
    model = AutoModelForImageTextToText.from_pretrained(swinbert.bundled_model(), quantization_config=config())
    weight = model.model.encoder.layer[0].intermediate.dense.weight
    assert type(weight) is not torch.nn.Parameter and "Int8" in type(weight.data).__name__ + type(weight).__name__
    check(model, pixels)


@needs("bitsandbytes")
def test_bitsandbytes(pixels):
    config = BitsAndBytesConfig(load_in_4bit=True)  # its eight bits take no tensors of four dimensions on a CPU
    model = AutoModelForImageTextToText.from_pretrained(swinbert.bundled_model(), quantization_config=config)
    assert "bitsandbytes" in type(model.model.encoder.layer[0].intermediate.dense).__module__
    check(model, pixels)
