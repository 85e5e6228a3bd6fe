"""What the words of a caption were read from: [`explain`] and its result, an [`Explanation`].

Shapes: L tokens of the caption after the first, T sampled frames, H and W pixels of a picture, (T', H', W') the grid of
the clip's tokens.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from swinbert.captioning.caption import Clip
from swinbert.captioning.explaining.attribution import DEFAULT_METHOD, Method, find_method
from swinbert.captioning.explaining.encoded_clips import EncodedClip, LayerAttention, encode_clip, encoded_clip_class
from swinbert.captioning.explaining.frames import read_frames, shown_box
from swinbert.captioning.explaining.words import RunnerUp, decoded, runners_up, words_of
from swinbert.captioning.isolation import IsolatedReader
from swinbert.processing.clip_reading_swinbert import beginning_of_caption, unpack_clip
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import VideoDecodeError, is_encoded_source, open_source


@dataclass(frozen=True, eq=False)
class Word:
    """
    A word of a caption.

    Args:
        word: as in the caption, without punctuation around it.
        probability: that the model gave it after the words before it.
        blind_probability: the same without the clip: how far the words before it suffice.
        frames: (T,) weight of each sampled frame; they sum to 1, or are all 0 where the word needs no token.
        tokens: (T', H', W') weight of each token of the clip; their sum is that of `frames`.
        alternatives: runner-up words, the likeliest first.
    """

    word: str
    probability: float
    blind_probability: float
    frames: np.ndarray
    tokens: np.ndarray
    alternatives: tuple[RunnerUp, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """
    What the words of a caption were read from.

    Args:
        clip: name of the clip.
        caption: the words of `words` with their punctuation, separated by spaces.
        words: one for each word of the caption.
        times: (T,) seconds from the start of the video at which each sampled frame is shown; `None` where no rate is
            known, as for a list of pictures.
        method: one of `METHODS`.
        box: left, top, right and bottom of the part of the picture that the model saw and that the grid of tokens
            divides evenly, as shares of the picture's width and height; beyond 0 and 1 where it was padded.
        frames_per_token: token t' stands for the frames from t' * frames_per_token on.
        layers: of a model with a sparse mask, attention among the video tokens in each layer.
        pictures: (T, H, W, 3) uint8, the sampled frames at their own aspect ratio, made smaller.
    """

    clip: str
    caption: str
    words: tuple[Word, ...]
    times: tuple[float, ...] | None
    method: str
    box: tuple[float, float, float, float]
    frames_per_token: int
    layers: tuple[LayerAttention, ...]
    pictures: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures, as JSON can hold it."""
        return {
            "clip": self.clip,
            "caption": self.caption,
            "words": [
                {
                    "word": word.word,
                    "probability": word.probability,
                    "blind_probability": word.blind_probability,
                    "frames": _rounded(word.frames),
                    "tokens": _rounded(word.tokens),
                    "alternatives": [runner_up._asdict() for runner_up in word.alternatives],
                }
                for word in self.words
            ],
            "times": None if self.times is None else list(self.times),
            "method": self.method,
            "box": list(self.box),
            "frames_per_token": self.frames_per_token,
            "layers": [layer._asdict() for layer in self.layers],
        }


def _rounded(weights: np.ndarray) -> list[Any]:
    """Nested lists of numbers with six decimals."""
    return np.round(weights.astype(np.float64), 6).tolist()


def explain(
    model: Any,
    processor: Any,
    clip: Any,
    *,
    caption: str | None = None,
    method: str = DEFAULT_METHOD,
    layers: Sequence[int] | None = None,
    isolation: IsolatedReader | None = None,
    **parameters: Any,
) -> Explanation:
    """
    Explains each word of a caption by the frames and the places of the clip that it was read from.

    ```python
    captioner = load_captioner("moving-shapes")
    explanation = explain(captioner.model, captioner.processor, "clip.mp4")
    for word in explanation.words:
        print(word.word, word.probability, explanation.times[word.frames.argmax()], word.alternatives)
    ```

    Args:
        model: SwinBERT or GIT.
        processor: its processor.
        clip: a [`Clip`], or what [`VideoCaptioningPipeline`] takes as one clip.
        caption: the caption to explain; by default the one that the model generates.
        method: one of `METHODS`, which say how each finds the weights. `"attention"` takes no more time than the
            caption; `"pixels"` encodes the clip `NUM_HALVES` times.
        layers: numbers of the layers whose attention counts, with `"attention"`; by default all.
        isolation: decodes files in processes of its own.
        parameters: of [`VideoCaptioningPipeline`]: how to sample the clip (`start`, `end`, `num_frames`, `fps`) and how
            to search its caption.

    Raises:
        VideoDecodeError: the clip cannot be used.
        ValueError: the model is of another type, there is no such method, or the model takes other numbers of frames.
    """
    encoded_clip_class(model)  # before anything is read
    weigh = find_method(method, layers)
    named = _as_clip(clip, parameters)
    device = None if hasattr(model, "hf_device_map") else model.device
    captioner = VideoCaptioningPipeline(model=model, processor=processor, device=device, **parameters)
    with _readable_twice(named.video, captioner, isolation) as video, torch.inference_mode(False), _evaluating(model):
        encoded = encode_clip(model, _inputs(captioner, video))
        with _warned_already():
            frames = read_frames(captioner, video)
        ids = _caption_ids(captioner, encoded, caption)
        words = _explain_words(captioner, encoded, ids, weigh, len(frames.pictures))
        of_layers = encoded.layers()
    return Explanation(
        clip=named.name,
        caption=decoded(processor, ids[0]),
        words=words,
        times=frames.times,
        method=method,
        box=shown_box(captioner, frames.size),
        frames_per_token=encoded.frames_per_token,
        layers=of_layers,
        pictures=frames.pictures,
    )


def _as_clip(clip: Any, parameters: dict[str, Any]) -> Clip:
    """A clip by its name; what it says of its range and number of frames enters `parameters`."""
    if not isinstance(clip, Clip):
        video, options = unpack_clip(clip)
        parameters |= options
        return Clip(video)
    if clip.error is not None:
        raise VideoDecodeError(clip.name, "not_found", clip.error)
    parameters |= {name: value for name in ("start", "end") if (value := getattr(clip, name)) is not None}
    return clip


@contextlib.contextmanager
def _readable_twice(video: Any, captioner: VideoCaptioningPipeline, isolation: IsolatedReader | None) -> Iterator[Any]:
    """A video as something that can be read for the model and for the pictures; one of a URL is downloaded once."""
    if is_encoded_source(video):
        with open_source(video) as opened:
            yield opened if isolation is None else isolation.video(opened, captioner.family.decoding)
    else:
        yield video


@contextlib.contextmanager
def _warned_already() -> Iterator[None]:
    """What is damaged in a clip was said when it was read for the model."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout; a model that was being trained is so afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _inputs(captioner: VideoCaptioningPipeline, video: Any) -> dict[str, torch.Tensor]:
    """Inputs of the model for one clip, on its device and in its data type."""
    inputs = captioner.family.read(video, **captioner.sampling)
    inputs.pop("video_metadata", None)
    model = captioner.model
    return {
        name: value.to(model.device, model.dtype if name.startswith("pixel_values") else None)
        for name, value in inputs.items()
    }


def _caption_ids(captioner: VideoCaptioningPipeline, encoded: EncodedClip, caption: str | None) -> torch.Tensor:
    """Ids of a caption, or of the one that the model generates, with `[CLS]` in front and what ends it: (1, L + 1)."""
    model, tokenizer = captioner.model, captioner.processor.tokenizer
    if caption is not None:
        ids = beginning_of_caption(tokenizer, caption)
        ids = torch.cat([ids, torch.tensor([[tokenizer.sep_token_id]])], dim=1)
        if ids.shape[1] > model.config.max_position_embeddings:
            raise ValueError(
                f"The caption has {ids.shape[1]} tokens, and the model takes {model.config.max_position_embeddings}:"
                " shorten it."
            )
        return ids.to(model.device)
    generated = captioner.forward({"error": [None], **encoded.generation_inputs})
    ids = generated["sequences"][0][:1].to(model.device)
    is_end = ids[0] == tokenizer.sep_token_id
    return ids[:, : int(is_end.int().argmax()) + 1] if is_end.any() else ids


def _explain_words(
    captioner: VideoCaptioningPipeline, encoded: EncodedClip, ids: torch.Tensor, method: Method, num_frames: int
) -> tuple[Word, ...]:
    words = words_of(captioner.processor, ids[0])
    if not words:
        return ()
    weights = method(encoded, ids).cpu()
    distributions = encoded.distributions(ids).cpu()
    nothing = torch.zeros(1, *encoded.grid, dtype=torch.bool, device=ids.device)
    blind = encoded.log_probs(ids, nothing)[0].cpu()
    tokens = ids[0, 1:].cpu()
    seen = distributions.gather(1, tokens[:, None]).squeeze(1)
    explained = []
    for word, places in words:
        of_tokens = weights[places].sum(0).clamp(min=0)
        of_tokens = (of_tokens / of_tokens.sum().clamp(min=torch.finfo(of_tokens.dtype).tiny)).numpy()
        explained.append(
            Word(
                word=word,
                probability=float(seen[places].sum().exp()),
                blind_probability=float(blind[places].sum().exp()),
                frames=_frame_weights(of_tokens, encoded.frames_per_token, num_frames),
                tokens=of_tokens,
                alternatives=runners_up(captioner.processor, distributions[places[0]], int(tokens[places[0]])),
            )
        )
    return tuple(explained)


def _frame_weights(tokens: np.ndarray, frames_per_token: int, num_frames: int) -> np.ndarray:
    """(T,): the weight of the tokens (T', H', W') of each time, in equal parts for the frames that they cover."""
    token_of_frame = np.arange(num_frames) // frames_per_token
    return tokens.sum((1, 2))[token_of_frame] / np.bincount(token_of_frame)[token_of_frame]


__all__ = ["Explanation", "Word", "explain"]
