"""Video captioning with SwinBERT: a clip in, an English sentence out."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers
from .version import __version__

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

if TYPE_CHECKING:
    from swinbert import processing as processing

    from .configuration_swinbert import SwinBertConfig, VideoSwinConfig
    from .modeling_swinbert import SwinBertForVideoCaptioning, SwinBertModel
    from .modeling_video_swin_swinbert import VideoSwinModel
    from .sparse_mask_swinbert import SparseVideoMask
else:
    # The modules of the names above need torch: each is imported when one of its names is first used.
    _MODULES = {
        "SparseVideoMask": "sparse_mask_swinbert",
        "SwinBertConfig": "configuration_swinbert",
        "SwinBertForVideoCaptioning": "modeling_swinbert",
        "SwinBertModel": "modeling_swinbert",
        "VideoSwinConfig": "configuration_swinbert",
        "VideoSwinModel": "modeling_video_swin_swinbert",
    }

    def __getattr__(name: str) -> Any:
        if name == "processing":
            return import_module(f"{__name__}.processing")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import_module("transformers")  # registers our classes, see registration.py
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def bundled_model() -> str:
    """Folder of the checkpoint that comes with the package; it can caption clips of moving shapes only."""
    return str(Path(__file__).parent / "checkpoints" / "moving-shapes")


register_with_transformers()
