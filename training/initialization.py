"""What a model starts from: nothing, a backbone, a BERT, a whole SwinBERT, or the sparse mask of one.

Every tensor is accounted for: the report says what came from where, what is new, and what was left behind.
"""

import re
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
from swinbert.training.data.clip_datasets import build_tokenizer
from swinbert.utils.text import first_names

Tensors = Mapping[str, torch.Tensor]
# One of `--tokenizer`: the words of the training captions.
CAPTIONS_TOKENIZER = "captions"

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
# Weights with one row for each word.
_WORD_ROWS = ("model.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias")


def load_model(
    args: ModelArguments, config: dict[str, Any], captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor, list[str]]:
    """
    The model to train, its processor, and a report of what it starts from.

    Args:
        config: fields of `SwinBertConfig`, nested under `vision_config` for the backbone. They make a new model, or
            change the one that `args.model` names.
        captions: the training captions, for a tokenizer of their words.

    Raises:
        ValueError: a checkpoint of another architecture, tensors that do not fit, an unknown field.
        OSError: a checkpoint that cannot be found or read.
    """
    check_config(config)
    if args.objective in ("masked_lm", "causal_lm"):
        config = {**config, "objective": args.objective}
    if args.objective == "scst":
        if not args.model:
            raise ValueError("--objective scst goes on from a trained model: name one as --model.")
        # The captions that are sampled and the probabilities that are moved must be of one and the same model.
        config = _merge(_NO_DROPOUT, config)
    if args.model:
        model, processor, report = _from_model(args, config, captions)
    else:
        model, processor, report = _new_model(args, config, captions)
    if args.mask:
        report += take_mask(model, args.mask, args.mask_expansion)
    if args.generation_max_length:
        model.generation_config.max_length = args.generation_max_length
    report += freeze(model, args.freeze)
    return model, processor, report


def check_config(config: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a field that neither configuration has: transformers would store it and never read it."""
    fields = {"": {*SwinBertConfig.__annotations__, "num_frames", "image_size"}}
    fields["vision_config."] = set(VideoSwinConfig.__annotations__)
    for prefix, part in (("", config), ("vision_config.", config.get("vision_config") or {})):
        if unknown := sorted(set(part) - fields[prefix]):
            raise ValueError(
                f"The model's configuration has no field {prefix}{unknown[0]}; there are"
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
    tokenizer = _tokenizer(args.tokenizer or args.text_encoder or CAPTIONS_TOKENIZER, captions)

    model = SwinBertForVideoCaptioning(SwinBertConfig(**{**_token_ids(tokenizer), **config}))
    model.generation_config.max_length = model.config.max_caption_length
    weights = WeightAccount(model)
    if backbone is not None:
        tensors = {f"model.video_encoder.{name}": tensor for name, tensor in backbone.state_dict().items()}
        weights.take(str(args.backbone), tensors)
    if bert is not None:
        if args.tokenizer and args.tokenizer != args.text_encoder:
            old = AutoTokenizer.from_pretrained(args.text_encoder)
            bert_tensors, lines = _adapt_words(bert_tensors, model, old, tokenizer)
            weights.report += lines
        weights.take(str(args.text_encoder), bert_tensors, unused)
    processor = SwinBertProcessor(video_processor=video_processor_for(model.config), tokenizer=tokenizer)
    return model, processor, weights.finish()


def _from_model(
    args: ModelArguments, config: dict[str, Any], captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor, list[str]]:
    for name in ("backbone", "text_encoder"):
        if getattr(args, name):
            raise ValueError(f"--{name} is what a new model starts from: leave it out, or --model.")
    source, processor = load_captioner(str(args.model)), AutoProcessor.from_pretrained(args.model)
    if not isinstance(processor, SwinBertProcessor):
        raise ValueError(f"{args.model} has no processor: expected a folder that `swinbert train` or `convert` wrote.")
    if not config and not args.tokenizer:
        return source, processor, [f"all {len(source.state_dict())} tensors from {args.model}"]

    fields = _fields(source.config)
    tokenizer = processor.tokenizer
    if args.tokenizer:
        tokenizer = _tokenizer(args.tokenizer, captions)
        fields |= _token_ids(tokenizer)
    model = SwinBertForVideoCaptioning(SwinBertConfig(**_merge(fields, config)))
    model.generation_config = source.generation_config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(model.config, name))
    if model.generation_config.forced_eos_token_id is not None:
        model.generation_config.forced_eos_token_id = model.config.eos_token_id
    weights, tensors = WeightAccount(model), dict(source.state_dict())
    if args.tokenizer:
        tensors, lines = _adapt_words(tensors, model, processor.tokenizer, tokenizer)
        weights.report += lines
    video_processor = processor.video_processor
    grids = source.config.vision_config.output_grid, model.config.vision_config.output_grid
    if any(getattr(source.config, name) != getattr(model.config, name) for name in ("num_frames", "image_size")):
        changes = {"num_frames": model.config.num_frames, **crop_geometry(model.config)}
        video_processor = SwinBertVideoProcessor.from_dict({**video_processor.to_dict(), **changes})
    mask = tensors.pop(_MASK, None)
    if mask is not None and model.model.sparse_mask is not None and not args.mask:
        tensors[_MASK] = resize_mask(mask, *grids, args.mask_expansion)
        weights.report += _resized(*grids, args.mask_expansion)
    weights.take(str(args.model), tensors, [_MASK] if mask is not None and _MASK not in tensors else [])
    return model, SwinBertProcessor(video_processor=video_processor, tokenizer=tokenizer), weights.finish()


def load_captioner(model: str) -> SwinBertForVideoCaptioning:
    """A SwinBERT of a folder or of the Hub, in float32; `ValueError` if it is another architecture."""
    _expect_type(model, "swinbert", "a SwinBERT")
    return AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)


def load_backbone(model: str) -> VideoSwinModel:
    """A Video Swin, or that of a SwinBERT, as in `load_captioner`."""
    if AutoConfig.from_pretrained(model).model_type == "swinbert":
        return load_captioner(model).model.video_encoder
    _expect_type(model, "video_swin", "a Video Swin (`swinbert convert` writes its folder)")
    return VideoSwinModel.from_pretrained(model)


def _load_bert(model: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor], list[str]]:
    """Configuration of a BERT, its tensors by our names, and the names of those that have no place."""
    _expect_type(model, "bert", "a BERT")
    bert, loading = AutoModelForMaskedLM.from_pretrained(model, output_loading_info=True)
    loaded = {name: tensor for name, tensor in bert.state_dict().items() if name not in loading["missing_keys"]}
    prefix = "trans_encoder."  # under which SwinBERT's own checkpoints have a BERT
    mapped, dropped = map_names([prefix + name for name in loaded], "swinbert")
    tensors = {new: loaded[old.removeprefix(prefix)] for old, new in mapped.items()}
    return bert.config, tensors, [*loading["unexpected_keys"], *(name.removeprefix(prefix) for name in dropped)]


def _expect_type(model: str, model_type: str, expected: str) -> None:
    found = AutoConfig.from_pretrained(model).model_type
    if found != model_type:
        hint = " Name it as --backbone." if found == "video_swin" else ""
        raise ValueError(f"{model} is a model of type {found!r}; expected {expected}.{hint}")


class WeightAccount:
    """Fills a model from several sources, and keeps account of its tensors."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.new = dict.fromkeys(model.state_dict())
        self.report: list[str] = []

    def take(self, source: str, tensors: Tensors, unused: Iterable[str] = ()) -> None:
        """Copies tensors by their names in the model.

        Raises:
            ValueError: a tensor has no place in the model, or another shape.
        """
        own = self.model.state_dict()
        problems = [f"{name} has no place" for name in tensors if name not in own] + [
            f"{name} is {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
            for name, tensor in tensors.items()
            if name in own and own[name].shape != tensor.shape
        ]
        if problems:
            raise ValueError(
                f"{source} does not fit this model: {first_names(problems)}. Leave out the --config that changes the"
                " shape of these weights."
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
                self.new.pop(name, None)
        self.report.append(f"{len(tensors)} tensors from {source}")
        if unused := list(unused):
            self.report.append(f"left behind of {source}: {first_names(unused)}")

    def finish(self) -> list[str]:
        """The report."""
        if self.new:
            by_part: dict[str, int] = {}
            for name in self.new:
                part = ".".join(name.split(".")[:2])
                by_part[part] = by_part.get(part, 0) + 1
            parts = ", ".join(f"{part} ({count})" for part, count in by_part.items())
            self.report.append(f"{len(self.new)} tensors start anew: {parts}")
        return self.report


def _adapt_words(
    tensors: Tensors,
    model: SwinBertForVideoCaptioning,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`tensors` with a row for each word of `new`: that of the same word of `old`, or the model's own initial one."""
    old_ids = old.get_vocab()
    pairs = [(number, old_ids[word]) for word, number in new.get_vocab().items() if word in old_ids]
    to, of = (torch.tensor(column) for column in zip(*pairs, strict=True))
    adapted, own = dict(tensors), model.state_dict()
    for name in _WORD_ROWS:
        adapted[name] = own[name].clone()
        adapted[name][to] = tensors[name][of]
    return adapted, [f"{len(pairs)} of {len(new)} words keep their weights, the others start anew"]


def take_mask(model: SwinBertForVideoCaptioning, source: str, expansion: str) -> list[str]:
    """The paper's transfer of the mask alone: fills the model's sparse mask with that of `source`, resized."""
    given = load_captioner(source)
    if given.model.sparse_mask is None or model.model.sparse_mask is None:
        name = source if given.model.sparse_mask is None else "the model to train"
        raise ValueError(f"--mask {source}: {name} has no sparse mask (`sparse_mask` none).")
    grids = given.config.vision_config.output_grid, model.config.vision_config.output_grid
    with torch.no_grad():
        model.model.sparse_mask.weight.copy_(resize_mask(given.model.sparse_mask.weight, *grids, expansion))
    return [f"the sparse mask alone from {source}", *_resized(*grids, expansion)]


def resize_mask(
    weight: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int], expansion: str = "interpolate"
) -> torch.Tensor:
    """
    The logits of a sparse mask among the tokens of one grid, for those of another.

    Args:
        weight: (N, N) logits, N = T * H * W of `old`.
        old, new: (T, H, W), the grids of tokens.
        expansion: `"interpolate"`: the mask M, with its diagonal of ones, is interpolated linearly along time, as in
            the paper, and along rows and columns where the resolution differs, of the query and of the key.
            `"diagonal"`: the mask is repeated for every part of a clip that is as long as the old one, and tokens of
            different parts are apart (the original's other option).

    Returns:
        (N', N') logits.

    Raises:
        ValueError: `diagonal` where the new clip is not a multiple of the old one, of the same resolution.
    """
    if old == new:
        return weight.clone()
    if expansion == "diagonal":
        if old[1:] != new[1:] or new[0] % old[0]:
            raise ValueError(
                f"A mask among {old} tokens (time, rows, columns) cannot be copied along the diagonal to {new}: that"
                " takes the same resolution and a multiple of the frames. Use --mask_expansion interpolate."
            )
        parts = new[0] // old[0]
        resized = weight.new_full((parts * len(weight), parts * len(weight)), min(-6.0, weight.min().item()))
        for part in range(parts):
            own = slice(part * len(weight), (part + 1) * len(weight))
            resized[own, own] = weight
        return resized
    # In float64 the logits of values as near to 0 and 1 as float32's come back unharmed.
    mask = torch.sigmoid(weight.detach().double()).fill_diagonal_(1.0)
    mask = _interpolate(_interpolate(mask, old, new).T, old, new).T
    return torch.logit(mask, eps=1e-15).to(weight.dtype)


def _interpolate(rows: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> torch.Tensor:
    """(T * H * W, M) -> (T' * H' * W', M), each column a volume."""
    volumes = rows.T.reshape(-1, 1, *old)
    resized = F.interpolate(volumes, size=new, mode="trilinear", align_corners=False)
    return resized.reshape(len(volumes), -1).T


def _resized(old: tuple[int, int, int], new: tuple[int, int, int], expansion: str) -> list[str]:
    if old == new:
        return []
    was, now = (" x ".join(map(str, grid)) for grid in (old, new))
    return [f"sparse mask: from {was} to {now} tokens (time, rows, columns) by {expansion}"]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """
    Takes parameters out of training: those in whose names a regular expression is found, and a hard mask, which is a
    decision taken.

    Raises:
        ValueError: a pattern that is in no name.
    """
    patterns = list(patterns)
    if getattr(getattr(model, "config", None), "sparse_mask", None) == "hard":
        patterns.append(r"sparse_mask\.weight")
    frozen = 0
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not found:
            parts = dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in model.named_parameters())
            raise ValueError(f"--freeze {pattern} is in no parameter's name; there are {', '.join(parts)}.")
        for parameter in found:
            frozen += parameter.numel() if parameter.requires_grad else 0
            parameter.requires_grad_(False)
    return [f"frozen: {frozen:,} parameters ({', '.join(patterns)})"] if patterns else []


def _tokenizer(name: str, captions: Iterable[str]) -> PreTrainedTokenizerBase:
    return build_tokenizer(captions) if name == CAPTIONS_TOKENIZER else AutoTokenizer.from_pretrained(name)


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }


def _fields(config: SwinBertConfig | VideoSwinConfig) -> dict[str, Any]:
    """What a configuration says of the model; `num_video_tokens` follows from frames and resolution."""
    names = set(type(config).__annotations__) - {"num_video_tokens"}
    fields = {name: getattr(config, name) for name in names}
    if "vision_config" in fields:
        fields["vision_config"] = _fields(config.vision_config)
    return fields


def _merge(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `changes`; those of `vision_config` one by one."""
    merged = {**fields, **changes}
    if "vision_config" in fields and "vision_config" in changes:
        merged["vision_config"] = {**fields["vision_config"], **changes["vision_config"]}
    return merged
