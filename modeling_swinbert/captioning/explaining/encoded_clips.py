"""A clip as the words of a caption read it: encoded once, read again with some of its tokens hidden, or with gradients.

Each word is predicted from the clip's tokens and the words before it, all words of a given caption in one pass. In a
SwinBERT the words read keys and values that the clip leaves in each layer, outside the cache; in a GIT those of the
image tokens, which never see the words either.

Shapes: B copies of a caption, L tokens of it after the first, T frames, (T', H', W') the grid of the clip's tokens, P
tokens of the prefix that the words read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache

# Copies of a caption, and of a clip, in one forward pass.
_COPIES, _ENCODED_AT_ONCE = 16, 4


class LayerAttention(NamedTuple):
    """
    Attention among the video tokens in one layer, on one clip.

    Args:
        alive: share of the pairs of different tokens whose weight is not 0 in float32.
        others: share of a token's attention that goes to other tokens, mean over the tokens.
    """

    alive: float
    others: float


class EncodedClip(ABC):
    """
    Args:
        model: of the kind that the class serves.
        inputs: the inputs of `generate()` for one clip, on the model's device and in its data type.

    Attributes:
        grid: (T', H', W').
        frames_per_token: how many frames one token covers.
        generation_inputs: what `generate()` takes to caption this clip.
    """

    grid: tuple[int, int, int]
    frames_per_token: int
    generation_inputs: dict[str, Any]

    @abstractmethod
    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]): ...

    @abstractmethod
    def _forward(
        self, ids: torch.Tensor, visible: torch.Tensor | None, attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """
        Args:
            ids: (B, L + 1).
            visible: (B, T', H', W') bool; `None` shows the whole clip.

        Returns:
            Logits (B, L, vocabulary) of all tokens but the first and, on request, the attention weights of each layer,
            (B, heads, rows, columns).
        """

    @abstractmethod
    def _to_grid(self, weights: torch.Tensor) -> torch.Tensor:
        """Of attention weights (..., rows, columns) those from predictions to the clip, (..., L, T', H', W')."""

    @abstractmethod
    def rollout(self, ids: torch.Tensor) -> torch.Tensor:
        """
        Attention rollout (arXiv:2005.00928): how much of each prediction flows from each token of the clip through the
        attention and the residual connections of all layers, (L, T', H', W').
        """

    @abstractmethod
    def with_hidden_pixels(self, visible: torch.Tensor) -> "EncodedClip":
        """The clip encoded again, B times, each time with other places hidden, visible (B, T', H', W') bool."""

    def layers(self) -> tuple[LayerAttention, ...]:
        """Attention among the video tokens under a sparse mask, in each layer; nothing where there is no such mask."""
        return ()

    @torch.no_grad()
    def distributions(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (L, vocabulary) at each token of a caption, ids (1, L + 1)."""
        return self._forward(ids, None)[0][0].float().log_softmax(-1)

    @torch.no_grad()
    def log_probs(self, ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, L) of the tokens of a caption, ids (1, L + 1), for each of B choices of tokens."""
        chunks = [_picked(self._forward(ids.expand(len(chunk), -1), chunk)[0], ids) for chunk in visible.split(_COPIES)]
        return torch.cat(chunks)

    @torch.no_grad()
    def log_probs_of_pixels(self, ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """As [`log_probs`], but what is hidden is hidden from the encoder of the clip too."""
        chunks = [
            _picked(self.with_hidden_pixels(chunk)._forward(ids.expand(len(chunk), -1), None)[0], ids)
            for chunk in visible.split(_ENCODED_AT_ONCE)
        ]
        return torch.cat(chunks)

    @torch.no_grad()
    def attention(self, ids: torch.Tensor) -> torch.Tensor:
        """Attention weights from each prediction to the clip, (layers, heads, L, T', H', W')."""
        weights = self._forward(ids, None, attentions=True)[1]
        return torch.stack([self._to_grid(layer[0]) for layer in weights]).float()

    @torch.enable_grad()
    def gradient_times_attention(self, ids: torch.Tensor) -> torch.Tensor:
        """
        Attention weights times the gradient of the prediction's log-probability with respect to them,
        (layers, heads, L, T', H', W').
        """
        results = []
        positions = torch.arange(ids.shape[1] - 1, device=ids.device)
        for chunk in positions.split(_COPIES):
            # One copy for each token: in a causal model, later predictions also depend on the rows of earlier ones.
            logits, weights = self._forward(ids.expand(len(chunk), -1), None, attentions=True)
            copies = torch.arange(len(chunk), device=ids.device)
            gradients = torch.autograd.grad(_picked(logits, ids)[copies, chunk].sum(), weights)
            products = torch.stack(
                [self._to_grid(gradient * weight) for gradient, weight in zip(gradients, weights, strict=True)]
            )  # (layers, copies, heads, L, T', H', W')
            results.append(products[:, copies, :, chunk].detach().float())  # (copies, layers, heads, T', H', W')
        return torch.cat(results).permute(1, 2, 0, 3, 4, 5)


def _picked(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, L) of the tokens of a caption, ids (1, L + 1)."""
    tokens = ids[:, 1:, None].expand(len(logits), -1, -1)
    return logits.float().log_softmax(-1).gather(-1, tokens).squeeze(-1)


def hide_pixels(
    pixels: torch.Tensor, visible: torch.Tensor, frames_per_token: int, pixels_per_token: int
) -> torch.Tensor:
    """
    B copies of a clip (1, T, C, H, W), in which a still and blurred picture of it replaces what is not visible
    (B, T', H', W'): its median over time, which has no motion, in two by two colours, which have no details.
    """
    frames, _, height, width = pixels.shape[1:]
    time = torch.arange(frames, device=pixels.device) // frames_per_token
    row, column = (torch.arange(size, device=pixels.device) // pixels_per_token for size in (height, width))
    shown = visible[:, time][:, :, row][:, :, :, column][:, :, None]  # (B, T, 1, H, W)
    still = pixels[0].float().median(dim=0, keepdim=True).values
    colours = F.interpolate(still, size=(min(height, 2), min(width, 2)), mode="area")
    return torch.where(shown, pixels, F.interpolate(colours, size=(height, width), mode="bilinear").to(pixels.dtype))


def _roll_out(attentions: Iterator[torch.Tensor] | list[torch.Tensor]) -> torch.Tensor:
    """Product over the layers of row-stochastic attention (S, S), each averaged with the identity."""
    flow = None
    for weights in attentions:
        step = (weights + torch.eye(len(weights), device=weights.device)) / 2
        flow = step if flow is None else step @ flow
    assert flow is not None
    return flow


class EncodedSwinBertClip(EncodedClip):
    """The clip's keys and values in each layer of the fusion encoder."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]):
        self._model, self._pixels = model, inputs["pixel_values_videos"]
        pixels = self._pixels
        with torch.no_grad():
            self._features = model.get_video_features(pixels).pooler_output
            self._key_values = model.encode_video(video_features=self._features).video_key_values
        _, height, width = model.config.vision_config.output_grid
        self.grid = (self._features.shape[1] // (height * width), height, width)
        self.frames_per_token = model.config.vision_config.patch_size[0]
        self.generation_inputs = {
            **{name: value for name, value in inputs.items() if name != "pixel_values_videos"},
            "video_key_values": self._key_values,
        }

    def with_hidden_pixels(self, visible: torch.Tensor) -> "EncodedSwinBertClip":
        vision = self._model.config.vision_config
        # The patches of a token: every stage but the first halves their number on each side.
        pixels_per_token = vision.patch_size[1] * 2 ** (vision.num_layers - 1)
        pixels = hide_pixels(self._pixels, visible, self.frames_per_token, pixels_per_token)
        return EncodedSwinBertClip(self._model, {"pixel_values_videos": pixels})

    @property
    def _num_tokens(self) -> int:
        return math.prod(self.grid)

    def _forward(
        self, ids: torch.Tensor, visible: torch.Tensor | None, attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        embeddings = self._model.get_input_embeddings()(ids[:, :-1]).detach()
        outputs = self._model(
            # A graph for the gradients of attention weights, also where no weight of the model requires one.
            inputs_embeds=embeddings.requires_grad_(torch.is_grad_enabled()),
            video_key_values=self._key_values,
            # This mask hides the beginning of the prefix that the words read: here all of it are video tokens.
            context_attention_mask=None if visible is None else visible.flatten(1),
            predict_next=True,
            use_cache=False,
            output_attentions=attentions,
        )
        return outputs.logits, outputs.attentions

    def _to_grid(self, weights: torch.Tensor) -> torch.Tensor:
        # Predictions are made at the [MASK] tokens, which follow the words, or at the words of a causal model.
        length = weights.shape[-2]
        predictions = length // 2 if self._model.config.objective == "masked_lm" else length
        return weights[..., length - predictions :, : self._num_tokens].unflatten(-1, self.grid)

    @torch.no_grad()
    def rollout(self, ids: torch.Tensor) -> torch.Tensor:
        _, of_text = self._forward(ids, None, attentions=True)
        size = of_text[0].shape[-1]
        layers = []
        for video, text in zip(self.prefix_attentions(), of_text, strict=True):
            weights = text.new_zeros(size, size, dtype=torch.float32)
            weights[: self._num_tokens, : self._num_tokens] = video
            weights[self._num_tokens :] = text[0].float().mean(0)
            layers.append(weights)
        return self._to_grid(_roll_out(layers)[self._num_tokens :])

    @torch.no_grad()
    def prefix_attentions(self) -> Iterator[torch.Tensor]:
        """Attention among the video tokens in each layer, mean over the heads, (N, N)."""
        with eager_attention(self._model):
            encoded = self._model.encode_video(video_features=self._features, output_attentions=True)
        return (weights[0].float().mean(0) for weights in encoded.attentions)

    def layers(self) -> tuple[LayerAttention, ...]:
        if self._model.model.sparse_mask is None:
            return ()
        return tuple(_layer_attention(weights) for weights in self.prefix_attentions())


def _layer_attention(weights: torch.Tensor) -> LayerAttention:
    others = weights.clone().fill_diagonal_(0.0)
    pairs = max(1, len(weights) * (len(weights) - 1))
    return LayerAttention(float((others > 0).sum() / pairs), float(others.sum(1).mean()))


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """The fusion encoder computes attention weights, which SDPA does not return; its own way is restored afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation({"": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"": before})


class EncodedGitClip(EncodedClip):
    """
    Keys and values of the image tokens of a GIT, of which the first of each frame, the class token, has no place: its
    weight is spread evenly over the places of the frame, and it is hidden where all of them are.
    """

    frames_per_token = 1

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]):
        self._model = model
        self.generation_inputs = inputs
        pixels = inputs["pixel_values"]
        vision = model.config.vision_config
        height, width = (size // vision.patch_size for size in pixels.shape[-2:])
        self.grid = (pixels.shape[1] if pixels.ndim == 5 else 1, height, width)
        self._prefix_length = self.grid[0] * (1 + height * width)
        start = torch.full((len(pixels), 1), model.config.bos_token_id or 0, device=pixels.device)
        with torch.no_grad():
            cache = model.git(input_ids=start, pixel_values=pixels, use_cache=True).cache
        cache.crop(-1)  # that one token, which a pass needs
        self._key_values = [(layer.keys, layer.values) for layer in cache.layers]

    def with_hidden_pixels(self, visible: torch.Tensor) -> "EncodedGitClip":
        pixels = self.generation_inputs["pixel_values"]
        frames = pixels if pixels.ndim == 5 else pixels[:, None]
        hidden = hide_pixels(frames, visible, 1, self._model.config.vision_config.patch_size)
        return EncodedGitClip(self._model, {"pixel_values": hidden if pixels.ndim == 5 else hidden[:, 0]})

    def _forward(
        self, ids: torch.Tensor, visible: torch.Tensor | None, attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        batch, length = ids.shape[0], ids.shape[1] - 1
        embeddings = self._model.get_input_embeddings()(ids[:, :-1]).detach()
        embeddings = embeddings.requires_grad_(torch.is_grad_enabled())
        shown = torch.ones(batch, self._prefix_length, dtype=torch.bool, device=ids.device)
        if visible is not None:
            places = visible.flatten(2)  # (B, T', H' * W')
            shown = torch.cat([places.any(-1, keepdim=True), places], dim=-1).flatten(1)
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = torch.cat([shown[:, None].expand(-1, length, -1), causal.expand(batch, -1, -1)], dim=-1)
        hidden = torch.finfo(embeddings.dtype).min
        cache = DynamicCache(
            [(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)) for key, value in self._key_values]
        )
        outputs = self._model(
            inputs_embeds=embeddings + 0,  # the model adds positions in place
            attention_mask=(~mask)[:, None].to(embeddings.dtype) * hidden,
            position_ids=torch.arange(length, device=ids.device)[None],
            cache=cache,
            use_cache=True,
            output_attentions=attentions,
        )
        return outputs.logits, outputs.attentions

    def _to_grid(self, weights: torch.Tensor) -> torch.Tensor:
        time, height, width = self.grid
        frames = weights[..., : self._prefix_length].unflatten(-1, (time, 1 + height * width))
        return (frames[..., 1:] + frames[..., :1] / (height * width)).unflatten(-1, (height, width))

    @torch.no_grad()
    def rollout(self, ids: torch.Tensor) -> torch.Tensor:
        pixels = self.generation_inputs["pixel_values"]
        outputs = self._model.git(input_ids=ids[:, :-1], pixel_values=pixels, use_cache=False, output_attentions=True)
        flow = _roll_out([layer[0].float().mean(0) for layer in outputs.attentions])
        return self._to_grid(flow[self._prefix_length :])


_BY_MODEL_TYPE: dict[str, type[EncodedClip]] = {"swinbert": EncodedSwinBertClip, "git": EncodedGitClip}


def encode_clip(model: Any, inputs: dict[str, torch.Tensor]) -> EncodedClip:
    """
    Encodes a clip for a caption to be explained.

    Raises:
        ValueError: models of this type are not served.
    """
    return encoded_clip_class(model)(model, inputs)


def encoded_clip_class(model: Any) -> type[EncodedClip]:
    """Raises `ValueError` for a model of another type than SwinBERT's and GIT's."""
    if model.config.model_type not in _BY_MODEL_TYPE:
        raise ValueError(
            "Words can be traced to frames and places in SwinBERT and GIT models, got a"
            f" {model.config.model_type!r} model: explain the clip with one of those."
        )
    return _BY_MODEL_TYPE[model.config.model_type]


__all__ = [
    "EncodedClip",
    "EncodedSwinBertClip",
    "LayerAttention",
    "eager_attention",
    "encode_clip",
    "encoded_clip_class",
]
