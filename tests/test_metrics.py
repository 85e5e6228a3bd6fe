"""Scores of captions, against numbers of the COCO caption tools, and against the tools themselves where they are."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

import caption_fuzz
import golden
import pytest

from swinbert.training.metrics import (
    METRICS,
    METRICS_WITHOUT_JAVA,
    CiderD,
    MissingTool,
    check_tools,
    evaluate_path,
    java_metrics,
    ptb_tokenize,
    score,
    scoring,
)

needs_java = pytest.mark.skipif(
    not (shutil.which("java") and find_spec("pycocoevalcap")),
    reason="needs the COCO tools: Java, and pip install 'swinbert[metrics]'",
)
ORIGINAL = json.loads((golden.FOLDER / "caption_metrics.json").read_text(encoding="utf-8"))
PREDICTIONS = {item["id"]: item["hypothesis"] for item in ORIGINAL["data"]}
REFERENCES = {item["id"]: item["references"] for item in ORIGINAL["data"]}


@pytest.mark.parametrize("item", ORIGINAL["data"], ids=lambda item: item["id"])
def test_tokens_are_those_of_the_java_tokenizer(item):
    expected = ORIGINAL["tokenized"][item["id"]]
    assert list(ptb_tokenize(item["references"])) == expected["refs"]
    assert list(ptb_tokenize([item["hypothesis"]])) == expected["hyp"]


def test_difficult_captions_have_the_stored_tokens_of_java():
    stored = json.loads(caption_fuzz.FIXTURE.read_text(encoding="utf-8"))
    assert len(stored["captions"]) == 300
    assert ptb_tokenize(stored["captions"]) == stored["tokens"]


@needs_java
def test_two_thousand_difficult_captions_have_the_tokens_of_java():
    captions = caption_fuzz.random_captions(2000, seed=0)
    found, expected = ptb_tokenize(captions), caption_fuzz.java_tokens(captions)
    assert [each for each in zip(captions, found, expected, strict=True) if each[1] != each[2]] == []


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores_equal_those_of_pycocoevalcap():
    scores = score(PREDICTIONS, REFERENCES)
    assert_golden(scores, ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"))


def assert_golden(scores, names):
    for name in names:
        assert scores["corpus"][name] == pytest.approx(ORIGINAL["corpus"][name], abs=1e-6)
        for clip, expected in ORIGINAL["per_item"].items():
            assert scores["clips"][clip][name] == pytest.approx(expected[name], abs=1e-6), (clip, name)


@needs_java
def test_meteor_equals_that_of_pycocoevalcap():
    assert_golden(score(PREDICTIONS, REFERENCES, ["meteor"]), ["METEOR"])


@needs_java
@pytest.mark.slow
def test_scores_of_difficult_captions_equal_those_of_pycocoevalcap():
    """Predictions are references of their clip with words dropped, doubled and swapped, so that scores vary."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    stream, captions = random.Random(1), iter(caption_fuzz.random_captions(600, seed=1))
    references = {f"clip{number}": [next(captions) for _ in range(stream.randint(1, 4))] for number in range(150)}
    predictions = {clip: changed(stream.choice(texts), stream) for clip, texts in references.items()}

    tokens = iter(caption_fuzz.java_tokens([text for texts in references.values() for text in texts]))
    gold = {clip: [next(tokens) for _ in texts] for clip, texts in references.items()}
    tokens = iter(caption_fuzz.java_tokens(list(predictions.values())))
    result = {clip: [next(tokens)] for clip in predictions}
    scores = score(predictions, references, [*METRICS_WITHOUT_JAVA, "meteor"])
    for metric, scorer in {"bleu": Bleu(4), "rouge_l": Rouge(), "cider": Cider(), "meteor": Meteor()}.items():
        corpus, clips = scorer.compute_score(gold, result)
        if metric != "bleu":
            corpus, clips = [corpus], [clips]
        for name, value, values in zip(METRICS[metric], corpus, clips, strict=True):
            assert scores["corpus"][name] == pytest.approx(value, abs=1e-6), name
            found = [each[name] for each in scores["clips"].values()]
            assert found == pytest.approx(list(values), abs=1e-6), name
            assert len(set(found)) > 10, name  # not all zero, or one


def changed(caption, stream):
    words = [word for word in caption.split(" ") for _ in range(stream.choice([0, 1, 1, 1, 1, 2]))]
    if len(words) > 1 and stream.random() < 0.5:
        place = stream.randrange(len(words) - 1)
        words[place : place + 2] = reversed(words[place : place + 2])
    return " ".join(words)


def test_cider_d_of_some_clips_is_that_of_the_whole_set():
    """As SCST uses it: document frequencies of all clips, scores of a few."""
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
        ({"a": None}, {"a": ["x"]}, TypeError, "string as the caption of clip 'a', found None"),
        ({"a": "x"}, {"a": "x"}, TypeError, "list of strings .* clip 'a', found 'x'"),
    ],
)
def test_odd_input_is_refused(predictions, references, error, message):
    with pytest.raises(error, match=message):
        score(predictions, references)


# ----------------------------------------------------------------------------------------------------- METEOR and SPICE

METEOR = """
import sys

for line in sys.stdin:
    command, *texts = line.rstrip("\\n").split(" ||| ")
    if command == "SCORE":
        if "stop" in texts[-1]:
            sys.exit(1)
        print(len(texts), len(texts[-1].split()), "0.0 " * 30, flush=True)  # as many statistics as METEOR has
    else:
        print("\\n".join(text.split()[1] for text in texts))
        print(sum(int(text.split()[0]) for text in texts), flush=True)
"""


@pytest.fixture
def java(tmp_path, monkeypatch):
    """A fake `java`: it scores a candidate by its number of words, the corpus by the number of texts."""
    (tmp_path / "meteor").mkdir()
    (tmp_path / "java").write_text(f"#!{sys.executable}\n{METEOR}")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(java_metrics, "_coco_tools", lambda metric: tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="a script is a program on POSIX alone")
def test_meteor_gets_one_line_per_clip_for_any_text(java, monkeypatch):
    texts = ["a b c", "a ||| b", "a\nb\r\nc", "", "|||", "a |||| b c", "é 人\u2028x"]
    corpus, scores = java_metrics.meteor(texts * 60, [["x", "y ||| z"]] * 420)
    assert scores == [3, 2, 3, 0, 0, 3, 3] * 60
    assert corpus == 3 * 420
    write = java_metrics._write
    for pause in (0.0, 0.5):  # the program may or may not have ended by then
        monkeypatch.setattr(java_metrics, "_write", lambda *args, pause=pause: (time.sleep(pause), write(*args)))
        with pytest.raises(RuntimeError, match="METEOR.*meteor-1.5.jar"):
            java_metrics.meteor(["a", "stop", "b"], [["x"]] * 3)


def test_missing_tools_are_reported_before_scoring(monkeypatch, tmp_path):
    for name in ("bleu", "rouge_l", "CiderD", "meteor", "spice"):
        monkeypatch.setattr(scoring, name, None)
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)
    for metric in ("meteor", "spice"):
        with pytest.raises(MissingTool, match=f'{metric.upper()} needs pycocoevalcap: pip install "swinbert.metrics."'):
            score(PREDICTIONS, REFERENCES, ["cider", metric])

    package = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: package)
    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)
    for metric in ("meteor", "spice"):
        with pytest.raises(MissingTool, match=f"{metric.upper()} is a Java program.*default-jre-headless.*BLEU"):
            score(PREDICTIONS, REFERENCES, ["cider", metric])

    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: "/usr/bin/java")
    with pytest.raises(MissingTool, match="stanford-corenlp-3.6.0.jar.*get_stanford_models"):
        check_tools(["spice"])
    check_tools(["meteor"])
    check_tools(METRICS_WITHOUT_JAVA)


# ----------------------------------------------------------------------------------------------------- evaluate library

LOADED = """
import json, sys
import evaluate

paths, predictions, references = json.loads(sys.stdin.read())
found = {}
for name, path in paths.items():
    metric = evaluate.load(path)
    try:
        found[name] = metric.compute(predictions=predictions, references=references)
    except RuntimeError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_modules_load_offline_by_their_path(tmp_path):
    """In a process of its own, in a folder of its own, without `java` on the PATH."""
    paths = {name: evaluate_path(name) for name in METRICS}
    given = json.dumps([paths, list(PREDICTIONS.values()), list(REFERENCES.values())])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED], input=given, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == METRICS.keys()
    for name in METRICS_WITHOUT_JAVA:
        expected = {each: ORIGINAL["corpus"][each.removesuffix("-D")] for each in METRICS[name]}
        assert found[name] == pytest.approx(expected, abs=1e-6)
    for name in ("meteor", "spice"):
        assert found[name].startswith(f"{name.upper()} ")  # what it lacks
    with pytest.raises(ValueError, match="found 'CIDEr'"):
        evaluate_path("CIDEr")
