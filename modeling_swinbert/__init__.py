from .configuration_swinbert import SwinBertConfig, VideoSwinConfig
from .version import __version__

__all__ = ["SwinBertConfig", "VideoSwinConfig", "__version__"]
