"""Scores of captions, against numbers of the COCO caption tools."""

import json

import golden
import pytest

from swinbert.training.metrics import CiderD, ptb_tokenize, score

ORIGINAL = json.loads((golden.FOLDER / "caption_metrics.json").read_text(encoding="utf-8"))
PREDICTIONS = {item["id"]: item["hypothesis"] for item in ORIGINAL["data"]}
REFERENCES = {item["id"]: item["references"] for item in ORIGINAL["data"]}


@pytest.mark.parametrize("item", ORIGINAL["data"], ids=lambda item: item["id"])
def test_tokens_are_those_of_the_java_tokenizer(item):
    expected = ORIGINAL["tokenized"][item["id"]]
    assert list(ptb_tokenize(item["references"])) == expected["refs"]
    assert list(ptb_tokenize([item["hypothesis"]])) == expected["hyp"]


def test_scores_equal_those_of_pycocoevalcap():
    scores = score(PREDICTIONS, REFERENCES)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert scores["corpus"][name] == pytest.approx(ORIGINAL["corpus"][name], abs=1e-6)
        for clip, expected in ORIGINAL["per_item"].items():
            assert scores["clips"][clip][name] == pytest.approx(expected[name], abs=1e-6), (clip, name)


def test_cider_d_of_some_clips_is_that_of_the_whole_set():
    """As a reward: document frequencies of all clips, scores of a few."""
    tokenised = {clip: list(ptb_tokenize(captions)) for clip, captions in REFERENCES.items()}
    clips = ["plain", "identical", "plain"]
    rewards = CiderD(tokenised)(list(ptb_tokenize(PREDICTIONS[clip] for clip in clips)), clips)
    assert rewards == pytest.approx([ORIGINAL["per_item"][clip]["CIDEr"] for clip in clips], abs=1e-6)


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, ValueError, "no prediction: 'b'"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, ValueError, "no references: 'b'"),
        ({}, {}, ValueError, "Nothing to score"),
        ({"a": "x"}, {"a": ["  "]}, ValueError, "no references, or only empty"),
        ({"a": None}, {"a": ["x"]}, TypeError, "caption as text"),
        ({"a": "x"}, {"a": "x"}, TypeError, "list of texts"),
    ],
)
def test_odd_input_is_refused(predictions, references, error, message):
    with pytest.raises(error, match=message):
        score(predictions, references)
