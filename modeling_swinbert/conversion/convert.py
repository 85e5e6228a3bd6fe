"""Conversion: a checkpoint -> a folder that `from_pretrained` loads, and a report of what became of every tensor."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, BertTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from swinbert.configuration_swinbert import SwinBertConfig, VideoSwinConfig
from swinbert.conversion.configs import infer_swinbert_config, infer_video_swin_config, number, video_processor_for
from swinbert.conversion.files import (
    ConversionError,
    Tensors,
    check_output,
    find_checkpoint,
    new_folder,
    read_args,
    read_state_dict,
    some,
)
from swinbert.conversion.inflation import inflate
from swinbert.conversion.names import KINDS, expect_kind, map_names
from swinbert.model_cards import captioner_card
from swinbert.modeling_swinbert import SwinBertForVideoCaptioning
from swinbert.modeling_video_swin_swinbert import VideoSwinModel
from swinbert.processing import SwinBertProcessor, VideoCaptioningPipeline
from swinbert.sparse_mask_swinbert import MaskStatistics

DEFAULT_TOKENIZER = "google-bert/bert-base-uncased"
_TRAINING_ARGUMENTS = (
    *("train_yaml", "num_train_epochs", "per_gpu_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("backbone_coef_lr", "mask_prob", "max_masked_tokens", "loss_sparse_w", "transfer_method", "seed"),
)
_BACKBONES = ("video_swin", "torchvision")


def mask_statistics(model: SwinBertForVideoCaptioning) -> MaskStatistics | None:
    """Statistics of a model's sparse mask; `None` if it has none."""
    mask = model.model.sparse_mask
    return None if mask is None else mask.statistics()


@dataclass
class ConversionReport:
    """
    What a conversion did; `str()` of it is what `swinbert convert` prints.

    Args:
        source: the checkpoint.
        output: the folder that was written.
        kind: a key of `KINDS`.
        config: the configuration.
        mapped: original name -> our name.
        dropped: original name -> why it is not needed.
        stored_dtypes: mapped tensors per dtype in the checkpoint; float32 is written whatever it was.
        num_parameters: of the model.
        notes: what was assumed.
        args, tokenizer: where arguments and tokenizer came from, for SwinBERT.
        mask: statistics of the sparse mask, `None` where there is none.
    """

    source: str
    output: Path
    kind: str
    config: SwinBertConfig | VideoSwinConfig
    mapped: dict[str, str]
    dropped: dict[str, str]
    stored_dtypes: dict[str, int]
    num_parameters: int
    notes: list[str] = field(default_factory=list)
    args: str | None = None
    tokenizer: str | None = None
    mask: MaskStatistics | None = None

    def __str__(self) -> str:
        vision = getattr(self.config, "vision_config", self.config)
        stored = ", ".join(f"{count} {dtype}" for dtype, count in self.stored_dtypes.items())
        lines = [
            f"{self.source}: {KINDS[self.kind]} -> {self.output}",
            f"  mapped: {len(self.mapped)} tensors ({stored}), {self.num_parameters:,} parameters, written as float32",
            *(f"  dropped: {count} x {reason}" for reason, count in Counter(self.dropped.values()).items()),
            f"  video encoder: embed_dim {vision.embed_dim}, depths {vision.depths}, heads {vision.num_heads}, window"
            f" {vision.window_size}, {vision.num_frames} frames of {vision.image_size} pixels",
        ]
        if isinstance(self.config, SwinBertConfig):
            lines += [
                f"  fusion encoder: {self.config.num_hidden_layers} layers, hidden size {self.config.hidden_size},"
                f" {self.config.num_attention_heads} heads, {self.config.vocab_size} words,"
                f" {self.config.num_video_tokens} video tokens",
                f"  sparse mask: {self.config.sparse_mask}" + (f", {self.mask}" if self.mask else ""),
                f"  arguments: {self.args or 'none given or found'}; tokenizer: {self.tokenizer}",
            ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    args: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConversionReport:
    """Converts whichever kind of checkpoint it is: SwinBERT, Video Swin, torchvision's swin3d, or a 2D Swin."""
    check_output(Path(output))
    tensors = read_state_dict(checkpoint)
    kind = expect_kind(tensors, checkpoint, "swinbert", *_BACKBONES, "swin_2d")
    if kind == "swinbert":
        return _convert_swinbert(tensors, checkpoint, output, args, tokenizer, overrides)
    if args is not None or tokenizer is not None:
        raise ConversionError(f"{checkpoint} is {KINDS[kind]}: it has neither an args.json nor a tokenizer.")
    return _convert_backbone(tensors, kind, checkpoint, output, overrides)


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    args: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConversionReport:
    """
    A released SwinBERT checkpoint -> a complete folder: weights, configuration, processor, tokenizer, code, card.

    Args:
        checkpoint: `model.bin` (or any file of `read_state_dict`), or the folder that holds it.
        output: the folder to write; it must not exist, or be empty.
        args: the training arguments, `args.json` or its content. If not given, it is looked for where the original
            puts it (`../log/args.json`), and beside the checkpoint.
        tokenizer: a folder (a bare `vocab.txt` suffices) or Hub id. If not given, it is looked for where the original
            puts it (`../tokenizer`) and beside the checkpoint, then it is bert-base-uncased.
        overrides: configuration fields that can be read off neither tensors nor arguments, or are wrong there.

    Raises:
        ConversionError: see the message. No folder is left behind.
    """
    check_output(Path(output))
    tensors = read_state_dict(checkpoint)
    expect_kind(tensors, checkpoint, "swinbert")
    return _convert_swinbert(tensors, checkpoint, output, args, tokenizer, overrides)


def convert_video_swin(
    checkpoint: str | Path, output: str | Path, *, overrides: Mapping[str, Any] | None = None
) -> ConversionReport:
    """
    A Video Swin checkpoint, mmaction's `.pth` or torchvision's `swin3d_*`, -> a folder with a `VideoSwinModel`.

    Args:
        checkpoint: the file. The classification head is dropped.
        output, overrides: see `convert_checkpoint`.

    Raises:
        ConversionError: see the message. No folder is left behind.
    """
    check_output(Path(output))
    tensors = read_state_dict(checkpoint)
    return _convert_backbone(tensors, expect_kind(tensors, checkpoint, *_BACKBONES), checkpoint, output, overrides)


def convert_swin_2d(
    checkpoint: str | Path, output: str | Path, *, overrides: Mapping[str, Any] | None = None
) -> ConversionReport:
    """A 2D Swin checkpoint, of timm or the original, -> a folder with an inflated `VideoSwinModel`."""
    check_output(Path(output))
    tensors = read_state_dict(checkpoint)
    return _convert_backbone(tensors, expect_kind(tensors, checkpoint, "swin_2d"), checkpoint, output, overrides)


def inflate_swin(
    source: nn.Module | Mapping[str, torch.Tensor] | str | Path, overrides: Mapping[str, Any] | None = None
) -> VideoSwinModel:
    """
    A 2D Swin -> a `VideoSwinModel` that sees a still clip as the 2D model sees the image.

    Args:
        source: a timm model such as `timm.create_model("swin_base_patch4_window7_224", pretrained=True)`, its state
            dict, or a checkpoint file.
        overrides: fields of `VideoSwinConfig`, such as `window_size` and `num_frames`; see `conversion.inflation`.

    Raises:
        ConversionError: it is no 2D Swin, or does not fit.
    """
    if isinstance(source, nn.Module):
        name, tensors = type(source).__name__, dict(source.state_dict())
    elif isinstance(source, Mapping):
        name, tensors = "the state dict", dict(source)
    else:
        name, tensors = str(source), read_state_dict(source)
    expect_kind(tensors, name, "swin_2d")
    mapped, _ = map_names(tensors, "swin_2d")
    inflated, config, _ = inflate({new: tensors[old] for old, new in mapped.items()}, overrides)
    return _load_model(VideoSwinModel, config, inflated, mapped)


def _convert_swinbert(
    tensors: Tensors,
    checkpoint: str | Path,
    output: str | Path,
    args: str | Path | Mapping[str, Any] | None,
    tokenizer: str | Path | None,
    overrides: Mapping[str, Any] | None,
) -> ConversionReport:
    output, file = Path(output), find_checkpoint(Path(checkpoint))
    folder = file if file.is_dir() else file.parent
    if args is None:
        args = next(
            (path for name in ("args.json", "../log/args.json") if (path := (folder / name).resolve()).is_file()), None
        )
    arguments = read_args(args) if args is not None else {}

    mapped, dropped = map_names(tensors, "swinbert")
    config, notes = infer_swinbert_config(tensors, arguments, overrides)
    if config.sparse_mask == "none" and "learn_vid_att.weight" in mapped:
        del mapped["learn_vid_att.weight"]
        dropped["learn_vid_att.weight"] = "learn_vid_att: sparse_mask=none was set"

    if tokenizer is None:
        vocabularies = ("tokenizer/vocab.txt", "../tokenizer/vocab.txt", "vocab.txt")
        found = next((path.parent for name in vocabularies if (path := (folder / name).resolve()).is_file()), None)
        tokenizer = found or DEFAULT_TOKENIZER
    text_processor = _load_tokenizer(tokenizer, do_lower_case=arguments.get("do_lower_case") not in (False, "false"))
    _fit_tokenizer(text_processor, tokenizer, config, overrides or {})

    ours = {new: tensors[old] for old, new in mapped.items()}
    if (weights := ours.get("model.sparse_mask.weight")) is not None:
        # (N * N, 1) in the original, row by row; its length was found to be a square with the configuration
        ours["model.sparse_mask.weight"] = weights.reshape(math.isqrt(weights.numel()), -1)
    model = _load_model(SwinBertForVideoCaptioning, config, ours, mapped)
    model.generation_config = _generation_config(config, arguments)
    processor = SwinBertProcessor(video_processor=video_processor_for(config), tokenizer=text_processor)
    report = _report("swinbert", checkpoint, output, config, model, tensors, mapped, dropped, notes)
    report.mask, report.tokenizer = mask_statistics(model), str(tokenizer)
    report.args = "given as a mapping" if isinstance(args, Mapping) else str(args) if args else None
    pipeline = VideoCaptioningPipeline(model=model, processor=processor, device="cpu", task="video-captioning")
    with new_folder(output) as staging:
        pipeline.save_pretrained(staging)  # with the model, the processor and all their code
        (staging / "README.md").write_text(_card(report, config, arguments), encoding="utf-8")
    return report


def _convert_backbone(
    tensors: Tensors, kind: str, checkpoint: str | Path, output: str | Path, overrides: Mapping[str, Any] | None
) -> ConversionReport:
    mapped, dropped = map_names(tensors, kind)
    ours = {new: tensors[old] for old, new in mapped.items()}
    if kind == "swin_2d":
        ours, config, notes = inflate(ours, overrides)
    else:
        # The window is read off the position index of any block; they are alike.
        index = {name: tensors[name] for name in dropped if name.endswith("relative_position_index")}
        config, notes = infer_video_swin_config({**ours, **index}, overrides)
    model = _load_model(VideoSwinModel, config, ours, mapped)
    report = _report(kind, checkpoint, Path(output), config, model, tensors, mapped, dropped, notes)
    with new_folder(report.output) as staging:
        model.save_pretrained(staging)
    return report


Model = TypeVar("Model", SwinBertForVideoCaptioning, VideoSwinModel)


def _load_model(model_class: type[Model], config: Any, tensors: Tensors, mapped: Mapping[str, str]) -> Model:
    """A model with exactly `tensors` (our names) in float32; what is missing, left over or misshaped is named."""
    with no_init_weights():
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    original = {new: old for old, new in mapped.items()}
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"it has nothing for {some(missing)}")
    if extra := [original[name] for name in tensors if name not in expected]:
        problems.append(f"the model has no place for {some(extra)}")
    if misshaped := [
        f"{original[name]} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]:
        problems.append(some(misshaped))
    if problems:
        raise ConversionError(
            f"The checkpoint does not fit the {type(config).__name__} inferred from it: {'; '.join(problems)}. It is"
            " incomplete or of another model, or a number that was set with --set is wrong."
        )
    if broken := [
        original[name]
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all())
    ]:
        raise ConversionError(
            f"{some(broken)}: values that are no finite numbers; the training or the file went wrong."
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return model.eval()


def _load_tokenizer(source: str | Path, do_lower_case: bool) -> PreTrainedTokenizerBase:
    folder = Path(source)
    try:
        if (folder / "vocab.txt").is_file() and not (folder / "tokenizer_config.json").is_file():
            return BertTokenizer.from_pretrained(folder, do_lower_case=do_lower_case)
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # of the Hub's client, of the file system, of the tokenizer's own format
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(
            f"No tokenizer at {source} ({reason}). Without a connection to the Hub, pass --tokenizer DIR: a folder with"
            " a saved tokenizer, or only the vocab.txt that the checkpoint was trained with."
        ) from error


def _fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, source: object, config: SwinBertConfig, overrides: Mapping[str, Any]
) -> None:
    """Checks that a tokenizer has the words of the checkpoint, and takes the ids of the special tokens from it."""
    if len(tokenizer) != config.vocab_size:
        raise ConversionError(
            f"The tokenizer {source} has {len(tokenizer)} words, the checkpoint's embeddings have {config.vocab_size}:"
            " pass the tokenizer that it was trained with, --tokenizer DIR."
        )
    for name, token in (("pad", "pad"), ("bos", "cls"), ("eos", "sep"), ("mask", "mask")):
        token_id = getattr(tokenizer, f"{token}_token_id")
        if token_id is None:
            raise ConversionError(f"The tokenizer {source} has no {token} token: it is not that of a BERT.")
        if f"{name}_token_id" not in overrides:
            setattr(config, f"{name}_token_id", token_id)
    tokenizer.model_max_length = config.max_position_embeddings


def _generation_config(config: SwinBertConfig, arguments: Mapping[str, Any]) -> GenerationConfig:
    """Length and beams of the checkpoint's own evaluation. As in the original, a caption always ends with [SEP]."""
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        forced_eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_length=number(arguments, "max_gen_length", int) or 20,
        num_beams=number(arguments, "num_beams", int) or 1,
    )


def _report(
    kind: str,
    checkpoint: str | Path,
    output: Path,
    config: SwinBertConfig | VideoSwinConfig,
    model: PreTrainedModel,
    tensors: Tensors,
    mapped: dict[str, str],
    dropped: dict[str, str],
    notes: list[str],
) -> ConversionReport:
    return ConversionReport(
        source=str(checkpoint),
        output=output,
        kind=kind,
        config=config,
        mapped=mapped,
        dropped=dropped,
        stored_dtypes=dict(Counter(str(tensors[name].dtype).removeprefix("torch.") for name in mapped)),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        notes=notes,
    )


def _training(arguments: Mapping[str, Any]) -> str:
    """What args.json tells of the training, for the card."""
    told = [f"- `{name}`: {arguments[name]}" for name in _TRAINING_ARGUMENTS if arguments.get(name) not in (None, "")]
    return "\n".join(["By its `args.json`:", "", *told] if told else ["Not known: the conversion saw weights only."])


def _card(report: ConversionReport, config: SwinBertConfig, arguments: Mapping[str, Any]) -> str:
    """`template.md` for a converted checkpoint, without the paths of the machine that converted it."""
    public = replace(
        report,
        source=Path(report.source).name,
        output=Path(report.output.name),
        args=report.args and Path(report.args).name,
        tokenizer=report.tokenizer and Path(report.tokenizer).name,
    )
    return captioner_card(
        config,
        title=report.output.name,
        summary=(
            f"A SwinBERT checkpoint, converted from `{Path(report.source).name}` with `swinbert convert`. It describes"
            " a short clip in one sentence."
        ),
        training=_training(arguments),
        evaluation="Not measured with this package.",
        provenance=f"```\n{public}\n```\n\nThe weights stay under the licence of whoever released them.",
    )
