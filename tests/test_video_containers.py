"""What FFmpeg may use to open a clip: no container that leads elsewhere, no protocol, no decoder of sound."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_clips import GROUPS, encode, error_kind, numbered_frame, read_numbers
from loopback import QuietHandler, serving
from PIL import Image

from swinbert.processing import decode_video
from swinbert.processing.video_containers_swinbert import CONTAINERS, open_limits


@pytest.fixture
def requests_of():
    """The address of a server on this computer, and the list of what was asked of it."""
    asked: list[str] = []

    class Handler(QuietHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    with serving(Handler) as address:
        yield address, asked


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{folder}part.ts\n#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" minBufferTime="PT1S">
<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">
<BaseURL>{folder}part.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"""
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.m3u8", HLS),
        ("list.mpd", DASH),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{folder}part.mp4'\n"),
        ("stream.sdp", SDP),
        ("stream.rtsp", "rtsp://127.0.0.1/a\n"),
        ("list.asx", '<asx version="3.0"><entry><ref href="{folder}part.wmv"/></entry></asx>'),
    ],
)
def test_what_names_other_files_is_refused(requests_of, tmp_path, name, content):
    """Whether they lie beside it or at an address: nothing is read and nothing is asked for."""
    address, asked = requests_of
    for suffix in ("mp4", "ts"):
        encode(tmp_path / f"part.{suffix}", range(5))
    path = tmp_path / name
    for folder in ("", f"{address}/"):
        path.write_text(content.replace("{folder}", folder))
        assert error_kind(path) == "not_video"
        with open(path, "rb") as opened:  # its name, too, has the suffix by which FFmpeg knows a playlist
            assert error_kind(opened) == "not_video"
    assert asked == []


def test_ffmpeg_itself_follows_a_playlist(requests_of, tmp_path):
    """Otherwise, the test above would prove nothing."""
    address, asked = requests_of
    path = tmp_path / "list.m3u8"
    path.write_text(HLS.replace("{folder}", f"{address}/"))
    with pytest.raises(av.error.FFmpegError):
        av.open(str(path), container_options={"protocol_whitelist": "file,http,tcp"})
    assert asked == ["/part.ts"]


def test_a_name_is_no_pattern(tmp_path):
    """FFmpeg's reader of sequences of pictures takes `%d` in a name for a number."""
    for number in range(3):
        Image.fromarray(numbered_frame(number)).save(tmp_path / f"frame-{number}.png")
    with av.open(str(tmp_path / "frame-%d.png")) as container:
        assert container.format.name == "image2"
    assert error_kind(tmp_path / "frame-%d.png") == "not_found"
    (tmp_path / "frame-%d.png").write_bytes((tmp_path / "frame-0.png").read_bytes())
    assert error_kind(tmp_path / "frame-%d.png") == "not_video"


def refer_to(clip: Path, other: Path) -> None:
    """Makes the mp4 file `clip` say that its media are in the file `other`, as Apple's alias records do."""
    target = str(other).encode()
    target += bytes(len(target) % 2)
    name = other.name.encode()
    alias = bytes(10) + bytes([1]) + b"x".ljust(27, b"\0") + bytes(12)
    alias += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    alias += struct.pack(">hh", 2, len(target)) + target + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    references = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    data = clip.read_bytes()
    start = data.index(b"dref") - 4
    length = struct.unpack_from(">I", data, start)[0]
    assert data.index(b"moov") > data.index(b"mdat"), "offsets of media would change"
    data = data[:start] + references + data[start + length :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # each holds the next
        at = data.index(box) - 4
        size = struct.unpack_from(">I", data, at)[0] + len(references) - length
        data = data[:at] + struct.pack(">I", size) + data[at + 4 :]
    clip.write_bytes(data)


def test_a_mov_file_does_not_lead_to_another_file(tmp_path):
    clip = encode(tmp_path / "clip.mp4", range(24), options=GROUPS)
    other = encode(tmp_path / "other.mp4", range(100, 124), options=GROUPS)
    refer_to(clip, other)
    with av.open(str(clip), container_options={"enable_drefs": "1"}) as container:
        packet = next(container.demux(video=0))
    content = other.read_bytes()[packet.pos : packet.pos + packet.size]
    assert bytes(packet) == content != clip.read_bytes()[packet.pos : packet.pos + packet.size]  # it does lead there
    assert error_kind(clip) == "undecodable"


def test_only_decoders_of_video_run(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as output:
        video, audio = output.add_stream("libx264", rate=30), output.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = 96, 32, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            output.mux(video.encode(frame))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        output.mux(audio.encode(sound))
        output.mux(video.encode())
        output.mux(audio.encode())

    def messages(**options: str) -> str:
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as logs, av.open(str(path), container_options=options) as container:
                assert {stream.type for stream in container.streams} == {"video", "audio"}
            return "\n".join(text for _, _, text in logs)
        finally:
            av.logging.set_level(None)

    assert "aac" not in messages()
    assert "(aac) not on whitelist" in messages(**open_limits())
    assert read_numbers(decode_video(path)[0]) == list(range(10))


def test_every_name_on_the_lists_is_known_to_ffmpeg():
    for name in CONTAINERS.split(","):
        assert av.format.ContainerFormat(name, "r").is_input, name
    decoders = open_limits()["codec_whitelist"].split(",")
    assert {"h264", "hevc", "vp9", "mpeg4", "mjpeg", "gif"} <= set(decoders)
    assert not {"aac", "mp3", "opus", "ass", "srt", "mov_text"} & set(decoders)
