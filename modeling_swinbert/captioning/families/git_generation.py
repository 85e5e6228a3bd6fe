"""`generate()` of GIT in less time, with the same tokens. The model and what is saved of it stay those of transformers.

Plain `generate` encodes a clip in the pass that predicts the first word: frame by frame, once for each beam, with all
attention weights in memory. But the tokens of a clip attend to each other and to no word. Here they are encoded before
that pass, and it finds their keys and values in its cache:

* once, whatever the number of beams, and all frames together, with fused attention, which needs no mask;
* in the last layer keys and values only, since nothing reads the clip's output;
* in a cache that grows in place, and whose beams share the clip ([`ClipLayer`]).

All linear layers run in `FastLinearMode`.

Shapes: B clips, T frames, C channels, H and W pixels, N tokens of a frame, D channels of the hidden states; R rows of
captions, L tokens, h heads of d channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from swinbert.cpu_swinbert import fast_linear, items_per_chunk, map_frame_chunks, worth_chunking

# Words for which there is room behind a clip; when it is used up, there is room for as many again.
_ROOM = 64


@torch.no_grad()
@fast_linear
def generate_captions(model: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
    """
    What `model.generate(pixel_values=pixel_values, **kwargs)` returns, to float32 rounding.

    Args:
        model (`GitForCausalLM`): in training mode, on several devices, or with another cache than the default one,
            `generate` encodes the clips itself.
        pixel_values: (B, T, C, H, W), or (B, C, H, W) for a model of single images.
    """

    def encode_before_first_word(git: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        cache: Any = inputs.get("cache")
        pixels = inputs.get("pixel_values")
        if pixels is None or type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length():
            return None
        beams = len(pixels) // len(pixel_values)
        cache.layers = [ClipLayer(*each, beams) for each in clip_keys_and_values(git, pixel_values)]
        return args, {**inputs, "pixel_values": None}

    if model.training or len(getattr(model, "hf_device_map", {})) > 1:
        return model.generate(pixel_values=pixel_values, **kwargs)
    hook = model.git.register_forward_pre_hook(encode_before_first_word, with_kwargs=True)
    try:
        return model.generate(pixel_values=pixel_values, **kwargs)
    finally:
        hook.remove()


# --- Clips ------------------------------------------------------------------------------------------------------------


def clip_keys_and_values(git: Any, pixel_values: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (B, h, T * N, d) of clips, for each layer of a `GitModel`."""
    tokens = git.visual_projection(_visual_features(git, pixel_values))
    chunks = tokens.split(items_per_chunk(tokens[0].nbytes)) if worth_chunking(tokens) else [tokens]
    layers = zip(*(_keys_and_values_of_layers(git, chunk) for chunk in chunks), strict=True)
    return [tuple(map(torch.cat, zip(*layer, strict=True))) for layer in layers]  # type: ignore[misc]


def _keys_and_values_of_layers(git: Any, hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for layer in git.encoder.layer:
        attention = layer.attention.self
        key, value = (_split_heads(attention, each(hidden)) for each in (attention.key, attention.value))
        yield key, value
        if layer is not git.encoder.layer[-1]:
            query = _split_heads(attention, attention.query(hidden))
            context = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            hidden = layer.feed_forward_chunk(layer.attention.output(context, hidden))


def _split_heads(attention: Any, states: torch.Tensor) -> torch.Tensor:
    """(B, L, D) -> (B, h, L, d)."""
    return states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def _visual_features(git: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The image encoder's output (B, T * N, D), with the temporal embeddings of a model of clips."""
    with _fused_attention(git.image_encoder.config):
        if pixel_values.ndim == 4:
            return git.image_encoder(pixel_values).last_hidden_state
        frames = pixel_values.flatten(0, 1)[None]  # (1, B * T, C, H, W)
        features = map_frame_chunks(lambda chunk: git.image_encoder(chunk[0]).last_hidden_state[None], frames)
    features = features.unflatten(1, pixel_values.shape[:2])[0]  # (B, T, N, D)
    temporal = [git.img_temporal_embedding[number] for number in range(pixel_values.shape[1])]  # each (1, 1, D)
    return (features + torch.cat(temporal, dim=1).unsqueeze(2)).flatten(1, 2)


@contextmanager
def _fused_attention(config: Any) -> Iterator[None]:
    """The image encoder looks its attention function up at each call; `set_attn_implementation` allows one only."""
    before = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


# --- The cache --------------------------------------------------------------------------------------------------------


class ClipLayer(DynamicLayer):
    """
    Keys and values of a clip and then of words. A `DynamicLayer` copies all of them for each word, and reorders all of
    them with the beams.

    Args:
        keys, values: (B, h, N, d) of clips.
        beams: rows of each clip.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, beams: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.clip_length = keys.shape[-2]
        self.keys, self.values = (_with_room(each.repeat_interleave(beams, dim=0), _ROOM) for each in (keys, values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = _append(self.keys, key_states), _append(self.values, value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        for states in (self.keys, self.values):
            words = states[:, :, self.clip_length :]  # type: ignore[index]
            words.copy_(words.index_select(0, beam_idx.to(words.device)))


def _with_room(states: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The same (R, h, L, d), with unused memory for further tokens behind those of each head."""
    rows, heads, length, channels = states.shape
    memory = states.new_empty(rows, heads, length + num_tokens, channels)
    memory[:, :, :length] = states
    return memory[:, :, :length]


def _append(states: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    """(R, h, L, d) and (R, h, M, d) -> (R, h, L + M, d), in the memory of the former where there is room."""
    assert states is not None
    rows, heads, length, channels = states.shape
    end = length + more.shape[2]
    if end * channels > states.stride(1):  # from one head to the next
        states = _with_room(states, more.shape[2] + _ROOM)
    grown = states.as_strided((rows, heads, end, channels), states.stride(), states.storage_offset())
    grown[:, :, length:] = more
    return grown


__all__ = ["ClipLayer", "clip_keys_and_values", "generate_captions"]
