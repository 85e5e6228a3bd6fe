"""`swinbert bench`: peers compute the same, tables report the measurements, no part is measured twice."""

import json
import platform
import socket
from pathlib import Path

import av
import pytest
import torch
from golden import tiny_model
from typer.testing import CliRunner

from swinbert import cli
from swinbert.benchmarks import PARTS, measurement, peers, reading, report, suite
from swinbert.processing import sample_indices

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return suite.Bench("tiny", 1, CPU, torch.float32, (), tmp_path_factory.mktemp("clips"), lambda message: None)


@torch.no_grad()
def test_torchvisions_backbone_computes_the_same(bench):
    pixels = bench.pixels(batch=2)
    torch.testing.assert_close(bench.backbone(pixels), bench.features(pixels), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sparse_mask", ["none", "soft", "hard"])
def test_the_original_algorithm_writes_the_same_captions(sparse_mask):
    model = tiny_model("e8", sparse_mask)
    pixels = torch.randn(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.model.video_encoder(pixels).last_hidden_state
    captions = peers.original_caption(model, features, 5)
    assert torch.equal(captions, model.generate(pixel_values_videos=pixels, max_length=6, min_length=6))
    assert not torch.equal(captions[0], captions[1])


def test_the_original_training_step_has_the_same_gradient(bench):
    model, pixels = bench.build(), bench.pixels()
    ids = torch.tensor([[101, 103, 150, 103]])
    labels = torch.tensor([[-100, 120, -100, 102]])
    loss = model(pixel_values_videos=pixels, input_ids=ids, labels=labels).loss
    loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    backbone = peers.TorchvisionSwin(model.model.video_encoder)
    restated = peers.original_training_step(model, backbone, pixels, ids, labels)
    torch.testing.assert_close(restated, loss.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if "video_encoder" not in name:
            torch.testing.assert_close(parameter.grad, ours[name], atol=1e-5, rtol=1e-4, msg=name)
    patches = "patch_embed.proj.weight"
    torch.testing.assert_close(
        backbone.swin.get_parameter(patches).grad, ours[f"model.video_encoder.{patches}"], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_live_shares(bench):
    model = bench.build()
    for share in (0.0, 1.0):
        suite.set_live_share(model, share)
        assert model.model.sparse_mask.statistics().share_alive == share


def test_the_decoder_alone_decodes_what_the_wanted_frames_need(bench):
    path = next(iter(bench.clip_files().values()))
    needed = reading._needed_packets(path, 4)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        codec = container.streams.video[0].codec_context
        chosen = [packet for packet, is_needed in zip(packets, needed, strict=True) if is_needed]
        times = [frame.pts for packet in [*chosen, None] for frame in codec.decode(packet)]
    shown = sorted(packet.pts for packet in packets)
    assert {shown[number] for number in sample_indices(len(shown), 4)} <= set(times)
    assert len(chosen) < len(packets)  # B-frames are left out


def test_memory_is_that_of_the_call():
    peak, total = measurement.peak_memory(lambda: torch.ones(64, 2**20).sum(), CPU)
    assert total == 2**26
    if peak is None:
        pytest.skip("this system does not tell")
    assert 200 << 20 < peak < 400 << 20
    assert measurement.peak_memory(lambda: None, CPU)[0] < 50 << 20


def test_operations_are_counted():
    left, right = torch.ones(8, 16), torch.ones(16, 4)
    rows, _ = measurement.compare({"product": lambda: left @ right}, 1, CPU, lambda message: None)
    assert rows[0].flop == 2 * 8 * 16 * 4


def test_calls_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    rows, _ = measurement.compare(calls, 3, CPU, lambda message: None)
    assert "".join(turns) == "ab" + "ababab"  # once for memory and operations
    assert [len(row.seconds) for row in rows] == [3, 3]


def test_the_machine_has_no_name():
    about = json.dumps(measurement.machine(CPU))
    assert socket.gethostname() not in about and platform.node() not in about and str(Path.home()) not in about
    assert torch.__version__.split("+")[0] in about and '"threads"' in about


def test_a_table_compares_round_by_round_and_item_by_item():
    slow = measurement.Row("slow", [2.0, 20.0, 2.0], flop=4_000_000_000)
    fast = measurement.Row("fast", [1.0, 10.0, 0.5], peak_bytes=3 << 20, items=4)
    text = report.markdown(suite.Table("A race", [slow, fast], "slow"), peak=4e9)
    assert "| fast | 1 | 0.5-10 | 4 | 8.00 |" in text and "| 50% |" in text and "3 MiB" in text


def test_a_table_says_which_targets_are_met():
    base = measurement.Row("base", [1.0])
    met = measurement.Row("met", [0.5], target=2.0, limit="nothing")
    missed = measurement.Row("missed", [0.8], target=1.5, limit="the read of the weights")
    text = report.markdown(suite.Table("A race", [base, met, missed], "base"), peak=4e9)
    assert "| 2.00 | 2: met |" in text and "| 1.25 | 1.5: missed (the read of the weights) |" in text


def test_all_parts(tmp_path, monkeypatch):
    command = ["bench", "--size", "tiny", "--repeats", "1", "--device", "cpu", "--dtype", "float32"]
    command += ["--output", str(tmp_path / "out")]
    first = CliRunner().invoke(cli.app, [*command, "--only", "encoder,words"])
    assert first.exit_code == 0, first.output
    assert "| torchvision |" in first.stdout and "| original's algorithm |" in first.stdout
    assert "| the same caption |" in first.stdout
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert list(results["parts"]) == ["encoder", "words"]

    measured = []
    for name, part in PARTS.items():
        monkeypatch.setitem(PARTS, name, lambda bench, name=name, part=part: measured.append(name) or part(bench))
    monkeypatch.setattr(suite, "OVERLAP_CLIPS", 3)
    everything = CliRunner().invoke(cli.app, command)
    assert everything.exit_code == 0, everything.output
    assert measured == [name for name in PARTS if name not in ("encoder", "words")]
    again = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert again["parts"]["encoder"] == results["parts"]["encoder"] and set(again["parts"]) == set(PARTS)
    text = (tmp_path / "out" / "benchmark.md").read_text()
    for words in (
        "matrix peak",
        "torchvision",
        "GIT, 6 frames",
        "4 beams",
        "whole clip",
        "Share of the matrix peak",
        "Video encoder in eight bits",
        "The step with checkpointing",
        "of the original's memory with weights; target 25%",
        "pipeline",
        "in one pass",
        "plain generate",
        "one core busy",
        "swinbert --help",
    ):
        assert words in text, words
    assert "in one pass" in text
    assert (tmp_path / "out" / "benchmark.png").stat().st_size > 10_000

    other = CliRunner().invoke(cli.app, [*command, "--only", "beams", "--repeats", "2"])
    assert other.exit_code == 0
    assert list(json.loads((tmp_path / "out" / "benchmark.json").read_text())["parts"]) == ["beams"]


def test_unknown_parts(tmp_path):
    result = CliRunner().invoke(cli.app, ["bench", "--only", "encoder,speed", "--output", str(tmp_path)])
    assert result.exit_code == 1 and "no part speed" in result.stderr and "overlap" in result.stderr
