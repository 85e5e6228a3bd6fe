"""`swinbert evaluate --dense`: files of events, and one clear line for what is wrong with them."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from captioning import write_git_folder
from encoded_clips import encode
from test_dense_scores import ORIGINAL, PLAIN, assert_equal
from typer.testing import CliRunner

from swinbert import cli
from swinbert.training.data.clip_datasets import load_clips
from swinbert.training.evaluation.dense import evaluate_dense
from swinbert.training.evaluation.dense_files import read_dense_predictions, read_dense_references
from swinbert.training.metrics import java_metrics
from swinbert.training.prepare import AnnotationError, IncompleteDataset, prepare

PLAIN_NAMES = ",".join(PLAIN)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start; `test_dense_scores` runs it."""
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)


@pytest.fixture
def files(tmp_path):
    """The stored predictions and references, as files."""
    predictions = json.loads(json.dumps(ORIGINAL["predictions"]["main"]).replace("na\\u00efve caf\\u00e9", "na ve caf"))
    for name, annotator in ORIGINAL["references"].items():
        write(f"{name}.json", annotator)
    write("predictions.json", {"version": "1", "results": predictions, "external_data": {}})


def write(name, content):
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def write_rows(name, rows):
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def evaluate(*arguments):
    return CliRunner().invoke(cli.app, ["evaluate", "--dense", *map(str, arguments)], catch_exceptions=False)


def scores_of(result):
    """The last line of the output, with means and thresholds as the stored scores have them."""
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    return {"mean": printed, "tIoU": printed["tIoU"], "printed": printed}


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_files(files, tmp_path):
    given = ["--predictions", "predictions.json", "--references", "val_1.json"]
    result = evaluate(*given, "val_2.json", "--output", "out")
    scores = scores_of(result)
    assert_equal(scores, ORIGINAL["scores"]["main"]["missing_is_zero"], but=["METEOR"])
    assert {"METEOR", "SODA_c"}.isdisjoint(scores["printed"])
    counts = {"videos": 6, "missing": 1, "predictions": 33, "references": 37, "annotators": 2}
    assert counts.items() <= scores["printed"].items()
    unknown, missing, left_out, _ = result.stderr.splitlines()
    assert "v_extra" in unknown and "no references" in unknown
    assert "v_pool" in missing and "score 0" in missing
    assert "meteor, soda_c, " in left_out and "pip install" in left_out

    written = json.loads((tmp_path / "out/scores.json").read_text())
    assert written["summary"] == scores["printed"]
    assert written["missing_videos"] == ["v_pool"] and len(written["videos"]) == 6
    assert len(written["settings"]["references"]) == 2 and not written["settings"]["drop_missing"]

    dropped = evaluate(*given, "--references", "val_2.json", "--missing", "drop", "--metrics", PLAIN_NAMES)
    assert_equal(scores_of(dropped), ORIGINAL["scores"]["main"]["missing_dropped"], but=["METEOR"])
    assert "v_pool" in dropped.stderr and "left out" in dropped.stderr


def rows_of_predictions():
    for video, events in json.loads(Path("predictions.json").read_text())["results"].items():
        for event in events:
            start, end = event["timestamp"]
            yield {
                "path": f"films/{video}.mp4",
                "start": start,
                "end": end,
                "caption": event["sentence"],
                "score": -1.0,
            }


def rows_of_references():
    for name, annotator in ORIGINAL["references"].items():
        for video, entry in annotator.items():
            for (start, end), sentence in zip(entry["timestamps"], entry["sentences"], strict=True):
                row = {"file_name": f"{video}.mkv", "start": start, "end": end, "captions": [sentence]}
                yield {**row, "annotator": name, "split": "validation"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_rows_score_as_the_json_does(files, suffix):
    rows = list(rows_of_predictions())
    if suffix == "csv":
        lines = [",".join(json.dumps(row[name]) for name in ("path", "start", "end", "caption")) for row in rows]
        write("rows.csv", "path,start,end,caption\r\n" + "".join(f"{line}\r\n" for line in lines))
    else:
        write_rows(f"rows.{suffix}", rows)
    write_rows("metadata.jsonl", rows_of_references())
    given = ["--predictions", f"rows.{suffix}", "--metrics", PLAIN_NAMES]
    for references in (["--references", "metadata.jsonl"], ["--dataset", "."]):
        scores = scores_of(evaluate(*given, *references, "--split", "validation"))
        assert_equal(scores, ORIGINAL["scores"]["main"]["missing_is_zero"], but=["METEOR"])
    result = evaluate(*given, "--references", "metadata.jsonl")
    assert result.exit_code == 1 and "split 'test', found validation" in result.stderr


def test_rows_without_a_caption_or_an_end():
    rows = [
        {"path": "a.mp4", "start": None, "end": None, "duration": 9.5, "caption": "a dog", "error": None},
        {"path": "b.mp4", "start": 2.0, "end": 3.0, "duration": 9.5, "caption": None, "error": "damaged"},
        {"path": "c.mp4", "start": 2.0, "end": 3.0, "caption": "a cat", "annotator": "someone"},
    ]
    assert read_dense_predictions(write_rows("rows.jsonl", rows)) == {
        "a": [(0.0, 9.5, "a dog")],
        "b": [],
        "c": [(2.0, 3.0, "a cat")],
    }


def test_several_captions_of_a_row_are_of_several_annotators():
    rows = [
        {"file_name": "a.mp4", "start": 0, "end": 1, "captions": ["one", "two"]},
        {"file_name": "a.mp4", "start": 1, "end": 2, "captions": ["three"]},
    ]
    first, second = read_dense_references([write_rows("rows.jsonl", rows)]).values()
    assert [event.caption for event in first["a"]] == ["one", "three"]
    assert [event.caption for event in second["a"]] == ["two"]


def test_a_failing_program_leaves_the_other_scores(files, monkeypatch):
    from swinbert.training.evaluation import dense as evaluation
    from swinbert.training.metrics import dense

    class Broken:
        def __init__(self):
            raise RuntimeError("METEOR's Java program gave no score")

    monkeypatch.setattr(dense, "Meteor", Broken)
    for module in (dense, evaluation):
        monkeypatch.setattr(module, "check_tools", lambda metrics: None)
    given = ["--predictions", "predictions.json", "--references", "val_1.json", "val_2.json"]
    result = evaluate(*given)
    assert_equal(scores_of(result), ORIGINAL["scores"]["main"]["missing_is_zero"], but=["METEOR"])
    assert "meteor, soda_c, METEOR's Java program gave no score" in result.stderr
    assert evaluate(*given, "--metrics", "SODA_c").exit_code == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


def test_films_of_a_dataset_are_captioned_and_scored(film, model, captioned):
    put_films(film, "a.mp4", "b.mp4", "broken.mp4")
    Path("videos/broken.mp4").write_bytes(b"nothing")
    spans = {"a": [(0, 1.5), (1.5, 3)], "b": [(0, 3)], "broken": [(0, 1)]}
    rows = [
        {"file_name": f"{video}.mp4", "start": start, "end": end, "captions": ["a dog runs"], "split": "test"}
        for video, its_spans in spans.items()
        for start, end in its_spans
    ]
    write_rows("videos/metadata.jsonl", rows)
    given = ["--dataset", "videos", "--model", model, "--segments", 1.5, "--output", "out", "--device", "cpu"]
    given += ["--metrics", PLAIN_NAMES, "--dtype", "float32", "--batch-size", 2]
    result = evaluate(*given)
    assert result.exit_code == 1 and "broken.mp4" in result.stderr
    assert sum(captioned) >= 4
    printed = json.loads(result.stdout.splitlines()[-1])
    predictions = read_dense_predictions("out/predictions.jsonl")
    assert predictions.keys() == {"a", "b", "broken"} and predictions["broken"] == []
    assert (printed["videos"], printed["missing"], printed["annotators"]) == (3, 0, 1)
    assert printed["predictions"] == len(predictions["a"]) + len(predictions["b"])
    written = json.loads(Path("out/scores.json").read_text())
    assert written["settings"]["made_with"]["segments"]["length"] == 1.5

    captioned.clear()  # the films that have their captions are not captioned again
    again = evaluate(*given)
    assert json.loads(again.stdout.splitlines()[-1]) == printed and sum(captioned) <= 1
    other = evaluate(*given[:4], "--segments", 1.0, *given[6:])
    assert other.exit_code == 1 and "made with other settings" in other.stderr
    assert "no split 'train'" in evaluate(*given, "--split", "train").stderr


# ---------------------------------------------------------------------------------------------------------- odd input


def event(start=0, end=1, sentence="a dog"):
    return {"sentence": sentence, "timestamp": [start, end]}


def results(**videos):
    return {"results": videos}


def annotated(*spans, sentences=None):
    return {"duration": 9, "timestamps": spans, "sentences": ["a dog"] * len(spans) if sentences is None else sentences}


REFERENCE = {"v_a": annotated([0, 1])}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected JSON"),
        ('{"results": {"v_a": [', "line 1: expected JSON"),
        ({"v_a": [event()]}, "expected an object with 'results'"),
        ({"results": {}}, "expected predictions, found none"),
        (results(v_a=[]), "expected predictions, found none"),
        (results(v_a=[event(-1, 2)]), r"results.v_a\[0\].timestamp to be start and end in seconds, 0 or more"),
        (results(v_a=[event(2, 1)]), "a start that is not after the end, found .2, 1."),
        (results(v_a=[event(float("nan"), 1)]), "a number of seconds, found NaN"),
        (results(v_a=[event(0, "1")]), r"timestamp\[1\] to be a number of seconds"),
        (results(v_a=[{"sentence": "a", "timestamp": [1]}]), "a list of start and end in seconds"),
        (results(v_a=[event(sentence=None)]), "an object with 'sentence'"),
        (results(v_a=[event(sentence=3)]), "sentence to be text, found 3"),
        ('{"results": {"v_a": [], "v_a": []}}', "every key of an object once, found 'v_a' again"),
        (results(v_b=[event()]), "videos with references, such as v_a; found v_b"),
        (results(**{"a.mp4": [event()]}), "found a.mp4. a.mp4 may be v_a: rename"),
    ],
)
def test_broken_predictions_are_refused(content, message):
    write("predictions.json", content)
    write("val.json", REFERENCE)
    check_refused(message)


def check_refused(message, *references):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate_dense("predictions.json", references or ["val.json"])
    result = evaluate("--predictions", "predictions.json", "--references", *(references or ["val.json"]))
    assert result.exit_code == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: expected JSON"),
        ({}, "expected references, found none"),
        ({"v_a": annotated()}, "v_a to be an object with a sentence"),
        ({"v_a": {"timestamps": [[0, 1]]}}, "an object with 'sentences'"),
        ({"v_a": annotated([0, 1], sentences=["a", "b"])}, "`timestamps` as `sentences`, not 1 and 2"),
        ({"v_a": annotated([0, 1], sentences=[None])}, r"sentences\[0\] to be text"),
        ({"v_a": annotated([-3, 1])}, r"timestamps\[0\] to be start and end in seconds, 0 or more"),
        ({"v_a": annotated([0, float("nan")])}, "a number of seconds, found NaN"),
    ],
)
def test_broken_references_are_refused(content, message):
    write("predictions.json", results(v_a=[event()]))
    write("val.json", content)
    check_refused(message)


def test_missing_files_of_predictions_are_refused():
    write("val.json", REFERENCE)
    check_refused("Expected a file of predictions, found no predictions.json")
    Path("predictions.json").mkdir()
    check_refused("found the folder predictions.json")


def test_repeated_and_missing_files_of_references_are_refused():
    write("predictions.json", results(v_a=[event()]))
    shutil.copy(write("val.json", REFERENCE), "copy.json")
    check_refused("copy.json is the same as val.json", "val.json", "copy.json")
    check_refused("val.json is the same as val.json", "val.json", "val.json")
    check_refused("no such folder: nothing.json", "nothing.json")
    row = {"file_name": "v_a.mp4", "start": 0, "end": 1, "captions": ["a"], "annotator": "first"}
    write_rows("one.jsonl", [row])
    write_rows("two.jsonl", [row, row])
    check_refused("annotators of its own, found 'first' of another file", "one.jsonl", "two.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "a"}, "rows.jsonl, line 2: expected an object with `file_name`"),
        ({"path": "b.mp4", "caption": "a"}, "line 2: expected `end` in seconds, found none"),
        ({"path": "b.mp4", "caption": "a", "start": 3, "end": 1}, "line 2: expected a start that is not after the end"),
        (
            {"path": "b.mp4", "caption": "a", "start": float("nan"), "end": 1},
            "line 2: expected start and end in seconds",
        ),
        ({"path": "b.mp4", "caption": "a", "start": "0", "end": 1}, "line 2: expected `start` in seconds, found '0'"),
        ({"path": "b.mp4", "caption": 7, "start": 0, "end": 1}, "line 2: expected `caption` to be a text"),
        ({"path": "b.mp4", "captions": ["a", "b"], "start": 0, "end": 1}, "one caption for each row"),
        ({"path": "other/a.mp4", "caption": "a", "start": 0, "end": 1}, "names, found other/a.mp4 and a.mp4"),
        ([], "line 2: expected an object"),
    ],
)
def test_broken_rows_are_refused(row, message):
    write_rows("rows.jsonl", [{"path": "a.mp4", "start": 0, "end": 1, "caption": "a"}, row])
    with pytest.raises(ValueError, match=message):
        read_dense_predictions("rows.jsonl")


def test_names_that_nearly_agree_are_pointed_out(recwarn):
    write("predictions.json", results(v_a=[event()], b=[event()]))
    write("val.json", {"v_a": annotated([0, 1]), "v_b": annotated([0, 1])})
    evaluate_dense("predictions.json", ["val.json"])
    unknown, missing = (str(warning.message) for warning in recwarn)
    assert "b may be v_b" in unknown and missing.endswith("score 0: v_b.")


def test_references_that_end_before_they_start_match_nothing():
    write("predictions.json", results(v_a=[event(0, 9)]))
    write("val.json", {"v_a": annotated([0, 9], [7, 3])})
    with pytest.warns(UserWarning, match="1 references end before they start.*: v_a"):
        summary = evaluate_dense("predictions.json", ["val.json"]).summary
    assert (summary["precision"], summary["recall"], summary["references"]) == (1, 0.5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dense", "--dataset", "d"], "--dense needs --predictions, or --segments"),
        (["--dense", "--predictions", "p", "--dataset", "d", "--segments", "2"], "leave out --segments"),
        (["--dense", "--dataset", "d", "--stride", "1"], "--dense needs --predictions, or --segments"),
        (["--dense", "--dataset", "d", "--segments", "2", "--limit", "3"], "--limit does not belong to --dense"),
        (["--dense", "--dataset", "d", "--segments", "2", "--allow-missing"], "--allow-missing does not belong"),
        (["--dataset", "d", "--segments", "2"], "--segments belongs to --dense"),
        (["--dense", "--predictions", "p", "--dataset", "d", "x.json"], "name files of references after --references"),
        (["--predictions", "p", "--references", "a", "b"], "several need --dense"),
        (["--predictions", "p", "--references", "a", "--missing", "drop"], "--missing belongs to --dense"),
        (["--dense", "--predictions", "p", "--references", "a", "--model", "m"], "leave out --model"),
    ],
)
def test_wrong_use_is_refused(arguments, message):
    result = CliRunner().invoke(cli.app, ["evaluate", *arguments])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


# ----------------------------------------------------------------------------------------------------------- preparing


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three seconds, encoded."""
    return encode(tmp_path_factory.mktemp("film") / "film.mp4", range(30), rate=10).read_bytes()


def put_films(film, *names):
    Path("videos").mkdir()
    for number, name in enumerate(names):
        # A box that decoders skip makes every file different.
        Path("videos", name).write_bytes(film + struct.pack(">I4sI", 12, b"free", number))


def swinbert(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_activitynet_keeps_both_annotators(film):
    put_films(film, "v_a.mp4", "v_b.mkv", "v_c.mp4")
    write("train.json", {"v_a": annotated([0, 1], [1, 2.5])})
    write("val_1.json", {"v_b": annotated([0, 1.5], [1.5, 3]), "v_c": annotated([0, 3])})
    write("val_2.json", {"v_b": annotated([0, 3], sentences=["a cat"])})
    given = ["activitynet", "train.json", "val_1.json", "val_2.json", "--videos", "videos", "--output", "activitynet"]
    report = swinbert("prepare", *given).stdout
    assert "train: 2 of 2 clips" in report and "validation: 4 of 4 clips" in report
    assert "validation has 2 annotators: val_1 (3 clips), val_2 (1 clips)." in report
    rows = [json.loads(line) for line in Path("activitynet/metadata.jsonl").read_text().splitlines()]
    first = {"file_name": "videos/v_a.mp4", "video_id": "v_a_0", "split": "train", "captions": ["a dog"]}
    assert rows[0] == {**first, "start": 0, "end": 1}
    assert [(row["video_id"], row.get("annotator"), row["start"]) for row in rows[1:]] == [
        ("v_a_1", None, 1),
        ("v_b_0", "val_1", 0),
        ("v_b_1", "val_1", 1.5),
        ("v_c_0", "val_1", 0),
        ("v_b_2", "val_2", 0),
    ]
    assert len(load_clips("activitynet", "validation")) == 4
    swinbert("doctor", "activitynet", "--workers", 0)

    # As references, the folder is worth as much as the original files.
    write("predictions.json", results(v_b=[event(0, 1.4), event(0.2, 3, "a cat")], v_c=[event(0, 1)]))
    plain = ["--predictions", "predictions.json", "--metrics", PLAIN_NAMES]
    of_files = scores_of(evaluate(*plain, "--references", "val_1.json", "val_2.json"))
    of_folder = scores_of(evaluate(*plain, "--references", "activitynet", "--split", "validation"))
    assert of_folder == of_files and of_files["printed"]["annotators"] == 2


def test_activitynet_reports_what_it_leaves_out(film):
    put_films(film, "v_a.mp4")
    file = write("train.json", {"v_a": annotated([0, 1], [2, 1], [9, 12]), "v_gone": annotated([0, 1])})
    with pytest.raises(IncompleteDataset):
        prepare("activitynet", [file], "videos", "activitynet")
    report = str(prepare("activitynet", [file], "videos", "activitynet", allow_missing=True))
    assert "train: 1 of 4 clips" in report
    assert "no such video, 1: v_gone_0" in report
    assert "start and end outside the video, 2: v_a_1 (2 to 1), v_a_2 (from 9 s of 3.0 s)" in report
    with pytest.raises(ValueError, match="a second train"):
        prepare("activitynet", [file, f"train={file}"], "videos", "other")
    for content, message in [
        ({"v_a": annotated([0, 1], sentences=[])}, "not 1 and 0"),
        ({"../v_a": annotated([0, 1])}, "stays in its folder"),
        ({"v_a": annotated(["0", 1])}, "a number of seconds"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            prepare("activitynet", [write("train.json", content)], "videos", "other")


def test_untrimmed_youcook2_takes_whole_videos(film):
    put_films(film, "GLd3.mp4", "GLd3_0.mp4")
    segments = [{"id": number, "segment": [number, number + 1], "sentence": text} for number, text in enumerate("ab")]
    file = write("youcookii_trainval.json", {"database": {"GLd3": {"subset": "validation", "annotations": segments}}})
    swinbert("prepare", "youcook2", file, "--videos", "videos", "--output", "whole", "--untrimmed")
    swinbert("prepare", "youcook2", file, "--videos", "videos", "--output", "parts")
    for folder, expected in (("whole", ["GLd3.mp4", "GLd3.mp4"]), ("parts", ["GLd3_0.mp4", "GLd3.mp4"])):
        rows = [json.loads(line) for line in Path(folder, "metadata.jsonl").read_text().splitlines()]
        assert [Path(row["file_name"]).name for row in rows] == expected
    assert read_dense_references(["whole"], "validation") == {"whole": {"GLd3": [(0, 1, "a"), (1, 2, "b")]}}
    with pytest.raises(ValueError, match="parts, clip 0: expected `end`"):
        read_dense_references(["parts"], "validation")
    videos = {"videos": [{"video_id": "video1"}], "sentences": [{"video_id": "video1", "caption": "a"}]}
    with pytest.raises(ValueError, match="msrvtt does not say of which video video1 is a part"):
        prepare("msrvtt", [write("msrvtt.json", videos)], "videos", "other", untrimmed=True)
