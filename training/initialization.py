"""Initialisation of a SwinBERT: from scratch, from a backbone, a BERT or another SwinBERT, or from a sparse mask alone.

A report lists for all tensors where they come from, which are initialised from scratch, and which are not used.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning, VideoSwinConfig, VideoSwinModel
from swinbert.conversion.configs import crop_geometry, video_processor_for
from swinbert.conversion.names import map_names
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor
from swinbert.training.arguments import ModelArguments
from swinbert.training.tokenization import CAPTIONS_TOKENIZER, load_tokenizer, token_id_fields
from swinbert.utils.text import first_names

Tensors = Mapping[str, torch.Tensor]

_NO_DROPOUT = {
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "vision_config": {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
_MASK = "model.sparse_mask.weight"
_BERT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "layer_norm_eps"),
)
# Tensors with one row for each token of the vocabulary.
_TOKEN_ROWS = ("model.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias")


def load_model(
    args: ModelArguments, config: dict[str, Any], captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor, list[str]]:
    """
    The model to train, its processor, and a report of its initialisation.

    Args:
        config: fields of `SwinBertConfig`, nested under `vision_config` for the backbone: of a new model, or changes of
            the model that `args.model` names.
        captions: the training captions, for a tokenizer of their words.

    Raises:
        ValueError: a checkpoint has another architecture, tensors do not fit, or a field does not exist.
        OSError: a checkpoint cannot be found or read.
    """
    check_config(config)
    if args.objective in ("masked_lm", "causal_lm"):
        config = {**config, "objective": args.objective}
    if args.objective == "scst":
        if not args.model:
            raise ValueError("--objective scst starts from a trained model: name one as --model.")
        # With dropout, captions would be sampled from another distribution than the one whose gradient is computed.
        config = _merge(_NO_DROPOUT, config)
    if args.model:
        model, processor, report = _from_model(args, config, captions)
    else:
        model, processor, report = _new_model(args, config, captions)
    if args.mask:
        report += copy_mask(model, args.mask, args.mask_expansion)
    if args.generation_max_length:
        model.generation_config.max_length = args.generation_max_length
    report += freeze(model, args.freeze)
    return model, processor, report


def check_config(config: Mapping[str, Any]) -> None:
    """Raises `ValueError` for an unknown field: transformers would store it and never read it."""
    fields = {"": {*SwinBertConfig.__annotations__, "num_frames", "image_size"}}
    fields["vision_config."] = set(VideoSwinConfig.__annotations__)
    for prefix, part in (("", config), ("vision_config.", config.get("vision_config") or {})):
        if unknown := sorted(set(part) - fields[prefix]):
            near = difflib.get_close_matches(unknown[0], fields[prefix], 1)
            hint = f" (did you mean {prefix}{near[0]}?)" if near else ""
            raise ValueError(
                f"The model's configuration has no field {prefix}{unknown[0]}{hint}; there are"
                f" {', '.join(sorted(fields[prefix]))}."
            )


def _new_model(
    args: ModelArguments, config: dict[str, Any], captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor, list[str]]:
    backbone = load_backbone(args.backbone) if args.backbone else None
    bert, bert_tensors, unused = _load_bert(args.text_encoder) if args.text_encoder else (None, {}, [])
    if backbone is not None:
        config = _merge({"vision_config": _fields(backbone.config)}, config)
    if bert is not None:
        config = {**{name: getattr(bert, name) for name in _BERT_FIELDS}, **config}
    tokenizer = load_tokenizer(args.tokenizer or args.text_encoder or CAPTIONS_TOKENIZER, captions)

    model = SwinBertForVideoCaptioning(SwinBertConfig(**{**token_id_fields(tokenizer), **config}))
    model.generation_config.max_length = model.config.max_caption_length
    weights = WeightLoader(model)
    if backbone is not None:
        tensors = {f"model.video_encoder.{name}": tensor for name, tensor in backbone.state_dict().items()}
        weights.copy_from(str(args.backbone), tensors)
    if bert is not None:
        if args.tokenizer and args.tokenizer != args.text_encoder:
            old = AutoTokenizer.from_pretrained(args.text_encoder)
            bert_tensors, lines = _adapt_vocabulary(bert_tensors, model, old, tokenizer)
            weights.lines += lines
        weights.copy_from(str(args.text_encoder), bert_tensors, unused)
    processor = SwinBertProcessor(video_processor=video_processor_for(model.config), tokenizer=tokenizer)
    return model, processor, weights.report()


def _from_model(
    args: ModelArguments, config: dict[str, Any], captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor, list[str]]:
    for name in ("backbone", "text_encoder"):
        if getattr(args, name):
            raise ValueError(f"--{name} initialises a new model: omit it, or --model.")
    source, processor = load_captioner(str(args.model)), AutoProcessor.from_pretrained(args.model)
    if not isinstance(processor, SwinBertProcessor):
        raise ValueError(f"{args.model} has no processor: expected a folder written by `swinbert train` or `convert`.")
    if not config and not args.tokenizer:
        return source, processor, [f"all {len(source.state_dict())} tensors from {args.model}"]

    fields = _fields(source.config)
    tokenizer = processor.tokenizer
    if args.tokenizer:
        tokenizer = load_tokenizer(args.tokenizer, captions)
        fields |= token_id_fields(tokenizer)
    model = SwinBertForVideoCaptioning(SwinBertConfig(**_merge(fields, config)))
    model.generation_config = source.generation_config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(model.config, name))
    if model.generation_config.forced_eos_token_id is not None:
        model.generation_config.forced_eos_token_id = model.config.eos_token_id
    weights, tensors = WeightLoader(model), dict(source.state_dict())
    if args.tokenizer:
        tensors, lines = _adapt_vocabulary(tensors, model, processor.tokenizer, tokenizer)
        weights.lines += lines
    video_processor = processor.video_processor
    grids = _token_grid(source), _token_grid(model)
    if any(getattr(source.config, name) != getattr(model.config, name) for name in ("num_frames", "image_size")):
        changes = {"num_frames": model.config.num_frames, **crop_geometry(model.config)}
        video_processor = SwinBertVideoProcessor.from_dict({**video_processor.to_dict(), **changes})
    mask = tensors.pop(_MASK, None)
    if mask is not None and model.model.sparse_mask is not None and not args.mask:
        tensors[_MASK] = resize_mask(mask, *grids, args.mask_expansion)
        weights.lines += _resize_report(*grids, args.mask_expansion)
    weights.copy_from(str(args.model), tensors, [_MASK] if mask is not None and _MASK not in tensors else [])
    return model, SwinBertProcessor(video_processor=video_processor, tokenizer=tokenizer), weights.report()


def load_captioner(model: str) -> SwinBertForVideoCaptioning:
    """A SwinBERT from a folder or the Hub, in float32; `ValueError` if it has another architecture."""
    _expect_type(model, "swinbert", "a SwinBERT")
    return AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)


def load_backbone(model: str) -> VideoSwinModel:
    """A Video Swin, or the backbone of a SwinBERT; see `load_captioner`."""
    if AutoConfig.from_pretrained(model).model_type == "swinbert":
        return load_captioner(model).model.video_encoder
    _expect_type(model, "video_swin", "a Video Swin (`swinbert convert` writes its folder)")
    return VideoSwinModel.from_pretrained(model)


def _load_bert(model: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor], list[str]]:
    """Configuration of a BERT, its tensors under their names in SwinBERT, and names of tensors that SwinBERT lacks."""
    _expect_type(model, "bert", "a BERT")
    bert, loading = AutoModelForMaskedLM.from_pretrained(model, output_loading_info=True)
    loaded = {name: tensor for name, tensor in bert.state_dict().items() if name not in loading["missing_keys"]}
    prefix = "trans_encoder."  # of the BERT in the original checkpoints of SwinBERT
    mapped, dropped = map_names([prefix + name for name in loaded], "swinbert")
    tensors = {new: loaded[old.removeprefix(prefix)] for old, new in mapped.items()}
    return bert.config, tensors, [*loading["unexpected_keys"], *(name.removeprefix(prefix) for name in dropped)]


def _expect_type(model: str, model_type: str, expected: str) -> None:
    found = AutoConfig.from_pretrained(model).model_type
    if found != model_type:
        hint = " Name it as --backbone." if found == "video_swin" else ""
        raise ValueError(f"{model} is a model of type {found!r}; expected {expected}.{hint}")


class WeightLoader:
    """Copies tensors of several sources into a model, and reports where each of its tensors comes from."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._from_scratch = dict.fromkeys(model.state_dict())
        self.lines: list[str] = []

    def copy_from(self, source: str, tensors: Tensors, unused: Iterable[str] = ()) -> None:
        """
        Copies tensors, named as in the model.

        Args:
            source: name of the source, for the report.
            unused: names of further tensors of the source, for the report.

        Raises:
            ValueError: the model has no such tensor, or one of another shape.
        """
        own = self.model.state_dict()
        problems = [f"{name} is not in the model" for name in tensors if name not in own] + [
            f"{name} is {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
            for name, tensor in tensors.items()
            if name in own and own[name].shape != tensor.shape
        ]
        if problems:
            raise ValueError(
                f"{source} does not fit this model: {first_names(problems)}. Omit the --config that changes"
                " the shape of these weights."
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
                self._from_scratch.pop(name, None)
        self.lines.append(f"{len(tensors)} tensors from {source}")
        if unused := list(unused):
            self.lines.append(f"not used from {source}: {first_names(unused)}")

    def report(self) -> list[str]:
        """Lines about the sources of all tensors, the last of them about those that no source has."""
        if not self._from_scratch:
            return self.lines
        parts = Counter(".".join(name.split(".")[:2]) for name in self._from_scratch)
        listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
        return [*self.lines, f"{len(self._from_scratch)} tensors are initialised from scratch: {listed}"]


def _adapt_vocabulary(
    tensors: Tensors,
    model: SwinBertForVideoCaptioning,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    `tensors` with a row for each token of the tokenizer `new`, from the same token of `old` or else from the freshly
    initialised `model`; and a report.
    """
    old_ids = old.get_vocab()
    pairs = [(number, old_ids[token]) for token, number in new.get_vocab().items() if token in old_ids]
    new_rows, old_rows = (torch.tensor(column) for column in zip(*pairs, strict=True))
    adapted, own = dict(tensors), model.state_dict()
    for name in _TOKEN_ROWS:
        adapted[name] = own[name].clone()
        adapted[name][new_rows] = tensors[name][old_rows]
    return adapted, [f"{len(pairs)} of {len(new)} tokens keep their weights, the others are initialised from scratch"]


def copy_mask(model: SwinBertForVideoCaptioning, source: str, expansion: str) -> list[str]:
    """Copies only the sparse mask of `source`, resized to the model's tokens, as in the paper; returns a report."""
    donor = load_captioner(source)
    if donor.model.sparse_mask is None or model.model.sparse_mask is None:
        name = source if donor.model.sparse_mask is None else "the model to train"
        raise ValueError(f"--mask {source}: {name} has no sparse mask (`sparse_mask` none).")
    grids = _token_grid(donor), _token_grid(model)
    with torch.no_grad():
        model.model.sparse_mask.weight.copy_(resize_mask(donor.model.sparse_mask.weight, *grids, expansion))
    return [f"the sparse mask alone from {source}", *_resize_report(*grids, expansion)]


def _token_grid(model: SwinBertForVideoCaptioning) -> tuple[int, int, int]:
    """(T, H, W), the grid of video tokens."""
    vision_config: Any = model.config.vision_config  # of that type once the configuration is complete
    return vision_config.output_grid


def resize_mask(
    weight: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int], expansion: str = "interpolate"
) -> torch.Tensor:
    """
    Resizes the logits of a sparse mask to another grid of video tokens.

    Args:
        weight: (N, N) logits, N = T * H * W of `old`.
        old, new: (T, H, W), the grids of tokens.
        expansion: `"interpolate"` interpolates the mask M (with its diagonal of ones) linearly, for queries and for
            keys: along time, as in the paper, and along height and width if the resolution differs. `"diagonal"` (the
            original's other option) repeats the mask along the diagonal, for parts of the new clip that are as long as
            the old clip; tokens of different parts do not attend to each other.

    Returns:
        (N', N') logits, N' = T' * H' * W' of `new`.

    Raises:
        ValueError: `diagonal` with another resolution, or with a number of frames that is not a multiple.
    """
    if old == new:
        return weight.clone()
    if expansion == "diagonal":
        if old[1:] != new[1:] or new[0] % old[0]:
            raise ValueError(
                f"A mask of {old} tokens (T, H, W) cannot be repeated along the diagonal to {new}: this needs the same"
                " resolution and a multiple of the frames. Use --mask_expansion interpolate."
            )
        num_parts = new[0] // old[0]
        resized = weight.new_full((num_parts * len(weight),) * 2, min(-6.0, weight.min().item()))
        for part in range(num_parts):
            block = slice(part * len(weight), (part + 1) * len(weight))
            resized[block, block] = weight
        return resized
    # In float64, logits up to 34 in magnitude survive sigmoid and logit.
    mask = torch.sigmoid(weight.detach().double()).fill_diagonal_(1.0)
    mask = _interpolate(_interpolate(mask, old, new).T, old, new).T
    return torch.logit(mask, eps=1e-15).to(weight.dtype)


def _interpolate(rows: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> torch.Tensor:
    """(T * H * W, M) -> (T' * H' * W', M), each column interpolated as a volume."""
    volumes = rows.T.reshape(-1, 1, *old)
    resized = F.interpolate(volumes, size=new, mode="trilinear", align_corners=False)
    return resized.reshape(len(volumes), -1).T


def _resize_report(old: tuple[int, int, int], new: tuple[int, int, int], expansion: str) -> list[str]:
    if old == new:
        return []
    before, after = (" x ".join(map(str, grid)) for grid in (old, new))
    return [f"sparse mask: from {before} to {after} tokens (time, height, width) by {expansion}"]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """
    Freezes the parameters whose names match a regular expression anywhere, and a hard sparse mask; returns a report.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    patterns = list(patterns)
    if getattr(getattr(model, "config", None), "sparse_mask", None) == "hard":
        patterns.append(r"sparse_mask\.weight")
    frozen = 0
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not found:
            parts = dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in model.named_parameters())
            raise ValueError(f"--freeze {pattern} matches no parameter; there are {', '.join(parts)}.")
        for parameter in found:
            frozen += parameter.numel() if parameter.requires_grad else 0
            parameter.requires_grad_(False)
    return [f"frozen: {frozen:,} parameters ({', '.join(patterns)})"] if patterns else []


def _fields(config: SwinBertConfig | VideoSwinConfig) -> dict[str, Any]:
    """The fields of a configuration that define the model; `num_video_tokens` follows from frames and resolution."""
    names = set(type(config).__annotations__) - {"num_video_tokens"}
    fields = {name: getattr(config, name) for name in names}
    if "vision_config" in fields:
        fields["vision_config"] = _fields(fields["vision_config"])
    return fields


def _merge(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` updated by `changes`; the fields of `vision_config` are updated one by one."""
    merged = {**fields, **changes}
    if "vision_config" in fields and "vision_config" in changes:
        merged["vision_config"] = {**fields["vision_config"], **changes["vision_config"]}
    return merged
