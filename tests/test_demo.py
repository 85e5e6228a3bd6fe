"""The demo without its page: checks, fetching, temporary files, and how captions are shown. Needs no Gradio."""

import base64
import http.server
import re
import sys
import time
from pathlib import Path

import pytest
from encoded_clips import encode
from loopback import serving
from typer.testing import CliRunner

import swinbert
from swinbert.captioning import Alternative, Caption, load_captioner
from swinbert.captioning.demo import service
from swinbert.captioning.demo.page import clock, error_html, model_html, result_html
from swinbert.captioning.demo.service import Demo, DemoError, Limits, Progress, Settings, TemporaryFiles
from swinbert.cli import app
from swinbert.processing import sample_indices
from swinbert.processing import video_sources_swinbert as sources

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("moving-shapes")


@pytest.fixture
def demo(captioner):
    with Demo(captioner) as running:
        yield running


# --- What becomes of a clip -------------------------------------------------------------------------------------------


def test_caption_of_a_clip(demo):
    *_, progress = demo.caption(SAMPLE, Settings(beams=2, alternatives=3))
    (caption,) = progress.captions
    assert "red cross" in caption.text and caption.clip == "sample.mp4"
    assert len(caption.alternatives) == 3, "as many beams as captions are wanted"


def test_explanation_of_a_segment_is_of_its_frames(demo, tmp_path):
    film = encode(tmp_path / "film.mp4", range(90))
    *_, progress = demo.caption(film, Settings("1", beams=1, alternatives=0))
    assert [(each.start, each.end) for each in progress.captions] == [(0, 1), (1, 2), (2, 3)]
    num_frames = demo.captioner.family.num_frames
    for second, caption in enumerate(progress.captions):
        explanation = demo.explain(film, caption.text, caption.start, caption.end)
        assert explanation.caption == caption.text
        numbers = [30 * second + sample for sample in sample_indices(30, num_frames)]
        assert explanation.times == pytest.approx([number / 30 for number in numbers], abs=1e-3)
    assert demo.explain(SAMPLE).words


def test_a_large_model_on_a_cpu_is_explained_by_its_attention(demo, monkeypatch):
    assert demo.explain(SAMPLE).method == "pixels"
    monkeypatch.setattr("swinbert.captioning.demo.service._LARGEST_TO_ENCODE_OFTEN", 1)
    assert demo.explain(SAMPLE).method == "attention"


def test_what_is_wrong_with_a_clip_is_one_sentence_with_its_name(demo, tmp_path):
    text = tmp_path / "a text.mp4"
    text.write_text("no video\n" * 100)
    for refused in (demo.check, lambda video: list(demo.caption(video))):
        with pytest.raises(DemoError, match=r"^a text\.mp4: expected a video file, found [^\n]*$"):
            refused(text)
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(SAMPLE.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 4000] = bytes(4000)
    damaged.write_bytes(content)
    with pytest.raises(DemoError, match=r"^damaged\.mp4: [^\n]*$"):
        list(demo.caption(damaged))
    with pytest.raises(DemoError, match="choose it again"):
        demo.check(tmp_path / "nowhere.mp4")


def test_large_and_long_videos_are_refused_before_they_are_decoded(captioner, tmp_path):
    with Demo(captioner, Limits(megabytes=0.5, minutes=1 / 60)) as demo:
        large = tmp_path / "large.mp4"
        with large.open("wb") as file:
            file.truncate(3 << 30)
        with pytest.raises(DemoError, match=r"^large\.mp4: expected at most 0\.5 MB, found 3,221 MB\.$"):
            demo.check(large)
        with pytest.raises(DemoError, match=r"expected at most 1 s, found 2 s\.$"):
            demo.check(SAMPLE)
        assert demo.check(encode(tmp_path / "short.mp4", range(20))) == pytest.approx(20 / 30, abs=0.1)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments, directory=str(SAMPLE.parent))

    def log_message(self, *_):
        pass


def test_fetched_clip_has_a_plain_name_and_goes_with_the_visitor(demo, monkeypatch):
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1")
    with serving(Handler) as address:
        file = demo.fetch(f"  {address}/sample.mp4?token=..%2F..%2Fx ", "visitor")
        odd = demo.fetch(f"{address}/%2e%2e/./sam%70le.mp4", "visitor")
    assert file.read_bytes() == odd.read_bytes() == SAMPLE.read_bytes()
    assert (file.name, odd.name) == ("sample.mp4", "sample.mp4") and demo.files.root in file.parents
    assert [each.text for each in list(demo.caption(file))[-1].captions][0]
    demo.files.forget("visitor")
    assert not file.exists() and not odd.exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/a.mp4", "expected a public address"),
        ("http://169.254.169.254/latest/meta-data", "expected a public address"),
        ("file:///etc/passwd", "begins with https:// or http://"),
        ("/etc/passwd", "begins with https:// or http://"),
        ("", "begins with https:// or http://"),
        ("https://", "expected an http or https URL"),
    ],
)
def test_addresses_are_checked(demo, address, message):
    with pytest.raises(DemoError, match=message) as raised:
        demo.fetch(address, "visitor")
    assert "\n" not in str(raised.value)


# --- Temporary files --------------------------------------------------------------------------------------------------


def test_files_go_with_the_last_visitor_who_has_them():
    files = TemporaryFiles()
    shared, own = files.uploads / "1" / "clip.mp4", files.uploads / "2" / "clip.mp4"
    for file in (shared, own):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    files.hold("a", shared)
    files.hold("a", own)
    files.hold("b", shared)
    files.hold("b", SAMPLE)
    folder = files.new_folder("b")
    files.forget("a")
    assert shared.exists() and not own.exists() and not own.parent.exists()
    files.forget("b")
    files.forget("nobody")
    assert not shared.exists() and not folder.exists() and SAMPLE.exists()
    files.close()
    assert not files.root.exists()


def test_what_is_left_behind_is_swept_up(monkeypatch):
    monkeypatch.setattr(service, "_STALLED", 0.2)
    files = TemporaryFiles()
    files.uploads.mkdir()
    stalled, complete = files.uploads / "tmp1234", files.uploads / "1" / "clip.mp4"
    complete.parent.mkdir()
    for file in (stalled, complete):
        file.write_bytes(b"")
    deadline = time.monotonic() + 10
    while stalled.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert complete.exists() and not stalled.exists()
    monkeypatch.setattr(service, "_OLD", 0.0)
    files.sweep()
    assert not complete.exists()
    files.close()


# --- How captions are shown -------------------------------------------------------------------------------------------


def test_names_and_texts_are_escaped():
    nasty = '"><script>alert(1)</script>'
    alternative = Alternative(nasty, -2.0)
    one = Caption(f"{nasty}.mp4", text=nasty, score=-1.0, duration=3.0, alternatives=(alternative,))
    two = Caption(f"{nasty}.mp4", 3.0, 5.0, error=nasty, duration=5.0)
    for page in (result_html(Progress([one]), True), result_html(Progress([one, two]), True), error_html(nasty)):
        assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_caption_without_words_is_said_to_be_one():
    page = result_html(Progress([Caption("a.mp4", text="", score=-1.0, duration=2.0)]), is_complete=True)
    assert "<em>no words</em>" in page and "data-caption" not in page
    film = [Caption("a.mp4", 0.0, 1.0, "", -1.0), Caption("a.mp4", 1.0, 2.0, error="damaged")]
    page = result_html(Progress(film), is_complete=True)
    assert "<em>no words</em>" in page and "<em>damaged</em>" in page and page.count("failed") == 2


def test_downloads_hold_the_files():
    found = [Caption("film.mp4", 0.0, 2.0, "a cat", -0.5, duration=4.0), Caption("film.mp4", 2.0, 4.0, error="damaged")]
    page = result_html(Progress(found), is_complete=True)
    links = dict(re.findall(r'download="(film\.\w+)" href="data:[^,]*;base64,([^"]*)"', page))
    documents = {name: base64.b64decode(content).decode() for name, content in links.items()}
    assert documents["film.srt"] == "1\n00:00:00,000 --> 00:00:02,000\na cat\n\n"
    assert documents["film.vtt"].startswith("WEBVTT") and documents["film.csv"].count("\r\n") == 3
    assert "film.srt" not in result_html(Progress([Caption("film.mp4", text="a cat")]), True), "its end is unknown"


def test_timeline_is_to_scale_and_says_what_is_left():
    found = [Caption("film.mp4", 10.0 * n, 10.0 * n + 10, "a cat", duration=40.0) for n in range(3)]
    page = result_html(Progress(found, share=0.75, remaining=12.4), is_complete=False)
    assert page.count('data-seek="10.000"') == 2 and "left:25.000%;width:25.000%" in page
    assert "75% captioned, about 12 s left" in page and "0:10 – 0:20" in page
    assert clock(59.96) == "1:00" and clock(3725.5) == "62:05.5"


def test_settings_name_the_model(captioner):
    assert "moving-shapes" in model_html(captioner) and "million parameters" in model_html(captioner)


# --- The command ------------------------------------------------------------------------------------------------------


def test_without_gradio_the_command_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "swinbert.captioning.demo.app", raising=False)
    done = CliRunner().invoke(app, ["demo", "--model", "moving-shapes"])
    assert done.exit_code == 1 and done.stderr.strip().endswith("pip install 'swinbert[demo]'.")
    assert done.stderr.count("\n") == 1
