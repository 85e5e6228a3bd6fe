"""The kind of a checkpoint, and our name of every tensor in it."""

import re
from collections.abc import Iterable, Mapping

import torch

from swinbert.conversion.files import ConversionError
from swinbert.utils.text import first_names

KINDS = {
    "swinbert": "a SwinBERT checkpoint",
    "video_swin": "a Video Swin checkpoint",
    "torchvision": "a torchvision swin3d checkpoint",
    "swin_2d": "a 2D Swin checkpoint of images",
    "converted": "an already converted SwinBERT",
    "bert": "a plain BERT",
    "unknown": "an unknown architecture",
}

# Pairs of a pattern and our name (mapped tensors) or the reason (dropped tensors); the first full match counts.
Rules = list[tuple[str, str]]
_POSITION_INDEX = (r".*\.relative_position_index", "relative_position_index: follows from the window size")
_STAGES = range(8)  # an upper bound

_DROPPED: dict[str, Rules] = {
    "swinbert": [
        _POSITION_INDEX,
        (r"trans_encoder\.bert\.pooler\..*", "pooler: not used for captioning"),
        (r"trans_encoder\.cls_img_feat\..*", "cls_img_feat: head of a pre-training task, not used for captioning"),
    ],
    "video_swin": [_POSITION_INDEX, (r"cls_head\..*", "cls_head: classification head, not part of the backbone")],
    "torchvision": [_POSITION_INDEX, (r"head\..*", "head: classification head, not part of the backbone")],
    "swin_2d": [
        _POSITION_INDEX,
        (r".*\.attn_mask", "attn_mask: follows from window and image size"),
        (r"head\..*", "head: classification head, not part of the backbone"),
    ],
}
_MAPPED: dict[str, Rules] = {
    "swinbert": [
        (r"swin\.backbone\.(.*)", r"model.video_encoder.\1"),
        (r"fc\.(.*)", r"model.projector.linear_1.\1"),
        (r"trans_encoder\.bert\.img_embedding\.(.*)", r"model.projector.linear_2.\1"),
        (r"learn_vid_att\.weight", r"model.sparse_mask.weight"),
        (r"trans_encoder\.bert\.((?:embeddings|encoder)\..*)", r"model.\1"),
        (r"trans_encoder\.cls\.predictions\.bias", r"lm_head.decoder.bias"),
        (r"trans_encoder\.cls\.predictions\.((?:transform|decoder)\..*)", r"lm_head.\1"),
    ],
    "video_swin": [(r"(?:backbone\.)?((?:patch_embed|layers|norm)\..*)", r"\1")],
    "torchvision": [
        # features.0, .2, .4, ... are stages; .1, .3, ... are the patch mergings after them.
        *((rf"features\.{2 * s}\.(\d+)\.mlp\.0\.(.*)", rf"layers.{s}.blocks.\1.mlp.fc1.\2") for s in _STAGES),
        *((rf"features\.{2 * s}\.(\d+)\.mlp\.3\.(.*)", rf"layers.{s}.blocks.\1.mlp.fc2.\2") for s in _STAGES),
        *((rf"features\.{2 * s}\.(\d+)\.(.*)", rf"layers.{s}.blocks.\1.\2") for s in _STAGES),
        *((rf"features\.{2 * s + 1}\.(.*)", rf"layers.{s}.downsample.\1") for s in _STAGES),
        (r"((?:patch_embed|norm)\..*)", r"\1"),
    ],
    "swin_2d": [(r"((?:patch_embed|layers|norm)\..*)", r"\1")],
}
# timm merges patches at the start of a stage, the original Swin at the end of the one before.
_TIMM_DOWNSAMPLE = [(rf"layers\.{s + 1}\.downsample\.(.*)", rf"layers.{s}.downsample.\1") for s in _STAGES]


def identify(tensors: Mapping[str, torch.Tensor]) -> str:
    """The key of `KINDS` for a state dict, by its names and the rank of its patch embedding."""
    if any(name.startswith("model.video_encoder.") for name in tensors):
        return "converted"
    if {"swin", "trans_encoder"} <= {name.split(".")[0] for name in tensors}:
        return "swinbert"
    patches = next((tensor for name, tensor in tensors.items() if name.endswith("patch_embed.proj.weight")), None)
    if patches is not None and patches.ndim == 5:
        return "torchvision" if any(name.startswith("features.") for name in tensors) else "video_swin"
    if patches is not None and patches.ndim == 4 and any("relative_position_bias_table" in name for name in tensors):
        return "swin_2d"
    if any(re.match(r"(bert\.)?encoder\.layer\.\d+\.attention\.self\.", name) for name in tensors):
        return "bert"
    return "unknown"


def expect_kind(tensors: Mapping[str, torch.Tensor], source: object, *expected: str) -> str:
    """The kind of a state dict; raises `ConversionError` if it is not one of `expected`."""
    kind = identify(tensors)
    if kind not in expected:
        raise ConversionError(
            f"{source} is {KINDS[kind]} (with the tensors {first_names(list(tensors), 3)}); expected"
            f" {' or '.join(KINDS[name] for name in expected)}."
        )
    return kind


def map_names(names: Iterable[str], kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """
    Sorts the tensors of a checkpoint into original name -> our name, and original name -> the reason for dropping it.

    Raises:
        ConversionError: a name matches no rule.
    """
    names = list(names)
    rules = _MAPPED[kind]
    if kind == "swin_2d" and not any(name.startswith("layers.0.downsample.") for name in names):
        rules = _TIMM_DOWNSAMPLE + rules
    mapped: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown = []
    for name in names:
        if reason := next((reason for pattern, reason in _DROPPED[kind] if re.fullmatch(pattern, name)), None):
            dropped[name] = reason
        elif rule := next((rule for rule in rules if re.fullmatch(rule[0], name)), None):
            mapped[name] = re.sub(*rule, name)
        else:
            unknown.append(name)
    if unknown:
        raise ConversionError(
            f"{len(unknown)} of {len(names)} tensors do not belong to {KINDS[kind]}: {first_names(unknown)}. This is a"
            " variant of the model that is not supported."
        )
    return mapped, dropped
