"""Clips to tensors, captions to text."""

import transformers  # noqa: F401  # registers our classes, see swinbert/registration.py

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
