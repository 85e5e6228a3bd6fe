"""`swinbert evaluate`: captions that survive a kill, scores that say what they are of, errors before work is lost."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import datasets
import pytest
import torch
from captioning import write_clip, write_git_folder
from transformers import pipeline
from typer.testing import CliRunner

from swinbert import cli
from swinbert.processing import VideoCaptioningPipeline
from swinbert.training.evaluation.caption_files import clip_ids, read_predictions, read_references
from swinbert.training.evaluation.clips import load_evaluation_clips
from swinbert.training.metrics import java_metrics, score, scoring

NAMES = [f"clip{number}" for number in range(5)]
REFERENCES = {name: [f"a dog runs on grass {number}", "the man is in a red car"] for number, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch):
    """By default it would be among the scores where it can be, and takes seconds to start."""
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_clip(folder / f"{name}.mp4", seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def captions(model, videos):
    """What each clip is to be called, clip by clip."""
    pipe = pipeline("video-captioning", model=str(model), device="cpu")
    return {name: pipe(video)[0]["generated_text"] for name, video in videos.items()}


@pytest.fixture
def dataset(tmp_path, videos):
    return write_dataset(tmp_path / "dataset", videos)


def write_dataset(folder, videos, references=REFERENCES):
    folder.mkdir()
    lines = []
    for name, video in videos.items():
        (folder / video.name).write_bytes(video.read_bytes())
        line = {"file_name": video.name, "video_id": name, "split": "test", "captions": references.get(name, [])}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def evaluate(model, dataset, tmp_path):
    """Runs the command on model and data set into `tmp_path / "output"`, if the arguments say nothing else."""

    def run(*arguments, data=dataset, batch_size=2, output=tmp_path / "output"):
        usual = ["--model", model, "--dataset", data, "--output", output, "--device", "cpu", "--num-workers", 0]
        return command(*usual, "--batch-size", batch_size, "--dtype", "float32", *arguments)

    return run


def command(*arguments):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# ----------------------------------------------------------------------------------------------- captions and scores


def test_captions_and_scores_of_a_split(evaluate, captions, captioned, tmp_path):
    result = evaluate()
    assert result.exit_code == 0, result.stderr
    assert captioned == [2, 2, 1]
    lines = lines_of(tmp_path / "output/predictions.jsonl")
    assert {line["id"]: line["caption"] for line in lines} == captions
    assert all(line["error"] is None and line["score"] < 0 for line in lines)

    printed = json.loads(result.stdout)
    assert (printed["split"], printed["clips"], printed["missing"], printed["references"]) == ("test", 5, 0, 10)
    assert printed["distinct_captions"] == len(set(captions.values())) / 5
    for name, value in score(captions, REFERENCES)["corpus"].items():
        assert printed[name] == pytest.approx(value, abs=1e-12)

    written = json.loads((tmp_path / "output/scores.json").read_text())
    assert {name: written[name] for name in printed} == printed
    settings = written["settings"]
    assert settings["frames"]["frames"] == 6 and settings["frames"]["sampler"] == "uniform"
    assert settings["frames"]["decoder"].startswith("pyav ")
    assert settings["generation"]["num_beams"] == 1 and settings["generation"]["max_new_tokens"] == 50
    assert settings["model"]["dtype"] == "float32" and len(settings["model"]["sha256"]) == 64
    assert {"swinbert", "torch", "transformers"} <= settings["versions"].keys()
    assert settings["dataset"]["split"] == "test" and settings["dataset"]["clips"] == 5


def test_workers_read_the_same_clips(evaluate, captions, tmp_path):
    assert evaluate("--num-workers", 1).exit_code == 0
    assert {line["id"]: line["caption"] for line in lines_of(tmp_path / "output/predictions.jsonl")} == captions


def test_options_reach_the_model_and_the_record(evaluate, model, videos, tmp_path):
    options = ["--beams", 3, "--max-length", 6, "--num-frames", 3, "--limit", 2, "--metrics", "cider"]
    result = evaluate(*options)
    pipe = pipeline("video-captioning", model=str(model), device="cpu", num_frames=3, num_beams=3, max_length=6)
    lines = lines_of(tmp_path / "output/predictions.jsonl")
    assert [(line["id"], line["caption"]) for line in lines] == [
        (name, pipe(videos[name])[0]["generated_text"]) for name in NAMES[:2]
    ]
    printed = json.loads(result.stdout)
    assert (printed["limit"], printed["clips"]) == (2, 2) and "CIDEr" in printed and "Bleu_4" not in printed
    settings = json.loads((tmp_path / "output/settings.json").read_text())
    assert settings["frames"]["frames"] == 3
    assert (settings["generation"]["num_beams"], settings["generation"]["max_length"]) == (3, 6)


def test_coco_files_are_those_of_the_coco_tools(evaluate, captions, tmp_path):
    evaluate()
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools reads COCO files")
    annotations = coco.COCO(str(tmp_path / "output/coco_annotations.json"))
    results = annotations.loadRes(str(tmp_path / "output/coco_results.json"))
    assert {name: [each["caption"] for each in annotations.imgToAnns[name]] for name in NAMES} == REFERENCES
    assert {name: results.imgToAnns[name][0]["caption"] for name in NAMES} == captions


def test_without_output_each_setting_has_its_own_folder(evaluate, model, dataset, tmp_path, monkeypatch, captioned):
    monkeypatch.chdir(tmp_path)
    usual = ["--model", model, "--dataset", dataset, "--device", "cpu", "--num-workers", 0, "--limit", 1]
    first, again, other = command(*usual), command(*usual), command(*usual, "--beams", 2)
    assert [result.exit_code for result in (first, again, other)] == [0, 0, 0]
    folders = sorted((tmp_path / "outputs/evaluation").iterdir())
    assert len(folders) == 2 and all(f"{model.name}-dataset-test-" in folder.name for folder in folders)
    assert "1 of 1 clips have their captions" in again.stderr and captioned == [1, 1]


def test_a_split_without_captions_is_captioned_and_not_scored(evaluate, videos, captions, tmp_path):
    result = evaluate(data=write_dataset(tmp_path / "private", videos, references={}))
    assert result.exit_code == 0 and "no scores" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["clips"] == 5 and "CIDEr" not in printed
    assert len(lines_of(tmp_path / "output/predictions.jsonl")) == 5
    assert len(json.loads((tmp_path / "output/coco_results.json").read_text())) == 5
    assert not (tmp_path / "output/coco_annotations.json").exists()

    # Scored later, when somebody has references.
    file = write_coco_annotations(tmp_path / "references.json")
    later = command("--predictions", tmp_path / "output/predictions.jsonl", "--references", file)
    assert json.loads(later.stdout)["CIDEr"] == pytest.approx(score(captions, REFERENCES)["corpus"]["CIDEr"])


def write_coco_annotations(file, references=REFERENCES):
    pairs = [(name, text) for name, texts in references.items() for text in texts]
    annotations = [{"id": number, "image_id": name, "caption": text} for number, (name, text) in enumerate(pairs)]
    file.write_text(json.dumps({"images": [{"id": name} for name in references], "annotations": annotations}, indent=1))
    return file


def test_references_of_a_file_come_before_those_of_the_dataset(evaluate, captions, tmp_path):
    other = {name: ["a blue ball then turns left"] for name in NAMES}
    result = evaluate("--references", write_coco_annotations(tmp_path / "references.json", other))
    printed = json.loads(result.stdout)
    assert printed["references"] == 5
    assert printed["Bleu_1"] == pytest.approx(score(captions, other)["corpus"]["Bleu_1"])


def test_clips_of_parquet_files(evaluate, videos, captions, tmp_path):
    clips = [{"video": {"bytes": video.read_bytes(), "path": video.name}} for video in videos.values()]
    features = datasets.Features({"video": datasets.Video(decode=False)})
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_list(clips, features=features).to_parquet(tmp_path / "parquet/test-00000-of-00001.parquet")
    result = evaluate(data=tmp_path / "parquet")
    assert result.exit_code == 0, result.stderr
    lines = lines_of(tmp_path / "output/predictions.jsonl")
    assert [(line["id"], line["caption"]) for line in lines] == [(f"{name}.mp4", captions[name]) for name in NAMES]


def test_the_same_clips_are_parts_of_one_file_in_every_form(dataset):
    lines = [
        {"file_name": "clip0.mp4", "captions": ["a dog"], "start": 0, "end": 1, "split": "test"},
        {"file_name": "clip0.mp4", "captions": ["a man"], "start": 1, "split": "test"},
    ]
    (dataset / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    clips = load_evaluation_clips(dataset, "test", dataset / "metadata.jsonl")
    assert clips.references == {"clip0.mp4#0.0-1.0": ["a dog"], "clip0.mp4#1.0-": ["a man"]}


# --------------------------------------------------------------------------------------------------- METEOR and SPICE


@pytest.fixture
def meteor(monkeypatch):
    """As if it could be computed: 0.25 for every caption, or what is put in its place."""
    found = {"meteor": lambda candidates, references: (0.25, [0.25] * len(candidates))}
    monkeypatch.setattr(java_metrics, "_coco_tools", lambda metric: None)
    monkeypatch.setattr(scoring, "meteor", lambda *captions: found["meteor"](*captions))
    return found


def test_without_java_the_other_scores_are_given(evaluate, monkeypatch, tmp_path):
    said = []
    forward = VideoCaptioningPipeline.forward
    monkeypatch.setattr(warnings, "warn", lambda message, **_: said.append(str(message)))
    monkeypatch.setattr(VideoCaptioningPipeline, "forward", lambda *a, **b: (said.append("pass"), forward(*a, **b))[1])
    result = evaluate("--limit", 2)
    assert result.exit_code == 0 and "CIDEr" in json.loads(result.stdout) and "METEOR" not in json.loads(result.stdout)
    assert said[0].startswith("METEOR is left out: METEOR needs pycocoevalcap") and said[1] == "pass"
    left_out = json.loads((tmp_path / "output/scores.json").read_text())["left_out"]
    assert "pycocoevalcap" in left_out["meteor"] and "download" in left_out["spice"]


def test_meteor_is_among_the_scores_where_it_can_be(evaluate, meteor, tmp_path):
    result = evaluate("--limit", 2)
    assert result.exit_code == 0 and json.loads(result.stdout)["METEOR"] == 0.25
    written = json.loads((tmp_path / "output/scores.json").read_text())
    assert written["METEOR"] == 0.25 and set(written["left_out"]) == {"spice"}
    assert "METEOR" not in json.loads(evaluate("--limit", 2, "--metrics", "cider").stdout)


def test_a_program_that_fails_costs_no_other_score(evaluate, meteor, tmp_path):
    def fail(candidates, references):
        raise RuntimeError("METEOR's Java program gave no score.")

    meteor["meteor"] = fail
    for options, exit_code in ((), 0), (("--metrics", "bleu,meteor"), 1):
        result = evaluate("--limit", 2, *options)
        assert (result.exit_code, "Bleu_4" in json.loads(result.stdout)) == (exit_code, True)
        assert "Left out: meteor, METEOR's Java program gave no score" in result.stderr
    assert "no score" in json.loads((tmp_path / "output/scores.json").read_text())["left_out"]["meteor"]


# ------------------------------------------------------------------------------------------------- going on, and kills


def without_speed(stdout):
    return {name: value for name, value in json.loads(stdout).items() if name != "seconds_per_clip"}


def test_a_second_call_captions_what_is_missing(evaluate, captioned, tmp_path):
    whole = evaluate()
    file = tmp_path / "output/predictions.jsonl"
    content = file.read_bytes()
    captioned.clear()
    again = evaluate()
    assert captioned == [] and file.read_bytes() == content
    assert json.loads(whole.stdout)["seconds_per_clip"] > 0
    assert json.loads(again.stdout) == without_speed(whole.stdout), "no clip was captioned, so there is no speed"
    assert "5 of 5 clips have their captions" in again.stderr

    file.write_bytes(b"".join(content.splitlines(keepends=True)[:3]))
    assert without_speed(evaluate().stdout) == without_speed(whole.stdout)
    assert captioned == [1, 1] and file.read_bytes() == content


@pytest.mark.parametrize("rest", ['{"id": "clip3", "capt', "\0\0\0\0", '{"id": "clip3"}', "7"])
def test_a_line_that_was_cut_off_is_made_again(evaluate, captioned, tmp_path, rest):
    evaluate()
    file = tmp_path / "output/predictions.jsonl"
    content = file.read_bytes()
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:3]) + rest.encode())
    captioned.clear()
    result = evaluate()
    assert result.exit_code == 0 and "cut off in line 4" in result.stderr
    assert captioned == [1, 1] and file.read_bytes() == content


def test_a_whole_line_without_its_end_is_kept(evaluate, captioned, tmp_path):
    evaluate()
    file = tmp_path / "output/predictions.jsonl"
    content = file.read_bytes()
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:3]).rstrip(b"\n"))
    captioned.clear()
    assert evaluate().exit_code == 0
    assert captioned == [1, 1] and file.read_bytes() == content


def test_a_strange_line_is_refused(evaluate, tmp_path):
    evaluate("--limit", 1)
    file = tmp_path / "output/predictions.jsonl"
    file.write_text("what is this\n" + file.read_text())
    result = evaluate()
    assert result.exit_code == 1 and "predictions.jsonl, line 1: expected a prediction" in result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_in_the_middle_loses_nothing(evaluate, captioned, tmp_path, monkeypatch):
    undisturbed = evaluate(batch_size=1, output=tmp_path / "undisturbed")
    expected = (tmp_path / "undisturbed/predictions.jsonl").read_bytes()
    file = tmp_path / "output/predictions.jsonl"

    def slowly():
        forward = VideoCaptioningPipeline.forward
        VideoCaptioningPipeline.forward = lambda *args, **kwargs: (time.sleep(0.3), forward(*args, **kwargs))[1]
        evaluate(batch_size=1)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    try:
        process = multiprocessing.get_context("fork").Process(target=slowly)
        process.start()
        deadline = time.monotonic() + 60
        while not file.exists() or file.read_bytes().count(b"\n") < 2:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    finally:
        torch.set_num_threads(threads)
    assert process.exitcode == -signal.SIGKILL
    done = file.read_bytes().count(b"\n")
    assert 2 <= done < 5 and expected.startswith(file.read_bytes())
    captioned.clear()
    result = evaluate(batch_size=1)
    assert result.exit_code == 0 and without_speed(result.stdout) == without_speed(undisturbed.stdout)
    assert file.read_bytes() == expected and sum(captioned) == 5 - done


def test_clips_that_cannot_be_read_are_reported_and_tried_again(
    evaluate, dataset, videos, captions, captioned, tmp_path
):
    (dataset / "clip1.mp4").write_bytes(b"no video")
    (dataset / "clip4.mp4").unlink()
    result = evaluate()
    assert result.exit_code == 1
    assert "swinbert: clip1: " in result.stderr and "swinbert: clip4: " in result.stderr
    assert "2 of 5 clips could not be captioned; scores are of the other 3" in result.stderr
    printed = json.loads(result.stdout)
    assert (printed["clips"], printed["missing"], printed["references"]) == (3, 2, 6)
    written = json.loads((tmp_path / "output/scores.json").read_text())
    assert set(written["missing_clips"]) == {"clip1", "clip4"} and all(written["missing_clips"].values())
    lines = {line["id"]: line for line in lines_of(tmp_path / "output/predictions.jsonl")}
    assert lines["clip1"]["caption"] is None and lines["clip1"]["error"] == written["missing_clips"]["clip1"]
    readable = {name: captions[name] for name in ("clip0", "clip2", "clip3")}
    assert {name: line["caption"] for name, line in lines.items() if line["caption"]} == readable

    # The file alone is known to lack them, too.
    alone = command("--predictions", tmp_path / "output/predictions.jsonl", "--dataset", dataset)
    assert alone.exit_code == 1 and json.loads(alone.stdout)["CIDEr"] == printed["CIDEr"]
    assert json.loads(alone.stdout)["missing"] == 2

    for name in ("clip1", "clip4"):
        (dataset / f"{name}.mp4").write_bytes(videos[name].read_bytes())
    captioned.clear()
    result = evaluate()
    assert result.exit_code == 0 and captioned == [1, 1]
    lines = lines_of(tmp_path / "output/predictions.jsonl")
    assert [line["id"] for line in lines] == NAMES and {line["id"]: line["caption"] for line in lines} == captions


def test_another_video_of_the_same_name_is_captioned_again(evaluate, dataset, captions, captioned, tmp_path):
    evaluate()
    captioned.clear()
    (dataset / "clip2.mp4").write_bytes((dataset / "clip3.mp4").read_bytes() + b"\0")
    evaluate()
    assert captioned == [1]
    lines = lines_of(tmp_path / "output/predictions.jsonl")
    assert [line["caption"] for line in lines][2] == captions["clip3"]


# --------------------------------------------------------------------------------------------- what is refused, and how


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--beams", 2], "generation.num_beams was 1, is 2"),
        (["--num-frames", 3], "frames.frames was 6, is 3"),
        (["--dtype", "bfloat16"], 'model.dtype was "float32", is "bfloat16"'),
    ],
)
def test_the_folder_of_a_run_with_other_settings_is_refused(evaluate, captioned, options, complaint):
    evaluate("--limit", 1)
    captioned.clear()
    result = evaluate(*options)
    assert result.exit_code == 1 and complaint.replace('"', "'") in result.stderr.replace('"', "'")
    assert "Name another output folder" in result.stderr and captioned == []


def test_the_folder_of_another_model_or_dataset_is_refused(evaluate, dataset, videos, tmp_path):
    evaluate("--limit", 1)
    other = write_git_folder(tmp_path / "other", num_image_with_embedding=4)
    assert "model.sha256 was" in evaluate("--model", other).stderr
    fewer = write_dataset(tmp_path / "fewer", {name: videos[name] for name in NAMES[:4]})
    assert "dataset.clips was 5, is 4" in evaluate(data=fewer).stderr


def test_a_folder_with_predictions_of_somebody_else_is_refused(evaluate, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/predictions.jsonl").write_text("{}\n")
    assert "without the settings.json" in evaluate().stderr
    (tmp_path / "output/settings.json").write_text("[]")
    assert "is not of an evaluation" in evaluate().stderr
    assert (tmp_path / "output/predictions.jsonl").read_text() == "{}\n"
    file = tmp_path / "file"
    file.write_text("")
    assert "found the file" in evaluate(output=file).stderr


def test_two_runs_in_one_folder(evaluate, tmp_path):
    pytest.importorskip("fcntl", reason="files are locked on Unix")
    (tmp_path / "output").mkdir()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
        " print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", hold, str(tmp_path / "output/.lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        result = evaluate()
        other.communicate("")
    assert result.exit_code == 1 and "is in use by" in result.stderr
    assert evaluate("--limit", 1).exit_code == 0


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--split", "validation"], "no split 'validation', only {'test': 5} clips"),
        (["--dataset", "nowhere/at/all"], "nowhere/at/all"),
        (["--metrics", "cider,beauty"], "found beauty"),
        (["--metrics", "cider,meteor"], "METEOR needs pycocoevalcap"),
        (["--metrics", "spice"], "SPICE needs pycocoevalcap"),
        (["--references", "nowhere.json"], "found no nowhere.json"),
        (["--references", "."], "found the folder"),
    ],
)
def test_bad_arguments_are_found_before_a_model_is_loaded(evaluate, monkeypatch, tmp_path, options, complaint):
    monkeypatch.setattr(cli.evaluate, "load_captioner_or_exit", lambda **_: pytest.fail("the model was loaded"))
    result = evaluate(*options)
    assert result.exit_code == 1 and complaint in result.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda r: r.pop("clip3"), "no references for 1 of 5 clips of split 'test': clip3"),
        (lambda r: r.update(clip9=["a dog"]), "lacks 1 of 6 clips that have references: clip9"),
        (lambda r: r.update(clip3=[""]), "clip3"),
    ],
)
def test_references_of_other_clips_are_refused(evaluate, monkeypatch, tmp_path, change, complaint):
    monkeypatch.setattr(cli.evaluate, "load_captioner_or_exit", lambda **_: pytest.fail("the model was loaded"))
    references = dict(REFERENCES)
    change(references)
    result = evaluate("--references", write_coco_annotations(tmp_path / "references.json", references))
    assert result.exit_code == 1 and complaint in result.stderr


def test_references_of_more_clips_can_be_allowed(evaluate, tmp_path):
    file = write_coco_annotations(tmp_path / "references.json", {**REFERENCES, "of-train": ["a dog"]})
    result = evaluate("--references", file, "--allow-missing")
    assert result.exit_code == 0 and json.loads(result.stdout)["references"] == 10


@pytest.mark.parametrize(
    "options",
    [[], ["--predictions", "p.json"], ["--predictions", "p.json", "--references", "r.json", "--beams", "2"]],
)
def test_wrong_usage_exits_with_2(options):
    assert command(*options).exit_code == 2


# ---------------------------------------------------------------------------------------------------- files of captions

PREDICTED = {"clip0": "a dog runs", "clip1": "the man is in a car", "clip2": "", "clip3": "a dog", "clip4": "grass"}


def as_coco(captions):
    return json.dumps([{"image_id": name, "caption": text} for name, text in captions.items()])


def as_lines(captions):
    return "".join(json.dumps({"id": name, "caption": text}) + "\n" for name, text in captions.items())


def score_files(tmp_path, predictions, *options, references=REFERENCES):
    (tmp_path / "predictions").write_text(predictions)
    file = write_coco_annotations(tmp_path / "references.json", references)
    return command("--predictions", tmp_path / "predictions", "--references", file, *options)


@pytest.mark.parametrize("form", [as_coco, as_lines])
def test_a_file_of_predictions_is_scored(tmp_path, form):
    result = score_files(tmp_path, form(PREDICTED), "--output", tmp_path / "scores")
    assert result.exit_code == 0, result.stderr
    printed, expected = json.loads(result.stdout), score(PREDICTED, REFERENCES)["corpus"]
    assert {name: printed[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    written = json.loads((tmp_path / "scores/scores.json").read_text())
    assert written["CIDEr"] == printed["CIDEr"] and len(written["references_from"]["sha256"]) == 64
    assert written["metric_tokenizer"].startswith("Penn Treebank")


def test_numbers_are_names_too(tmp_path):
    references = {7: ["a dog runs"], 8: ["a man"]}
    predictions = json.dumps([{"image_id": "7", "caption": "a dog"}, {"image_id": 8, "caption": "a man"}])
    assert score_files(tmp_path, predictions, references=references).exit_code == 0


@pytest.mark.parametrize(
    "predictions, complaint",
    [
        (as_coco({**PREDICTED, "other": "a dog"}), "1 of 6 predictions for clips without references: other"),
        (as_coco({name: PREDICTED[name] for name in NAMES[1:]}), "lacks 1 of 5 clips that have references: clip0"),
        (as_lines(PREDICTED) + as_lines({"clip1": "a"}), "line 6: expected one prediction for each clip"),
        ('{"id": "clip0"}\n', "line 1: expected an object with `caption`"),
        ('{"caption": "a dog"}\n', "expected an object with one of id"),
        ('{"id": "clip0", "caption": 7}\n', "line 1: expected caption to be text, found 7"),
        ('[{"image_id": 7.5, "caption": "a"}]', "expected [0].image_id to be a text or a whole number, found 7.5"),
        ('{"captions": [1]}', "expected an object with one of id"),
        ('{"annotations": 3}', "expected annotations to be a list"),
        ("[", "expected JSON"),
        ("[]", "found none"),
        ("", "found an empty file"),
        ("a dog runs\n", "expected JSON"),
    ],
)
def test_bad_files_of_predictions(tmp_path, predictions, complaint):
    result = score_files(tmp_path, predictions)
    assert result.exit_code == 1 and complaint in result.stderr, result.stderr
    assert result.stdout == ""


def test_the_scores_of_a_run_are_not_overwritten_by_those_of_another_file(evaluate, tmp_path):
    evaluate("--limit", 1)
    before = (tmp_path / "output/scores.json").read_bytes()
    result = score_files(tmp_path, as_coco(PREDICTED), "--output", tmp_path / "output")
    assert result.exit_code == 1 and "holds an evaluation of other predictions" in result.stderr
    assert (tmp_path / "output/scores.json").read_bytes() == before


def test_missing_predictions_can_be_allowed_and_are_counted(tmp_path):
    some = {name: PREDICTED[name] for name in NAMES[1:]}
    result = score_files(tmp_path, as_coco(some), "--allow-missing")
    printed = json.loads(result.stdout)
    assert result.exit_code == 1 and "1 of 5 clips could not be captioned" in result.stderr
    assert (printed["clips"], printed["missing"]) == (4, 1)
    expected = score(some, {name: REFERENCES[name] for name in some})["corpus"]["CIDEr"]
    assert printed["CIDEr"] == pytest.approx(expected)


@pytest.mark.parametrize("form", [as_coco, as_lines])
def test_a_caption_that_is_null_is_missing(form, tmp_path):
    first, *others = NAMES
    result = score_files(tmp_path, form({**PREDICTED, first: None}), "--metrics", "CIDEr,Bleu_4,rouge-l")
    assert result.exit_code == 1 and "1 of 5 clips could not be captioned" in result.stderr
    printed = json.loads(result.stdout)
    some = {name: PREDICTED[name] for name in others}
    expected = score(some, {name: REFERENCES[name] for name in others}, ["cider", "bleu", "rouge_l"])["corpus"]
    assert {name: printed[name] for name in expected} == pytest.approx(expected)
    assert (printed["clips"], printed["missing"]) == (4, 1) and "CIDEr-D" not in printed


@pytest.mark.parametrize("name", [score for scores in scoring.METRICS.values() for score in scores])
def test_metrics_by_the_names_of_their_scores(name):
    for written in (name, name.lower(), name.upper(), f" {name} "):
        assert name in scoring.METRICS[scoring.metric_name(written)]
    assert scoring.metric_name("beauty") == "beauty"


def test_a_cut_off_file_of_predictions(tmp_path):
    result = score_files(tmp_path, as_lines(PREDICTED) + '{"id": "cl')
    assert result.exit_code == 0 and "cut off in its last line" in result.stderr


def test_lines_of_the_house_are_references(tmp_path):
    lines = [
        {"file_name": "a.mp4", "captions": ["a dog"], "split": "test", "start": 0, "end": 1},
        {"file_name": "a.mp4", "captions": ["a man", "a boy"], "split": "test", "start": 1},
        {"file_name": "b.mp4", "captions": ["a car"], "split": "train"},
    ]
    file = tmp_path / "metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_references(file, "test") == {"a.mp4#0.0-1.0": ["a dog"], "a.mp4#1.0-": ["a man", "a boy"]}
    with pytest.raises(ValueError, match="split 'val', found {'test': 2, 'train': 1}"):
        read_references(file, "val")


def test_captions_of_swinbert_caption_are_predictions(tmp_path):
    lines = [
        {"path": "a.mp4", "caption": "a dog", "score": -1.0, "error": None},
        {"path": "b.mp4", "caption": None, "score": None, "error": "found text"},
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_predictions(file) == ({"a.mp4": "a dog"}, {"b.mp4": "found text"})


def test_names_of_clips():
    assert clip_ids([{"video_id": "x", "file_name": "a"}, {"video_id": "y", "file_name": "a"}], "d") == ["x", "y"]
    assert clip_ids([{"video_id": "x", "file_name": "a"}, {"video_id": "x", "file_name": "b"}], "d") == ["a", "b"]
    assert clip_ids([{"video_id": "x", "file_name": "a"}, {"video_id": None, "file_name": "b"}], "d") == ["a", "b"]
    with pytest.raises(ValueError, match="d: expected clips that differ, found several times: a#1.0-2.0"):
        clip_ids([{"file_name": "a", "start": 1, "end": 2}] * 2, "d")
    with pytest.raises(ValueError, match="to tell them apart; found none"):
        clip_ids([{"start": 1}], "d")
