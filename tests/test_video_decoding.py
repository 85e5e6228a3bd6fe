"""Files to frames: every container and codec, other decoders, and damaged files."""

import contextlib
import json
import logging
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import (
    GROUPS,
    GROUPS_WITHOUT_B_FRAMES,
    can_encode,
    encode,
    error_kind,
    numbered_frame,
    patch,
    read_numbers,
)
from PIL import Image

from swinbert.processing import VideoDecodeError, VideoMetadata, decode_video, sample_indices
from swinbert.processing import video_backends_swinbert as backends
from swinbert.processing import video_decoding_swinbert as decoding

SHARED = Path(__file__).parents[2] / "shared"
OTHER_BACKENDS = ["decord", "torchcodec"]


# --- Which frames a file has, and getting some of them ----------------------------------------------------------------

FILES = {
    "B-frames.mp4": {"options": GROUPS},
    "open-groups.mp4": {"options": {"x264-params": GROUPS["x264-params"] + ":open-gop=1"}},
    "fragmented.mp4": {"options": GROUPS},
    "B-frames.mkv": {"options": GROUPS},
    "B-frames.avi": {"options": GROUPS},  # this container has decoding times only
    "B-frames.ts": {"options": GROUPS},
    "B-frames.flv": {"options": GROUPS},
    "without-times.h264": {"options": GROUPS},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "program-stream.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"g": "12", "bf": "2"}},
    "wmv2.wmv": {"codec": "wmv2", "rate": 25},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}},
    "animation.gif": {"codec": "gif", "rate": 10},
    "animation.apng": {"codec": "apng", "rate": 10, "pixels": "rgb24"},
    "B-frames.mxf": {"codec": "mpeg2video", "rate": 25, "pixels": "yuv422p", "options": {"g": "12", "bf": "2"}},
    "h264.mxf": {"options": GROUPS, "rate": 25, "pixels": "yuv422p"},  # the container has decoding times only
    "B-frames.nut": {"options": GROUPS},
    "raw.y4m": {"codec": "rawvideo"},
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory) -> Path:
    options = FILES[request.param]
    if not can_encode(options.get("codec", "libx264")):
        pytest.skip(f"this PyAV has no encoder {options['codec']}")
    return encode(tmp_path_factory.mktemp("files") / request.param, range(60), **options)


def test_every_frame_in_order(file):
    frames, metadata = decode_video(file)
    assert frames.dtype == np.uint8 and frames.shape == (60, 32, 96, 3)
    assert read_numbers(frames) == list(range(60)) == metadata.frames_indices
    assert metadata.total_num_frames == 60 and metadata.missing_frames == 0
    assert (metadata.width, metadata.height, metadata.video_backend) == (96, 32, "pyav")


@pytest.mark.parametrize("seek_bytes", [0, 1 << 30], ids=["seek", "read on"])
def test_some_frames_in_any_order(file, seek_bytes, monkeypatch):
    monkeypatch.setattr(backends, "_SEEK_BYTES", seek_bytes)
    monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    for wanted in ([57, 3, 3, 31, 12], [59], [0], [11, 12, 13, 35, 36, 37]):
        frames, metadata = decode_video(file, indices=wanted)
        assert read_numbers(frames) == wanted == metadata.frames_indices


def test_after_a_wrong_seek_the_file_is_opened_again(numbered_clip, monkeypatch):
    opened = []
    open_stream = backends.open_stream

    class SeeksTooFar:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def seek(self, offset, stream):
            self._container.seek(10**9, stream=stream)

    @contextlib.contextmanager
    def open_with_wrong_seeks(*arguments):
        with open_stream(*arguments) as (container, stream):
            opened.append(container)
            yield SeeksTooFar(container), stream

    monkeypatch.setattr(backends, "_SEEK_BYTES", 0)
    monkeypatch.setattr(backends, "_KEPT_BYTES", 0)
    monkeypatch.setattr(backends, "open_stream", open_with_wrong_seeks)
    assert read_numbers(decode_video(numbered_clip, indices=[3, 30])[0]) == [3, 30]
    assert len(opened) > 1


@pytest.fixture
def decoded_packets(monkeypatch) -> list:
    """The packets that go into PyAV's decoders from now on."""
    packets = []
    decode = backends.StreamDecoder._decode

    def record(self, packet):
        if packet is not None:  # None drains the decoder
            packets.append(packet)
        decode(self, packet)

    monkeypatch.setattr(backends.StreamDecoder, "_decode", record)
    return packets


def test_only_the_needed_packets_are_decoded(numbered_clip, decoded_packets):
    decode_video(numbered_clip, indices=[24, 48])  # two key frames
    assert len(decoded_packets) == 2
    decoded_packets.clear()
    # The last of its group needs all that are referred to, but not the B-frames that nothing refers to.
    assert read_numbers(decode_video(numbered_clip, indices=[11])[0]) == [11]
    assert 4 <= len(decoded_packets) <= 9


@pytest.mark.parametrize("name", ["hevc.mp4", "hevc.ts"])
def test_unreferenced_frames_of_hevc_are_skipped(tmp_path, name, decoded_packets):
    if not can_encode("libx265"):
        pytest.skip("this PyAV has no encoder libx265")
    options = {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:log-level=none"}
    path = encode(tmp_path / name, range(60), codec="libx265", options=options)
    frames, _ = decode_video(path, indices=[20, 58])
    assert read_numbers(frames) == [20, 58]
    assert len(decoded_packets) <= 16  # of the first 9 and 11 of two groups at least, in decoding order


def test_uniform_frames_and_their_times(numbered_clip):
    frames, metadata = decode_video(numbered_clip, num_frames=8)
    assert read_numbers(frames) == sample_indices(60, 8).tolist()
    assert metadata.timestamps == pytest.approx([index / 30 for index in metadata.frames_indices])
    assert metadata.fps == pytest.approx(30) and metadata.duration == pytest.approx(2)


@pytest.mark.parametrize("backend", ["pyav", *OTHER_BACKENDS])
def test_a_transform_is_applied_to_each_frame(numbered_clip, backend):
    frames, plain = decode_or_skip(numbered_clip, backend, indices=[3, 40, 3])
    halves, metadata = decode_video(
        numbered_clip, indices=[3, 40, 3], transform=lambda frame: frame[::2, ::2], backend=backend
    )
    assert np.array_equal(halves, frames[:, ::2, ::2])
    assert (metadata.height, metadata.width) == (plain.height, plain.width) == (32, 96)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["read again", "kept"])
@pytest.mark.parametrize("decoder_pixels", [0, 1 << 40], ids=["decoder's threads", "one decoder thread"])
@pytest.mark.parametrize("pixels", [0, 1 << 40], ids=["pictures beside", "pictures between"])
def test_kept_packets_and_threads_change_no_frame(file, kept_bytes, decoder_pixels, pixels, monkeypatch):
    expected = decode_video(file, indices=[0, 5, 13, 36, 59])[0]
    monkeypatch.setattr(backends, "available_cores", lambda: range(4))
    monkeypatch.setattr(backends, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(backends, "_THREADED_PIXELS", decoder_pixels)
    monkeypatch.setattr(decoding, "_PARALLEL_PIXELS", pixels)
    assert np.array_equal(decode_video(file, indices=[0, 5, 13, 36, 59])[0], expected)


def test_a_thread_takes_few_items_ahead_and_ends_with_its_caller():
    taken = []

    def items():
        for number in range(100):
            taken.append((number, threading.get_ident()))
            yield number
            if number == 50:
                raise VideoDecodeError("clip", "undecodable", "damaged")

    several = decoding._in_thread(items(), 3)
    assert [next(several) for _ in range(10)] == list(range(10))
    several.close()
    assert 10 <= len(taken) <= 13 and threading.get_ident() not in {thread for _, thread in taken}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode-frames")]
    with pytest.raises(VideoDecodeError, match="damaged"):
        list(decoding._in_thread(items(), 3))


def test_a_reader_goes_on_after_a_transform_has_failed(numbered_clip, monkeypatch):
    monkeypatch.setattr(decoding, "_PARALLEL_PIXELS", 0)
    with decoding.VideoReader(numbered_clip) as reader:
        with pytest.raises(ZeroDivisionError):
            reader.read(transform=lambda picture: 1 // 0)
        assert read_numbers(reader.read(indices=[7, 20, 21])[0]) == [7, 20, 21]


def test_a_small_clip_is_opened_once(numbered_clip, monkeypatch):
    opened = []
    open_stream = backends.open_stream
    monkeypatch.setattr(backends, "open_stream", lambda *arguments: opened.append(arguments) or open_stream(*arguments))
    decode_video(numbered_clip, num_frames=8)
    assert len(opened) == 1


def test_indices_may_depend_on_the_number_of_frames(numbered_clip):
    seen = []

    def last_three(metadata: VideoMetadata):
        seen.append(metadata)
        return range(metadata.total_num_frames - 3, metadata.total_num_frames)

    frames, metadata = decode_video(numbered_clip, indices=last_three, start=0.5, end=1)
    assert read_numbers(frames) == [29, 30, 31] == metadata.frames_indices
    assert seen[0].total_num_frames == 17 and seen[0].fps == pytest.approx(30)
    assert metadata.total_num_frames == 60


def test_one_frame(tmp_path):
    path = encode(tmp_path / "one.mp4", [5])
    assert read_numbers(decode_video(path, num_frames=4)[0]) == [5] * 4


def test_times_of_a_variable_frame_rate(tmp_path):
    pts = [i * 100 for i in range(10)] + [1000 + i * 20 for i in range(50)]
    path = encode(tmp_path / "vfr.mp4", range(60), options=GROUPS, pts=pts, time_base=Fraction(1, 1000))
    frames, metadata = decode_video(path)
    assert read_numbers(frames) == list(range(60))
    assert metadata.timestamps == pytest.approx([stamp / 1000 for stamp in pts], abs=1e-3)
    assert read_numbers(decode_video(path, start=0.85, end=1.03)[0]) == [9, 10, 11, 12]


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path):
    path = encode(tmp_path / "trimmed.mp4", range(60), options=GROUPS_WITHOUT_B_FRAMES)
    patch(path, b"elst", 12, (7 * 512).to_bytes(4, "big"))  # media time: begin after 7 frames of 512 ticks
    frames, metadata = decode_video(path)
    assert read_numbers(frames) == list(range(7, 60)) and metadata.total_num_frames == 53
    assert read_numbers(decode_video(path, indices=[0, 30])[0]) == [7, 37]


@pytest.mark.parametrize("name", ["change.ts", "change.h264"])
def test_a_resolution_that_changes_within_the_stream(tmp_path, name):
    container = name.split(".")[1]
    parts = [
        encode(
            tmp_path / f"{first}.{container}",
            range(first, first + 20),
            options=GROUPS_WITHOUT_B_FRAMES,
            pts=list(range(first, first + 20)),
            time_base=Fraction(1, 30),
            scales=(scale,),
        )
        for first, scale in ((0, 1), (20, 2))
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, _ = decode_video(path)
    assert frames.shape == (40, 32, 96, 3) and read_numbers(frames) == list(range(40))
    assert read_numbers(decode_video(path, indices=[33])[0]) == [33]


def test_two_streams_as_ffmpeg_chooses(tmp_path):
    path = encode(tmp_path / "two.mp4", range(10), scales=(1, 2))
    with av.open(str(path)) as container:
        best = container.streams.best("video")
    frames, _ = decode_video(path)
    assert frames.shape[1:3] == (best.codec_context.height, best.codec_context.width)
    assert read_numbers(frames) == list(range(10))


# --- Other decoders ---------------------------------------------------------------------------------------------------


def decode_or_skip(source, backend, **arguments):
    try:
        return decode_video(source, backend=backend, **arguments)
    except ImportError as error:
        pytest.skip(str(error))


def assert_same_frames(path, backend, wanted):
    expected, moments = decode_video(path, indices=wanted)
    try:
        frames, metadata = decode_or_skip(path, backend, indices=wanted)
    except VideoDecodeError as error:
        assert error.kind == "backend"
        pytest.skip(f"{backend} cannot read it: {error.message[:100]}")
    assert metadata.frame_times == moments.frame_times and metadata.video_backend in (backend, "pyav")
    assert frames.shape == expected.shape
    # Conversions to RGB differ by up to 1.5 on average between versions of FFmpeg.
    assert np.abs(frames.astype(int) - expected).mean(axis=(1, 2, 3)).max() < 2
    return frames


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_other_decoders_give_the_same_frames(file, backend):
    wanted = [57, 3, 3, 31, 12, 59, 0, 35, 36, 37]
    assert read_numbers(assert_same_frames(file, backend, wanted)) == wanted


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_other_decoders_do_not_get_huge_frames(backend, monkeypatch, numbered_clip):
    monkeypatch.setattr(backends, "MAX_FRAME_PIXELS", 96 * 32 - 1)
    assert error_kind(numbered_clip, backend=backend) == "too_large"


def test_unknown_backend(numbered_clip):
    with pytest.raises(ValueError, match="backend"):
        decode_video(numbered_clip, backend="opencv")


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_other_decoders_read_bytes(numbered_clip, backend):
    assert read_numbers(decode_or_skip(numbered_clip.read_bytes(), backend, indices=[40, 1])[0]) == [40, 1]


# --- Broken files -----------------------------------------------------------------------------------------------------


def test_other_kinds_of_files_are_refused(tmp_path):
    for name, content in {"text.mp4": b"not a video " * 99, "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert error_kind(tmp_path / name) == "not_video"
    encode(tmp_path / "clip.mp4", range(5))
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'clip.mp4'\n")
    assert error_kind(tmp_path / "list.ffconcat") == "not_video"
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.avif"):
        if Image.registered_extensions().get(Path(name).suffix) in Image.SAVE:
            Image.fromarray(numbered_frame(1)).save(tmp_path / name)
            assert error_kind(tmp_path / name) == "not_video", name


def encode_dv(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        for number in range(12):
            picture = np.asarray(Image.fromarray(numbered_frame(number)).resize((720, 576), Image.Resampling.NEAREST))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return path


def test_raw_dv(tmp_path):
    frames, metadata = decode_video(encode_dv(tmp_path / "tape.dv"))
    assert frames.shape == (12, 576, 768, 3)  # 4:3, as tapes are shown
    assert read_numbers(frames) == list(range(12)) and metadata.duration == pytest.approx(0.48)


def test_containers_that_are_not_read_are_named(tmp_path):
    pictures = [Image.fromarray(numbered_frame(number)) for number in range(3)]
    pictures[0].save(tmp_path / "animation.webp", save_all=True, append_images=pictures[1:])
    (tmp_path / "film.rm").write_bytes(b".RMF" + bytes(99))
    for name, container in (("animation.webp", "WebP"), ("film.rm", "RealMedia")):
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            with pytest.raises(VideoDecodeError, match=f"this container is not supported: {container}") as raised:
                decode_video(source)
            assert raised.value.kind == "not_video"


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def test_sound_without_video(tmp_path):
    assert error_kind(sound(tmp_path / "song.mp4")) == "no_video_stream"


def test_frames_that_are_too_large(numbered_clip, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_CLIP_BYTES", 59 * 96 * 32 * 3)
    assert error_kind(numbered_clip) == "too_large"
    assert decode_video(numbered_clip, num_frames=59)[1].total_num_frames == 60
    monkeypatch.setattr(backends, "MAX_FRAME_PIXELS", 96 * 32 - 1)
    assert error_kind(numbered_clip, num_frames=1) == "too_large"


def damage(clip: Path, path: Path, frames: range) -> Path:
    """Copies the file `clip` to `path`, with zeros in place of the packets of some frames."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    by_time = sorted(packets, key=lambda packet: packet.pts)
    for packet in (by_time[number] for number in frames):
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    return path


def test_damaged_frames_are_replaced_by_their_neighbours(tmp_path):
    clip = encode(tmp_path / "clip.mp4", range(60), options=GROUPS_WITHOUT_B_FRAMES)
    path = damage(clip, tmp_path / "damaged.mp4", range(22, 24))  # the end of a group: nothing else refers to them
    with pytest.warns(UserWarning, match=r"damaged.mp4: 2 of 60 wanted frames could not be decoded"):
        frames, metadata = decode_video(path)
    assert read_numbers(frames) == [*range(22), 21, 24, *range(24, 60)]
    assert (metadata.total_num_frames, metadata.missing_frames) == (60, 2)
    assert error_kind(path, strict=True) == "undecodable"
    assert decode_video(path, indices=[3, 50], strict=True)[1].missing_frames == 0
    with pytest.warns(UserWarning, match="1 of 1"):
        assert read_numbers(decode_video(path, indices=[23])[0]) == [24]


def test_a_damaged_group_of_pictures(tmp_path):
    clip = encode(tmp_path / "clip.mp4", range(60), options=GROUPS_WITHOUT_B_FRAMES)
    path = damage(clip, tmp_path / "damaged.mp4", range(48, 60))
    with pytest.warns(UserWarning, match="1 of 1"):
        assert read_numbers(decode_video(path, indices=[55])[0]) == [47]
    path = damage(clip, tmp_path / "nothing.mp4", range(60))
    assert error_kind(path) == "undecodable"


def test_a_truncated_file_gives_the_frames_it_has(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    header_first = {"movflags": "faststart"}
    encode(path, range(60), options=GROUPS_WITHOUT_B_FRAMES, container_options=header_first)
    with av.open(str(path)) as container:
        cut = [packet for packet in container.demux(video=0) if packet.size][40]
    path.write_bytes(path.read_bytes()[: cut.pos + cut.size // 2])
    with caplog.at_level(logging.WARNING):
        frames, metadata = decode_video(path)
    assert metadata.total_num_frames == 41 and metadata.missing_frames == 0
    assert read_numbers(frames) == [*range(40), 39]  # the incomplete frame repeats the one before
    assert error_kind(path, backend="decord") == "backend" if _has("decord") else True


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


# --- The shared corpus ------------------------------------------------------------------------------------------------

needs_corpus = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the corpus of clips beside the repository")


def corpus(folder: str, index: str) -> dict:
    path = SHARED / folder / index
    return json.loads(path.read_text()) if path.is_file() else {}


@needs_corpus
@pytest.mark.parametrize("name", corpus("clips", "manifest.json"))
def test_clips_of_the_corpus(name):
    expected = corpus("clips", "manifest.json")[name]
    frames, metadata = decode_video(SHARED / "clips" / name, num_frames=8)
    with av.open(str(SHARED / "clips" / name)) as container:
        aspect = container.streams.best("video").sample_aspect_ratio or 1  # the manifest has the stored width
    assert metadata.total_num_frames == expected["nb_frames"]
    assert (metadata.width, metadata.height) == (round(expected["width"] * aspect), expected["height"])
    assert frames.shape == (8, metadata.height, metadata.width, 3)


@needs_corpus
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
@pytest.mark.parametrize("name", corpus("clips", "manifest.json"))
def test_other_decoders_on_the_corpus(name, backend):
    total = corpus("clips", "manifest.json")[name]["nb_frames"]
    wanted = np.random.RandomState(0).permutation(min(total, 200))[:12].tolist()
    assert_same_frames(SHARED / "clips" / name, backend, wanted)


@needs_corpus
@pytest.mark.parametrize("name", corpus("bad", "expected.json"))
@pytest.mark.filterwarnings("ignore:.*could not be decoded")
def test_broken_files_of_the_corpus(name):
    expected = corpus("bad", "expected.json")[name]
    path = SHARED / "bad" / name
    eighths = {"indices": lambda metadata: [i * metadata.total_num_frames // 8 for i in range(8)]}
    if expected["expect"] == "error":
        assert error_kind(path, **eighths) == expected["kind"]
        assert error_kind(path.read_bytes(), **eighths) == expected["kind"]
    else:
        _, metadata = decode_video(path, **eighths)
        assert (metadata.total_num_frames, metadata.missing_frames) == (expected["n_frames"], expected["missing"])


MUTANTS = {  # number of frames, of which some are missing, or the kind of the error
    "stream_appears_while_reading.ts": 118,
    "no_packet_of_last_frame.mp4": 30,
    "only_frame_is_corrupt.mp4": "undecodable",
    "grey_frames_marked_corrupt.mp4": 18,
}


@needs_corpus
@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.filterwarnings("ignore:.*could not be decoded")
def test_mutants_of_the_corpus(name):
    path = SHARED / "fuzz" / name
    if isinstance(MUTANTS[name], str):
        assert error_kind(path) == MUTANTS[name]
    else:
        frames, metadata = decode_video(path)
        assert metadata.total_num_frames == MUTANTS[name] and metadata.missing_frames > 0
        assert error_kind(path, strict=True) == "undecodable"


@needs_corpus
@pytest.mark.filterwarnings("ignore:.*could not be decoded")
def test_no_foreign_error_comes_out_of_a_frame_that_cannot_be_converted():
    """FFmpeg 7 converts it; later ones refuse its colour space."""
    with contextlib.suppress(VideoDecodeError):
        assert len(decode_video(SHARED / "fuzz" / "oserror_95.ts")[0]) > 0


def test_threads_decode_damaged_clips_as_one_thread_does(numbered_clip, monkeypatch):
    with av.open(str(numbered_clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    monkeypatch.setattr(backends, "available_cores", lambda: range(4))
    for number in (14, 25, 38):
        damaged = bytearray(numbered_clip.read_bytes())
        position, size = packets[number]
        damaged[position : position + size] = b"\xff" * size
        found = []
        for pixels in (1 << 60, 0):
            monkeypatch.setattr(backends, "_THREADED_PIXELS", pixels)
            with pytest.warns(UserWarning, match="could not be decoded"):
                found.append(decode_video(bytes(damaged)))
        (one, of_one), (several, of_several) = found
        assert of_one.missing_frames == of_several.missing_frames > 0
        np.testing.assert_array_equal(one, several)
