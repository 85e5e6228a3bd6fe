"""Video captioning with SwinBERT: a clip in, an English sentence out."""

from importlib import resources

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from .configuration_swinbert import SwinBertConfig, VideoSwinConfig
from .modeling_swinbert import SwinBertForVideoCaptioning, SwinBertModel
from .modeling_video_swin_swinbert import VideoSwinModel
from .sparse_mask_swinbert import SparseVideoMask
from .version import __version__

# For `AutoModel...from_pretrained` in this process ...
AutoConfig.register("video_swin", VideoSwinConfig, exist_ok=True)
AutoConfig.register("swinbert", SwinBertConfig, exist_ok=True)
AutoModel.register(VideoSwinConfig, VideoSwinModel, exist_ok=True)
AutoModel.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
AutoModelForImageTextToText.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
AutoModelForMultimodalLM.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
# ... and, with `trust_remote_code`, where only the saved folder is: `save_pretrained` adds the modules to it.
VideoSwinConfig.register_for_auto_class()
SwinBertConfig.register_for_auto_class()
VideoSwinModel.register_for_auto_class("AutoModel")
SwinBertModel.register_for_auto_class("AutoModel")
SwinBertForVideoCaptioning.register_for_auto_class("AutoModelForImageTextToText")

import swinbert.processing  # noqa: E402, F401  # registers the processors and the pipeline


def bundled_model() -> str:
    """Folder of the checkpoint that is part of the package. It knows moving shapes, and nothing else."""
    return str(resources.files(__name__) / "checkpoints" / "moving-shapes")


__all__ = [
    "SparseVideoMask",
    "SwinBertConfig",
    "SwinBertForVideoCaptioning",
    "SwinBertModel",
    "VideoSwinConfig",
    "VideoSwinModel",
    "__version__",
    "bundled_model",
]
