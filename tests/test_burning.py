"""Captions as a track of subtitles in a copy of the video."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import GROUPS, encode, numbered_frame, read_numbers
from typer.testing import CliRunner

from swinbert.captioning import Caption
from swinbert.captioning.burning import burn
from swinbert.captioning.writers import Row
from swinbert.cli import app
from swinbert.processing import VideoDecodeError, decode_video

if not hasattr(av.CodecContext.create("mov_text", "w"), "subtitle_header"):
    pytest.skip("this PyAV writes no subtitles", allow_module_level=True)


def rows(*segments):
    return [Row(Caption("a.mp4", start, end, text, duration=2.0)) for start, end, text in segments]


def subtitles(path: Path) -> list[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        (stream,) = container.streams.subtitles
        packets = [(packet, bytes(packet)) for packet in container.demux(stream) if packet.size]
        content = slice(2, None) if stream.codec_context.name == "mov_text" else slice(None)
        return [
            (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base), data[content].decode())
            for packet, data in packets
            if data[content]
        ]


@pytest.mark.parametrize("name", ["copy.mp4", "copy.mov", "copy.mkv"])
def test_the_picture_stays_and_captions_are_a_track(numbered_clip, tmp_path, name):
    burn(numbered_clip, rows((0, 0.5, "a dog & ü"), (0.5, 0.6, ""), (1.0, 2.0, "a cat")), tmp_path / name)
    assert subtitles(tmp_path / name) == [(0, 0.5, "a dog & ü"), (1, 1, "a cat")]
    assert np.array_equal(decode_video(tmp_path / name)[0], decode_video(numbered_clip)[0])
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_sound_and_rotation_stay_and_webm_is_escaped(tmp_path):
    clip = tmp_path / "clip.mkv"
    with av.open(str(clip), "w") as container:
        video, sound = container.add_stream("libvpx", rate=25), container.add_stream("libopus", rate=48000)
        video.width, video.height, video.pix_fmt = 96, 32, "yuv420p"
        for number in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        for number in range(50):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, number * 960
            container.mux(sound.encode(frame))
        container.mux([*video.encode(), *sound.encode()])
    burn(clip, rows((0, 1, "x < y & z")), tmp_path / "copy.webm")
    assert [text for _, _, text in subtitles(tmp_path / "copy.webm")] == ["x &lt; y &amp; z"]
    with av.open(str(tmp_path / "copy.webm")) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["opus"]


def test_a_turned_film_stays_turned(tmp_path):
    turned = Path(__file__).parents[2] / "shared" / "clips" / "nasa_rot90.mp4"
    if not turned.exists():
        pytest.skip(f"{turned.name} of the shared clips is not here")
    burn(turned, rows((0, 1, "upright")), tmp_path / "turned.mp4")
    assert decode_video(tmp_path / "turned.mp4", num_frames=2)[0].shape == decode_video(turned, num_frames=2)[0].shape


def test_times_count_from_the_first_frame(tmp_path):
    late = encode(
        tmp_path / "late.ts", range(30), options=GROUPS, pts=[90_000 + 3000 * n for n in range(30)],
        time_base=Fraction(1, 90_000),
    )  # fmt: skip
    burn(late, rows((0.5, 1.0, "the second half")), tmp_path / "copy.mkv")
    with av.open(str(tmp_path / "copy.mkv")) as container:
        first = min(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size)
    ((begin, _, _),) = subtitles(tmp_path / "copy.mkv")
    assert begin - float(first) == pytest.approx(0.5, abs=0.01)
    assert read_numbers(decode_video(tmp_path / "copy.mkv")[0]) == list(range(30))


def test_overlapping_segments_become_subtitles_one_after_the_other(numbered_clip, tmp_path):
    burn(numbered_clip, rows((0, 1, "a"), (0.5, 1.5, "b"), (1, 2, "c")), tmp_path / "copy.mp4")
    assert subtitles(tmp_path / "copy.mp4") == [(0, 0.5, "a"), (0.5, 0.5, "b"), (1, 1, "c")]


def test_what_cannot_be_copied_is_refused(numbered_clip, tmp_path):
    for source, output, complaint in (
        (numbered_clip, "copy.avi", "is one of .mp4"),
        (numbered_clip, "copy.webm", "cannot be copied into a .webm file"),
        (__file__, "copy.mp4", "expected a video file"),
    ):
        with pytest.raises(ValueError, match=complaint) as raised:
            burn(source, rows((0, 1, "a")), tmp_path / output)
        assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
    assert raised.type is VideoDecodeError
    with pytest.raises(OSError):
        burn(numbered_clip, rows((0, 1, "a")), tmp_path / "nowhere" / "copy.mp4")


def test_the_command(numbered_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        options = ("--model", "moving-shapes", "--device", "cpu", "--segments", 1, "--no-merge")
        return CliRunner().invoke(app, ["caption", *map(str, (*arguments, *options))], catch_exceptions=False)

    result = run(numbered_clip, "--burn", "copy.mp4")
    assert result.exit_code == 0
    assert [text for _, _, text in subtitles(tmp_path / "copy.mp4")] == [
        line.split("  ")[1] for line in result.stdout.splitlines()
    ]
    before = Path("copy.mp4").read_bytes()
    assert "copy.mp4 exists and is kept" in run(numbered_clip, "--burn", "copy.mp4").stderr
    assert Path("copy.mp4").read_bytes() == before
    for arguments, complaint in (
        ((numbered_clip, "--burn", numbered_clip), "is the clip"),
        ((numbered_clip, "missing.mp4", "--burn", "new.mp4"), "here are 2"),
        ((numbered_clip, "--burn", "new.avi"), "is one of"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and complaint in result.stderr and len(result.stderr.splitlines()) == 1
