"""
Captions of very many clips on Ray Data, each exactly once: `swinbert bulk`, and the same as a `Dataset`.

```python
from swinbert.captioning.bulk import caption_dataset

caption_dataset("videos", "moving-shapes", workers=2).write_parquet("captions")
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["CaptionerSpec", "Job", "Progress", "SharedFailure", "caption_dataset", "merge"]

if TYPE_CHECKING:
    from swinbert.captioning.bulk.job import Job, Progress
    from swinbert.captioning.bulk.merging import merge
    from swinbert.captioning.bulk.pipeline import caption_dataset
    from swinbert.captioning.bulk.supervision import CaptionerSpec, SharedFailure
else:
    # The process with the model imports this package, and needs nothing of pyarrow and Ray.
    _MODULES = {
        "CaptionerSpec": "supervision",
        "Job": "job",
        "Progress": "job",
        "SharedFailure": "supervision",
        "caption_dataset": "pipeline",
        "merge": "merging",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
