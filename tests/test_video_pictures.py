"""From decoded frames to the pictures that are shown: orientation, shape, interlacing, colours, transparency."""

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import can_encode, encode, numbered_frame, patch, read_numbers

from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError, decode_video
from swinbert.processing.video_decoding_swinbert import VideoReader
from swinbert.processing.video_pictures_swinbert import _blend

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


# --- High dynamic range -----------------------------------------------------------------------------------------------

# Signals, and what an ordinary screen shows of their light: 255 (light / 203) ** (1 / 2.4) below the knee at 92 cd/m2.
GREYS = {
    # 0, 1, 10, 50, 203 and 1000 cd/m2, as in the tables of ITU-R BT.2408
    "smpte2084": ((0, 0.1496, 0.3022, 0.4403, 0.5807, 0.7518), (0, 28, 73, 142, 230, 255)),
    # 0, 20.1, 26.2, 50.7, 203 and 1000 cd/m2 on a screen of 1000
    "arib-std-b67": ((0, 0.34, 0.38, 0.50, 0.75, 1), (0, 97, 109, 143, 230, 255)),
}


def encode_hdr(path: Path, transfer: str, signals: np.ndarray) -> Path:
    """Columns of 16 pixels of the RGB `signals`, (N, 3), in BT.2020."""
    options = f"lossless=1:log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    r, g, b = signals.T
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    planes = 64 + 876 * y, 512 + 896 * (b - y) / 1.8814, 512 + 896 * (r - y) / 1.4746
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx265", rate=10, options={"x265-params": options})
        stream.width, stream.height, stream.pix_fmt = 16 * len(signals), 32, "yuv420p10le"
        for _ in range(3):
            frame = av.VideoFrame(stream.width, stream.height, "yuv420p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                row = np.rint(values).astype(np.uint16).repeat(plane.width // len(signals))
                lines = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                lines[:, : plane.width] = row
                plane.update(lines.tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


needs_x265 = pytest.mark.skipif(not can_encode("libx265"), reason="this PyAV has no encoder libx265")


@needs_x265
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transfer", GREYS)
def test_high_dynamic_range_is_tone_mapped(tmp_path, transfer, backend):
    signals, expected = GREYS[transfer]
    path = encode_hdr(tmp_path / "clip.mp4", transfer, np.array(signals)[:, None].repeat(3, 1))
    frames, metadata = decode_or_skip(path, backend)
    assert frames.shape == (3, 32, 96, 3) and metadata.video_backend == "pyav"
    greys = frames[:, 16, 8::16].astype(int)
    assert np.ptp(greys, axis=-1).max() <= 2  # grey stays grey
    assert np.abs(greys - np.array(expected)[:, None]).max() <= 3


@needs_x265
def test_colours_of_bt2020_become_those_of_bt709(tmp_path):
    """The primaries of BT.709 at 50 cd/m2, in BT.2020 (ITU-R BT.2087, table 4)."""
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    power = (50 * to_bt2020.T / 10000) ** (2610 / 16384)
    signals = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    frames, _ = decode_video(encode_hdr(tmp_path / "clip.mp4", "smpte2084", signals))
    shown = frames[0, 16, 8::16].astype(int)
    full = round(255 * (50 / 203) ** (1 / 2.4))
    assert np.abs(np.diag(shown) - full).max() <= 6
    assert (shown - np.diag(np.diag(shown))).max() <= 40  # a code value of PQ near black is much to an ordinary screen


@needs_x265
def test_high_dynamic_range_without_tone_mapping_is_warned_of(tmp_path):
    path = encode_hdr(tmp_path / "clip.mp4", "smpte2084", np.array([[0.58] * 3] * 6))
    with pytest.warns(UserWarning, match="clip.mp4: .* high dynamic range") as caught:
        frames, _ = decode_video(path, tone_map=False)
    assert len(caught) == 1 and abs(int(frames[0, 16, 16, 1]) - 0.58 * 255) < 4
    processor = SwinBertVideoProcessor(num_frames=2, tone_map=False)
    with pytest.warns(UserWarning, match="high dynamic range"):
        processor(path)


# --- Transparency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least_alpha", [255, 254, 128, 0])
def test_pictures_are_blended_with_white(least_alpha):
    lines = np.random.default_rng(0).integers(0, 256, (6, 12, 4), np.uint8)
    lines[..., 3] = 255
    lines[4, 7, 3] = least_alpha
    rgba = lines[:, :10]  # as FFmpeg stores it: lines end in padding
    alpha = rgba[..., 3:] / 255
    rgb = _blend(rgba)
    assert np.array_equal(rgb, np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5))
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name,codec,pixels,options",
    [
        ("clip.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
        ("vp8.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("clip.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("png.mov", "png", "rgba", {}),
    ],
)
def test_what_is_transparent_is_white(tmp_path, name, codec, pixels, options, backend):
    """Red, half transparent in the middle third and wholly in the left one, over white."""
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 200, np.repeat([0, 128, 255], 32)
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for _ in range(6):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)))
        output.mux(stream.encode())
    frames, _ = decode_or_skip(path, backend)
    assert len(frames) == 6
    for column, colour in ((16, (255, 255, 255)), (48, (227, 127, 127)), (80, (200, 0, 0))):
        assert np.abs(frames[:, 32, column].astype(int) - colour).max() <= 6
    assert np.array_equal(decode_video(path, indices=[4, 1])[0], frames[[4, 1]])
