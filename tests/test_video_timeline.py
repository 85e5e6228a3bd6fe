"""Which frames a clip takes: sampling, and ranges of seconds in files of every container."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoded_clips import GROUPS, can_encode, encode, error_kind, read_numbers

from swinbert.processing import decode_video, sample_indices
from swinbert.processing import video_backends_swinbert as backends

SAMPLING = json.loads((Path(__file__).parent / "fixtures" / "frame_sampling.json").read_text())


# --- Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "round"])
def test_sampling_equals_the_originals(sampling):
    for case, expected in SAMPLING[sampling].items():
        available, wanted = map(int, case.split())
        assert sample_indices(available, wanted, sampling).tolist() == expected, case


def test_uniform_sampling_truncates_in_float32():
    for available, wanted, differences in SAMPLING["float32"]:
        indices = sample_indices(available, wanted)
        for position, expected, by_exact_arithmetic in differences:
            assert indices[position] == expected != by_exact_arithmetic
    for available in range(1, 400, 7):
        for wanted in (1, 2, 31, 32, 64):
            by_torch = torch.linspace(0.0, available - 1, wanted).clamp(0, available - 1).long()
            assert sample_indices(available, wanted).tolist() == by_torch.tolist()


@pytest.mark.parametrize("available,wanted", [(100, 8), (8, 8), (3, 8), (1, 4)])
def test_random_sampling_takes_one_of_each_segment(available, wanted):
    draws = np.stack([sample_indices(available, wanted, "random", seed) for seed in range(300)])
    borders = np.arange(wanted + 1) * available / wanted
    assert (draws >= np.floor(borders[:-1])).all() and (draws < np.ceil(borders[1:])).all()
    assert all(
        set(draws[:, i]) == set(range(int(borders[i]), int(np.ceil(borders[i + 1])))) for i in range(wanted)
    )  # every frame of a segment is drawn now and then
    generator = torch.Generator().manual_seed(5)
    assert sample_indices(available, wanted, "random", generator).tolist() == draws[5].tolist()
    assert (draws[0] == sample_indices(available, wanted, "random", 0)).all()


@pytest.mark.parametrize("arguments", [(0, 4), (4, 0), (4, -1), (4, 2.0), (4, True), (4, 2, "nearest")])
def test_invalid_arguments_of_sampling_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        sample_indices(*arguments)


# --- Ranges of seconds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, file in SAMPLING["files"].items() if file["N"] <= 300])
def test_clip_times_equal_the_originals(tmp_path, name):
    file = SAMPLING["files"][name]
    path = encode(
        tmp_path / f"clip.{file['container']}",
        range(file["N"]),
        rate=Fraction(file["rate"]),
        codec=file["codec"],
        options={"bf": str(file["bframes"])},
    )
    assert read_numbers(decode_video(path, num_frames=8)[0]) == sample_indices(file["N"], 8).tolist()
    for start, end, first, last, eight in file["clips"]:
        if start == end or first is None:  # the original gives a frame or two, or none at all
            assert error_kind(path, start=start, end=end) == "bad_range"
            continue
        indices = decode_video(path, start=start, end=end)[1].frames_indices
        assert indices == list(range(first, last + 1))
        assert read_numbers(decode_video(path, start=start, end=end, num_frames=8)[0]) == eight


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.webm"])
def test_clip_times_hold_in_every_container(tmp_path, name):
    """The original takes frame numbers for time stamps in mkv and webm, and fails on ts."""
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    if not can_encode(codec):
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = encode(tmp_path / name, range(60), codec=codec)
    assert read_numbers(decode_video(path, start=0.24, end=0.91)[0]) == list(range(8, 29))
    assert read_numbers(decode_video(path, start=1.9)[0]) == [57, 58, 59]
    assert read_numbers(decode_video(path, end=0.01)[0]) == [0, 1]


@pytest.mark.parametrize(
    "arguments",
    [{"start": 1, "end": 1}, {"start": 1.5, "end": 0.5}, {"start": 2.5}, {"start": -1}, {"end": -1}]
    + [{"start": "1"}, {"indices": [60]}, {"indices": [-1]}, {"indices": []}, {"indices": [0.5]}],
)
def test_invalid_ranges_are_refused(numbered_clip, arguments):
    assert error_kind(numbered_clip, **arguments) == "bad_range"


@pytest.mark.parametrize("num_frames", [0, -3, 2.5, True])
def test_invalid_numbers_of_frames_are_refused(numbered_clip, num_frames):
    assert error_kind(numbered_clip, num_frames=num_frames) == "bad_sampling"


# --- Files as they come -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize(
    "name,settings",
    [
        ("clip.ts", {"options": GROUPS}),
        ("clip.vob", {"codec": "mpeg2video", "rate": 30, "options": {"g": "12", "bf": "2"}, "container": "mpeg"}),
    ],
)
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["read again", "kept"])
def test_time_goes_on_in_files_written_one_behind_the_other(tmp_path, name, settings, kept_bytes, backend, monkeypatch):
    monkeypatch.setattr(backends, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(backends, "_SEEK_BYTES", 0)
    parts = [encode(tmp_path / f"{first}-{name}", range(first, first + 30), **settings) for first in (0, 30, 60)]
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, metadata = decode_video(path, backend=backend)
    assert read_numbers(frames) == list(range(90))
    assert metadata.frame_times == pytest.approx([number / 30 for number in range(90)], abs=1e-4)
    assert metadata.duration == pytest.approx(3)
    assert read_numbers(decode_video(path, start=1.5, end=1.6, backend=backend)[0]) == [45, 46, 47, 48, 49]
    assert read_numbers(decode_video(path, indices=[71, 2, 40], backend=backend)[0]) == [71, 2, 40]


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("order", ["b-pyramid=none", "b-pyramid=normal"])
def test_frames_dropped_from_an_avi_leave_a_gap(tmp_path, order, backend):
    """30 frames of 50 places at 10 a second: 2 s are empty after frame 9."""
    if order != "b-pyramid=none" and not hasattr(av.CodecContext.create("h264", "r"), "reorder_depth"):
        pytest.skip("this PyAV does not tell how deeply a decoder reorders")
    path = encode(
        tmp_path / "dropped.avi",
        range(30),
        rate=10,
        options={"x264-params": f"{GROUPS['x264-params']}:{order}"},
        pts=[*range(10), *range(30, 50)],
        time_base=Fraction(1, 10),
    )
    frames, metadata = decode_video(path, backend=backend)
    assert read_numbers(frames) == list(range(30))
    assert metadata.duration == pytest.approx(5.0)
    assert metadata.frame_times == pytest.approx([*np.arange(10) / 10, *np.arange(30, 50) / 10])
    frames, metadata = decode_video(path, start=2.5, backend=backend)
    assert read_numbers(frames) == list(range(10, 30))
