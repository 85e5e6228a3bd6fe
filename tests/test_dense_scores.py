"""Scores of dense captions, against those of the field's tools, with METEOR's program where it is."""

import itertools
import json
import random
import shutil
from importlib.util import find_spec

import golden
import numpy as np
import pytest

from swinbert.training.metrics import dense, java_metrics, ptb_tokenize
from swinbert.training.metrics.dense import DENSE_METRICS, Event, best_alignment, dense_score, f1, temporal_iou

needs_java = pytest.mark.skipif(
    not (shutil.which("java") and find_spec("pycocoevalcap")),
    reason="needs the COCO tools: Java, and pip install 'swinbert[metrics]'",
)
ORIGINAL = json.loads((golden.FOLDER / "dense.json").read_text(encoding="utf-8"))
REFERENCES = [
    {
        video: [Event(*span, sentence) for span, sentence in zip(entry["timestamps"], entry["sentences"], strict=True)]
        for video, entry in annotator.items()
    }
    for annotator in ORIGINAL["references"].values()
]
# The tools' tokenizer ran where letters with accents are no letters; ours keeps them, as theirs does elsewhere.
PREDICTIONS = {
    video: [Event(*each["timestamp"], each["sentence"].replace("naïve café", "na ve caf")) for each in events]
    for video, events in ORIGINAL["predictions"]["main"].items()
}
PLAIN = ("bleu", "rouge_l", "cider")
NAMES = {"Precision": "precision", "Recall": "recall"}


def assert_equal(scores, expected, but=()):
    """All scores at all thresholds, to the tolerance of the stored ones."""
    for threshold, row in expected.items():
        found = scores["mean"] if threshold == "mean_over_tiou" else scores["tIoU"][threshold]
        for name, value in row.items():
            if name not in but:
                assert found[NAMES.get(name, name)] == pytest.approx(value, abs=1e-9), (threshold, name)


def test_tokens_are_those_of_the_java_tokenizer():
    for key, tokens in ORIGINAL["tokens"].items():
        *_, video, number = key.split("|")
        if key.startswith("r"):
            sentence = REFERENCES[int(key.split("|")[1])][video][int(number)].caption
        else:
            sentence = PREDICTIONS[video][int(number)].caption
        assert ptb_tokenize([sentence]) == [tokens]


@pytest.mark.parametrize("case", ORIGINAL["iou"], ids=lambda case: f"{case['a']}{case['b']}")
def test_temporal_iou(case):
    assert temporal_iou([case["a"]], [case["b"]])[0, 0] == pytest.approx(case["iou"], abs=1e-12)
    assert temporal_iou([], [case["b"]]).shape == (0, 1)


@pytest.mark.parametrize("way", ["missing_is_zero", "missing_dropped"])
def test_scores_equal_those_of_the_tools(way):
    scores = dense_score(PREDICTIONS, REFERENCES, PLAIN, drop_missing=way == "missing_dropped")
    assert_equal(scores, ORIGINAL["scores"]["main"][way], but=["METEOR"])
    assert len(scores["videos"]) == (5 if way == "missing_dropped" else 6)
    for threshold, videos in ORIGINAL["localisation_per_video"].items():
        for video in scores["videos"]:
            found = scores["videos"][video]["tIoU"][threshold]
            assert {name: found[name] for name in ("precision", "recall")} == pytest.approx(videos[video])


@pytest.mark.parametrize("drop_missing", [False, True])
def test_an_empty_list_scores_zero(drop_missing):
    scores = dense_score({**PREDICTIONS, "v_pool": []}, REFERENCES, PLAIN, drop_missing=drop_missing)
    assert_equal(scores, ORIGINAL["scores"]["empty"]["missing_is_zero"], but=["METEOR"])


def test_order_of_events_and_videos_does_not_matter():
    stream = random.Random(0)
    names = stream.sample(list(PREDICTIONS), len(PREDICTIONS))
    shuffled = {name: stream.sample(PREDICTIONS[name], len(PREDICTIONS[name])) for name in names}
    expected, found = (dense_score(each, REFERENCES, PLAIN) for each in (PREDICTIONS, shuffled))
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-12)


# --------------------------------------------------------------------------------------------------------------- SODA_c


def matrices():
    for case in ORIGINAL["soda_matrices_main"].values():
        yield pytest.param(case, id=f"{case['annotator']}-{case['video']}")


@pytest.mark.parametrize("case", list(matrices()))
@pytest.mark.parametrize(
    ("roles", "stored"), [("ref=pred_hyp=gold", "soda"), ("ref=gold_hyp=pred", "soda_right_roles")]
)
def test_alignment_of_the_stored_matrices(case, roles, stored):
    scores = np.array(case["iou"]) * np.array(case[f"meteor_{roles}"])
    total, expected = best_alignment(scores), ORIGINAL[stored][case["annotator"]][case["video"]]
    assert total == pytest.approx(expected["max_sum"], abs=1e-9)
    precision, recall = total / scores.shape[1], total / scores.shape[0]
    assert f1(precision, recall) == pytest.approx(expected["f1"], abs=1e-9)


def test_alignment_is_the_best_of_all():
    stream = np.random.RandomState(0)
    for rows, columns in itertools.product(range(1, 5), range(1, 5)):
        scores = stream.rand(rows, columns) * (stream.rand(rows, columns) < 0.7)
        best = max(
            scores[list(chosen), list(others)].sum()
            for number in range(min(rows, columns) + 1)
            for chosen in itertools.combinations(range(rows), number)
            for others in itertools.combinations(range(columns), number)
        )
        assert best_alignment(scores) == pytest.approx(best, abs=1e-12)


class StoredMeteor:
    """Stands for METEOR's program: scores of pairs are those of the stored matrices."""

    def __init__(self):
        self.known = {}
        for case in ORIGINAL["soda_matrices_main"].values():
            owner = list(ORIGINAL["references"]).index(case["annotator"])
            tokens = [ORIGINAL["tokens"][f"r|{owner}|{case['video']}|{each}"] for each in case["ref_order"]]
            others = [ORIGINAL["tokens"][f"p|{case['video']}|{each}"] for each in case["pred_order"]]
            for (i, reference), (j, prediction) in itertools.product(enumerate(tokens), enumerate(others)):
                self.known[reference, prediction] = case["meteor_ref=pred_hyp=gold"][i][j]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def statistics(self, candidates, references):
        return [(candidate, reference) for candidate, (reference,) in zip(candidates, references, strict=True)]

    def scores(self, statistics):
        return 0.0, [self.known.get(pair, 0.0) for pair in statistics]


@pytest.mark.parametrize(("drop_missing", "stored"), [(True, "main"), (False, "empty")])
def test_soda_c_with_stored_meteor(monkeypatch, drop_missing, stored):
    monkeypatch.setattr(dense, "Meteor", StoredMeteor)
    monkeypatch.setattr(dense, "check_tools", lambda metrics: None)
    scores = dense_score(PREDICTIONS, REFERENCES, ["soda_c"], drop_missing=drop_missing)
    assert scores["mean"]["SODA_c"] == pytest.approx(ORIGINAL["vidchapters_eval_soda"][stored], abs=1e-9)
    for video, found in scores["videos"].items():
        of_annotators = [videos[video]["f1"] for videos in ORIGINAL["soda"].values() if video in videos]
        expected = sum(of_annotators) / len(of_annotators) if of_annotators else 0.0
        assert found["SODA_c"] == pytest.approx(expected, abs=1e-9)


@needs_java
def test_all_scores_with_java():
    scores = dense_score(PREDICTIONS, REFERENCES)
    assert_equal(scores, ORIGINAL["scores"]["main"]["missing_is_zero"])
    assert scores["mean"]["SODA_c"] == pytest.approx(ORIGINAL["vidchapters_eval_soda"]["empty"], abs=1e-9)


@needs_java
@pytest.mark.slow
def test_the_text_of_pdvc_lowers_meteor():
    scores = dense_score(PREDICTIONS, REFERENCES, DENSE_METRICS[:4], unmatched="abc123!@#")
    assert_equal(scores, ORIGINAL["scores"]["main"]["missing_is_zero_abc123"])


# ---------------------------------------------------------------------------------------------------------- odd input


def test_captions_without_a_token_score_zero():
    events = {"a": [Event(0, 10, "..."), Event(0, 10, "")]}
    scores = dense_score(events, [{"a": [Event(0, 10, "a dog runs")]}], PLAIN)["mean"]
    assert scores == {**dict.fromkeys(scores, 0.0), "precision": 1.0, "recall": 1.0, "F1": 1.0}


def test_wrong_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="rouge_l, cider, meteor, soda_c, found spice"):
        dense_score(PREDICTIONS, REFERENCES, ["bleu", "spice"])
    with pytest.raises(ValueError, match="video with references"):
        dense_score({"other": []}, REFERENCES, PLAIN)
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)
    with pytest.raises(java_metrics.MissingTool, match="METEOR needs pycocoevalcap"):
        dense_score(PREDICTIONS, REFERENCES, ["soda_c"])
