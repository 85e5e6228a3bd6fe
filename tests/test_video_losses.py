"""Frames that damaged mkv and webm files have lost: FFmpeg goes on at the next cluster and says nothing."""

import io
import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import GROUPS, GROUPS_WITHOUT_B_FRAMES, can_encode, encode, error_kind, numbered_frame, read_numbers

from swinbert.processing import VideoReader, decode_video
from swinbert.processing import video_backends_swinbert as backends

CLUSTERS = {"cluster_time_limit": "399"}  # one for each group of 12 frames


def blocks(path: Path) -> list[tuple[int, int]]:
    """Byte at which each packet's block begins, and its number of bytes."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def erase(path: Path, begin: int, end: int, by: bytes = b"\0") -> Path:
    data = bytearray(path.read_bytes())
    data[begin:end] = by * (end - begin)
    damaged = path.with_stem("damaged")
    damaged.write_bytes(data)
    return damaged


def numbered(path: Path, **arguments) -> Path:
    if not can_encode(codec := arguments.get("codec", "libx264")):
        pytest.skip(f"this PyAV has no encoder {codec}")
    return encode(path, range(60), **{"container_options": CLUSTERS} | arguments)


def lost_frames(source) -> list[int]:
    with VideoReader(source) as reader:
        return np.flatnonzero(reader.timeline.is_lost).tolist()


@pytest.mark.parametrize(
    "name,settings",
    [
        ("clip.mkv", {"options": GROUPS}),
        ("clip.mkv", {"options": GROUPS_WITHOUT_B_FRAMES, "rate": Fraction(30000, 1001)}),
        ("clip.webm", {"codec": "libvpx-vp9", "options": {"g": "12", "lag-in-frames": "0"}}),
    ],
    ids=["B-frames", "no B-frames", "webm"],
)
@pytest.mark.parametrize("first,last", [(3, 4), (20, 31), (0, 30), (40, 59)], ids=["one", "many", "head", "tail"])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["read again", "kept"])
def test_lost_frames_keep_their_times_and_count_as_missing(
    tmp_path, name, settings, first, last, kept_bytes, monkeypatch
):
    monkeypatch.setattr(backends, "_KEPT_BYTES", kept_bytes)
    path = numbered(tmp_path / name, **settings)
    whole, metadata_of_whole = decode_video(path)
    found = blocks(path)
    damaged = erase(path, found[first][0], sum(found[last]))
    lost = lost_frames(damaged)
    assert lost
    with pytest.warns(UserWarning, match="were replaced by their nearest neighbours"):
        frames, metadata = decode_video(damaged)
    assert metadata.total_num_frames == 60 and metadata.missing_frames >= len(lost)
    assert metadata.frame_times == pytest.approx(metadata_of_whole.frame_times, abs=1.1e-3)  # stored in milliseconds
    assert metadata.duration == pytest.approx(metadata_of_whole.duration, abs=1.1e-3)
    numbers = read_numbers(frames)
    assert sum(number == position for position, number in enumerate(numbers)) >= 60 - metadata.missing_frames
    assert error_kind(damaged, strict=True) == "undecodable"
    kept = [number for number in range(60) if number not in lost][:3]
    assert decode_video(damaged, indices=kept, strict=True)[1].missing_frames == 0


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"\x47"])
@pytest.mark.parametrize("size", [8, 300, 2000])
@pytest.mark.parametrize("as_stream", [False, True], ids=["path", "stream"])
def test_what_the_damage_looks_like_makes_no_difference(tmp_path, content, size, as_stream):
    path = numbered(tmp_path / "clip.mkv", options=GROUPS)
    begin = sum(blocks(path)[15]) + 4  # behind a block's header of 4 bytes and its packet
    damaged = erase(path, begin, begin + size, content)
    with av.open(str(damaged)) as container:
        survivors = sorted(packet.pts for packet in container.demux(video=0) if packet.size)
    with VideoReader(io.BytesIO(damaged.read_bytes()) if as_stream else damaged) as reader:
        assert len(reader.timeline) == 60 and reader.timeline.is_lost.sum() == 60 - len(survivors)
        assert reader.timeline.pts[~reader.timeline.is_lost].tolist() == survivors
        # Each read goes on where the one before ended, over the gap too.
        with pytest.warns(UserWarning, match="were replaced"):
            numbers = [read_numbers(reader.read(indices=[number])[0])[0] for number in range(60)]
    lost = lost_frames(damaged)
    assert [numbers[number] for number in range(60) if number not in lost] == [n for n in range(60) if n not in lost]


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends_leave_lost_frames_to_pyav(tmp_path, backend):
    path = numbered(tmp_path / "clip.mkv", options=GROUPS)
    found = blocks(path)
    damaged = erase(path, found[26][0], sum(found[30]))
    with pytest.warns(UserWarning, match="were replaced"):
        metadata = decode_video(damaged, num_frames=30, backend=backend)[1]
    assert metadata.video_backend == "pyav" and metadata.missing_frames > 0


def with_sound(path: Path, milliseconds: list[int], container_options: dict[str, str]) -> Path:
    """Numbered frames at these times, and a sound that lasts a second longer."""
    with av.open(str(path), "w", container_options=container_options) as output:
        stream, sound = output.add_stream("libx264", rate=30, options=GROUPS), output.add_stream("aac", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        samples = 0
        for number, time in enumerate([*milliseconds, milliseconds[-1] + 1000]):
            silence = np.zeros((1, time * 8 - samples), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, samples = 8000, samples, time * 8
            if silence.size:
                output.mux(sound.encode(frame))
            if number < len(milliseconds):
                picture = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                picture.pts, picture.time_base = time, Fraction(1, 1000)
                output.mux(stream.encode(picture))
        output.mux(stream.encode())
        output.mux(sound.encode())
    return path


@pytest.mark.parametrize(
    "options",
    [{}, CLUSTERS, {"cues_to_front": "1"}, {"live": "1"}, {"reserve_index_space": "4000"}],
    ids=lambda options: " ".join(options),
)
def test_no_frame_of_a_whole_file_counts_as_lost(tmp_path, options):
    """Pauses, a variable rate, a beginning after 0, a sound that is longer: the file is whole."""
    milliseconds = [200, 233, 267, 300, 900, 933, 967, 1000, 1010, 1033, 1400, 1433, 1467, 1500, 1533, 2000]
    time_base = Fraction(1, 1000)
    arguments = {"pts": milliseconds, "time_base": time_base, "options": GROUPS}
    clip = encode(tmp_path / "clip.mkv", range(16), container_options=options, **arguments)
    for path in (clip, with_sound(tmp_path / "sound.mkv", milliseconds, options)):
        frames, metadata = decode_video(path, strict=True)
        assert read_numbers(frames) == list(range(16)) and lost_frames(path) == []
        assert metadata.frame_times == pytest.approx([(time - 200) / 1000 for time in milliseconds])


def test_frames_are_lost_between_sounds(tmp_path):
    path = with_sound(tmp_path / "sound.mkv", [round(number * 100 / 3) for number in range(60)], CLUSTERS)
    found = blocks(path)
    damaged = erase(path, found[20][0], sum(found[50]))
    with VideoReader(damaged) as reader:
        assert len(reader.timeline) == 60 and 30 <= reader.timeline.is_lost.sum() < 45


def test_a_pause_in_a_damaged_file_is_no_loss(tmp_path):
    """Frames 0 to 29, two seconds of nothing, frames 30 to 59; the damage is somewhere else."""
    milliseconds = [*range(0, 900, 30), *range(2900, 3800, 30)]
    arguments = {"pts": milliseconds, "time_base": Fraction(1, 1000), "options": GROUPS_WITHOUT_B_FRAMES}
    path = numbered(tmp_path / "clip.mkv", **arguments)
    found = blocks(path)
    damaged = erase(path, found[45][0], found[45][0] + 200)
    with VideoReader(damaged) as reader:
        lost = np.flatnonzero(reader.timeline.is_lost)
        assert len(reader.timeline) == 60 and lost.min() == 45 and lost.max() < 60


def test_a_file_that_is_cut_off_says_so(tmp_path, caplog):
    path = numbered(tmp_path / "clip.mkv", options=GROUPS_WITHOUT_B_FRAMES)
    begin, size = blocks(path)[40]
    path.write_bytes(path.read_bytes()[: begin + size // 2])
    with caplog.at_level(logging.WARNING):
        frames, metadata = decode_video(path)
    assert read_numbers(frames) == list(range(40)) and metadata.missing_frames == 0
    assert "the file ends after 1.30 of the 2.00 s that its header announces" in caplog.text


def test_a_transport_stream_is_read_behind_its_damage(tmp_path):
    """FFmpeg gives up the search for the next packet after 64 kB, and has to be asked again."""
    path = encode(tmp_path / "clip.ts", range(60), options=GROUPS_WITHOUT_B_FRAMES)
    content = path.read_bytes()
    middle = len(content) // 2 // 188 * 188
    path.write_bytes(content[:middle] + bytes(200_000) + content[middle:])
    with VideoReader(path) as reader:
        assert len(reader.timeline) == 60 and not reader.timeline.problems
        assert read_numbers(reader.read(indices=[2, 59])[0]) == [2, 59]
