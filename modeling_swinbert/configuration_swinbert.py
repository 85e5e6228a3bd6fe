"""Configurations of the Video Swin backbone and of SwinBERT.

Shapes: T frames, C channels, H and W pixels; N video tokens.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

# The released variants of Video Swin (arXiv:2106.13230, section 3.3).
_VIDEO_SWIN_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
    "large-384": {
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": [8, 12, 12],
        "image_size": 384,
    },
}


# More are not built: a damaged number would take hours.
_MAX_LAYERS = 1000


def _triple(name: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != 3 or any(not isinstance(v, int) or v < 1 for v in value):
        raise ValueError(f"`{name}` must be three positive integers (time, height, width), got {value!r}.")
    return list(value)


@strict
class VideoSwinConfig(PreTrainedConfig):
    r"""
    Configuration of a [`VideoSwinModel`], with the names of transformers' `SwinConfig`. The default is Swin-B for 32
    frames of 224 x 224 pixels, the backbone of the released SwinBERT models.

    Args:
        image_size (`int` or `(H, W)`, defaults to 224): height and width of a frame, in pixels.
        num_frames (`int`, defaults to 32): frames of a clip (T).
        num_channels (`int`, defaults to 3): colour channels (C).
        patch_size (`(T, H, W)`, defaults to `(2, 4, 4)`): frames, rows and columns that one token covers.
        window_size (`(T, H, W)`, defaults to `(8, 7, 7)`): attention window, in tokens.
        embed_dim (`int`, defaults to 128): channels after patch embedding; every stage but the first doubles them.
        depths (`list[int]`, defaults to `[2, 2, 18, 2]`): blocks of each stage.
        num_heads (`list[int]`, defaults to `[4, 8, 16, 32]`): attention heads of each stage.
        mlp_ratio (`float`, defaults to 4.0): hidden size of a block's MLP over its channels.
        qkv_bias (`bool`, defaults to `True`): whether the projections to queries, keys and values have a bias.
        hidden_dropout_prob (`float`, defaults to 0.0): dropout after projections and inside the MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): dropout on attention weights.
        drop_path_rate (`float`, defaults to 0.2): stochastic depth of the last block, rising linearly from 0.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP.
        patch_norm (`bool`, defaults to `True`): whether patch embeddings are layer-normalised.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of every layer normalisation.
    """

    model_type = "video_swin"
    base_config_key = "vision_config"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    image_size: int | list[int] | tuple[int, ...] = 224
    num_frames: int = 32
    num_channels: int = 3
    patch_size: list[int] | tuple[int, ...] = (2, 4, 4)
    window_size: list[int] | tuple[int, ...] = (8, 7, 7)
    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.2
    hidden_act: str = "gelu"
    patch_norm: bool = True
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        self.patch_size = _triple("patch_size", self.patch_size)
        self.window_size = _triple("window_size", self.window_size)
        self.depths, self.num_heads = list(self.depths), list(self.num_heads)
        if not isinstance(self.image_size, int):
            self.image_size = list(self.image_size)
            if len(self.image_size) != 2:
                raise ValueError(f"`image_size` must be one number or (height, width), got {self.image_size}.")
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "VideoSwinConfig":
        """
        Configuration of a released backbone: `"tiny"`, `"small"`, `"base"`, `"large"` or `"large-384"`.

        Raises:
            ValueError: there is no preset of this name.
        """
        if name not in _VIDEO_SWIN_PRESETS:
            raise ValueError(
                f"There is no Video Swin preset {name!r}: expected one of {', '.join(_VIDEO_SWIN_PRESETS)}."
            )
        return cls(**{**_VIDEO_SWIN_PRESETS[name], **overrides})

    @property
    def num_layers(self) -> int:
        """Number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (self.num_layers - 1)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def output_grid(self) -> tuple[int, int, int]:
        """Tokens of the last stage along (T, H, W): patches, rounded up, then halved, rounded up, at every merging."""
        time, height, width = (
            math.ceil(size / patch)
            for size, patch in zip((self.num_frames, *self.frame_size), self.patch_size, strict=True)
        )
        for _ in range(self.num_layers - 1):
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        return time, height, width

    def validate_architecture(self):
        """Raises `ValueError` if two fields contradict each other, naming both."""
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(
                f"`depths` {self.depths} and `num_heads` {self.num_heads} must have one entry for each stage."
            )
        for stage, heads in enumerate(self.num_heads):
            channels = self.embed_dim * 2**stage
            if heads < 1 or channels % heads:
                raise ValueError(
                    f"Stage {stage} has {channels} channels (embed_dim {self.embed_dim} x 2^{stage}), which do not"
                    f" divide into {heads} heads: change `num_heads[{stage}]` or `embed_dim`."
                )
        if not all(1 <= depth <= _MAX_LAYERS for depth in self.depths) or self.mlp_ratio <= 0:
            raise ValueError(
                f"Stages need 1 to {_MAX_LAYERS} blocks with a positive `mlp_ratio`: got `depths` {self.depths} and"
                f" `mlp_ratio` {self.mlp_ratio}."
            )
        if self.num_frames < 1 or min(self.frame_size) < 1:
            raise ValueError(
                f"A clip needs at least one frame of at least one pixel: got `num_frames` {self.num_frames} and"
                f" `image_size` {self.image_size}."
            )


@strict
class SwinBertConfig(PreTrainedConfig):
    r"""
    Configuration of a [`SwinBertModel`] or [`SwinBertForVideoCaptioning`]; the default is the released base model.

    Args:
        vision_config (`VideoSwinConfig` or `dict`, *optional*): the video encoder.
        projection_dim (`int`, defaults to 512): width of the linear layer between the encoder and the fusion encoder.
        vocab_size ... type_vocab_size: the fusion encoder, with BERT's names and bert-base's values.
        max_caption_length (`int`, defaults to 50): text tokens of a training caption, `[CLS]` and `[SEP]` included. The
            tokens of an optional second text segment (context) have the positions that follow.
        sparse_mask (`str`, defaults to `"soft"`): attention among video tokens (SwinBERT, section 3.2): `"none"` leaves
            it full, `"soft"` weights it by a learned mask, `"hard"` by that mask thresholded at 0.5.
        sparse_mask_form (`str`, defaults to `"penalty"`): how the mask M enters the scores. `"penalty"` adds
            `(1 - M) * -10000`, as the released weights were trained. `"gate"` adds `log M`, which multiplies the
            attention weights by M, as the paper describes, and gives the mask a gradient from the caption loss.
        sparsity_loss_weight (`float`, defaults to 0.5): weight of the mean off-diagonal mask value in the loss.
        objective (`str`, defaults to `"masked_lm"`): `"masked_lm"` predicts a token at a `[MASK]` in its place
            (SwinBERT), `"causal_lm"` predicts every token from those before it (GIT).
        label_smoothing (`float`, defaults to 0.0): probability mass that is spread over the other words of the
            vocabulary.
        num_video_tokens (`int`, *optional*): derived from frames and resolution; another value raises an error.
        num_frames, image_size (*optional*): set these fields of `vision_config`.
    """

    model_type = "swinbert"
    sub_configs_defaults = {"vision_config": SubConfigSpec(VideoSwinConfig)}
    keys_to_ignore_at_inference = ["cache", "video_outputs", "video_key_values", "caption_loss", "sparsity_loss"]

    # A `VideoSwinConfig` once the configuration is made.
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    max_caption_length: int = 50
    sparse_mask: str = "soft"
    sparse_mask_form: str = "penalty"
    sparsity_loss_weight: float | int = 0.5
    objective: str = "masked_lm"
    label_smoothing: float | int = 0.0
    num_video_tokens: int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    mask_token_id: int | None = 103
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The installed package registers the pipeline itself, without `trust_remote_code`.
            kwargs.pop("custom_pipelines", None)
        geometry = {name: kwargs.pop(name) for name in ("num_frames", "image_size") if name in kwargs}
        super().__post_init__(**kwargs)
        for name, value in geometry.items():
            setattr(self.vision_config, name, value)
        if self.num_video_tokens is None:
            self.num_video_tokens = math.prod(self.vision_config.output_grid)
        self.validate_architecture()

    @property
    def num_frames(self) -> int:
        """Frames of a clip (T), from `vision_config`."""
        return self.vision_config.num_frames  # type: ignore[union-attr]

    @num_frames.setter
    def num_frames(self, value: int):
        self._set_geometry("num_frames", value)

    @property
    def image_size(self) -> int | list[int]:
        """Frame size in pixels, from `vision_config`."""
        return self.vision_config.image_size  # type: ignore[union-attr]

    @image_size.setter
    def image_size(self, value: int | list[int]):
        self._set_geometry("image_size", value)

    def _set_geometry(self, name: str, value: Any):
        setattr(self.vision_config, name, value)
        self.num_video_tokens = math.prod(self.vision_config.output_grid)  # type: ignore[union-attr]

    def validate_architecture(self):
        """Raises `ValueError` if two fields contradict each other, saying what to change."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} does not divide into {self.num_attention_heads} heads"
                " (`num_attention_heads`): change one of them."
            )
        if not 1 <= self.num_hidden_layers <= _MAX_LAYERS:
            raise ValueError(f"`num_hidden_layers` must be from 1 to {_MAX_LAYERS}, got {self.num_hidden_layers}.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"`pad_token_id` must be one of {self.vocab_size} tokens, got {self.pad_token_id}.")
        for name, allowed in (
            ("sparse_mask", ("none", "soft", "hard")),
            ("sparse_mask_form", ("penalty", "gate")),
            ("objective", ("masked_lm", "causal_lm")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        grid = self.vision_config.output_grid
        if self.num_video_tokens != math.prod(grid):
            raise ValueError(
                f"`num_video_tokens` {self.num_video_tokens} (the side of the sparse mask) does not match"
                f" {self.num_frames} frames of {self.image_size} pixels, which give {' x '.join(map(str, grid))} ="
                f" {math.prod(grid)} tokens: change `num_frames` or `image_size`, or leave `num_video_tokens` out."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}.")
        if self.objective == "masked_lm" and self.mask_token_id is None:
            raise ValueError("`objective` masked_lm needs a `mask_token_id`, the id of [MASK]; causal_lm does not.")


__all__ = ["VideoSwinConfig", "SwinBertConfig"]
