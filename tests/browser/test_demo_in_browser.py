"""
The demo as people meet it: driven in Chromium by Playwright. With SWINBERT_SCREENSHOTS=DIR, pictures of it stay in DIR.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
from encoded_clips import encode

import swinbert
from swinbert.processing import VideoCaptioningPipeline

pytest.importorskip("gradio", reason="the extra `demo` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"
LIMIT = 20  # MB


@pytest.fixture(scope="module")
def demo():
    """The demo, with its page at `demo.address`."""
    from swinbert.captioning import load_captioner
    from swinbert.captioning.demo.app import launch
    from swinbert.captioning.demo.service import Demo, Limits

    with Demo(load_captioner("moving-shapes"), Limits(megabytes=LIMIT, minutes=10)) as running:
        served = launch(running)
        running.address = served.local_url
        yield running
        served.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, demo):
    """Opens the demo as another visitor; whatever a page asks of other hosts fails the test."""
    contexts, outside = [], []

    def opened(width=1200, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: outside.append(request.url) if is_outside(request.url) else None)
        with page.expect_request(lambda request: "/heartbeat/" in request.url):  # the page is ready for clicks
            page.goto(demo.address)
        page.wait_for_selector("#clip input[type=file]", state="attached")
        return page

    def is_outside(url):
        return not url.startswith((demo.address, "data:", "blob:"))

    yield opened
    for context in contexts:
        context.close()
    assert not outside


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture
def picture(request, tmp_path):
    """Takes a screenshot of a page."""
    folder = Path(os.environ.get("SWINBERT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    name = request.node.name.removeprefix("test_")
    return lambda page, suffix="": page.screenshot(path=folder / f"{name}{suffix}.png", full_page=True)


def upload(page, clip):
    page.set_input_files("#clip input[type=file]", clip)
    page.wait_for_selector("#chosen [role]")


def caption(page, clip):
    upload(page, clip)
    page.click("#caption")
    page.wait_for_selector("#result .downloads")
    return page.inner_text("#result .caption")


def eventually(is_so, seconds=20):
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_so()


def uploads(demo):
    return [file for file in demo.files.root.rglob("*") if file.is_file()]


def test_from_an_upload_to_its_caption_and_its_subtitles(page, picture):
    assert "red cross" in caption(page, SAMPLE)
    assert page.locator("#result .others li").count() == 2 and "score" in page.inner_text("#result .about")
    picture(page)
    with page.expect_download() as started:
        page.click("#result >> text=SRT")
    assert started.value.suggested_filename == "sample.srt"
    subtitles = Path(started.value.path()).read_text()
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:02,000\n") and "red cross" in subtitles


def test_a_click_on_a_word_shows_its_frame(page, picture):
    caption(page, SAMPLE)
    page.click("#explain")
    explanation = page.frame_locator("#explanation iframe")
    seen = {}
    for word in ("right", "larger"):
        explanation.locator("#caption button", has_text=word).click()
        explanation.locator("#play", has_text="Play").wait_for()  # it has played from there to the end
        explanation.locator("#caption button", has_text="cross").hover()
        explanation.locator("#caption button", has_text=word).hover()
        seen[word] = (explanation.locator("#time").inner_text(), explanation.locator("#screen").screenshot())
        assert word in explanation.locator("#about h2").inner_text()
    assert seen["right"][0] != seen["larger"][0] and seen["right"][1] != seen["larger"][1]
    picture(page)
    page.click("#caption")
    page.wait_for_selector("#explanation iframe", state="detached")  # it was of the caption before


def test_the_example(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Gradio shows the files below the current folder without being told
    page.get_by_role("button", name="Example").click()
    page.wait_for_selector("#chosen .status")
    assert "sample.mp4" in page.inner_text("#chosen")
    assert eventually(lambda: page.locator("#caption").is_enabled())


def test_the_camera(open_page):
    page = open_page(permissions=["camera", "microphone"])
    page.click("#clip button[aria-label='Capture from camera']")
    page.click("text=Click to Access Webcam")
    page.wait_for_function("document.querySelector('#clip video')?.currentTime > 0.5")
    page.click("#clip button:has-text('Record')")
    page.wait_for_timeout(3000)
    page.click("#clip button:has-text('Stop')")
    page.wait_for_selector("#chosen .status")
    page.click("#caption")
    page.wait_for_selector("#result .caption")


def test_a_clip_that_browsers_cannot_play(page, tmp_path, picture):
    clip = encode(tmp_path / "old.mp4", range(30), codec="mpeg4")
    assert caption(page, clip)
    assert "unplayable" in page.get_attribute("#chosen", "class")
    assert eventually(lambda: page.locator("text=not playable").count() == 0)
    picture(page)


def test_a_broken_file(page, picture, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(SAMPLE.read_bytes()[:500])
    upload(page, broken)
    message = page.inner_text("#chosen [role=alert]")
    assert message.startswith("broken.mp4: ") and "\n" not in message
    assert page.locator("#caption").is_disabled()
    picture(page)


def test_a_file_of_three_gigabytes(page, demo, picture, tmp_path):
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(3 << 30)
    page.set_input_files("#clip input[type=file]", tmp_path / "huge.mp4")
    page.wait_for_selector("text=maximum allowed size")
    picture(page)
    assert not uploads(demo)


def test_two_visitors_with_files_of_one_name(open_page, tmp_path):
    (tmp_path / "other").mkdir()
    other = encode(tmp_path / "other" / SAMPLE.name, range(30))
    first, second = open_page(), open_page()
    upload(first, SAMPLE)
    upload(second, other)
    for page in (first, second):
        page.click("#caption")
    for page in (first, second):
        page.wait_for_selector("#result .downloads")
    assert "2.0 s" in first.inner_text("#result .about") and "1.0 s" in second.inner_text("#result .about")
    assert "red cross" in first.inner_text("#result .caption")


@pytest.fixture
def film(tmp_path, monkeypatch):
    """Ten seconds, which here is a long video of 20 windows."""
    monkeypatch.setattr("swinbert.captioning.demo.service.LONG", 5.0)
    monkeypatch.setattr("swinbert.captioning.demo.service.WINDOW", 0.5)
    return encode(tmp_path / "film.mp4", range(300), scales=(4,))


def test_the_timeline_of_a_film_jumps_the_player(page, film, picture):
    upload(page, film)
    page.click("#caption")
    page.wait_for_selector("#result progress")
    page.wait_for_selector("#result .downloads")
    assert page.locator("#result .segment").count() == 20
    page.click("#result .segment >> nth=12")
    assert eventually(lambda: page.evaluate("document.querySelector('#clip video').currentTime") >= 6)
    page.wait_for_selector("#result .segment.playing")
    page.evaluate("document.querySelector('#clip video').pause()")
    picture(page)
    page.click("#result .cell >> nth=4")
    assert eventually(lambda: 2 <= page.evaluate("document.querySelector('#clip video').currentTime") < 6)


def test_a_visitor_who_leaves_in_the_middle(open_page, demo, film, captioned, monkeypatch):
    forward = VideoCaptioningPipeline.forward
    monkeypatch.setattr(
        VideoCaptioningPipeline, "forward", lambda *given, **more: time.sleep(0.3) or forward(*given, **more)
    )
    page = open_page()
    upload(page, film)
    page.click("#caption")
    page.wait_for_selector("#result .segment")
    page.close()
    assert eventually(lambda: not uploads(demo))
    time.sleep(1)  # a caption may be under way
    number = len(captioned)
    time.sleep(1.5)
    assert number == len(captioned) < 20, "nobody waits for the rest"
    assert "red cross" in caption(open_page(), SAMPLE)


def test_a_narrow_window(open_page, picture):
    page = open_page(width=390, height=800)
    caption(page, SAMPLE)
    page.click("text=Settings")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page)


def test_dark(open_page, picture):
    page = open_page(color_scheme="dark")
    caption(page, SAMPLE)
    picture(page)


def test_files_are_removed_when_the_visitor_leaves(open_page, demo):
    page = open_page()
    caption(page, SAMPLE)
    assert [file.name for file in uploads(demo)] == [SAMPLE.name]
    page.close()
    assert eventually(lambda: not uploads(demo))
