"""What one does with a captioner: clips in, captions out.

```python
from swinbert.captioning import captions, load_captioner

for caption in captions(["a.mp4", "b.mp4"], load_captioner("moving-shapes")):
    print(caption.clip, caption.text, caption.error)
```
"""

from swinbert.captioning.caption import Alternative, Caption, CaptionStream, Clip, captions
from swinbert.captioning.clips import find_clips
from swinbert.captioning.live import LiveStream
from swinbert.captioning.loading import LoadingError, load_captioner
from swinbert.captioning.segments import Segmentation, merge_segments

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
