"""Captions of streams while they go on: a pipe in real time, a file that grows, an address in the network."""

import itertools
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest
from captioning import write_git_folder
from encoded_clips import GROUPS_WITHOUT_B_FRAMES, encode, numbered_frame, read_numbers
from loopback import QuietHandler, serving
from typer.testing import CliRunner

from swinbert.captioning import LiveStream, captions, live, load_captioner
from swinbert.cli import app

RATE = 25


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = write_git_folder(tmp_path_factory.mktemp("git"))
    return load_captioner(str(folder), device="cpu", dtype="float32", max_length=4)


@pytest.fixture(scope="module")
def transport_stream(tmp_path_factory) -> Path:
    """75 frames, 3 s."""
    return encode(tmp_path_factory.mktemp("ts") / "clip.ts", range(75), rate=RATE, options=GROUPS_WITHOUT_B_FRAMES)


class Sent:
    """A pipe into which a thread writes frames as MPEG-TS, in real time or as fast as they are read."""

    def __init__(self, numbers, in_real_time: bool, pts=None):
        reading, self._writing = os.pipe()
        self.pipe = open(reading, "rb", buffering=0)
        self.has_ended = False
        arguments = (list(numbers), in_real_time, pts)
        threading.Thread(target=self._send, args=arguments, daemon=True).start()

    def write(self, content) -> int:
        return os.write(self._writing, content)

    def _send(self, numbers, in_real_time, pts) -> None:
        started = time.monotonic()
        try:
            with av.open(self, "w", format="mpegts") as container:
                stream = container.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "g": "12"})
                stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
                for position, number in enumerate(numbers):
                    frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                    frame.pts, frame.time_base = position if pts is None else pts[position], Fraction(1, RATE)
                    container.mux(stream.encode(frame))
                    if in_real_time:
                        time.sleep(max(0.0, started + position / RATE - time.monotonic()))
                container.mux(stream.encode())
        except (OSError, av.error.FFmpegError):  # nobody reads any more
            pass
        self.has_ended = True
        os.close(self._writing)


def test_captions_come_while_the_stream_goes_on(captioner):
    sent = Sent(range(100), in_real_time=True)
    stream = LiveStream(sent.pipe)
    found = [(caption, sent.has_ended) for caption in captions([stream], captioner, segments=0.4)]
    assert not found[0][1] and not found[5][1]
    times = [(caption.start, caption.end) for caption, _ in found]
    assert times[0] == (0, pytest.approx(0.4)) and times[-1][1] == pytest.approx(4.0)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(times))
    assert stream.num_frames == 100 and stream.lag < 3 and not sent.pipe.closed


def test_a_fast_pipe_waits_and_gives_the_captions_of_the_file(transport_stream):
    captioner = load_captioner("moving-shapes", device="cpu", dtype="float32")
    expected = list(captions([transport_stream], captioner, segments=0.5))
    stream = LiveStream(transport_stream.open("rb", buffering=0))
    found = list(captions([stream], captioner, segments=0.5))
    assert [(each.text, each.start, each.end) for each in found] == [
        (each.text, pytest.approx(each.start), pytest.approx(each.end)) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)
    assert stream.num_frames == 75 and stream.num_dropped == 0


def test_a_slow_model_drops_and_counts(captioner, monkeypatch):
    forward = captioner.forward
    monkeypatch.setattr(captioner, "forward", lambda *a, **k: (time.sleep(0.5), forward(*a, **k))[1])
    stream = LiveStream(Sent(range(75), in_real_time=True).pipe)
    found = list(captions([stream], captioner, segments=0.2))
    dropped = [each for each in found if each.error_kind == "dropped"]
    assert len(found) == 15 and 3 <= len(dropped) < 15
    assert stream.num_dropped == 5 * len(dropped) and "5 frames were dropped" in dropped[0].error
    assert [each.start for each in found] == pytest.approx([0.2 * number for number in range(15)])
    assert "dropped" in str(stream)


def test_few_frames_of_a_window_are_kept(captioner, transport_stream, monkeypatch):
    monkeypatch.setattr(live, "_WINDOW_BYTES", 20 * 96 * 32 * 3)
    stream = LiveStream(transport_stream.open("rb", buffering=0))
    for window in stream.windows(captioner.family, 1.5):
        assert len(window.video.frames) <= 21
        frames, metadata = window.video.read_frames(num_frames=6)
        numbers = [round(window.start * RATE) + index for index in metadata.frames_indices]
        assert read_numbers(frames) == numbers and metadata.total_num_frames in (37, 38)


def test_time_goes_on_where_time_stamps_jump(captioner, transport_stream, tmp_path):
    later = Sent(range(50), in_real_time=False, pts=[*range(25), *range(5000, 5025)])
    found = list(captions([LiveStream(later.pipe)], captioner, segments=1.0))
    assert [each.start for each in found] == pytest.approx([0, 1]) and found[-1].end == pytest.approx(2.0)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(transport_stream.read_bytes() * 2)
    found = list(captions([LiveStream(joined.open("rb", buffering=0))], captioner, segments=1.0))
    assert [each.start for each in found] == pytest.approx(list(range(6)), abs=0.05)


def test_a_file_that_grows(captioner, transport_stream, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_IDLE_SECONDS", 1.5)
    content = transport_stream.read_bytes()
    growing = tmp_path / "growing.ts"
    growing.write_bytes(content[: len(content) // 2])

    def grow():
        time.sleep(0.7)
        with growing.open("ab") as file:
            file.write(content[len(content) // 2 :])

    threading.Thread(target=grow).start()
    found = list(captions([LiveStream(growing)], captioner, segments=1.0))
    assert [each.start for each in found] == pytest.approx([0, 1, 2]) and not any(each.error for each in found)


def test_what_is_no_stream_is_an_error(captioner, tmp_path):
    (tmp_path / "text.ts").write_text("no video" * 100)
    (tmp_path / "empty.ts").write_bytes(b"")
    for name in ("text.ts", "empty.ts"):
        (failed,) = captions([LiveStream((tmp_path / name).open("rb", buffering=0))], captioner, segments=1.0)
        assert failed.error_kind == "not_video" and "\n" not in failed.error
    (failed,) = captions([LiveStream(tmp_path / "missing.ts")], captioner, segments=1.0)
    assert "No such file" in failed.error
    (failed,) = captions([LiveStream(tmp_path / "text.ts")], captioner, segments="scenes")
    assert "windows that do not overlap" in failed.error


# -------------------------------------------------------------------------------------------------------------- network


@pytest.fixture
def address(transport_stream):
    class Handler(QuietHandler):
        def do_GET(self):
            playlist = f"#EXTM3U\n#EXTINF:3,\nfile://{transport_stream}\n#EXT-X-ENDLIST\n".encode()
            content = playlist if self.path.endswith(".m3u8") else transport_stream.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) * (2 if "broken" in self.path else 1)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler) as address:
        yield address


def test_addresses_only_if_they_are_allowed(captioner, address):
    for name in (f"{address}/live.ts", "rtsp://camera/1"):
        with pytest.raises(ValueError, match="--allow-network-streams"):
            LiveStream(name)
    found = list(captions([LiveStream(f"{address}/live.ts", True)], captioner, segments=1.5))
    assert [each.start for each in found] == pytest.approx([0, 1.52], abs=0.05)
    *found, failed = captions([LiveStream(f"{address}/broken.ts", True)], captioner, segments=1.5)
    assert len(found) == 2 and failed.error and failed.start == found[-1].end  # the connection broke off


def test_a_playlist_leads_to_no_file(captioner, address):
    (failed,) = captions([LiveStream(f"{address}/list.m3u8", True)], captioner, segments=1.0)
    assert failed.text is None and failed.error


def test_a_file_leads_to_no_address(captioner, address, tmp_path):
    """A file object whose name is that of a playlist is one to FFmpeg."""
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{address}/live.ts\n#EXT-X-ENDLIST\n")
    for source in (path, path.open("rb")):
        (failed,) = captions([LiveStream(source)], captioner, segments=1.0)
        assert failed.error_kind == "not_video"


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_reads_a_pipe(transport_stream):
    command = [sys.executable, "-m", "swinbert", "caption", "-", "--stream", "--segments", "1", "--device", "cpu"]
    result = subprocess.run(
        [*command, "--model", "moving-shapes"], input=transport_stream.read_bytes(), capture_output=True, timeout=300
    )
    lines = result.stdout.decode().splitlines()
    assert result.returncode == 0, result.stderr
    assert [line[:25] for line in lines] == [f"00:00:0{number}.00 - 00:00:0{number + 1}.00" for number in range(3)]
    assert b"75 frames received" in result.stderr


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ("- --stream", "needs --segments"),
        ("- --stream --segments scenes", "needs --segments SECONDS"),
        ("- --stream --segments 2 --stride 1", "do not overlap"),
        ("a.ts b.ts --stream --segments 2", "one clip"),
        ("- --stream --segments 2 --output a.txt", "leave out --output"),
        ("- --stream --segments 2 --write-beside txt", "leave out --write-beside"),
        ("- --stream --segments 2 --format metadata", "--format metadata"),
        ("a.ts --segments 2 --allow-network-streams", "needs --stream"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, complaint):
    result = CliRunner().invoke(app, ["caption", *arguments.split()])
    assert result.exit_code == 2 and complaint in " ".join(result.stderr.split())


def test_an_address_is_refused_in_one_line():
    result = CliRunner().invoke(app, ["caption", "rtsp://camera/1", "--stream", "--segments", "2"])
    assert result.exit_code == 1 and "--allow-network-streams" in result.stderr
    assert len(result.stderr.splitlines()) == 1
