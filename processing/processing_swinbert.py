"""The processor: clips and captions become the model's input, and its output becomes captions."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

# The loader of remote code copies the files that this one imports, one level deep: their imports stand here too.
from .clip_reading_swinbert import CaptionerFamily  # noqa: F401
from .video_backends_swinbert import BACKENDS  # noqa: F401
from .video_colors_swinbert import HDR_TRANSFERS  # noqa: F401
from .video_containers_swinbert import CONTAINERS  # noqa: F401
from .video_decoding_swinbert import decode_video  # noqa: F401
from .video_losses_swinbert import find_lost_frames  # noqa: F401
from .video_pictures_swinbert import PictureConverter  # noqa: F401
from .video_processing_swinbert import SwinBertVideoProcessorKwargs
from .video_sources_swinbert import VideoDecodeError  # noqa: F401
from .video_timeline_swinbert import VideoTimeline  # noqa: F401

if TYPE_CHECKING:
    from .pipeline_swinbert import VideoCaptioningPipeline  # noqa: F401

# Replacements that join punctuation and contractions to their words, in the original's order. It writes "don't" for
# "do not" too.
_REPLACEMENTS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

# Loading leaves these in the tokenizer's settings; saved, they would make equal repositories differ.
_LOADING_ARGUMENTS = ("dtype", "is_local", "local_files_only")


class SwinBertProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Captions are padded to the longest of the call and truncated to `max_length` (default: the tokenizer's)."""

    videos_kwargs: SwinBertVideoProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class SwinBertProcessor(ProcessorMixin):
    r"""
    A [`SwinBertVideoProcessor`] and a BERT tokenizer as one.

    ```python
    inputs = processor(videos="clip.mp4", return_tensors="pt")  # pixel_values_videos (B, T, C, H, W)
    processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    ```

    Args:
        video_processor ([`SwinBertVideoProcessor`]): processes clips.
        tokenizer (`PreTrainedTokenizerBase`): encodes captions as `[CLS] caption [SEP]`.
    """

    valid_processor_kwargs = SwinBertProcessorKwargs

    def __init__(self, video_processor: Any = None, tokenizer: Any = None, **kwargs):
        super().__init__(video_processor, tokenizer, **kwargs)

    def __call__(
        self, videos: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[SwinBertProcessorKwargs]
    ) -> BatchFeature:
        """
        Args:
            videos (*optional*): one clip or a list of clips, see [`SwinBertVideoProcessor`].
            text (`str` or sequence of `str`, *optional*): captions, or the beginnings of captions.
            kwargs: `start`, `end` (seconds, or lists with one for each clip), `num_frames`, `fps`, `frame_sampling` and
                the rest of the video processor's; `max_length`, `padding`, `truncation` and the rest of the
                tokenizer's; `return_tensors`, `return_metadata`.

        Returns:
            `BatchFeature` with `pixel_values_videos` (B, T, C, H, W) for `videos`, and `input_ids`, `token_type_ids`
            and `attention_mask` (B, L) for `text`.

        Raises:
            VideoDecodeError: a clip cannot be used.
            ValueError: neither `text` nor `videos` is given, `images` or `audio` are, or `text` is not text.
        """
        if other := {"images", "audio"} & kwargs.keys():
            raise ValueError(
                f"{type(self).__name__} takes `videos` and `text`, not `{other.pop()}`: pass images in `videos`."
            )
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            # transformers copies the arguments of a call: a copied generator would give the same draw at every call.
            kwargs["generator"] = int(torch.randint(2**62, (), generator=generator))
        return super().__call__(text=_checked_text(text), videos=videos, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As in transformers, but `auto_map`, which belongs to the folder, does not stay in this processor."""
        for name in _LOADING_ARGUMENTS:
            self.tokenizer.init_kwargs.pop(name, None)
        if (backend := getattr(self.tokenizer, "backend_tokenizer", None)) is not None:
            # The last call's settings would be saved too.
            backend.no_truncation()
            backend.no_padding()
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.__dict__.pop("auto_map", None)
        return files

    def decode(self, token_ids: Any, *args, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """The tokenizer's `decode`; without special tokens, the caption as `post_process_caption` writes it."""
        text = self.tokenizer.decode(token_ids, *args, skip_special_tokens=skip_special_tokens, **kwargs)
        if not skip_special_tokens:
            return text
        return self.post_process_caption(text) if isinstance(text, str) else list(map(self.post_process_caption, text))

    def batch_decode(self, sequences: Any, *args, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """Captions of many sequences of token ids, (B, L), see `decode`."""
        return [str(self.decode(ids, *args, skip_special_tokens=skip_special_tokens, **kwargs)) for ids in sequences]

    @staticmethod
    def post_process_caption(text: str) -> str:
        """Joins punctuation and contractions to their words, as the original writes its captions."""
        for old, new in _REPLACEMENTS:
            text = text.replace(old, new)
        return text.strip()


def _checked_text(text: Any) -> Any:
    """`text`, a column of a data set as a list; words of captions that are split already too."""
    if text is None or isinstance(text, str):
        return text
    if isinstance(text, (bytes, Mapping)) or not hasattr(text, "__iter__"):
        raise ValueError(f"Expected `text` to be a caption or a list of captions, found {type(text).__name__}.")
    captions = list(text)
    for number, caption in enumerate(captions):
        is_split = isinstance(caption, (list, tuple)) and all(isinstance(word, str) for word in caption)
        if not isinstance(caption, str) and not is_split:
            raise ValueError(f"Expected `text[{number}]` to be a caption, found {type(caption).__name__}.")
    return captions


__all__ = ["SwinBertProcessor"]
