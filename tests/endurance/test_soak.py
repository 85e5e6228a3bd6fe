"""
Much work in one process: memory stays as it is, and nothing is left behind.

    pytest -n 0 -s -m endurance tests/endurance/test_soak.py

Each test has a short version, with wide limits, in the usual run.
"""

import contextlib
import itertools
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from transformers import TrainerCallback

from swinbert.captioning import captions, load_captioner
from swinbert.captioning.demo.page import explanation_html, result_html
from swinbert.captioning.demo.service import Demo, DemoError, Settings
from swinbert.captioning.isolation import IsolatedReader
from swinbert.processing import video_sources_swinbert as sources
from swinbert.training import train
from swinbert.utils.memory import share_one_heap

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)
from resources import Held, anonymous_memory, spread

BROKEN = Path(__file__).resolve().parents[3] / "shared" / "bad"
# Of the text files, most are of other kinds of container; this one takes a minute to refuse.
TOO_SLOW = {"bomb_16384x8640.mp4"}
BATCH_SIZE = 8
# `-m "not slow"` leaves them out too.
endurance = (pytest.mark.endurance, pytest.mark.slow)


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """Its own folder for temporary files; no warnings and logs of broken clips, which pytest would keep in memory."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return tiny_run.make_shapes(tmp_path_factory.mktemp("soak"))


@pytest.fixture(scope="module")
def clips(shapes) -> list[Path]:
    return sorted(shapes.rglob("*.mp4"))


@pytest.fixture(scope="module")
def address(clips) -> Iterator[str]:
    """Of a server that has the clips, by their numbers; a process of its own, so that its memory does not count."""
    code = (
        "import http.server, sys\nclips = sys.argv[1:]\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        name = self.path.strip('/').removesuffix('.mp4')\n"
        "        content = open(clips[int(name)], 'rb').read() if name.isdigit() else b'not found'\n"
        "        self.send_response(200 if name.isdigit() else 404)\n"
        "        self.send_header('Content-Length', str(len(content)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(content)\n"
        "    def log_message(self, *_): pass\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)\n"
        "print(server.server_port, flush=True)\nserver.serve_forever()"
    )
    with subprocess.Popen([sys.executable, "-c", code, *map(str, clips)], stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


def sent_clips(clips: list[Path], address: str) -> Iterator[Any]:
    """Clips of every kind of source without end; a quarter is broken: cut off, damaged, missing or no video at all."""
    rng = random.Random(0)
    broken = [file for file in sorted(BROKEN.glob("*.*")) if file.name not in TOO_SLOW and file.suffix != ".json"]
    while True:
        number = rng.randrange(len(clips))
        content = bytearray(clips[number].read_bytes())
        for _ in range(20):
            content[rng.randrange(len(content))] = rng.randrange(256)
        yield from (
            str(clips[number]),
            clips[number].read_bytes(),
            f"{address}/{number}.mp4",
            {"video": clips[number], "start": 0.2, "end": 0.6},
            rng.choice([bytes(content), bytes(content[: rng.randrange(len(content))])]),
            clips[number],
            f"{address}/{number}.mp4",
            rng.choice([f"{address}/nothing.mp4", b"no video" * 99, "nowhere.mp4", *broken]),
        )


def settled(sizes: list[int]) -> list[int]:
    """The sizes but those of the first tenth, when caches and pools fill."""
    rest = sizes[len(sizes) // 10 :]
    print([round(size / 1e6, 1) for size in sizes])
    print(f"\n{len(sizes)} sizes, {rest[0] / 1e6:.1f} to {rest[-1] / 1e6:.1f} MB, spread {spread(rest):.2%}")
    return rest


def watched(steps: Iterator[Any], number: int, every: int) -> list[int]:
    """Takes so many steps, and returns the settled sizes of memory, measured after each `every` steps."""
    sizes = []
    for done, _ in enumerate(itertools.islice(steps, number), 1):
        if done % every == 0:
            sizes.append(anonymous_memory())
    return settled(sizes)


@pytest.mark.parametrize("isolate", [False, True], ids=["in the process", "isolated"])
@pytest.mark.parametrize(
    ("number", "limit"), [(64, 0.1), pytest.param(10_000, 0.01, marks=endurance)], ids=["short", "long"]
)
def test_captions(clips, address, monkeypatch, number, limit, isolate):
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1")
    share_one_heap()  # as the commands do
    captioner = load_captioner("moving-shapes", device="cpu")
    # The model and oneDNN keep plans for each size of a batch, and broken clips make rare sizes.
    for size in range(1, BATCH_SIZE + 1):
        list(captions(clips[:1] * size, captioner, batch_size=BATCH_SIZE, threads=1))
    before = Held.now()
    with IsolatedReader() if isolate else contextlib.nullcontext() as isolation:
        _caption_many(clips, address, captioner, isolation, number, limit)
    assert before.more_now() == {}


def _caption_many(clips, address, captioner, isolation, number, limit):
    counts = {"captioned": 0, "failed": 0}

    def steps():
        source = sent_clips(clips, address)
        while True:  # not all in one stream: what a stream begins it has to end
            for caption in captions(
                itertools.islice(source, max(32, number // 20)),
                captioner,
                batch_size=BATCH_SIZE,
                threads=1,
                isolation=isolation,
            ):
                counts["failed" if caption.text is None else "captioned"] += 1
                yield

    rest = steps()
    for _ in range(32):
        next(rest)
    before = Held.now()
    sizes = watched(rest, number - 32, max(8, number // 100))
    rest.close()
    assert before.more_now() == {}
    assert min(counts.values()) > number / 8, counts
    assert spread(sizes) < limit


@pytest.mark.parametrize(
    ("number", "limit"), [(5, 0.1), pytest.param(200, 0.01, marks=endurance)], ids=["short", "long"]
)
def test_evaluations_in_training(shapes, tmp_path, number, limit):
    """An evaluation after each step, with clips read by a worker process, and a checkpoint now and then."""
    sizes = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            sizes.append(anonymous_memory())

    changes = {"max_steps": number, "eval_steps": 1, "save_steps": max(4, number // 10), "save_total_limit": 1}
    trainer = train.build_trainer(
        tiny_run.arguments(shapes, tmp_path / "run", dataloader_num_workers=1, num_samples=0, **changes)
    )
    trainer.add_callback(Watch())
    before = Held.now()
    train.run(trainer)
    assert len(sizes) == number + 1, "one after training"
    assert spread(settled(sizes[:-1])) < limit
    more = before.more_now()
    assert more.pop("threads", 0) <= 4, "of torch, which keeps them"
    assert more == {}


@pytest.mark.parametrize(
    ("number", "limit"), [(12, 0.1), pytest.param(1_000, 0.01, marks=endurance)], ids=["short", "long"]
)
def test_visits_of_the_demo(clips, address, tmp_path, monkeypatch, number, limit):
    """Visitors who send a clip or an address, have a caption explained now and then, and leave."""
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips[0].read_bytes()[:1000])

    def visit(demo: Demo, visitor: int) -> str:
        try:
            if visitor % 2:
                file = demo.fetch(
                    f"{address}/{'nothing' if visitor % 10 == 1 else visitor % len(clips)}.mp4", str(visitor)
                )
            else:
                file = broken if visitor % 10 == 2 else demo.files.uploads / f"{visitor}" / "clip.mp4"
                if file != broken:
                    file.parent.mkdir(parents=True)
                    shutil.copy(clips[visitor % len(clips)], file)
                demo.files.hold(str(visitor), file)
            segments = "0.4" if visitor % 5 == 0 else "whole"
            *_, progress = demo.caption(file, Settings(segments, beams=2, alternatives=1))
            page = result_html(progress, is_complete=True)
            if visitor % 100 == 4:
                page += explanation_html(demo.explain(file), file)
            return page
        except DemoError as error:
            return str(error)
        finally:
            demo.files.forget(str(visitor))

    before = Held.now()
    with Demo(load_captioner("moving-shapes", device="cpu")) as demo:
        visits = (visit(demo, visitor) for visitor in itertools.count())
        for _ in range(5):
            next(visits)
        during = Held.now()
        assert spread(watched(visits, number - 5, max(2, number // 100))) < limit
        assert during.more_now() == {}
    assert before.more_now().keys() <= {"threads"}, "of torch, which keeps them"
