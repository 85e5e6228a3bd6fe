"""Video captioning with SwinBERT: a clip in, an English sentence out."""

from .configuration_swinbert import SwinBertConfig, VideoSwinConfig
from .modeling_swinbert import SparseVideoMask, SwinBertForVideoCaptioning, SwinBertModel
from .modeling_video_swin_swinbert import VideoSwinModel
from .version import __version__

__all__ = [
    "SparseVideoMask",
    "SwinBertConfig",
    "SwinBertForVideoCaptioning",
    "SwinBertModel",
    "VideoSwinConfig",
    "VideoSwinModel",
    "__version__",
]
