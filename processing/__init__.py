"""Clips to tensors, captions to text. The transformers Auto classes know the processors once this is imported."""

from transformers import AutoProcessor, AutoVideoProcessor

from swinbert.configuration_swinbert import SwinBertConfig

from .pipeline_swinbert import VideoCaptioningPipeline, register_pipeline
from .processing_swinbert import SwinBertProcessor
from .video_decoding_swinbert import VideoDecodeError, VideoMetadata, decode_video, sample_indices
from .video_processing_swinbert import SwinBertVideoProcessor
from .video_sources_swinbert import VIDEO_SUFFIXES

AutoVideoProcessor.register(SwinBertConfig, SwinBertVideoProcessor, exist_ok=True)
AutoProcessor.register(SwinBertConfig, SwinBertProcessor, exist_ok=True)
SwinBertVideoProcessor.register_for_auto_class()
SwinBertProcessor.register_for_auto_class()
register_pipeline()

__all__ = [
    "VIDEO_SUFFIXES",
    "SwinBertProcessor",
    "SwinBertVideoProcessor",
    "VideoCaptioningPipeline",
    "VideoDecodeError",
    "VideoMetadata",
    "decode_video",
    "sample_indices",
]
