"""`VideoReader`: several ranges of one open video give the frames of separate calls, at the cost of one pass."""

import av
import numpy as np
import pytest
from encoded_clips import GROUPS, GROUPS_WITHOUT_B_FRAMES, can_encode, encode, read_numbers

from swinbert.processing import VideoDecodeError, decode_video
from swinbert.processing import video_backends_swinbert as backends
from swinbert.processing import video_decoding_swinbert as decoding
from swinbert.processing.video_decoding_swinbert import VideoReader, header_duration

# Seconds; ranges, in some files, begin and end inside a group of pictures.
RANGES = {
    "ascending": [(0.0, 0.3), (0.35, 0.62), (0.9, 1.2), (1.7, None)],
    "adjacent": [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, None)],
    "overlapping": [(0.0, 0.8), (0.4, 1.2), (0.8, 1.6), (1.2, None)],
    "descending": [(1.5, None), (0.7, 1.0), (0.0, 0.4)],
    "repeated": [(0.7, 1.0), (0.7, 1.0)],
}
FILES = {
    "B-frames.mp4": {"options": GROUPS},
    "open-groups.mp4": {"options": {"x264-params": GROUPS["x264-params"] + ":open-gop=1"}},
    "one-group.mp4": {"options": {"x264-params": "keyint=999:bframes=3:scenecut=0"}},
    "B-frames.mkv": {"options": GROUPS},
    "B-frames.ts": {"options": GROUPS},
    "without-times.h264": {"options": GROUPS},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}},
    "animation.gif": {"codec": "gif", "rate": 25},
}


@pytest.fixture(scope="module", params=FILES)
def path(request, tmp_path_factory):
    options = FILES[request.param]
    if not can_encode(options.get("codec", "libx264")):
        pytest.skip(f"this PyAV has no encoder {options['codec']}")
    return encode(tmp_path_factory.mktemp("reader") / request.param, range(60), **{"rate": 30, **options})


@pytest.fixture(params=["kept", "read again"])
def packets_are_kept(request, monkeypatch) -> bool:
    """Whether the packets of small files stay in memory after the timeline is read."""
    if request.param == "read again":
        monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    return request.param == "kept"


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often a file is opened, its timeline is read, and a packet is decoded from now on."""
    counts = {"open": 0, "read_timeline": 0, "decode": 0}

    def counted(name, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    decode = backends.StreamDecoder._decode
    monkeypatch.setattr(av, "open", counted("open", av.open))
    monkeypatch.setattr(backends, "read_timeline", counted("read_timeline", backends.read_timeline))
    monkeypatch.setattr(backends.StreamDecoder, "_decode", counted("decode", decode))
    return counts


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("threaded_pixels", [0, 1 << 40], ids=["threads", "no threads"])
def test_frames_are_those_of_separate_calls(path, packets_are_kept, ranges, threaded_pixels, monkeypatch):
    monkeypatch.setattr(backends, "available_cores", lambda: range(4))
    monkeypatch.setattr(backends, "_THREADED_PIXELS", threaded_pixels)
    monkeypatch.setattr(decoding, "_PARALLEL_PIXELS", threaded_pixels)
    with VideoReader(path) as reader:
        for start, end in ranges:
            for num_frames in (None, 5):
                frames, metadata = reader.read(start=start, end=end, num_frames=num_frames)
                expected, expected_metadata = decode_video(path, start=start, end=end, num_frames=num_frames)
                assert read_numbers(frames) == metadata.frames_indices
                assert np.array_equal(frames, expected) and metadata == expected_metadata


def test_seeking_between_ranges(path, monkeypatch):
    monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    monkeypatch.setattr(backends, "_SEEK_BYTES", 0)
    with VideoReader(path) as reader:
        for wanted in ([0, 1], [2, 5], [30], [31, 33], [59], [58], [12, 40]):
            assert read_numbers(reader.read(indices=wanted)[0]) == wanted


def test_a_file_is_opened_and_its_packets_are_read_once(packets_are_kept, numbered_clip, calls):
    with VideoReader(numbered_clip) as reader:
        for ranges in ("ascending", "adjacent", "overlapping", "descending"):
            for start, end in RANGES[ranges]:
                reader.read(start=start, end=end)
    assert calls["open"] == 1 and calls["read_timeline"] == 1


@pytest.mark.parametrize("length", [7, 12, 25])
def test_adjacent_ranges_decode_each_packet_once(path, packets_are_kept, length, calls):
    """Also where ranges end inside a group of pictures."""
    with VideoReader(path) as reader:
        numbers = []
        for first in range(0, 60, length):
            numbers += read_numbers(reader.read(indices=range(first, min(first + length, 60)))[0])
        num_packets = len(reader.timeline.packets)
    assert numbers == list(range(60))
    num_drained = 1 + 60 // length  # `None`, which is no packet, may end each range
    assert calls["decode"] <= num_packets + num_drained
    assert calls["open"] <= 2  # what cannot seek is opened again after its timeline is read


def test_sampled_frames_of_a_long_group_decode_it_once(tmp_path, packets_are_kept, calls):
    path = encode(tmp_path / "long.mp4", range(300), options={"x264-params": "keyint=999:bframes=3:scenecut=0"})
    with VideoReader(path) as reader:
        for start in range(10):
            frames, metadata = reader.read(start=start, end=start + 0.9, num_frames=4)
            assert read_numbers(frames) == metadata.frames_indices
    assert calls["decode"] <= 310


def test_threads_start_once_they_pay(numbered_clip, monkeypatch):
    monkeypatch.setattr(backends, "_THREADED_PIXELS", 30 * 96 * 32)
    monkeypatch.setattr(backends, "available_cores", lambda: range(4))
    with VideoReader(numbered_clip) as reader:
        threads = []
        for first in range(0, 60, 12):
            wanted = list(range(first, first + 12))
            assert read_numbers(reader.read(indices=wanted)[0]) == wanted
            threads.append(reader._decoder._num_threads)
    assert threads == [1, 1, 3, 3, 3]  # one core is left for the pictures


def test_frames_are_not_kept(numbered_clip):
    with VideoReader(numbered_clip) as reader:
        for first in range(0, 60, 20):
            reader.read(indices=range(first, first + 20))
            assert len(reader._decoder._output) <= 4


def test_damaged_frames_of_one_range_leave_the_others_whole(tmp_path, packets_are_kept):
    clip = encode(tmp_path / "clip.mp4", range(60), options=GROUPS_WITHOUT_B_FRAMES)
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[22:24]:  # the end of a group
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    clip.write_bytes(content)
    with VideoReader(clip) as reader:
        assert reader.read(indices=range(20))[1].missing_frames == 0
        with pytest.warns(UserWarning, match=r"clip.mp4: 2 of 10 wanted frames"):
            frames, metadata = reader.read(indices=range(20, 30))
        assert read_numbers(frames) == [20, 21, 21, 24, *range(24, 30)] and metadata.missing_frames == 2
        with pytest.raises(VideoDecodeError):
            reader.read(indices=[22], strict=True)
        assert read_numbers(reader.read(indices=range(30, 60))[0]) == list(range(30, 60))


def test_arguments_and_metadata(numbered_clip):
    with VideoReader(numbered_clip) as reader:
        assert (reader.metadata.total_num_frames, reader.metadata.fps) == (60, pytest.approx(30))
        assert len(reader.timeline) == 60
        frames, metadata = reader.read(indices=[3, 40, 3], transform=lambda frame: frame[::2, ::2])
        assert np.array_equal(frames, decode_video(numbered_clip, indices=[3, 40, 3])[0][:, ::2, ::2])
        assert (metadata.height, metadata.width) == (32, 96)
        for arguments, kind in (({"start": 9}, "bad_range"), ({"num_frames": 0}, "bad_sampling")):
            with pytest.raises(VideoDecodeError) as raised:
                reader.read(**arguments)
            assert raised.value.kind == kind
        assert read_numbers(reader.read(indices=[41])[0]) == [41]  # an error leaves the reader usable
    with pytest.raises(ValueError, match="closed"):
        reader.read(indices=[3])


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends(numbered_clip, backend):
    with VideoReader(numbered_clip, backend=backend) as reader:
        for wanted in ([3, 4], [30, 31]):
            try:
                frames, metadata = reader.read(indices=wanted)
            except ImportError as error:
                pytest.skip(str(error))
            assert read_numbers(frames) == wanted and metadata.video_backend == backend


def test_duration_by_the_header(numbered_clip, tmp_path):
    assert header_duration(numbered_clip) == pytest.approx(2, abs=0.1)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError):
        header_duration(tmp_path / "text.mp4")
