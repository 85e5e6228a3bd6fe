"""From decoded frames to the pictures that are shown: orientation, shape, interlacing, colours, transparency."""

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import encode, numbered_frame, patch, read_numbers

from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError, decode_video
from swinbert.processing.video_decoding_swinbert import VideoReader

BACKENDS = ["pyav", "decord", "torchcodec"]


def decode_or_skip(source, backend, **arguments):
    try:
        return decode_video(source, backend=backend, **arguments)
    except ImportError as error:
        pytest.skip(str(error))
    except VideoDecodeError as error:
        if backend == "pyav" or error.kind != "backend":
            raise
        pytest.skip(f"{backend} cannot read it: {error.message[:100]}")


# --- Orientation ------------------------------------------------------------------------------------------------------


def set_display_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Pixel (p, q) is shown at (ap + cq, bp + dq)."""
    values = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]
    return patch(path, b"tkhd", 40, b"".join(value.to_bytes(4, "big", signed=True) for value in values))


# The filters by which FFmpeg's command shows each matrix (`configure_input_video_filter` in ffmpeg_filter.c).
FFMPEG_SHOWS = {
    (1, 0, 0, 1): lambda frame: frame,
    (-1, 0, 0, 1): np.fliplr,  # hflip
    (1, 0, 0, -1): np.flipud,  # vflip
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),  # hflip, vflip
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),  # transpose=clock
    (0, -1, 1, 0): lambda frame: np.rot90(frame, 1),  # transpose=cclock
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),  # transpose=cclock_flip
    (0, -1, -1, 0): lambda frame: np.flipud(np.rot90(frame, -1)),  # transpose=clock_flip
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", FFMPEG_SHOWS)
def test_every_quarter_turn_and_flip(tmp_path, matrix, backend):
    stored = decode_video(encode(tmp_path / "stored.mp4", range(3)))[0]
    path = set_display_matrix(encode(tmp_path / "shown.mp4", range(3)), *matrix)
    frames, metadata = decode_or_skip(path, backend)
    expected = np.stack([FFMPEG_SHOWS[matrix](frame) for frame in stored])
    assert frames.shape == expected.shape and np.abs(frames.astype(int) - expected).mean() < 2
    assert (metadata.height, metadata.width) == frames.shape[1:3]


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (0.8, 0.6, 0.6, 0.8), (0, 0, 0, 0)])
def test_any_other_matrix_is_warned_of(tmp_path, matrix):
    stored = decode_video(encode(tmp_path / "stored.mp4", range(3)))[0]
    path = set_display_matrix(encode(tmp_path / "shown.mp4", range(3)), *matrix)
    with pytest.warns(UserWarning, match="shown.mp4: its display matrix") as caught:
        frames, _ = decode_video(path)
    assert len(caught) == 1
    assert np.array_equal(frames, stored)


# --- Shape ------------------------------------------------------------------------------------------------------------


def encode_anamorphic(path: Path, aspect: Fraction, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name,codec", [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.mpg", "mpeg2video"), ("clip.ts", "libx264")]
)
def test_pictures_have_the_shape_in_which_they_are_shown(tmp_path, name, codec, backend):
    aspect = Fraction(2) if codec == "libx264" else Fraction(16, 9) * 32 / 96  # MPEG-2 stores the picture's: 16:9
    path = encode_anamorphic(tmp_path / name, aspect, codec)
    frames, metadata = decode_or_skip(path, backend)
    assert frames.shape == (5, 32, round(96 * aspect), 3)
    assert (metadata.height, metadata.width) == frames.shape[1:3]
    if codec == "libx264":
        assert read_numbers(frames) == list(range(5))


def test_an_aspect_that_rounding_left_changes_nothing(tmp_path):
    assert decode_video(encode_anamorphic(tmp_path / "clip.mp4", Fraction(404, 405)))[0].shape[1:3] == (32, 96)


def test_an_absurd_aspect_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"clip.mp4: .*16"):
        assert decode_video(encode_anamorphic(tmp_path / "clip.mp4", Fraction(16)))[0].shape[1:3] == (32, 96)


def test_an_anamorphic_picture_that_is_turned(tmp_path):
    path = set_display_matrix(encode_anamorphic(tmp_path / "clip.mp4", Fraction(2)), 0, 1, -1, 0)
    assert decode_video(path)[0].shape == (5, 192, 32, 3)


# --- Interlaced frames ------------------------------------------------------------------------------------------------

INTERLACED = {
    "clip.mpg": ("mpeg2video", {"flags": "+ildct+ilme"}),
    "clip.mp4": ("libx264", {"x264-params": "tff=1:keyint=6:bframes=2"}),
    "clip.ts": ("libx264", {"x264-params": "tff=1:keyint=6:bframes=2"}),
    "clip.avi": ("mpeg4", {"flags": "+ildct+ilme"}),
}


def encode_interlaced(path: Path, codec: str, options: dict[str, str], num_frames: int = 18) -> Path:
    """A bright box moves 4 pixels from field to field: in a frame as it is stored, its sides are combs."""
    graph = av.filter.Graph()
    nodes = (
        graph.add_buffer(width=96, height=64, format="yuv420p", time_base=Fraction(1, 25)),
        graph.add("setfield", "tff"),
    )
    nodes = *nodes, graph.add("buffersink")
    for node, following in zip(nodes, nodes[1:], strict=False):
        node.link_to(following)
    graph.configure()
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 6
        for number in range(num_frames):
            picture = np.full((64, 96, 3), 40, np.uint8)
            for field in range(2):
                left = 4 * (2 * number + field) % 72
                picture[field::2, left : left + 16] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            graph.push(frame)
            output.mux(stream.encode(graph.pull()))
        output.mux(stream.encode())
    return path


def combing(frames: np.ndarray) -> float:
    """How much rows differ from both rows beside them, in one direction."""
    rows = frames[..., 1].astype(float)
    return float(np.minimum(rows[:, 1:-1] - rows[:, :-2], rows[:, 1:-1] - rows[:, 2:]).clip(0).mean())


def filter_by_bwdif(path: Path) -> np.ndarray:
    """The whole video through FFmpeg's filter."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = graph.add_buffer(template=stream), graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")
        nodes[0].link_to(nodes[1])
        nodes[1].link_to(nodes[2])
        graph.configure()
        pictures = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            with contextlib.suppress(BlockingIOError, EOFError):
                while True:
                    pictures.append(graph.pull().to_ndarray(format="rgb24"))
        return np.stack(pictures)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_frames_are_deinterlaced(tmp_path, name, backend):
    path = encode_interlaced(tmp_path / name, *INTERLACED[name])
    stored, as_stored = decode_video(path, deinterlace=False)
    frames, metadata = decode_or_skip(path, backend)
    assert frames.shape == stored.shape and metadata.frame_times == as_stored.frame_times
    assert combing(stored) > 5 and combing(frames) < 1
    assert np.array_equal(frames, filter_by_bwdif(path))
    wanted = [11, 6, 0, 17, 11]
    assert np.array_equal(decode_or_skip(path, backend, indices=wanted)[0], frames[wanted])


def test_a_reader_deinterlaces_every_range_in_the_same_way(tmp_path):
    path = encode_interlaced(tmp_path / "clip.mp4", *INTERLACED["clip.mp4"])
    frames, _ = decode_video(path)
    with VideoReader(path) as reader:
        for start in (0, 7, 3):
            assert np.array_equal(reader.read(indices=range(start, start + 5))[0], frames[start : start + 5])


def test_the_processor_deinterlaces_unless_told_not_to(tmp_path):
    path = encode_interlaced(tmp_path / "clip.mp4", *INTERLACED["clip.mp4"])
    processor = SwinBertVideoProcessor(num_frames=4, size={"shortest_edge": 64})
    assert combing(processor.load_frames(path)[0]) < 1 < combing(processor.load_frames(path, deinterlace=False)[0])
    stored = SwinBertVideoProcessor(num_frames=4, size={"shortest_edge": 64}, deinterlace=False)
    assert combing(stored.load_frames(path)[0]) > 5
    assert not np.array_equal(
        processor(path).pixel_values_videos, processor(path, deinterlace=False).pixel_values_videos
    )


def test_progressive_frames_pass_untouched(tmp_path, monkeypatch):
    monkeypatch.setattr("swinbert.processing.video_backends_swinbert.deinterlace_frames", None)
    decode_video(encode(tmp_path / "clip.mp4", range(5)))
