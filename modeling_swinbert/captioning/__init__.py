"""What one does with a captioner: clips in, captions out.

```python
from swinbert.captioning import captions, load_captioner

for caption in captions(["a.mp4", "b.mp4"], load_captioner("moving-shapes")):
    print(caption.clip, caption.text, caption.error)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Alternative",
    "Caption",
    "CaptionStream",
    "Clip",
    "LiveStream",
    "LoadingError",
    "Segmentation",
    "captions",
    "find_clips",
    "load_captioner",
    "merge_segments",
]

if TYPE_CHECKING:
    from swinbert.captioning.caption import Alternative, Caption, CaptionStream, Clip, captions
    from swinbert.captioning.clips import find_clips
    from swinbert.captioning.live import LiveStream
    from swinbert.captioning.loading import LoadingError, load_captioner
    from swinbert.captioning.segments import Segmentation, merge_segments
else:
    # The modules of the names above need torch: each is imported when one of its names is first used, so that what
    # needs no model (`bulk`: the process that hands out the clips, those that watch over workers) stays small.
    _MODULES = {
        **dict.fromkeys(("Alternative", "Caption", "CaptionStream", "Clip", "captions"), "caption"),
        "find_clips": "clips",
        "LiveStream": "live",
        **dict.fromkeys(("LoadingError", "load_captioner"), "loading"),
        **dict.fromkeys(("Segmentation", "merge_segments"), "segments"),
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
