"""A cache of sampled frames on disk, for machines where decoding limits the speed of training."""

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
    A folder with a zip file for each clip, which holds its sampled frames as JPEG files or as one array. To clear the
    cache, delete the folder or files in it.

    The frames are those of [`sampled_frames`]; from raw frames, the processor computes exactly the same pixel values as
    from the video. The name of a file is a hash of everything that determines its content: the video (path, size and
    modification time; or its bytes), `start` and `end`, the processor's sampling and resizing, the decoder and its
    version. Files are written atomically, and damaged ones are replaced.

    Args:
        folder: created if needed.
        video_processor (`SwinBertVideoProcessor`): decodes, samples and resizes.
        frame_format (`str`): `"jpeg"`, a tenth of the size, at quality 95 without chroma subsampling; or `"raw"`.

    Raises:
        ValueError: the processor samples frames at random, or there is no such format.
    """

    def __init__(self, folder: str | Path, video_processor: Any, frame_format: str = "jpeg"):
        if video_processor.frame_sampling == "random":
            raise ValueError(
                'A frame cache returns the same frames in every epoch, but `frame_sampling` is "random": choose one.'
            )
        if frame_format not in FORMATS:
            raise ValueError(
                f"Expected the format of cached frames to be {' or '.join(FORMATS)}, found {frame_format!r}."
            )
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.video_processor = video_processor
        self.frame_format = frame_format
        self._settings = {"cache": 1, "format": frame_format, "pillow": Image.__version__, **_settings(video_processor)}
        self._is_full = False

    def frames(self, clip: dict[str, Any]) -> np.ndarray:
        """
        The sampled frames of a clip, uint8 (T, H, W, C), decoded only if they are not in the cache.

        Raises:
            VideoDecodeError: the clip cannot be decoded.
        """
        path = self._path(clip)
        if path is None:  # a URL, whose content may change
            return sampled_frames(self.video_processor, clip)
        try:
            return _read(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            warnings.warn(f"{path} is damaged and will be replaced.", stacklevel=2)
        frames = sampled_frames(self.video_processor, clip)
        content = _pack(frames, self.frame_format)
        self._write(path, content)
        # Not `frames`: this epoch sees the same JPEG artefacts as later ones.
        return _unpack(content)

    def _path(self, clip: dict[str, Any]) -> Path | None:
        video = _identity(clip)
        if video is None:
            return None
        key = {"video": video, "start": clip.get("start"), "end": clip.get("end"), **self._settings}
        name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.zip"

    def _write(self, path: Path, content: bytes) -> None:
        """Writes a file of the cache. After a failure (a full disk, say) nothing more is written."""
        if self._is_full:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            self._is_full = True
            warnings.warn(
                f"Frames cannot be cached in {self.folder} any more ({error}): they are decoded each time.",
                stacklevel=2,
            )


def sampled_frames(video_processor: Any, clip: dict[str, Any]) -> np.ndarray:
    """The sampled frames of a clip, uint8 (T, H, W, C), downscaled to the size that the processor crops from."""
    frames = video_processor.load_frames(clip_source(clip), start=clip.get("start"), end=clip.get("end"))[0]
    size = video_processor.size
    smallest = size.shortest_edge or max(size.height or 0, size.width or 0)
    if not video_processor.do_resize or not smallest or min(frames.shape[1:3]) <= smallest:
        return frames
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = video_processor.resize(video, size, resample=video_processor.resample)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def _settings(video_processor: Any) -> dict[str, Any]:
    """All settings of the processor, and versions of libraries, that affect sampled frames."""
    names = ("num_frames", "fps", "frame_sampling", "do_sample_frames", "strict", "do_resize", "resample")
    settings = {name: getattr(video_processor, name, None) for name in names}
    settings["size"] = {name: value for name, value in dict(video_processor.size).items() if value is not None}
    backend = getattr(video_processor, "video_backend", None) or "auto"
    libraries = {"pyav"} if backend == "auto" else {"pyav", backend}  # PyAV reads the time stamps for all decoders
    modules = [importlib.import_module("av" if name == "pyav" else name) for name in sorted(libraries)]
    settings["decoders"] = {module.__name__: str(getattr(module, "__version__", "")) for module in modules}
    settings["ffmpeg"] = {name: list(version) for name, version in modules[-1].library_versions.items()}
    return {**settings, "swinbert": __version__}


def _identity(clip: dict[str, Any]) -> Any:
    """What identifies the content of a video: its location, size and modification time, or a hash; `None` for a URL."""
    video = clip["video"]
    if video["bytes"] is not None:
        return hashlib.blake2b(video["bytes"], digest_size=16).hexdigest()
    path = clip.get("shard") or video["path"]
    if not os.path.isfile(path):
        return None
    state = os.stat(path)
    return [os.path.realpath(path), state.st_size, state.st_mtime_ns, clip.get("offset"), clip.get("size")]


def _pack(frames: np.ndarray, frame_format: str) -> bytes:
    """A zip without compression; its checksums reveal damage."""
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
    return _unpack(path.read_bytes())


def _unpack(content: bytes) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [archive.read(name) for name in sorted(archive.namelist())]
        if archive.namelist() == ["frames.npy"]:
            return np.load(io.BytesIO(members[0]), allow_pickle=False)
    return np.stack([np.asarray(Image.open(io.BytesIO(member))) for member in members])
