"""Clips to tensors, captions to text."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "VIDEO_SUFFIXES",
    "SwinBertProcessor",
    "SwinBertVideoProcessor",
    "VideoCaptioningPipeline",
    "VideoDecodeError",
    "VideoMetadata",
    "VideoReader",
    "VideoSegment",
    "decode_video",
    "sample_indices",
]

if TYPE_CHECKING:
    from .pipeline_swinbert import VideoCaptioningPipeline
    from .processing_swinbert import SwinBertProcessor
    from .video_decoding_swinbert import (
        VideoDecodeError,
        VideoMetadata,
        VideoReader,
        VideoSegment,
        decode_video,
        sample_indices,
    )
    from .video_processing_swinbert import SwinBertVideoProcessor
    from .video_sources_swinbert import VIDEO_SUFFIXES
else:
    # Processes that only decode use the modules of videos without torch and transformers, which take seconds.
    _MODULES = {
        "VIDEO_SUFFIXES": "video_sources_swinbert",
        "SwinBertProcessor": "processing_swinbert",
        "SwinBertVideoProcessor": "video_processing_swinbert",
        "VideoCaptioningPipeline": "pipeline_swinbert",
        **dict.fromkeys(("VideoDecodeError", "VideoMetadata", "VideoReader"), "video_decoding_swinbert"),
        **dict.fromkeys(("VideoSegment", "decode_video", "sample_indices"), "video_decoding_swinbert"),
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import_module("transformers")  # registers our classes, see swinbert/registration.py
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
