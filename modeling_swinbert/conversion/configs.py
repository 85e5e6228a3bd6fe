"""Inference of the configuration from a checkpoint's shapes, its args.json and the user's overrides."""

import contextlib
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from swinbert.configuration_swinbert import SwinBertConfig, VideoSwinConfig
from swinbert.conversion.files import ConversionError, Tensors
from swinbert.processing import SwinBertVideoProcessor
from swinbert.windows_swinbert import relative_position_index

_VISION = "vision_config."
_SETTLED_BY = {"num_video_tokens": "num_frames"}  # a derived field: the field to set instead
_RELEASED_WINDOW_LENGTH = 8  # tokens that a window spans in time in every released Video Swin


class Claims:
    """The value of each field and the source that gave it. Sources must agree unless `--set` gives the field."""

    def __init__(self, overrides: Mapping[str, Any]):
        self.overrides = dict(overrides)
        self._claims: dict[str, tuple[Any, str]] = {}
        self.notes: list[str] = []

    def add(self, name: str, value: Any, source: str) -> None:
        """Records the value that `source` gives; `None` is ignored. Raises `ConversionError` on a conflict."""
        if value is None or name in self.overrides:
            return
        claimed, claimed_by = self._claims.setdefault(name, (value, source))
        if claimed != value:
            raise ConversionError(
                f"`{name}` is {claimed!r} according to {claimed_by}, but {value!r} according to {source}: these are of"
                f" different models. Pass files of one model, or --set {_SETTLED_BY.get(name, name)}=VALUE."
            )

    def get(self, name: str) -> Any:
        return self.overrides[name] if name in self.overrides else self._claims.get(name, (None, ""))[0]

    def source(self, name: str) -> str:
        return "--set" if name in self.overrides else self._claims[name][1]

    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self._claims.items()} | self.overrides


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """
    Parses `--set` options such as `num_attention_heads=4` and `vision_config.window_size=[8,7,7]`.

    Returns:
        Field -> value, parsed as JSON where it is JSON, else as text.

    Raises:
        ConversionError: an option is not KEY=VALUE.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConversionError(f"--set expects KEY=VALUE, found {setting!r}.")
        try:
            overrides[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name.strip()] = text
    return overrides


def _check_overrides(overrides: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """Expands the shorthands of vision fields; raises `ConversionError` for an unknown field."""
    known = list(config_class.__annotations__)
    if config_class is SwinBertConfig:
        known = [name for name in known if name != "vision_config"]
        known += [_VISION + name for name in VideoSwinConfig.__annotations__]
        overrides = {_VISION + k if k in ("num_frames", "image_size") else k: v for k, v in overrides.items()}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known) or known
            raise ConversionError(
                f"--set {name}: {config_class.__name__} has no such field. Did you mean one of {', '.join(near)}?"
            )
    return dict(overrides)


def number(args: Mapping[str, Any], name: str, kind: type) -> Any:
    """A number in args.json; `None` if it is absent, null, empty or -1, the original's value for "default"."""
    value = args.get(name)
    if value in (None, "", -1, "-1"):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ConversionError(f"`{name}` in args.json must be a number, found {value!r}.") from None


def _flag(args: Mapping[str, Any], name: str) -> bool | None:
    value = args.get(name)
    return None if value is None else str(value).lower() in ("true", "1")


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ConversionError(f"The checkpoint is incomplete: it has no {name}.")
    return tuple(tensors[name].shape)


def _build(config_class: type, values: dict[str, Any]) -> Any:
    try:
        return config_class(**values)
    except Exception as error:  # strict dataclasses raise their own types
        raise ConversionError(f"The values found are not valid for {config_class.__name__}: {error}") from error


def _count(names: Iterable[str], pattern: str) -> int:
    """The number of different values of the group in `pattern` among the names that match it."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


# ---------------------------------------------------------------------------------------------------------------------
# The video encoder


def infer_video_swin_config(
    tensors: Tensors, overrides: Mapping[str, Any] | None = None
) -> tuple[VideoSwinConfig, list[str]]:
    """
    Infers the configuration of a Video Swin backbone.

    Args:
        tensors: the backbone under our names. With a `relative_position_index` the window is determined exactly.
        overrides: fields that shapes do not determine.

    Returns:
        The configuration, and notes on what was assumed.

    Raises:
        ConversionError: a tensor is missing, or the window cannot be determined.
    """
    claims = Claims(_check_overrides(overrides or {}, VideoSwinConfig))
    _claim_video_swin(claims, tensors, prefix="")
    claims.add("image_size", _stride(claims, "") * claims.get("window_size")[1], "the window")
    claims.notes.append(f"image_size {claims.get('image_size')}: that of the released model with this window")
    return _build(VideoSwinConfig, claims.values()), claims.notes


def _claim_video_swin(claims: Claims, tensors: Tensors, prefix: str) -> None:
    """Adds the fields that the shapes of a backbone's tensors determine."""
    kernel = "patch_embed.proj.weight"
    embed_dim, channels, *patch = _shape(tensors, kernel)
    claims.add(f"{prefix}embed_dim", embed_dim, f"the shape of {kernel}")
    claims.add(f"{prefix}num_channels", channels, f"the shape of {kernel}")
    claims.add(f"{prefix}patch_size", patch, f"the shape of {kernel}")
    claims.add(f"{prefix}patch_norm", "patch_embed.norm.weight" in tensors, "patch_embed.norm.weight")

    stages = range(_count(tensors, r"layers\.(\d+)\.blocks\."))
    depths = [_count(tensors, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages]
    tables = [_shape(tensors, f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in stages]
    claims.add(f"{prefix}depths", depths, "the blocks in the checkpoint")
    claims.add(f"{prefix}num_heads", [heads for _, heads in tables], "the relative position bias tables")
    hidden = _shape(tensors, "layers.0.blocks.0.mlp.fc1.weight")[0]
    claims.add(f"{prefix}mlp_ratio", hidden / embed_dim, "the shape of layers.0.blocks.0.mlp.fc1.weight")
    claims.add(f"{prefix}qkv_bias", "layers.0.blocks.0.attn.qkv.bias" in tensors, "layers.0.blocks.0.attn.qkv.bias")

    rows = tables[0][0]
    if index := next((name for name in tensors if name.endswith("relative_position_index")), None):
        claims.add(f"{prefix}window_size", _window_of_index(tensors[index], rows), f"the values of {index}")
    if claims.get(f"{prefix}window_size") is None:
        window = _window_of_table(rows, f"{prefix}window_size")
        claims.add(f"{prefix}window_size", window, "the rows of the relative position bias tables")
        claims.notes.append(
            f"window_size {window}: assumed square and as long as in released models, which fits {rows} table rows"
        )


def _window_of_index(index: torch.Tensor, rows: int) -> list[int] | None:
    """The window (T, H, W) of a stored (N, N) relative_position_index, from the jumps in its first row."""
    tokens = len(index)
    distance = (index[0, 0] - index[0]).tolist()
    width = next((j for j in range(tokens) if distance[j] != j), tokens)
    frame = range(0, tokens, width)
    height = next((k for k, j in enumerate(frame) if distance[j] != k * (2 * width - 1)), len(frame))
    window = (tokens // (width * height), height, width)
    if math.prod(window) != tokens or math.prod(2 * side - 1 for side in window) != rows:
        return None
    return list(window) if torch.equal(relative_position_index(window), index.long()) else None


def _window_of_table(rows: int, name: str) -> list[int]:
    """The window (T, S, S) whose (2T - 1) * (2S - 1)^2 relative positions equal the rows of a bias table."""
    windows = []
    for side in range(2, math.isqrt(rows) + 1):
        length, rest = divmod(rows, (2 * side - 1) ** 2)
        if not rest and length % 2:
            windows.append([(length + 1) // 2, side, side])
    released = [window for window in windows if window[0] == _RELEASED_WINDOW_LENGTH]
    candidates = released or windows
    if len(candidates) != 1:
        fitting = " or ".join(map(str, windows)) or "no square window"
        raise ConversionError(
            f"The window cannot be determined from a bias table of {rows} rows ({fitting} would fit): pass"
            f" --set {name}=[T,H,W]."
        )
    return candidates[0]


def _stride(claims: Claims, prefix: str) -> int:
    """The side, in pixels, of the square that a token of the last stage covers."""
    return claims.get(f"{prefix}patch_size")[1] * 2 ** (len(claims.get(f"{prefix}depths")) - 1)


# ---------------------------------------------------------------------------------------------------------------------
# SwinBERT


def infer_swinbert_config(
    tensors: Tensors, args: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[SwinBertConfig, list[str]]:
    """
    Infers the configuration of a SwinBERT checkpoint.

    Args:
        tensors: the checkpoint under its original names.
        args: the content of its `args.json`, if available.
        overrides: fields that shapes and arguments determine wrongly or not at all; `vision_config.x` for the video
            encoder.

    Returns:
        The configuration, and notes on what was assumed.

    Raises:
        ConversionError: two sources contradict each other (the message names both), or no source gives a field.
    """
    args = args or {}
    claims = Claims(_check_overrides(overrides or {}, SwinBertConfig))
    backbone = {
        name.removeprefix("swin.backbone."): t for name, t in tensors.items() if name.startswith("swin.backbone.")
    }
    _claim_video_swin(claims, backbone, _VISION)
    preset = _preset(args)
    for name in ("embed_dim", "depths"):
        claims.add(_VISION + name, getattr(preset, name, None), f"vidswin_size {args.get('vidswin_size')} in args.json")
    _claim_fusion_encoder(claims, tensors, args)
    _claim_sparse_mask(claims, tensors, args)
    _claim_geometry(claims, tensors, args)

    values = claims.values()
    vision = {name.removeprefix(_VISION): values.pop(name) for name in list(values) if name.startswith(_VISION)}
    return _build(SwinBertConfig, {**values, "vision_config": _build(VideoSwinConfig, vision)}), claims.notes


def _preset(args: Mapping[str, Any]) -> VideoSwinConfig | None:
    """The preset that `vidswin_size` names, or `None` if it is absent or not a released size."""
    with contextlib.suppress(ValueError):
        return VideoSwinConfig.from_preset(str(args.get("vidswin_size")))
    return None


def _claim_fusion_encoder(claims: Claims, tensors: Tensors, args: Mapping[str, Any]) -> None:
    bert = "trans_encoder.bert."
    for name, tensor, axis in (
        ("projection_dim", "fc.weight", 0),
        ("projection_dim", f"{bert}img_embedding.weight", 1),
        ("vocab_size", f"{bert}embeddings.word_embeddings.weight", 0),
        ("vocab_size", "trans_encoder.cls.predictions.decoder.weight", 0),
        ("hidden_size", f"{bert}embeddings.word_embeddings.weight", 1),
        ("max_position_embeddings", f"{bert}embeddings.position_embeddings.weight", 0),
        ("type_vocab_size", f"{bert}embeddings.token_type_embeddings.weight", 0),
        ("intermediate_size", f"{bert}encoder.layer.0.intermediate.dense.weight", 0),
    ):
        claims.add(name, _shape(tensors, tensor)[axis], f"the shape of {tensor}")
    layers = _count(tensors, r"trans_encoder\.bert\.encoder\.layer\.(\d+)\.")
    claims.add("num_hidden_layers", layers, "the layers in the checkpoint")

    for name, argument, kind in (
        ("projection_dim", "img_feature_dim", int),
        ("hidden_size", "hidden_size", int),
        ("num_hidden_layers", "num_hidden_layers", int),
        ("intermediate_size", "intermediate_size", int),
        ("num_attention_heads", "num_attention_heads", int),
        ("max_caption_length", "max_seq_a_length", int),
        ("label_smoothing", "label_smoothing", float),
        ("hidden_dropout_prob", "drop_out", float),
    ):
        claims.add(name, number(args, argument, kind), f"{argument} in args.json")

    if claims.get("num_attention_heads") is None:
        heads, rest = divmod(claims.get("hidden_size"), 64)
        if rest:
            raise ConversionError(
                f"The number of attention heads cannot be determined from a hidden size of {claims.get('hidden_size')}"
                " (released models have hidden size / 64): pass --set num_attention_heads=N."
            )
        claims.add("num_attention_heads", heads, "the hidden size / 64")
        claims.notes.append(f"num_attention_heads {heads}: hidden size / 64, as in released models")


def _claim_sparse_mask(claims: Claims, tensors: Tensors, args: Mapping[str, Any]) -> None:
    learned = "learn_vid_att.weight" in tensors
    mode = "hard" if _flag(args, "sparse_mask_soft2hard") else "soft"
    enabled = _flag(args, "learn_mask_enabled")
    present = (
        "learn_vid_att.weight in the checkpoint" if learned else "the checkpoint, which has no learn_vid_att.weight"
    )
    claims.add("sparse_mask", mode if learned else "none", present)
    if enabled is not None:
        claims.add("sparse_mask", mode if enabled else "none", f"learn_mask_enabled {enabled} in args.json")
    if claims.get("sparse_mask") != "none":
        claims.add("sparsity_loss_weight", number(args, "loss_sparse_w", float), "loss_sparse_w in args.json")


def _claim_geometry(claims: Claims, tensors: Tensors, args: Mapping[str, Any]) -> None:
    """Adds the number and size of frames: from args.json, else from the side of the mask and from the window."""
    frames, size = f"{_VISION}num_frames", f"{_VISION}image_size"
    claims.add(frames, number(args, "max_num_frames", int), "max_num_frames in args.json")
    claims.add(size, number(args, "img_res", int), "img_res in args.json")
    if "learn_vid_att.weight" in tensors:
        entries = tensors["learn_vid_att.weight"].numel()
        if math.isqrt(entries) ** 2 != entries:
            raise ConversionError(
                f"learn_vid_att.weight has {entries} entries, which is not the square of a number of video tokens."
            )
        claims.add("num_video_tokens", math.isqrt(entries), f"the {entries} entries of learn_vid_att.weight")
    if not {frames, size} & claims.overrides.keys():  # the original derived it from the values that --set replaces
        claims.add("num_video_tokens", number(args, "max_img_seq_length", int), "max_img_seq_length in args.json")

    tokens, patch, stride = claims.get("num_video_tokens"), claims.get(f"{_VISION}patch_size"), _stride(claims, _VISION)
    if claims.get(size) is None:
        claims.add(size, stride * claims.get(f"{_VISION}window_size")[1], "the window")
        claims.notes.append(
            f"image_size {claims.get(size)}: that of the released model with this window, without args.json"
        )
    if claims.get(frames) is None:
        if tokens is None:
            raise ConversionError(
                "The number of frames is determined neither by a sparse mask nor by an args.json: pass the checkpoint's"
                " args.json, or --set num_frames=N (released models have 32 or 64)."
            )
        height, width = (math.ceil(side / stride) for side in VideoSwinConfig(image_size=claims.get(size)).frame_size)
        claims.add(frames, patch[0] * max(1, tokens // (height * width)), "the video tokens")
        claims.notes.append(f"num_frames {claims.get(frames)}: from {tokens} video tokens, without args.json")

    depths = claims.get(f"{_VISION}depths")
    geometry = {"num_frames": claims.get(frames), "image_size": claims.get(size), "patch_size": patch}
    grid = _build(VideoSwinConfig, {**geometry, "depths": depths, "num_heads": [1] * len(depths)}).output_grid
    sources = [f"{name.removeprefix(_VISION)} {claims.get(name)} ({claims.source(name)})" for name in (frames, size)]
    claims.add("num_video_tokens", math.prod(grid), " and ".join(sources))


# --- The processor ----------------------------------------------------------------------------------------------------


def video_processor_for(config: SwinBertConfig) -> SwinBertVideoProcessor:
    """The preprocessing of the original's evaluation: uniform sampling, short side resized, centre cropped."""
    return SwinBertVideoProcessor(num_frames=config.num_frames, **crop_geometry(config))


def crop_geometry(config: SwinBertConfig) -> dict[str, dict[str, int]]:
    """`size` and `crop_size` of a video processor."""
    height, width = config.vision_config.frame_size  # type: ignore[union-attr]
    return {"size": {"shortest_edge": max(height, width)}, "crop_size": {"height": height, "width": width}}
