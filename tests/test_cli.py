"""The `swinbert` command as a user meets it: what it reads, what it prints where, and its exit codes."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from captioning import write_clip, write_git_folder
from typer.testing import CliRunner

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning
from swinbert.benchmarks import PARTS
from swinbert.captioning.loading import choose_dtype
from swinbert.cli import app
from swinbert.cli.messages import lines_and_progress
from swinbert.processing import VideoDecodeError
from swinbert.processing.clip_reading_swinbert import concatenate
from swinbert.version import __version__


@pytest.fixture
def command():
    return lambda *arguments, **options: CliRunner().invoke(app, [str(a) for a in arguments], **options)


@pytest.fixture
def model(monkeypatch):
    """A stand-in for the model: captions clips by their names; cannot read those that are called bad."""
    seen: dict = {}

    def load(name, **options):
        seen.update(options, model=name)
        return StandIn(seen)

    monkeypatch.setattr("swinbert.cli.caption.load_captioner_or_exit", load)
    return seen


class StandIn:
    """What the stream of captions needs of a pipeline."""

    device, sampling = torch.device("cpu"), {}
    collate = staticmethod(concatenate)
    collate = staticmethod(concatenate)

    def __init__(self, seen):
        self.family, self.clips = self, seen.setdefault("clips", [])
        self.failure = seen.get("failure", lambda name: None)

    def read(self, video, **sampling):
        self.clips.append({"video": video, **sampling})
        if "bad" in str(video):
            raise VideoDecodeError(video, "not_video", "expected a video file, found text.")
        return {"number": torch.tensor([len(self.clips) - 1])}

    def forward(self, batch):
        names = [self.clips[number]["video"].split("/")[-1] for number in batch.get("number", torch.zeros(0)).tolist()]
        if error := next(filter(None, map(self.failure, names)), None):
            raise error
        rows = iter(names)
        return {"names": [None if error else next(rows) for error in batch["error"]], "error": batch["error"]}

    def postprocess(self, outputs):
        (error,), (name,) = outputs["error"], outputs["names"]
        return [
            {"generated_text": f"a clip called {name}", "score": -0.5}
            if error is None
            else {"generated_text": None, "score": None, "error": error}
        ]


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
    reason, summary, failed = result.stderr.splitlines()
    assert reason == f"swinbert: {folder}/deep/er/bad.mp4: expected a video file, found text."
    assert "4 clips, 3 captioned, 1 failed (not_video 1)" in summary
    assert failed == "swinbert: 1 of 4 clips could not be captioned."


def test_jsonl_has_a_line_for_every_clip(command, model, folder):
    result = command("caption", folder / "b.mp4", folder / "deep/er/bad.mp4", "--format", "jsonl")
    good, bad = map(json.loads, result.stdout.splitlines())
    wanted = {"path": f"{folder}/b.mp4", "caption": "a clip called b.mp4", "score": -0.5, "error": None}
    assert list(good.items())[:4] == list(wanted.items())
    assert {name for name, value in good.items() if value is None} == {"error", "start", "end", "duration"}
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_with_a_byte_order_mark(command, model, folder, encoding):
    result = command("caption", "-", input=f"{folder}/b.mp4\r\n{folder}/deep/c.webm\r\n".encode(encoding))
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 2
    assert result.stdout.startswith(f"{folder}/b.mp4\t")


@pytest.mark.parametrize("content", [b"", b"\n \n", "\ufeff".encode()])
def test_an_empty_list(command, model, content):
    result = command("caption", "-", input=content)
    assert (result.exit_code, result.stdout) == (1, "") and "model" not in model
    assert len(result.stderr.splitlines()) == 1 and "list of clips" in result.stderr


def test_a_video_in_the_place_of_a_list(command, model, tmp_path):
    content = write_clip(tmp_path / "clip.mp4", 0).read_bytes()
    result = command("caption", "-", input=content)
    assert (result.exit_code, result.stdout) == (1, "") and "model" not in model
    (line,) = result.stderr.splitlines()
    assert "list of clips" in line and "found a video" in line and "name the file" in line


@pytest.mark.parametrize("name", ["", "n" * 300 + ".mp4"])
def test_a_name_that_no_file_can_have_is_one_line(command, model, name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = command("caption", name)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1) and "model" not in model


def test_pipes_are_clips(command, git, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 0)
    expected = command("caption", clip, "--model", git, "--device", "cpu").stdout
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(clip.read_bytes()), daemon=True).start()
    result = command("caption", tmp_path / "pipe", "--model", git, "--device", "cpu")
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")


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


def test_unexpected_failure_of_one_clip_is_reported_too(command, model, folder):
    model["failure"] = lambda name: RuntimeError("out of\nmemory") if name == "b.mp4" else None
    result = command("caption", folder / "b.mp4")
    assert (result.exit_code, result.stderr) == (1, f"swinbert: {folder}/b.mp4: out of memory\n")
    result = command("caption", folder / "b.mp4", folder / "deep/c.webm")
    assert (result.exit_code, result.stdout) == (1, f"{folder}/deep/c.webm\ta clip called c.webm\n")


def test_options_reach_model_and_clip(command, model, folder):
    options = (
        "--model some/name --num-frames 8 --start 1.5 --end 3 --beams 4 --max-length 12 --device cpu --dtype float32"
        " --fps 2.5 --prompt what? --load-in 4bit"
    )
    assert command("caption", folder / "b.mp4", *options.split(), "--revision", "v1").exit_code == 0
    assert model["clips"] == [{"video": str(folder / "b.mp4"), "start": 1.5, "end": 3.0}]
    assert model["model"] == "some/name" and model["revision"] == "v1"
    assert (model["device"], model["dtype"]) == ("cpu", "float32")
    assert (model["num_frames"], model["num_beams"], model["max_length"]) == (8, 4, 12)
    assert (model["fps"], model["prompt"], model["load_in"]) == (2.5, "what?", "4bit")
    command("caption", folder / "b.mp4")
    assert (model["model"], model["num_beams"], model["max_length"]) == (None, None, None)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--start 3 --end 3", "--start 3 must be before --end 3"),
        ("--num-frames 0", "--num-frames"),
        ("--beams 0", "--beams"),
        ("--load-in 3bit", "--load-in"),
        ("--fps 0", "--fps"),
        ("--device nonsense", "auto, cpu, cuda"),
        ("--format xml", "xml"),
    ],
)
def test_wrong_usage_exits_with_2(command, folder, options, complaint):
    result = command("caption", folder / "b.mp4", *options.split())
    assert result.exit_code == 2 and complaint in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_frames_are_counted_in_one_way(command, folder, git):
    result = command("caption", folder / "b.mp4", "--model", git, "--num-frames", 4, "--fps", 2)
    assert result.exit_code == 2 and "--num-frames 4" in result.stderr and "--fps 2" in result.stderr


def test_cuda_on_a_machine_without_it(command, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("caption", folder / "b.mp4", "--device", "cuda")
    assert result.exit_code == 1 and "sees no CUDA device" in result.stderr


def test_auto_dtype_is_bfloat16_only_where_the_cpu_computes_in_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_dtype("auto", cpu) is torch.float32
    assert choose_dtype("bfloat16", cpu) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_dtype("auto", cpu, weight_bytes=11 << 20) is torch.float32
    assert choose_dtype("auto", cpu, weight_bytes=900 << 20) is torch.bfloat16
    assert choose_dtype("auto", cpu) is torch.bfloat16


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


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git_folder(tmp_path_factory.mktemp("git"))


def test_from_files_to_captions(command, git, tmp_path):
    good, bad = write_clip(tmp_path / "good.mp4", 0), tmp_path / "bad.mp4"
    bad.write_text("no video")
    result = command("caption", tmp_path, "--model", git, "--format", "jsonl", "--beams", 2, "--device", "cpu")
    assert result.exit_code == 1
    failed, captioned = map(json.loads, result.stdout.splitlines())
    assert failed["path"] == str(bad) and failed["error"] and failed["caption"] is None
    assert captioned["path"] == str(good) and captioned["caption"] and captioned["score"] < 0
    alone = command("caption", good, "--model", git, "--beams", 2, "--device", "cpu")
    assert (alone.exit_code, alone.stdout, alone.stderr) == (0, captioned["caption"] + "\n", "")


def test_nothing_is_loaded_for_clips_that_are_not_there(command, model):
    result = command("caption", "nowhere.mp4", "nor-here.mp4")
    assert result.exit_code == 1 and "model" not in model
    assert "nowhere.mp4: there is no such file" in result.stderr


def test_number_of_frames_that_the_model_cannot_take_is_one_message(command, git, tmp_path):
    clips = [write_clip(tmp_path / f"{seed}.mp4", seed) for seed in range(2)]
    result = command("caption", *clips, "--model", git, "--num-frames", 7, "--device", "cpu")
    assert result.exit_code == 1 and result.stderr.count("at most 6") == 1 and len(result.stderr.splitlines()) == 1


def test_info(command, git, tmp_path):
    result = command("info", git)
    assert result.exit_code == 0
    title, config = result.stdout.split("\n", 1)
    assert "GitForCausalLM" in title and json.loads(config)["num_image_with_embedding"] == 6
    tiny = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "num_frames": 4, "image_size": 16}
    config = SwinBertConfig(
        vision_config=tiny,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        vocab_size=104,
    )
    swinbert = SwinBertForVideoCaptioning(config)
    with torch.no_grad():
        swinbert.model.sparse_mask.weight.fill_(-20.0)[0, 1] = 20.0  # of 8 * 8 tokens, one sees one other
    swinbert.save_pretrained(tmp_path)
    result = command("info", tmp_path)
    assert result.exit_code == 0 and f"{swinbert.num_parameters():,} parameters" in result.stdout
    assert "sparse mask (soft): 8 x 8, 98.21% of the off-diagonal entries below 0.5; 1 of 56 alive" in result.stdout
    assert "attention among video tokens: dense, 100.00% of 8 x 8 entries executed" in result.stdout
    with torch.no_grad():
        swinbert.model.sparse_mask.weight.fill_(-20.0)
    swinbert.save_pretrained(tmp_path)
    assert "identity, 12.50% of 8 x 8 entries executed" in command("info", tmp_path).stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--checkpoint", "nowhere.bin", "--output", "out"), "nowhere.bin"),
        (("--checkpoint", "notes.txt", "--output", "out", "--set", "colour"), "KEY=VALUE"),
        (("--checkpoint", "notes.txt", "--output", "out"), "notes.txt"),
    ],
)
def test_convert_refuses_in_one_message_and_leaves_nothing(command, folder, monkeypatch, arguments, complaint):
    monkeypatch.chdir(folder)
    result = command("convert", *arguments)
    assert result.exit_code == 1 and complaint in result.stderr and "Traceback" not in result.stderr
    assert not (folder / "out").exists()


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
    with lines_and_progress(2) as write:
        write("a caption")
        write(None)
    assert capsys.readouterr().out == "a caption\n"
    assert "Captioning" in terminal.getvalue()


@pytest.mark.parametrize("arguments", [("--help",), ("caption", "--help"), ("make-shapes", "-h")])
def test_help(command, arguments):
    result = command(*arguments)
    assert result.exit_code == 0 and "Usage: " in result.stdout


def test_help_of_bench_lists_all_parts(command):
    words = command("bench", "--help").stdout.replace(",", " ").replace(".", " ").split()
    assert set(PARTS) <= set(words)


def test_version(command):
    result = command("--version")
    assert (result.exit_code, result.stdout.split()) == (0, ["swinbert", __version__])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    """What `swinbert --show-completion` prints, and `--install-completion` writes, for each shell."""
    environment = {"_SWINBERT_COMPLETE": f"source_{shell}"}
    result = CliRunner().invoke(app, [], prog_name="swinbert", env=environment)
    assert result.exit_code == 0 and f"_SWINBERT_COMPLETE=complete_{shell}" in result.stdout


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "swinbert", "caption"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Missing argument" in done.stderr and "Usage: swinbert caption" in done.stderr
