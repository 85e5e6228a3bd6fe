"""The studies: the plan, jobs that resume without repeating finished ones, and the report."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from swinbert.training.arguments import parse_arguments
from swinbert.training.initialization import check_config
from swinbert.training.studies import jobs as study_jobs
from swinbert.training.studies import report as study_report
from swinbert.training.studies import run_studies
from swinbert.training.studies.__main__ import main
from swinbert.training.studies.jobs import Job, read_results, run_jobs
from swinbert.training.studies.plan import RECIPE, RUNS, STUDIES, Sizes, Study, plan_jobs
from swinbert.training.studies.report import CIDER, by_seed, curves_figure, scores_figure, table, write_report

# ---------------------------------------------------------------------------------------------------------------- plan


def test_jobs_come_after_the_jobs_they_need():
    jobs = plan_jobs(Sizes(seeds=2))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) == 2 + 2 * len(RUNS)
    for number, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:number])
    for study in STUDIES:
        assert set(study.rows.values()) <= set(RUNS)


def test_only_some_studies_and_what_they_need():
    jobs = plan_jobs(Sizes(seeds=1), ["binary"])
    gate, full = "gate-seed0", "full-16-frames-seed0"
    assert {job.name for job in jobs} == {
        *("shapes", "backbone-seed0", gate, full, "gate-binary-seed0"),
        *("tuned-full-seed0", "tuned-soft-seed0", "tuned-binary-seed0"),
    }
    with pytest.raises(ValueError, match="No study 'colour'; there are frames, mask"):
        plan_jobs(Sizes(), ["colour"])


def test_all_studies_are_estimated_at_two_hours_on_two_cores():
    assert 1.5 < sum(job.seconds for job in plan_jobs(Sizes())) / 3600 / 2 < 2.1


@pytest.mark.parametrize("job", [job for job in plan_jobs(Sizes(seeds=1)) if job.epochs], ids=lambda job: job.run)
def test_runs_are_commands_of_swinbert_train(job):
    command, recipe, *rest = job.argv
    assert (command, recipe) == ("train", RECIPE.name)
    model, data, training, config = parse_arguments([str(RECIPE), *rest])
    check_config(config)
    assert training.output_dir == job.output and training.torch_threads == 1
    assert training.dataloader_num_workers == 0
    # A run starts from a model, or from a backbone, or trains the backbone.
    assert bool(model.model) != bool(model.backbone or job.run == "backbone")
    for source in (model.model, model.backbone, model.mask):
        assert source is None or Path(source).name in job.needs
    assert data.dataset in job.needs


# ---------------------------------------------------------------------------------------------------------------- runs


def fake_command(argv, folder, log, core):
    """Replaces a `swinbert` command: writes the files of a training run, and records the call."""
    with (folder / "called").open("a") as file:
        file.write(f"{core} {argv[0]}\n")
    if (folder / "hang").exists():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        (folder / "hanging").touch()
        time.sleep(30)
    if (folder / f"{argv[0]}-fails").exists():
        log.write_text("swinbert: no")
        raise SystemExit(1)
    output = folder / "runs" / argv[0]
    output.mkdir(parents=True)
    (output / "checkpoint-1").mkdir()
    history = [{"loss": 2.0, "epoch": 0.5}, {"eval_loss": 1.0, "eval_CIDEr": 2.5, "epoch": 1.0}]
    (output / "trainer_state.json").write_text(json.dumps({"log_history": history}))


@pytest.fixture
def forked(monkeypatch):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes cannot be forked here")
    monkeypatch.setattr(study_jobs, "_run_command", fake_command)
    monkeypatch.setattr(study_jobs, "_process_context", lambda: multiprocessing.get_context("fork"))


def job(name: str, *needs: str) -> Job:
    return Job(name, name, 0, (name,), needs, output=f"runs/{name}", epochs=1.0)


JOBS = [job("a"), job("b", "a"), job("c", "a"), job("d", "b", "c")]


def called(folder: Path) -> list[str]:
    return [line.split()[1] for line in (folder / "called").read_text().splitlines()]


def test_finished_jobs_are_not_repeated(forked, tmp_path):
    assert run_jobs(JOBS[:2], tmp_path, [0]) == {}
    assert called(tmp_path) == ["a", "b"]
    assert run_jobs(JOBS, tmp_path, [0, 1]) == {}
    assert sorted(called(tmp_path)[2:]) == ["c", "d"] and called(tmp_path)[-1] == "d"
    result = read_results(JOBS, tmp_path)["d"]
    assert result["metrics"]["eval_CIDEr"] == 2.5 and len(result["history"]) == 2
    assert result["command"] == "swinbert d"
    assert not list((tmp_path / "runs").glob("*/checkpoint-*"))


def test_a_result_of_other_arguments_is_an_error(forked, tmp_path):
    run_jobs(JOBS[:1], tmp_path, [0])
    other = Job("a", "a", 0, ("a", "--seed", "1"), output="runs/a", epochs=1.0)
    with pytest.raises(ValueError, match="another command"):
        run_jobs([other], tmp_path, [0])


def test_a_failure_stops_only_the_jobs_that_need_it(forked, tmp_path):
    (tmp_path / "b-fails").touch()
    failed = run_jobs(JOBS, tmp_path, [0])
    assert set(failed) == {"b", "d"}
    assert "swinbert: no" in failed["b"] and "failed" in failed["d"]
    (tmp_path / "b-fails").unlink()
    assert run_jobs(JOBS, tmp_path, [0]) == {}
    assert called(tmp_path) == ["a", "b", "c", "b", "d"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_current_jobs_and_keeps_results(forked, tmp_path, number):
    run_jobs(JOBS[:1], tmp_path, [0])
    (tmp_path / "hang").touch()

    def send():
        while not (tmp_path / "hanging").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    began = time.monotonic()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(JOBS, tmp_path, [0])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - began < 20
    (tmp_path / "hang").unlink()
    assert run_jobs(JOBS, tmp_path, [0]) == {}
    assert called(tmp_path) == ["a", "b", "b", "c", "d"]


# -------------------------------------------------------------------------------------------------------------- report

STUDY = Study("some", "Some", "About.", {"one": "one", "two": "two", "three": "three"}, sparsity=True)


def result(run: str, seed: int, cider: float, **more: float) -> dict:
    row = {"eval_loss": 1.5, "eval_CIDEr": cider, "eval_exact_content": 0.25, "epoch": 1.0, **more}
    history = [{"loss": 3.0, "epoch": 0.5, "mask_below_half": 0.25, "sparsity_loss": 0.9, "mask_alive": 1.0}, row]
    return {"run": run, "seed": seed, "seconds": 1.0, "command": "", "metrics": row, "history": history}


def results() -> dict[str, dict]:
    listed = [
        result("one", 0, 2.0),
        result("one", 1, 3.0),
        result("two", 0, 1.5, eval_caption_loss=1.0, eval_mask_below_half=0.75),
        result("two", 1, 3.25, eval_caption_loss=1.0, eval_mask_below_half=0.25),
        {"run": "shapes", "seed": None, "seconds": 5.0, "command": ""},
    ]
    return {f"{each['run']}-seed{each['seed']}": each for each in listed}


def test_tables_hold_means_deviations_and_paired_differences():
    assert by_seed(results(), "one", CIDER) == {0: 2.0, 1: 3.0}
    one, two, three = table(STUDY, trained_results())
    assert (one["n"], two["n"], three["n"]) == (2, 2, 0)
    assert one["values"]["caption loss"] == {0: 1.5, 1: 1.5} and two["values"]["caption loss"] == {0: 1.0, 1: 1.0}
    assert two["difference"] == {0: -0.5, 1: 0.25}
    lines = study_report._markdown(STUDY, [one, two, three])
    assert lines[2] == "| one | 2 | 2.500 ± 0.707 | 0.250 ± 0.000 | 1.500 ± 0.000 | – | – |  |"
    assert lines[3].endswith("| 1.000 ± 0.000 | 0.500 ± 0.354 | – | -0.125 ± 0.530, 1 of 2 |")
    assert lines[4] == "| three | 0 | – | – | – | – | – |  |"


CURVES = Study("curves", "Curves", "By epoch.", {"one": "one", "two": "two"}, sparsity=True, curves=True)
NUMBERS = Study("numbers", "Numbers", "", {"1": "one", "2": "two", "4": "three"}, numbers=(1, 2, 4))


def trained_results() -> dict[str, dict]:
    return {name: each for name, each in results().items() if "metrics" in each}


def dots(axes) -> list[tuple[list, list]]:
    """The values of the seeds in a panel: the x and y of each row."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_marker() == "." and line.get_linestyle() == "None"
    ]


def test_figure_of_scores_by_row():
    figure = scores_figure(STUDY, trained_results())
    # Nothing has a share of alive entries at the last evaluation.
    titles = [axes.get_title() for axes in figure.axes]
    assert figure.get_suptitle() == "Some" and titles == [
        "CIDEr",
        "exact content",
        "caption loss",
        "mask below one half",
    ]
    cider, exact, loss, below_half = map(dots, figure.axes)
    assert cider == [([2.0, 3.0], [0, 0]), ([1.5, 3.25], [1, 1])]
    assert exact == [([0.25, 0.25], [0, 0]), ([0.25, 0.25], [1, 1])]
    assert loss == [([1.5, 1.5], [0, 0]), ([1.0, 1.0], [1, 1])]
    assert below_half == [([0.75, 0.25], [1, 1])]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "two", "three"]
    means = [bar.lines[0].get_xdata().item() for bar in figure.axes[0].containers]
    assert means == [2.5, 2.375]


def test_figure_of_scores_on_a_scale():
    cider, *_ = scores_figure(NUMBERS, trained_results()).axes
    assert dots(cider) == [([1, 1], [2.0, 3.0]), ([2, 2], [1.5, 3.25])]
    assert cider.get_xscale() == "log" and list(cider.get_xticks()) == [1, 2, 4]
    (means,) = [line for line in cider.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    assert (list(means.get_xdata()), list(means.get_ydata())) == ([1, 2], [2.5, 2.375])


def test_figure_of_curves_by_epoch():
    below_half, alive, mean_mask = curves_figure(CURVES, trained_results()).axes
    assert below_half.get_xlabel() == "epoch" and below_half.get_legend() is not None
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in below_half.lines}
    assert curves == {"one": ([0.5], [0.25]), "two": ([0.5, 1.0], [0.25, 0.5])}
    assert [list(line.get_ydata()) for line in alive.lines] == [[1.0], [1.0]]
    assert [list(line.get_ydata()) for line in mean_mask.lines] == [[0.9], [0.9]]


def test_report_of_some_of_the_runs(tmp_path):
    nothing = Study("nothing", "Nothing yet", "", {"three": "three"})
    write_report(tmp_path, [STUDY, CURVES, NUMBERS, nothing], results(), {**vars(Sizes()), "extra": []})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("curves.png", "numbers.png", "some.png", "studies.json", "studies.md")
    ]
    text = (tmp_path / "studies.md").read_text()
    for name in ("curves", "numbers", "some"):
        assert f"({name}.png)" in text
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.verify()
    assert "## Curves" in text and "Nothing yet" not in text
    assert json.loads((tmp_path / "studies.json").read_text())["runs"].keys() == results().keys()
    write_report(tmp_path, STUDIES, {}, {**vars(Sizes()), "extra": []})
    assert "No run has finished yet" in (tmp_path / "studies.md").read_text()


# ----------------------------------------------------------------------------------------------------------------- all


def test_a_folder_of_another_recipe_is_an_error(tmp_path, capsys):
    (tmp_path / RECIPE.name).write_text("seed: 1\n")
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path)])
    assert "another recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_real_runs_and_their_report(tmp_path):
    """Tiny runs in processes of their own; the second call finds nothing left to run."""
    sizes = Sizes(clips=8, eval_clips=4, pretraining_steps=2, steps=2, tuning_steps=1, seeds=1)
    extra = ["--per_device_train_batch_size", "2"]
    assert run_studies(tmp_path, sizes, ["binary", "datasets"], extra=extra) == {}
    rows = [line for line in (tmp_path / "studies.md").read_text().splitlines() if line.startswith("| ")]
    masked = [line for line in rows if "full" not in line]  # full attention has no mask to report on
    assert masked and not [line for line in masked if "–" in line]
    began = time.monotonic()
    assert run_studies(tmp_path, sizes, ["binary"], extra=extra) == {}
    assert time.monotonic() - began < 10
    assert (tmp_path / "commands.sh").read_text().count("\n") == 9
