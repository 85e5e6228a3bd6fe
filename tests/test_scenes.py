"""Scenes: cuts at the exact times of frames, short and long scenes, damage, memory, one pass."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from captioning import write_git_folder
from PIL import Image

from swinbert.captioning import Segmentation, captions, kept_frames, load_captioner, scenes
from swinbert.captioning.kept_frames import KeptFrames
from swinbert.captioning.scenes import read_scenes
from swinbert.processing import SwinBertVideoProcessor, VideoReader, decode_video
from swinbert.processing import video_backends_swinbert as backends
from swinbert.processing.clip_reading_swinbert import CaptionerFamily

pytest.importorskip("scenedetect")
CLIPS = Path(__file__).parents[2] / "shared" / "clips"
WIDTH, HEIGHT, RATE = 96, 64, 25


def picture(scene: int, number: int) -> np.ndarray:
    """A texture that differs from scene to scene, in colours of its own, and moves slowly."""
    rng = np.random.default_rng(scene)
    low = rng.integers(0, 160, 3)
    blocks = rng.integers(0, 90, (HEIGHT // 8, WIDTH // 8, 3)) + low
    return np.roll(blocks.repeat(8, 0).repeat(8, 1), number // 4, 1).astype(np.uint8)


def write_film(path: Path, lengths: list[int], looks: list[int] | None = None, pts: list[int] | None = None) -> Path:
    """
    Scenes of `lengths` frames at 25 a second.

    Args:
        looks: which texture each shows.
        pts: time stamps in milliseconds.
    """
    looks = list(range(len(lengths))) if looks is None else looks
    frames = [(look, number) for look, length in zip(looks, lengths, strict=True) for number in range(length)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"x264-params": "keyint=50:scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for position, (look, number) in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture(look, number), format="rgb24")
            frame.pts, frame.time_base = (pts[position] if pts else position * 40), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class Family(CaptionerFamily):
    """Reads nothing: scenes are cut alike for every model."""

    video_backend = "auto"

    def __init__(self):
        pass

    check_num_frames = check_fps = read = lambda self, *arguments: None


def cut(path, part=None, **arguments) -> list[tuple[int, int]]:
    with VideoReader(path) as reader:
        part = range(len(reader.timeline)) if part is None else part
        found = read_scenes(Family(), reader, Segmentation(scenes=True, **arguments), part)
        return [(frames.start, frames.stop) for frames, _ in found]


# ---------------------------------------------------------------------------------------------------------------- cuts


def test_scenes_begin_where_the_picture_changes(tmp_path):
    film = write_film(tmp_path / "film.mp4", [40, 30, 50, 25])
    assert cut(film) == [(0, 40), (40, 70), (70, 120), (120, 145)]
    assert cut(film, range(50, 140)) == [(50, 70), (70, 120), (120, 140)]
    assert cut(write_film(tmp_path / "one.mp4", [40])) == [(0, 40)]
    assert cut(write_film(tmp_path / "short.mp4", [1])) == [(0, 1)]


def test_a_higher_threshold_finds_less(tmp_path):
    film = write_film(tmp_path / "film.mp4", [40, 40])
    assert len(cut(film, threshold=3.0)) == 2 and len(cut(film, threshold=1e6)) == 1


def test_times_are_those_of_frames_of_a_variable_rate(tmp_path):
    pts = np.cumsum([0, *([40, 20, 70] * 40)])[:90].tolist()
    film = write_film(tmp_path / "film.mkv", [40, 50], pts=pts)
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    first, second = captions([film], captioner, segments="scenes")
    assert first.end == second.start == pts[40] / 1000 and first.start == 0
    assert second.end == second.duration == pytest.approx(pts[-1] / 1000, abs=0.08) and second.end > pts[-1] / 1000


def test_short_scenes_join_what_they_resemble(tmp_path):
    # The flash in the second place looks like the third scene, that in the fifth like the fourth.
    film = write_film(tmp_path / "film.mp4", [40, 8, 40, 40, 8, 40], looks=[0, 1, 1, 2, 2, 3])
    assert cut(film) == [(0, 40), (40, 88), (88, 136), (136, 176)]
    flash = write_film(tmp_path / "flash.mp4", [40, 8, 40], looks=[0, 1, 2])
    assert len(cut(flash)) == 2 and cut(flash, min_segment=0.2) == [(0, 40), (40, 48), (48, 88)]
    assert cut(write_film(tmp_path / "end.mp4", [40, 8])) == [(0, 48)]
    assert cut(write_film(tmp_path / "begin.mp4", [8, 40])) == [(0, 48)]


def test_long_scenes_are_split_evenly(tmp_path):
    film = write_film(tmp_path / "film.mp4", [100, 40])
    assert cut(film, max_segment=1.5) == [(0, 34), (34, 67), (67, 100), (100, 120), (120, 140)]
    assert cut(film, max_segment=4.0) == [(0, 100), (100, 140)]


def test_a_scene_without_an_end_is_given_out_in_parts(tmp_path):
    film = write_film(tmp_path / "film.mp4", [240])
    parts = cut(film, max_segment=1.0)
    assert parts[:6] == [(number * 25, number * 25 + 25) for number in range(6)]
    assert parts[-1][1] == 240 and max(last - first for first, last in parts) == 25
    assert [last for _, last in parts[:-1]] == [first for first, _ in parts[1:]]


def test_damage_is_a_scene_of_its_own(tmp_path):
    film = write_film(tmp_path / "film.mp4", [100, 100])
    content = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[50:100]:
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    film.write_bytes(content)
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    found = list(captions([film], captioner, segments="scenes"))
    (failed,) = [each for each in found if each.error]
    assert failed.start == pytest.approx(2, abs=0.2) and failed.end == pytest.approx(4, abs=0.2)
    assert found[0].start == 0 and found[-1].end == 8
    assert all(one.end == other.start for one, other in zip(found, found[1:], strict=False))
    film.write_bytes(bytes(content[: packets[0].pos]) + bytes(len(content) - packets[0].pos))
    (failed,) = captions([film], captioner, segments="scenes")
    assert failed.error and failed.start is None


# ------------------------------------------------------------------------------------------------ the frames of scenes


def test_scenes_have_the_pixels_of_clips(tmp_path):
    film = write_film(tmp_path / "film.mp4", [40, 50])
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    whole, _ = decode_video(film)
    processor: SwinBertVideoProcessor = captioner.processor.video_processor
    with captioner.family.open_video(film) as reader:
        for part, video in read_scenes(captioner.family, reader, Segmentation(scenes=True), range(90)):
            inputs = processor(video, return_tensors="pt", return_metadata=True)
            expected = processor(list(whole[part.start : part.stop]), return_tensors="pt", return_metadata=True)
            assert torch.equal(inputs.pixel_values_videos, expected.pixel_values_videos)
            assert inputs.video_metadata[0].frames_indices == expected.video_metadata[0].frames_indices


def test_few_frames_wait_in_memory(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", [200, 60])
    budget = 40 * WIDTH * HEIGHT * 3
    monkeypatch.setattr(scenes, "_KEPT_BYTES", budget)
    whole, _ = decode_video(film)
    with VideoReader(film) as reader:
        for part, video in read_scenes(Family(), reader, Segmentation(scenes=True), range(260)):
            assert sum(frame.nbytes for _, frame in video.frames) <= budget and len(video.frames) >= 10
            frames, metadata = video.read_frames(num_frames=8)
            numbers = [part.start + index for index in metadata.frames_indices]
            assert np.array_equal(frames, whole[numbers])
            wanted = np.linspace(part.start, part.stop - 1, 8)
            assert np.abs(np.array(numbers) - wanted).max() <= len(part) / 16
            assert metadata.frame_times == pytest.approx([index / RATE for index in metadata.frames_indices])


def test_large_frames_are_reduced_where_the_model_takes_them_whole(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", [30])
    monkeypatch.setattr(kept_frames, "_KEPT_SHORT_SIDE", 32)
    with VideoReader(film) as reader:
        ((_, video),) = read_scenes(Family(), reader, Segmentation(scenes=True), range(30))
        assert video.read_frames(num_frames=2)[0].shape == (2, 32, 48, 3)
    assert kept_frames._shrink(np.zeros((32, 48, 3), np.uint8)).shape == (32, 48, 3)
    git = load_captioner(str(write_git_folder(tmp_path / "git")), device="cpu", dtype="float32", max_length=4)
    assert [each.error for each in captions([film], git, segments="scenes")] == [None]


def test_frames_are_decoded_once(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", [60, 60, 60])
    num_packets = 0
    decode = backends.StreamDecoder._decode

    def counted(self, packet):
        nonlocal num_packets
        num_packets += packet is not None
        return decode(self, packet)

    monkeypatch.setattr(backends.StreamDecoder, "_decode", counted)
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    assert len(list(captions([film], captioner, segments="scenes"))) == 3
    assert num_packets == 180


def test_nothing_to_read_is_an_error_of_the_scene():
    with pytest.raises(ValueError, match="none can be decoded"):
        KeptFrames("film.mp4", np.arange(3.0), 3.0, []).read_frames()


def test_the_same_scenes_again_after_an_interruption(tmp_path):
    film = write_film(tmp_path / "film.mp4", [40, 8, 60, 70, 20], looks=[0, 1, 1, 2, 3])
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    segmentation = Segmentation(scenes=True, max_segment=1.5)
    everything = list(captions([film], captioner, segments=segmentation, batch_size=2))
    done = {each.start for each in everything[:3]}
    rest = captions([film], captioner, segments=segmentation, batch_size=2, is_done=lambda clip: clip.start in done)
    assert [(each.start, each.end, each.text) for each in rest] == [
        (each.start, each.end, each.text) for each in everything[3:]
    ]
    assert len(everything) > 5


# ---------------------------------------------------------------------------------------------------------- real clips


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the clips are not here")
def test_cuts_of_a_film_of_real_clips(tmp_path):
    expected, number = [], 0
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for name in ("cars.mp4", "flower.mp4", "bottles.mp4", "stream.mp4", "nasa_vfr.mp4", "tractor_vp9.webm"):
            for frame in decode_video(CLIPS / name, end=3.0)[0][:75]:
                resized = np.asarray(Image.fromarray(frame).resize((320, 180)))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(resized, format="rgb24")))
                number += 1
            expected.append(number / RATE)
        container.mux(stream.encode())
    with VideoReader(tmp_path / "film.mp4") as reader:
        found = [
            reader.timeline.time_of(part.start)
            for part, _ in read_scenes(Family(), reader, Segmentation(scenes=True), range(number))
        ][1:]
    hits = sum(any(math.isclose(cut, time, abs_tol=0.1) for cut in found) for time in expected[:-1])
    precision, recall = hits / len(found), hits / (len(expected) - 1)
    assert 2 * precision * recall / (precision + recall) >= 0.9
