"""An exported captioner writes the same captions in ONNX Runtime."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

import swinbert
from swinbert import SwinBertForVideoCaptioning

exporting = pytest.importorskip("swinbert.exporting", exc_type=ImportError)
SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"
missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed (the extra onnx): {', '.join(missing)}")


@pytest.fixture(scope="module")
def model():
    return SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    exporting.export_captioner(swinbert.bundled_model(), folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return exporting.ExportedCaptioner.from_pretrained(folder)


@pytest.fixture(scope="module")
def pixels(folder):
    """The sample clip, and the same clip backwards: (2, T, C, H, W)."""
    clip = AutoProcessor.from_pretrained(folder)(videos=SAMPLE, return_tensors="pt")["pixel_values_videos"]
    return torch.cat([clip, clip.flip(1)])


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_same_captions(model, exported, pixels, clips, options, monkeypatch):
    expected = model.generate(pixel_values_videos=pixels[:clips], **options)
    monkeypatch.setattr(torch.nn.Linear, "forward", None)  # the graphs use no module of the model
    ids = exported.generate(pixel_values_videos=pixels[:clips], **options)
    assert torch.equal(ids, expected)


def test_same_scores(model, exported, pixels):
    options = {"return_dict_in_generate": True, "output_scores": True}
    expected = model.generate(pixel_values_videos=pixels, **options).scores
    found = exported.generate(pixel_values_videos=pixels, **options).scores
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-3, rtol=1e-3)


def test_folder_is_complete(folder):
    names = {file.name for file in folder.iterdir()}
    assert {"encoder.onnx", "decode.onnx", "export.json", "config.json", "generation_config.json"} <= names
    assert {"processor_config.json", "tokenizer.json"} <= names


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.tensor([[101, 7]])}, "one token at a time"),
        ({"context_ids": torch.tensor([[7]])}, "not used by the model: .'context_ids'"),
        ({"pixel_values_videos": None}, "describes clips"),
    ],
)
def test_unsupported_inputs_raise(exported, pixels, inputs, message):
    with pytest.raises(ValueError, match=message):
        exported.generate(**{"pixel_values_videos": pixels[:1], **inputs})


def test_graphs_of_another_format_are_refused(folder, tmp_path):
    manifest = (folder / "export.json").read_text().replace('"onnx"', '"dynamo"')
    assert "dynamo" in manifest
    (tmp_path / "export.json").write_text(manifest)
    with pytest.raises(ValueError, match="found the format 'dynamo'"):
        exporting.ExportedCaptioner.from_pretrained(tmp_path)
