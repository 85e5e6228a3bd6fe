"""The `swinbert` command as a user meets it: what it reads, what it prints where, and its exit codes."""

import io
import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from swinbert import cli
from swinbert.processing import VideoDecodeError


@pytest.fixture
def command():
    return lambda *arguments, **options: CliRunner().invoke(cli.app, [str(a) for a in arguments], **options)


@pytest.fixture
def model(monkeypatch):
    """A stand-in for the model: captions clips by their names; cannot read those that are called bad."""
    seen: dict = {"clips": []}

    def pipe(clip):
        seen["clips"].append(clip)
        if "bad" in str(clip["video"]):
            raise VideoDecodeError(clip["video"], "not_video", "expected a video file, found text.")
        return [{"generated_text": f"a clip called {str(clip['video']).split('/')[-1]}", "score": -0.5}]

    def load(name, **options):
        seen.update(options, model=name)
        return pipe

    monkeypatch.setattr(cli, "_load_pipeline", load)
    return seen


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.mp4", "a.MKV", "notes.txt", "deep/c.webm", "deep/er/bad.mp4", "deep/.hidden.mp4"):
        (tmp_path / name).write_text("not really a video")
    return tmp_path


def test_one_file_gives_its_caption_alone(command, model, folder):
    result = command("caption", folder / "b.mp4")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a clip called b.mp4\n", "")


def test_folder_is_searched_and_a_bad_clip_does_not_stop_the_rest(command, model, folder):
    result = command("caption", folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{folder}/a.MKV\ta clip called a.MKV",
        f"{folder}/b.mp4\ta clip called b.mp4",
        f"{folder}/deep/c.webm\ta clip called c.webm",
    ]
    assert result.stderr.splitlines() == [
        f"swinbert: {folder}/deep/er/bad.mp4: expected a video file, found text.",
        "swinbert: 1 of 4 clips have no caption.",
    ]


def test_jsonl_has_a_line_for_every_clip(command, model, folder):
    result = command("caption", folder / "b.mp4", folder / "deep/er/bad.mp4", "--format", "jsonl")
    good, bad = map(json.loads, result.stdout.splitlines())
    assert good == {"path": f"{folder}/b.mp4", "caption": "a clip called b.mp4", "score": -0.5, "error": None}
    assert bad["caption"] is None and bad["score"] is None and "found text" in bad["error"]
    assert result.exit_code == 1


def test_globs_stdin_and_urls(command, model, folder):
    url = "https://example.org/x.mp4?quality=[best]"
    result = command("caption", "-", url, input=f"{folder}/*.mp4\n\n{folder}/deep/c.webm\n")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        f"{folder}/b.mp4",
        f"{folder}/deep/c.webm",
        url,
    ]
    assert result.exit_code == 0


def test_a_glob_that_names_one_file_still_says_which(command, model, folder):
    assert command("caption", folder / "b*").stdout == f"{folder}/b.mp4\ta clip called b.mp4\n"


@pytest.mark.parametrize(
    "argument, reason", [("nothing-*.mp4", "no file matches"), ("empty", "no video in this folder")]
)
def test_arguments_that_name_nothing_fail_and_say_so(command, model, folder, argument, reason):
    (folder / "empty").mkdir()
    result = command("caption", folder / argument, folder / "b.mp4")
    assert result.exit_code == 1 and "a clip called b.mp4" in result.stdout
    assert f"{folder / argument}: {reason}" in result.stderr


def test_unexpected_failure_of_one_clip_is_reported_too(command, monkeypatch, folder):
    def pipe(clip):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(cli, "_load_pipeline", lambda *_, **__: pipe)
    result = command("caption", folder / "b.mp4")
    assert (result.exit_code, result.stderr) == (1, f"swinbert: {folder}/b.mp4: out of memory\n")


def test_options_reach_model_and_clip(command, model, folder):
    options = (
        "--model some/name --num-frames 8 --start 1.5 --end 3 --beams 4 --max-length 12 --device cpu --dtype float32"
    )
    assert command("caption", folder / "b.mp4", *options.split(), "--revision", "v1").exit_code == 0
    assert model["clips"] == [{"video": str(folder / "b.mp4"), "start": 1.5, "end": 3.0}]
    assert model["model"] == "some/name" and model["revision"] == "v1" and model["device"] == torch.device("cpu")
    assert (model["num_frames"], model["num_beams"], model["max_length"]) == (8, 4, 12)
    command("caption", folder / "b.mp4")
    assert "num_beams" not in set(model) - {"num_beams"} and model["model"] is None


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--start 3 --end 3", "--start 3 must be before --end 3"),
        ("--num-frames 0", "--num-frames"),
        ("--beams 0", "--beams"),
        ("--device nonsense", "expected auto, cpu, cuda"),
        ("--format xml", "xml"),
    ],
)
def test_wrong_usage_exits_with_2(command, model, folder, options, complaint):
    result = command("caption", folder / "b.mp4", *options.split())
    assert result.exit_code == 2 and complaint in " ".join(result.stderr.split())
    assert result.stdout == "" and not model["clips"]


def test_cuda_on_a_machine_without_it(command, model, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("caption", folder / "b.mp4", "--device", "cuda")
    assert result.exit_code == 1 and "sees no CUDA device" in result.stderr


def test_auto_dtype_is_bfloat16_only_where_the_cpu_computes_in_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert cli._torch_dtype(cli.DType.auto, cpu) is torch.float32
    assert cli._torch_dtype(cli.DType.bfloat16, cpu) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cli._torch_dtype(cli.DType.auto, cpu) is torch.bfloat16


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("model.bin", "swinbert convert --checkpoint"),
        ("empty", "without config.json"),
        ("no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
    ],
)
def test_model_names_that_cannot_be_models(command, folder, monkeypatch, name, complaint):
    monkeypatch.chdir(folder)
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "empty").mkdir()
    for arguments in (("caption", "b.mp4", "--model", name), ("info", name)):
        result = command(*arguments)
        assert result.exit_code == 1 and complaint in result.stderr and "Traceback" not in result.stderr


def test_model_that_cannot_be_fetched_is_one_message(command, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for arguments in (("caption", folder / "b.mp4", "--model", "some/name"), ("info", "some/name")):
        result = command(*arguments)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("swinbert: Cannot use the model 'some/name': ")
        assert "network connection" in result.stderr and "Traceback" not in result.stderr


def test_make_shapes(command, tmp_path):
    output = tmp_path / "shapes"
    arguments = ("make-shapes", output, "--train", 1, "--validation", 1, "--test", 0)
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (0, f"{output}\n")
    assert len(list(output.glob("train/*.mp4"))) == 1 and not list(output.glob("test/*.mp4"))
    again = command(*arguments)
    assert again.exit_code == 1 and str(output) in again.stderr


def test_progress_stays_off_stdout(monkeypatch, model, folder, capsys):
    class Terminal(io.StringIO):
        isatty = staticmethod(lambda: True)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with cli._lines_and_progress(2) as write:
        write("a caption")
        write(None)
    assert capsys.readouterr().out == "a caption\n"
    assert "Captioning" in terminal.getvalue()


@pytest.mark.parametrize("arguments", [("--help",), ("caption", "--help"), ("make-shapes", "-h")])
def test_help(command, arguments):
    result = command(*arguments)
    assert result.exit_code == 0 and "Usage: " in result.stdout


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "swinbert", "caption"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Missing argument" in done.stderr and "Usage: swinbert caption" in done.stderr
