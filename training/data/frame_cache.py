"""Sampled frames on disk, kept between runs, for machines where decoding is the bottleneck."""

import hashlib
import importlib
import io
import json
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from swinbert.training.data.sources import clip_source
from swinbert.utils.files import write_atomically
from swinbert.version import __version__

FORMATS = ("jpeg", "raw")


class FrameCache:
    """
    A folder with a file for each clip: a zip of its sampled frames, as JPEG files or as one array. Delete the folder,
    or any file in it, to clear it.

    They are those of [`sampled_frames`]; what the processor makes of raw ones is equal, bit by bit, to what it makes of
    the video. A file is found by all that decides what is in it: the video (path, size and time of change; or its
    bytes), `start` and `end`, how the processor samples and resizes, the decoder and its version. It appears whole or
    not at all, whatever process is killed, and a damaged one is made anew.

    Args:
        folder: made if it is not there.
        video_processor (`SwinBertVideoProcessor`): samples and decodes.
        frame_format (`str`): `"jpeg"`, a tenth of the size, at quality 95 without subsampling of colours; or `"raw"`.

    Raises:
        ValueError: frames are sampled at random, so that no two epochs show the same; or there is no such format.
    """

    def __init__(self, folder: str | Path, video_processor: Any, frame_format: str = "jpeg"):
        if video_processor.frame_sampling == "random":
            raise ValueError(
                'A frame cache keeps the same frames for every epoch, but `frame_sampling` is "random": choose one.'
            )
        if frame_format not in FORMATS:
            raise ValueError(f"Expected a format of kept frames of {' or '.join(FORMATS)}, found {frame_format!r}.")
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.video_processor = video_processor
        self.frame_format = frame_format
        self._settings = {"cache": 1, "format": frame_format, "pillow": Image.__version__, **_settings(video_processor)}
        self._is_full = False

    def frames(self, clip: dict[str, Any]) -> np.ndarray:
        """
        The sampled frames of a clip, uint8 (T, H, W, C), decoded only if they are not kept yet.

        Raises:
            VideoDecodeError: the clip cannot be used.
        """
        path = self._path(clip)
        if path is None:  # nothing says whether it will be the same video next time
            return sampled_frames(self.video_processor, clip)
        try:
            return _read(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            warnings.warn(f"{path} is damaged and is made anew.", stacklevel=2)
        frames = sampled_frames(self.video_processor, clip)
        content = _packed(frames, self.frame_format)
        self._write(path, content)
        # What the next epoch will see, not what this one could have seen.
        return _unpacked(content)

    def _path(self, clip: dict[str, Any]) -> Path | None:
        video = _identity(clip)
        if video is None:
            return None
        said = {"video": video, "start": clip.get("start"), "end": clip.get("end"), **self._settings}
        name = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.zip"

    def _write(self, path: Path, content: bytes) -> None:
        """Keeps frames, until the folder takes no more."""
        if self._is_full:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            self._is_full = True
            warnings.warn(f"{self.folder} takes no more frames ({error}): they are decoded instead.", stacklevel=2)


def sampled_frames(video_processor: Any, clip: dict[str, Any]) -> np.ndarray:
    """The sampled frames of a clip, uint8 (T, H, W, C), worth keeping: no larger than the processor makes them, before
    any crop."""
    frames = video_processor.load_frames(clip_source(clip), start=clip.get("start"), end=clip.get("end"))[0]
    size = video_processor.size
    smallest = size.shortest_edge or max(size.height or 0, size.width or 0)
    if not video_processor.do_resize or not smallest or min(frames.shape[1:3]) <= smallest:
        return frames
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = video_processor.resize(video, size, resample=video_processor.resample)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def _settings(video_processor: Any) -> dict[str, Any]:
    """All of a processor, and of the libraries, that decides which frames come out and what they show."""
    names = ("num_frames", "fps", "frame_sampling", "do_sample_frames", "strict", "do_resize", "resample")
    settings = {name: getattr(video_processor, name, None) for name in names}
    settings["size"] = {name: value for name, value in dict(video_processor.size).items() if value is not None}
    backend = getattr(video_processor, "video_backend", None) or "auto"
    libraries = {"pyav"} if backend == "auto" else {"pyav", backend}  # PyAV counts frames for all of them
    modules = [importlib.import_module("av" if name == "pyav" else name) for name in sorted(libraries)]
    settings["decoders"] = {module.__name__: str(getattr(module, "__version__", "")) for module in modules}
    settings["ffmpeg"] = {name: list(version) for name, version in modules[-1].library_versions.items()}
    return {**settings, "swinbert": __version__}


def _identity(clip: dict[str, Any]) -> Any:
    video = clip["video"]
    if video["bytes"] is not None:
        return hashlib.blake2b(video["bytes"], digest_size=16).hexdigest()
    path = clip.get("shard") or video["path"]
    if not os.path.isfile(path):
        return None
    state = os.stat(path)
    return [os.path.realpath(path), state.st_size, state.st_mtime_ns, clip.get("offset"), clip.get("size")]


def _packed(frames: np.ndarray, frame_format: str) -> bytes:
    """A zip, stored without compression, whose checksums tell a damaged file."""
    content = io.BytesIO()
    if frame_format == "raw":
        np.savez(content, frames=frames)
        return content.getvalue()
    with zipfile.ZipFile(content, "w") as archive:
        for number, frame in enumerate(frames):
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, format="JPEG", quality=95, subsampling=0)
            archive.writestr(f"{number:05d}.jpg", picture.getvalue())
    return content.getvalue()


def _read(path: Path) -> np.ndarray:
    return _unpacked(path.read_bytes())


def _unpacked(content: bytes) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [archive.read(name) for name in sorted(archive.namelist())]
        if archive.namelist() == ["frames.npy"]:
            return np.load(io.BytesIO(members[0]), allow_pickle=False)
    return np.stack([np.asarray(Image.open(io.BytesIO(member))) for member in members])
