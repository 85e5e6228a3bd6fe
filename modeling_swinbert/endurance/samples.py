"""The files that are mutated: clips in several containers and codecs, a model's folder, annotations."""

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from swinbert import bundled_model
from swinbert.processing.video_sources_swinbert import VIDEO_SUFFIXES

# Name -> codec, its options, options of the container.
_X264 = {"threads": "1", "x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2:b-adapt=0"}
_CLIPS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "h264.mp4": ("libx264", _X264, {}),
    "fragmented.mp4": ("libx264", _X264, {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "h264.mkv": ("libx264", _X264, {}),
    "h264.ts": ("libx264", _X264, {}),
    "h264.flv": ("libx264", _X264, {}),
    "vp8.webm": ("libvpx", {"g": "8", "threads": "1"}, {}),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "threads": "1", "cpu-used": "8"}, {}),
    "mpeg4.avi": ("mpeg4", {"g": "8", "bf": "2"}, {}),
    "mpeg4.mov": ("mpeg4", {"g": "8"}, {}),
    "mpeg2.mpg": ("mpeg2video", {"g": "8"}, {}),
    "animation.gif": ("gif", {}, {}),
}
GIVEN = "given-"  # begins the names of copies of the user's own clips
_NUM_FRAMES, _WIDTH, _HEIGHT = 24, 96, 64


def _pictures() -> Iterator[np.ndarray]:
    """(H, W, 3): colours that drift, and a square that moves. Nothing of it is middle grey."""
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    for number in range(_NUM_FRAMES):
        picture = np.stack([columns * 2 + number, 255 - rows * 3, (rows + columns + 4 * number) % 200], axis=-1)
        left = 3 * number % (_WIDTH - 16)
        picture[20:36, left : left + 16] = (250, 240, 20)
        yield picture.clip(0, 255).astype(np.uint8)


def write_clips(folder: Path, given: Path | None = None) -> list[str]:
    """
    Writes the clips into `folder`, with the bundled sample and copies of the videos in the folder `given`; codecs that
    this FFmpeg cannot encode are left out. Returns their names.
    """
    folder.mkdir(parents=True)
    for name, (codec, options, container_options) in _CLIPS.items():
        if codec in av.codecs_available:
            _encode(folder / name, codec, options, container_options)
    shutil.copy(Path(bundled_model()).parent / "sample.mp4", folder / "sample.mp4")
    for file in sorted(given.iterdir()) if given is not None else ():
        if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file():
            shutil.copy(file, folder / f"{GIVEN}{file.name}")
    return sorted(file.name for file in folder.iterdir())


def _encode(path: Path, codec: str, options: dict[str, str], container_options: dict[str, str]) -> None:
    with av.open(str(path), "w", options=container_options) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "rgb8" if codec == "gif" else "yuv420p"
        for picture in _pictures():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
