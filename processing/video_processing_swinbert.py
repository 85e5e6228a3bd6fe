"""The video processor: decodes, samples, resizes, crops and normalises clips, with settings that are stored as data."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor

from .video_backends_swinbert import MAX_FRAME_PIXELS

# The loader of remote code copies the files that this one imports, one level deep: their imports stand here too.
from .video_colors_swinbert import HDR_TRANSFERS  # noqa: F401
from .video_containers_swinbert import CONTAINERS  # noqa: F401
from .video_decoding_swinbert import decode_video
from .video_losses_swinbert import find_lost_frames  # noqa: F401
from .video_pictures_swinbert import FrameResizer, resize_picture
from .video_sources_swinbert import VideoDecodeError, as_seconds, is_encoded_source, is_frame_decoder
from .video_timeline_swinbert import SAMPLINGS, VideoMetadata, check_num_frames, frame_range, sample_indices

# How far floats in [0, 1] may lie outside: bicubic and Lanczos resampling overshoot by about a tenth.
_OVERSHOOT = 0.125
_MAX_SIDE = 1 << 14  # pixels of the model's frames


class SwinBertVideoProcessorKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """
    Arguments beyond those of every video processor.

    Args:
        frame_sampling (`str`, *optional*): `"uniform"`, `"round"` or `"random"`, see `sample_indices`.
        start, end (`float` or list, *optional*): range of each clip in seconds, or a list with one for each clip.
        generator (`int` or `torch.Generator`, *optional*): seed or generator of random sampling.
        video_backend (`str`, *optional*): decoder of files, see `decode_video`.
        strict (`bool`, *optional*): whether to refuse clips with undecodable frames, see `decode_video`.
        deinterlace (`bool`, *optional*): whether to deinterlace frames that are marked as interlaced (default: yes).
        tone_map (`bool`, *optional*): whether to tone-map frames of high dynamic range (default: yes).
        allow_private_urls (`bool`, *optional*): whether URLs may lead into the private network. For a call only: a
            downloaded configuration must not allow it.
    """

    frame_sampling: str | None
    start: float | int | list[float | int | None] | None
    end: float | int | list[float | int | None] | None
    generator: Any
    video_backend: str | None
    strict: bool | None
    deinterlace: bool | None
    tone_map: bool | None
    allow_private_urls: bool | None


class SwinBertVideoProcessor(BaseVideoProcessor):
    r"""
    Turns clips into `pixel_values_videos`, (B, T, C, H, W) float32: samples `num_frames` frames, resizes their short
    side to `size`, crops the centre, rescales and normalises, with the pixels of the original SwinBERT.

    A clip is a path, an http(s) URL, bytes, a binary file object, an array (T, H, W, C) or (T, C, H, W), a list of PIL
    images or of arrays (H, W, C), a single image, which is a clip of one frame, or torchcodec's `VideoDecoder`. Several
    clips are a list, a column of a dataset, or an array (B, T, H, W, C) or (B, T, C, H, W). Clips shorter than
    `num_frames` repeat frames. Decoded clips are sampled as files are, unless `do_sample_frames=False`.

    Arrays are uint8; uint16, whose values are divided by 257; floats in [0, 1], where values up to 1/8 outside, as
    resampling makes them, are clipped; or integers or floats in [0, 255].

    Pillow resizes uint8 frames on the CPU, with the rounding of the original; torchvision resizes other tensors, with
    differences of at most 1/255.

    Raises:
        VideoDecodeError: a clip cannot be used; the message says which one and why.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 32
    frame_sampling = "uniform"
    valid_kwargs = SwinBertVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]
    # Arguments of a call that are never stored: they belong to a clip or to a run.
    _per_call = ("start", "end", "generator", "allow_private_urls", "video_metadata")
    _decoding_arguments = ("video_backend", "strict", "deinterlace", "tone_map", "allow_private_urls")

    def __init__(self, **kwargs: Unpack[SwinBertVideoProcessorKwargs]):
        super().__init__(**kwargs)
        _check_sampling(type(self).__name__, self.num_frames, self.fps)
        if self.frame_sampling not in SAMPLINGS:
            raise ValueError(f"`frame_sampling` must be {' or '.join(SAMPLINGS)}, got {self.frame_sampling!r}.")
        for name in ("size", "crop_size"):
            sides = dict(getattr(self, name) or {})
            is_whole = name == "size" or sides.keys() == {"height", "width"}
            if sides and not (is_whole and all(type(side) is int and 0 < side <= _MAX_SIDE for side in sides.values())):
                raise ValueError(f"`{name}` must have sides of 1 to {_MAX_SIDE} pixels, got {getattr(self, name)}.")
        for name in ("image_mean", "image_std"):
            values = np.atleast_1d(getattr(self, name))
            if values.dtype.kind not in "if" or values.shape not in ((1,), (3,)):
                raise ValueError(f"`{name}` must have a number for each of 3 channels, got {getattr(self, name)!r}.")
        if not (isinstance(factor := self.rescale_factor, (int, float, np.floating)) and factor > 0):
            raise ValueError(f"`rescale_factor` must be a positive number, got {factor!r}.")

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key not in self._per_call}

    def load_frames(
        self,
        source: Any,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_sampling: str | None = None,
        start: float | None = None,
        end: float | None = None,
        generator: int | torch.Generator | None = None,
        do_sample_frames: bool | None = None,
        video_backend: str | None = None,
        strict: bool | None = None,
        deinterlace: bool | None = None,
        tone_map: bool | None = None,
        allow_private_urls: bool | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """
        Decodes and samples one video file, without further processing, in order to store, show or augment its frames.

        `processor(videos=frames, do_sample_frames=False)` does the rest. Arguments that are left out are the
        processor's own; `transform` is applied to each frame, see `decode_video`.

        Returns:
            frames `np.ndarray` of uint8, (T, H, W, C), and their `VideoMetadata`.

        Raises:
            VideoDecodeError: the clip cannot be used.
        """
        _check_sampling(source, num_frames, fps)
        sample = self.do_sample_frames if do_sample_frames is None else do_sample_frames
        return decode_video(
            source,
            indices=(
                lambda metadata: self.sample_frames(
                    metadata, num_frames=num_frames, fps=fps, frame_sampling=frame_sampling, generator=generator
                )
            )
            if sample
            else None,
            start=start,
            end=end,
            backend=video_backend or self.video_backend or "auto",
            strict=bool(self.strict if strict is None else strict),
            deinterlace=self.deinterlace is not False if deinterlace is None else deinterlace,
            tone_map=self.tone_map is not False if tone_map is None else tone_map,
            allow_private_urls=bool(allow_private_urls),
            transform=transform,
        )

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_sampling: str | None = None,
        generator: int | torch.Generator | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Numbers of the frames to take from a clip, (T,) int64. With `fps`, T is that rate times the clip's duration.

        Arguments override what the processor stores; a stored `fps` overrides the stored `num_frames`.

        Raises:
            ValueError: both `num_frames` and `fps` are given, or the clip's frame rate is needed and not known.
        """
        if fps is not None and num_frames is not None:
            raise ValueError(f"`num_frames` and `fps` exclude each other, got {num_frames} and {fps}.")
        if fps is None and num_frames is None:
            fps, num_frames = self.fps, self.num_frames
        if fps is not None:
            if metadata.fps is None:
                raise ValueError(
                    f"Sampling at fps={fps} needs the clip's own frame rate: pass `video_metadata` with `fps`, or ask"
                    " for `num_frames`."
                )
            num_frames = max(1, int(metadata.total_num_frames / metadata.fps * fps))
        if num_frames is None:
            return np.arange(metadata.total_num_frames)
        return sample_indices(metadata.total_num_frames, num_frames, frame_sampling or self.frame_sampling, generator)

    def preprocess(self, videos: Any, **kwargs: Unpack[SwinBertVideoProcessorKwargs]) -> BatchFeature:
        """See the class; `kwargs` override what the processor stores. `return_metadata=True` adds `video_metadata`."""
        sampling = {key: kwargs.pop(key, None) for key in ("num_frames", "fps", "frame_sampling", "generator")}
        decoding = {key: kwargs.pop(key, None) for key in self._decoding_arguments}
        sample = kwargs.pop("do_sample_frames", None)
        sample = self.do_sample_frames if sample is None else sample
        _check_sampling(videos, sampling["num_frames"], sampling["fps"])
        if isinstance(sampling["generator"], (int, np.integer)):  # one seed, but another draw for each clip
            sampling["generator"] = torch.Generator().manual_seed(int(sampling["generator"]))

        clips = _split(videos)
        starts, ends = (_one_each(videos, key, kwargs.pop(key, None), len(clips)) for key in ("start", "end"))
        known = _one_metadata_each(kwargs.pop("video_metadata", None), len(clips))
        resize = self.frame_resizer(**kwargs)
        frames, metadata = [], []
        for number, (clip, start, end, about) in enumerate(zip(clips, starts, ends, known, strict=True)):
            try:
                if is_encoded_source(clip):
                    decoded, about = self.load_frames(
                        clip,
                        start=start,
                        end=end,
                        do_sample_frames=sample,
                        transform=resize,
                        **sampling,
                        **decoding,
                    )
                    video = torch.from_numpy(decoded).permute(0, 3, 1, 2)
                elif is_frame_decoder(clip):
                    video, about = self._decoded_by(clip, start, end, sample, sampling)
                else:
                    video = self._to_tensor(clip, **kwargs)
                    video, about = self._select(video, about, start, end, sample, sampling)
            except VideoDecodeError as error:
                if len(clips) == 1 or not error.source.startswith("<"):
                    raise
                raise VideoDecodeError(f"videos[{number}] {error.source}", error.kind, error.message) from error
            frames.append(video)
            metadata.append(about)
        kwargs["input_data_format"] = ChannelDimension.FIRST
        return super().preprocess(frames, video_metadata=metadata, do_sample_frames=False, **kwargs)

    def _to_tensor(
        self,
        clip: Any,
        frames: torch.Tensor | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_convert_rgb: bool | None = None,
        do_rescale: bool | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Decoded frames as (T, C, H, W): uint8, or float if the values are not those of 8 bits."""
        do_convert_rgb = self.do_convert_rgb if do_convert_rgb is None else do_convert_rgb
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        frames = _as_array(clip, bool(do_convert_rgb)) if frames is None else frames
        video = _channels_first(clip, frames, input_data_format)
        video = _checked_values(clip, video, bool(do_rescale))
        if do_convert_rgb and video.shape[1] != 3:
            rgb = self.convert_to_rgb(video)
            video = rgb.round().to(torch.uint8) if video.dtype == torch.uint8 else rgb
        return video

    def _select(
        self,
        video: torch.Tensor,
        metadata: Mapping | None,
        start: float | None,
        end: float | None,
        sample: bool,
        sampling: dict[str, Any],
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Takes the range, and samples from it, where a clip is decoded already."""
        height, width = video.shape[2:]
        about = VideoMetadata(**{"total_num_frames": len(video), "height": height, "width": width, **(metadata or {})})
        indices = self._chosen(video, len(video), about.fps, start, end, sample, sampling)
        about.frames_indices = indices.tolist()
        return (video if about.frames_indices == list(range(len(video))) else video[indices]), about

    def _decoded_by(
        self, decoder: Any, start: float | None, end: float | None, sample: bool, sampling: dict[str, Any]
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """The range and the sample of the clip of torchcodec's decoder, whose frames are taken to be evenly spaced."""
        known = decoder.metadata
        about = VideoMetadata(
            total_num_frames=len(decoder),
            fps=known.average_fps,
            height=known.height,
            width=known.width,
            duration=known.duration_seconds,
            video_backend="torchcodec",
        )
        indices = self._chosen(decoder, len(decoder), about.fps, start, end, sample, sampling)
        about.frames_indices = indices.tolist()
        unique, inverse = np.unique(indices, return_inverse=True)
        try:
            frames = decoder.get_frames_at(indices=unique.tolist()).data[inverse]
        except Exception as error:
            raise VideoDecodeError(decoder, "undecodable", f"its decoder failed: {error}.") from error
        return self._to_tensor(decoder, frames=frames), about

    def _chosen(
        self,
        clip: Any,
        num_frames: int,
        fps: float | None,
        start: float | None,
        end: float | None,
        sample: bool,
        sampling: dict[str, Any],
    ) -> np.ndarray:
        """(T,) numbers of the frames of a range, or of its sample, of a clip of `num_frames` frames."""
        indices = np.arange(num_frames)[_between(clip, num_frames, fps, start, end)]
        if sample:
            available = VideoMetadata(total_num_frames=len(indices), fps=fps)
            indices = indices[self.sample_frames(available, **sampling)]
        return indices

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | tvF.InterpolationMode | int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(..., C, H, W) with the short side at `size.shortest_edge`, or at (`size.height`, `size.width`)."""
        resizer = _resizer(size)
        if resizer is None:
            return super().resize(image, size, resample=resample, **kwargs)
        new_size = resizer.size(image.shape[-2], image.shape[-1])
        by_pillow = image.dtype == torch.uint8 and image.device.type == "cpu" and not torch.compiler.is_compiling()
        if by_pillow and isinstance(resample, (int, type(None))):
            return _pillow_resize(image, new_size, PILImageResampling.BILINEAR if resample is None else resample)
        return super().resize(image, SizeDict(height=new_size[0], width=new_size[1]), resample=resample, **kwargs)

    def frame_resizer(
        self, do_resize: bool | None = None, size: Any = None, resample: Any = None, device: Any = None, **kwargs
    ) -> FrameResizer | None:
        """
        What resizes a frame, (H, W, C), as soon as it is decoded, so that clips of large frames never are in
        memory at full size; `resize` then finds the size that it wants. `None` where Pillow does not do the resizing.
        """
        do_resize = self.do_resize if do_resize is None else do_resize
        resample = self.resample if resample is None else resample
        if not do_resize or not isinstance(resample, int) or torch.device(device or "cpu").type != "cpu":
            return None
        wanted = SizeDict(**get_size_dict(size or dict(self.size), default_to_square=self.default_to_square))
        return _resizer(wanted, int(resample)) or FrameResizer()

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """(..., C, H, W) cropped to (`size.height`, `size.width`), padded with zeros where it is smaller."""
        if not size.height or not size.width or image.shape[-2] < size.height or image.shape[-1] < size.width:
            return super().center_crop(image, size, **kwargs)
        # Rounded half to even, as in the original; transformers truncates.
        top, left = (
            int(round((have - want) / 2.0))
            for have, want in zip(image.shape[-2:], (size.height, size.width), strict=True)
        )
        return tvF.crop(image, top, left, size.height, size.width)

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
    ) -> torch.Tensor:
        """`(images * rescale_factor - mean) / std`, in the original's order of operations."""
        if not do_rescale and not do_normalize:
            return images
        images = images.to(torch.float32, copy=True)
        if do_rescale:
            images /= 1 / rescale_factor
        if do_normalize:
            mean, std = (torch.tensor(value, device=images.device).view(-1, 1, 1) for value in (image_mean, image_std))
            images -= mean
            images /= std
        return images


def _check_sampling(videos: Any, num_frames: Any, fps: Any) -> None:
    check_num_frames(videos, num_frames)
    if fps is not None and not (isinstance(fps, numbers.Real) and 0 < float(fps) < float("inf")):
        raise VideoDecodeError(videos, "bad_sampling", f"expected a positive `fps`, found {fps!r}.")


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (_is_array(value) and value.ndim in (2, 3))


def _split(videos: Any) -> list[Any]:
    """List of the clips in an argument: each is a video file, a decoder, an array, a list of frames or an image."""
    if is_encoded_source(videos) or is_frame_decoder(videos) or _is_picture(videos):
        return [videos]
    if _is_array(videos):
        return list(videos) if videos.ndim == 5 else [videos]
    if isinstance(videos, Sequence) or hasattr(videos, "tolist"):  # columns of `datasets` and pandas too
        videos = list(videos)
    if isinstance(videos, (list, tuple)) and len(videos):
        if all(_is_picture(item) for item in videos):
            return [videos]
        return [clip for item in videos for clip in _split(item)]
    found = "an empty list" if isinstance(videos, (list, tuple)) else repr(type(videos).__name__)
    raise VideoDecodeError(
        videos,
        "bad_source",
        f"expected a path, URL, bytes, file object, array or list of frames, or a list of these, found {found}.",
    )


def _one_each(videos: Any, name: str, value: Any, num_clips: int) -> list[float | None]:
    """`start` or `end` as a list with one for each clip."""
    if getattr(value, "ndim", 0) == 1:  # an array, a tensor or a column of pandas
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return [value] * num_clips
    if len(value) != num_clips:
        raise VideoDecodeError(
            videos,
            "bad_range",
            f"expected `{name}` to be one number or one for each of {num_clips} clips, found {len(value)}.",
        )
    return list(value)


def _one_metadata_each(video_metadata: Any, num_clips: int) -> list[Mapping | None]:
    """`video_metadata`, which is one, a list or a list of lists, as a list with one for each clip."""
    if video_metadata is None:
        return [None] * num_clips
    flat: list[Mapping | None] = []
    for item in video_metadata if isinstance(video_metadata, (list, tuple)) else [video_metadata]:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    if len(flat) != num_clips:
        raise ValueError(f"Expected one `video_metadata` for each of {num_clips} clips, got {len(flat)}.")
    return flat


def _as_array(clip: Any, do_convert_rgb: bool) -> torch.Tensor:
    """A decoded clip as one tensor, (T, H, W, C) or (T, C, H, W)."""
    if isinstance(clip, (list, tuple)) or isinstance(clip, Image.Image):
        frames = [_picture(frame, do_convert_rgb) for frame in (clip if isinstance(clip, (list, tuple)) else [clip])]
        if len({tuple(frame.shape) for frame in frames}) > 1:
            shapes = sorted({tuple(frame.shape) for frame in frames})
            raise VideoDecodeError(clip, "bad_array", f"expected frames of one size, found {shapes}.")
        return torch.stack(frames)
    if _is_picture(clip):
        return _tensor(clip, clip)[None]
    if clip.ndim != 4:
        raise VideoDecodeError(
            clip, "bad_array", f"expected frames as (T, H, W, C) or (T, C, H, W), found {clip.ndim} dimensions."
        )
    return _tensor(clip, clip)


def _picture(frame: Any, do_convert_rgb: bool) -> torch.Tensor:
    if isinstance(frame, Image.Image):
        # An alpha channel stays: `convert_to_rgb` blends it with white. More than 8 bits stay too: Pillow would clip
        # them at 255.
        keep = ("RGB", "RGBA", "I", "F") if do_convert_rgb else ("RGB", "RGBA", "I", "F", "L")
        frame = np.array(frame if frame.mode in keep or frame.mode.startswith("I;16") else frame.convert("RGB"))
    return _tensor(frame, frame)


def _tensor(clip: Any, array: Any) -> torch.Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if isinstance(array, torch.Tensor) and not array.is_complex() and array.dtype != torch.bool:
        return array.detach()
    if isinstance(array, np.ndarray) and array.dtype.kind in "uif":
        return torch.from_numpy(_to_torch_layout(array))
    raise VideoDecodeError(clip, "bad_array", f"expected uint8 or float values, found {array.dtype}.")


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    """An array of numbers with the machine's byte order, a type of torch, and no negative strides."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size >= 4:
        dtype: np.dtype = np.dtype(np.int64)
    elif kind == "f" and size > 8:
        dtype = np.dtype(np.float64)
    else:
        dtype = array.dtype.newbyteorder("=")
    array = array.astype(dtype, copy=False)
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def _channels_first(clip: Any, video: torch.Tensor, input_data_format: Any) -> torch.Tensor:
    """(T, C, H, W), from either layout: the dimension of size 1, 3 or 4 holds the channels."""
    shape = tuple(video.shape)
    if not all(shape):
        raise VideoDecodeError(clip, "bad_array", f"expected frames with pixels in them, found shape {shape}.")
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if input_data_format is not None:
        wants_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
        first, last = first and wants_first, last and not wants_first
    if first == last:
        raise VideoDecodeError(
            clip,
            "bad_array",
            f"expected (T, H, W, C) or (T, C, H, W) with 1, 3 or 4 channels, found shape {shape}"
            + (", which may be either: pass `input_data_format`." if first else "."),
        )
    video = video if first else video.permute(0, 3, 1, 2)
    if video.shape[2] * video.shape[3] > MAX_FRAME_PIXELS:
        raise VideoDecodeError(
            clip, "too_large", f"expected frames of at most {MAX_FRAME_PIXELS} pixels, found shape {shape}."
        )
    return video


def _checked_values(clip: Any, video: torch.Tensor, do_rescale: bool) -> torch.Tensor:
    """uint8 if the values are integers in [0, 255], or multiples of 1/255 in [0, 1]; float otherwise."""
    if video.dtype == torch.uint8:
        return video
    if video.dtype in (torch.uint32, torch.uint64):  # which lack most operations
        video = video.to(torch.int64)
    if video.dtype == torch.uint16:
        video = video.to(torch.float32) / 257
    elif video.is_floating_point():
        video = video.to(torch.float32)
        if not torch.isfinite(video).all():
            raise VideoDecodeError(clip, "bad_array", "expected numbers, found NaN or infinity.")
        if not do_rescale:  # normalised already, with values of any range
            return video
        video = _scaled_to_255(clip, video)
    elif video.min().item() < 0 or video.max().item() > 255:
        raise _range_error(clip, video)
    rounded = video.round() if video.is_floating_point() else video
    return rounded.to(torch.uint8) if torch.allclose(video.float(), rounded.float(), rtol=0, atol=1e-3) else video


def _scaled_to_255(clip: Any, video: torch.Tensor) -> torch.Tensor:
    """Floats in [0, 1] or [0, 255] -> floats in [0, 255]. Values slightly outside, as of resampling, are clipped."""
    low, high = video.min().item(), video.max().item()
    if -_OVERSHOOT <= low and high <= 1 + _OVERSHOOT:
        return video.clamp(0, 1) * 255
    # Up to 2 it may also be [0, 1] with a few brighter pixels, which would become a black clip.
    if low < -0.5 or high > 255.5 or high <= 2 and not torch.equal(video, video.round()):
        raise _range_error(clip, video)
    return video.clamp(0, 255)


def _range_error(clip: Any, video: torch.Tensor) -> VideoDecodeError:
    return VideoDecodeError(
        clip,
        "bad_array",
        f"expected values in [0, 255], floats in [0, 1], or uint16, found {video.min().item():g} to"
        f" {video.max().item():g}. For frames that are normalised already, pass do_rescale=False, do_normalize=False.",
    )


def _between(clip: Any, num_frames: int, fps: float | None, start: float | None, end: float | None) -> slice:
    """Frames of a decoded clip between `start` and `end`, by the rule of `decode_video`."""
    start, end = as_seconds(clip, "start", start), as_seconds(clip, "end", end)
    if start is None and end is None:
        return slice(None)
    if not fps:
        raise VideoDecodeError(
            clip, "bad_range", "`start` and `end` of decoded frames need `video_metadata` with their `fps`."
        )
    return slice(*frame_range(clip, np.arange(num_frames) / fps, start, end))


def _resizer(size: SizeDict, resample: int = PILImageResampling.BILINEAR) -> FrameResizer | None:
    """What resizes to `size`; `None` for kinds of `size` that are left to transformers."""
    if size.shortest_edge and not size.longest_edge:
        return FrameResizer(shortest_edge=size.shortest_edge, resample=resample)
    if size.height and size.width:
        return FrameResizer(height=size.height, width=size.width, resample=resample)
    return None


def _pillow_resize(image: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """(..., C, H, W) uint8 to (..., C, *size)."""
    channels, height, width = image.shape[-3:]
    frames = image.reshape(-1, channels, height, width)
    if (height, width) == size:
        return image
    if channels == 3:
        resized = [resize_picture(frame.permute(1, 2, 0).numpy(), size, resample) for frame in frames]
        video = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    else:
        planes = frames.reshape(-1, height, width).numpy()
        video = torch.from_numpy(np.stack([resize_picture(plane, size, resample) for plane in planes]))
    return video.reshape(*image.shape[:-2], *size)


__all__ = ["SwinBertVideoProcessor"]
