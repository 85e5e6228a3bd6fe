"""Model cards: valid metadata, and the numbers that the authors of SwinBERT reported."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from swinbert import bundled_model
from swinbert.model_cards import render_card

FOLDER = Path(__file__).parents[1] / "model_cards"
BENCHMARKS = ("vatex", "msrvtt", "msvd", "tvc", "youcook2")
RELEASED = [f"{benchmark}-{kind}" for benchmark in BENCHMARKS for kind in ("best", "32frames")]

# CIDEr on validation, test and private test, from the README of microsoft/SwinBERT.
CIDER = {
    "vatex-best": {"validation": 84.4, "test": 73.0, "private test": 74.35},
    "vatex-32frames": {"validation": 82.1, "test": 71.6, "private test": 73.06},
    "msrvtt-best": {"validation": 55.1, "test": 53.8},
    "msrvtt-32frames": {"validation": 55.1, "test": 53.8},
    "msvd-best": {"validation": 160.0, "test": 120.6},
    "msvd-32frames": {"validation": 147.6, "test": 109.4},
    "tvc-best": {"validation": 57.0, "private test": 49.74},
    "tvc-32frames": {"validation": 53.8, "private test": 47.6},
    "youcook2-best": {"validation": 109.0, "private test": 101.39},
    "youcook2-32frames": {"validation": 104.8, "private test": 97.69},
}
SECTIONS = {name: name for name in ("title", "summary", "sampling", "training", "evaluation", "limits", "provenance")}


def headings(text):
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def test_there_is_a_card_for_every_released_checkpoint():
    assert {path.stem for path in FOLDER.glob("*.md")} == {*RELEASED, "template"}


@pytest.mark.parametrize("name", RELEASED)
def test_card_of_a_released_checkpoint(name):
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "video-text-to-text")
    assert {"video-captioning", "swinbert", "custom_code"} <= set(data.tags)
    assert set(data.metrics) == {"bleu", "meteor", "rouge", "cider"}
    assert data.datasets is None or all(re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) for dataset in data.datasets)

    cider = {result.dataset_split: result.metric_value for result in data.eval_results if result.metric_type == "cider"}
    assert cider == CIDER[name]
    assert all("reported by its authors" in result.source_name for result in data.eval_results)
    assert headings(text) == headings((FOLDER / "template.md").read_text(encoding="utf-8"))
    measured = text.split("**Measured with this package:**")[1].split("\n## ")[0]
    assert not re.search(r"\d\.\d", measured), "no score was measured with this package"
    assert "{{ " not in text


@pytest.mark.parametrize(
    "path", [*sorted(FOLDER.glob("*.md")), Path(bundled_model(), "README.md")], ids=lambda path: path.stem
)
def test_examples_that_trust_remote_code_pin_a_commit(path):
    calls = re.findall(r"\w+\([^()]*trust_remote_code=True[^()]*\)", path.read_text(encoding="utf-8"))
    assert calls and all("revision=" in call for call in calls)


@pytest.mark.parametrize("name", RELEASED)
def test_card_links_to_no_download(name):
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert "swinbert convert --checkpoint" in text
    assert not re.search(r"https?://\S+\.(zip|bin|pth|safetensors)", text)


def test_template_is_filled_in():
    text = render_card(ModelCardData(license="mit", tags=["a"]), **SECTIONS)
    assert text.startswith("---\nlicense: mit\ntags:\n- a\n---\n\n# title\n\nsummary\n")
    assert ModelCard(text).data.license == "mit"


@pytest.mark.parametrize("change", [{"limits": None}, {"colour": "red"}])
def test_missing_or_unknown_field(change):
    sections = {name: value for name, value in {**SECTIONS, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=next(iter(change))):
        render_card(ModelCardData(), **sections)
