"""Conversion of a checkpoint to a folder that `from_pretrained` loads, with a report on every tensor."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, BertTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from swinbert.configuration_swinbert import SwinBertConfig, VideoSwinConfig
from swinbert.conversion.configs import infer_swinbert_config, infer_video_swin_config, number, video_processor_for
from swinbert.conversion.files import ConversionError, Tensors, find_checkpoint, read_args, read_state_dict
from swinbert.conversion.inflation import inflate
from swinbert.conversion.names import KINDS, expect_kind, map_names
from swinbert.model_cards import captioner_card
from swinbert.modeling_swinbert import SwinBertForVideoCaptioning
from swinbert.modeling_video_swin_swinbert import VideoSwinModel
from swinbert.processing import SwinBertProcessor, VideoCaptioningPipeline
from swinbert.sparse_mask_swinbert import MaskStatistics
from swinbert.utils.files import check_new_folder, new_folder
from swinbert.utils.text import first_names

DEFAULT_TOKENIZER = "google-bert/bert-base-uncased"
_CONVERTIBLE = ("swinbert", "video_swin", "torchvision", "swin_2d")
# Arguments of the original's training script that the model card quotes.
_TRAINING_ARGUMENTS = (
    *("train_yaml", "num_train_epochs", "per_gpu_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("backbone_coef_lr", "mask_prob", "max_masked_tokens", "loss_sparse_w", "transfer_method", "seed"),
)


def mask_statistics(model: SwinBertForVideoCaptioning) -> MaskStatistics | None:
    """Statistics of a model's sparse mask, or `None` if it has no mask."""
    mask = model.model.sparse_mask
    return None if mask is None else mask.statistics()


@dataclass
class ConversionReport:
    """
    What a conversion did. `str()` of it is what `swinbert convert` prints.

    Args:
        source: the checkpoint.
        output: the folder that was written.
        kind: the kind of checkpoint, a key of `KINDS`.
        config: the inferred configuration.
        mapped: original name -> our name of every tensor that was converted.
        dropped: original name -> the reason, of every tensor that was left out.
        stored_dtypes: dtype -> the number of converted tensors that had it in the checkpoint; all are written as
            float32.
        num_parameters: the number of parameters of the model.
        notes: assumptions about what the checkpoint does not determine.
        args, tokenizer: where the training arguments and the tokenizer came from (SwinBERT only).
        mask: statistics of the sparse mask, `None` without one.
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
        vision: Any = self.config.vision_config if isinstance(self.config, SwinBertConfig) else self.config
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
    """
    Converts a released checkpoint; its kind is recognised by its tensors.

    A SwinBERT checkpoint becomes a complete folder: weights, configuration, processor, tokenizer, code and card. A
    Video Swin checkpoint (mmaction's `.pth`, torchvision's `swin3d_*`) becomes a folder with a `VideoSwinModel`, and so
    does a 2D Swin (timm's, the original's), which is inflated.

    Args:
        checkpoint: `model.bin`, or any file that `read_state_dict` reads, or the folder that holds it.
        output: the folder to write; it must not exist, or be empty.
        args: SwinBERT only: the training arguments, as `args.json` or its content. By default, `args.json` beside the
            checkpoint or, where the original puts it, `../log/args.json`.
        tokenizer: SwinBERT only: a folder (a `vocab.txt` alone suffices) or a name on the Hub. By default, a
            `vocab.txt` in `tokenizer/`, in `../tokenizer/` (where the original puts it) or beside the checkpoint, else
            bert-base-uncased.
        overrides: fields of the configuration that neither tensors nor arguments tell, or tell wrongly.

    Raises:
        ConversionError: the checkpoint cannot be read or converted; the message says why and what to do.
        FileExistsError: `output` exists and is not empty.

        Nothing is written in either case.
    """
    check_new_folder(Path(output))
    tensors = read_state_dict(checkpoint)
    kind = expect_kind(tensors, checkpoint, *_CONVERTIBLE)
    if kind == "swinbert":
        return _convert_swinbert(tensors, Path(checkpoint), Path(output), args, tokenizer, overrides)
    if args is not None or tokenizer is not None:
        raise ConversionError(
            f"{checkpoint} is {KINDS[kind]}, which has no args.json and no tokenizer: leave them out."
        )
    return _convert_backbone(tensors, kind, Path(checkpoint), Path(output), overrides)


def inflate_swin(
    source: nn.Module | Mapping[str, torch.Tensor] | str | Path, overrides: Mapping[str, Any] | None = None
) -> VideoSwinModel:
    """
    Inflates a 2D Swin to a `VideoSwinModel` whose features of a still clip equal the 2D model's of the image.

    Args:
        source: a timm model such as `timm.create_model("swin_base_patch4_window7_224", pretrained=True)`, its state
            dict, or a checkpoint file.
        overrides: fields of `VideoSwinConfig`, such as `window_size` and `num_frames`; see `conversion.inflation`.

    Raises:
        ConversionError: the source is not a 2D Swin, or its tensors do not fit the configuration.
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
    checkpoint: Path,
    output: Path,
    args: str | Path | Mapping[str, Any] | None,
    tokenizer: str | Path | None,
    overrides: Mapping[str, Any] | None,
) -> ConversionReport:
    file = find_checkpoint(checkpoint)
    folder = file if file.is_dir() else file.parent
    if args is None:
        args = _first_file(folder, "args.json", "../log/args.json")
    arguments = read_args(args) if args is not None else {}
    mapped, dropped = map_names(tensors, "swinbert")
    config, notes = infer_swinbert_config(tensors, arguments, overrides)
    if config.sparse_mask == "none" and "learn_vid_att.weight" in mapped:
        del mapped["learn_vid_att.weight"]
        dropped["learn_vid_att.weight"] = "learn_vid_att: sparse_mask=none was set"
    if tokenizer is None:
        vocabulary = _first_file(folder, "tokenizer/vocab.txt", "../tokenizer/vocab.txt", "vocab.txt")
        tokenizer = vocabulary.parent if vocabulary else DEFAULT_TOKENIZER
    text_tokenizer = _load_tokenizer(tokenizer, do_lower_case=arguments.get("do_lower_case") not in (False, "false"))
    _fit_tokenizer(text_tokenizer, tokenizer, config, overrides or {})

    renamed = {new: tensors[old] for old, new in mapped.items()}
    if (weights := renamed.get("model.sparse_mask.weight")) is not None:
        # (N * N, 1) in the original, row by row; `infer_swinbert_config` has checked that its length is a square.
        renamed["model.sparse_mask.weight"] = weights.reshape(math.isqrt(weights.numel()), -1)
    model = _load_model(SwinBertForVideoCaptioning, config, renamed, mapped)
    model.generation_config = _generation_config(config, arguments)
    report = _report("swinbert", checkpoint, output, model, tensors, mapped, dropped, notes)
    report.mask, report.tokenizer = mask_statistics(model), str(tokenizer)
    report.args = "given as a mapping" if isinstance(args, Mapping) else str(args) if args else None

    processor = SwinBertProcessor(video_processor=video_processor_for(config), tokenizer=text_tokenizer)
    pipeline = VideoCaptioningPipeline(model=model, processor=processor, device="cpu", task="video-captioning")
    with new_folder(output) as temporary:
        pipeline.save_pretrained(temporary)  # model, processor and their code
        (temporary / "README.md").write_text(_card(report, config, arguments), encoding="utf-8")
    return report


def _convert_backbone(
    tensors: Tensors, kind: str, checkpoint: Path, output: Path, overrides: Mapping[str, Any] | None
) -> ConversionReport:
    mapped, dropped = map_names(tensors, kind)
    renamed = {new: tensors[old] for old, new in mapped.items()}
    if kind == "swin_2d":
        renamed, config, notes = inflate(renamed, overrides)
    else:
        # The window is read off the position index of any block: all blocks have the same.
        index = {name: tensors[name] for name in dropped if name.endswith("relative_position_index")}
        config, notes = infer_video_swin_config({**renamed, **index}, overrides)
    model = _load_model(VideoSwinModel, config, renamed, mapped)
    with new_folder(output) as temporary:
        model.save_pretrained(temporary)
    return _report(kind, checkpoint, output, model, tensors, mapped, dropped, notes)


def _first_file(folder: Path, *names: str) -> Path | None:
    """The first of several relative paths where there is a file."""
    return next((path for name in names if (path := (folder / name).resolve()).is_file()), None)


Model = TypeVar("Model", SwinBertForVideoCaptioning, VideoSwinModel)


def _load_model(model_class: type[Model], config: Any, tensors: Tensors, mapped: Mapping[str, str]) -> Model:
    """A model with exactly these tensors (under our names) as float32; errors name those that do not fit."""
    with no_init_weights():
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    original = {new: old for old, new in mapped.items()}
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"it has no {first_names(missing)}")
    if extra := [original[name] for name in tensors if name not in expected]:
        problems.append(f"the model has no place for {first_names(extra)}")
    if misshaped := [
        f"{original[name]} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]:
        problems.append(first_names(misshaped))
    if problems:
        raise ConversionError(
            f"The checkpoint does not fit the {type(config).__name__} inferred from it: {'; '.join(problems)}. It is"
            " incomplete or of another model, or a value of --set is wrong."
        )
    if broken := [
        original[name]
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all())
    ]:
        raise ConversionError(
            f"{first_names(broken)}: expected finite floating-point numbers, found other values. The training diverged,"
            " or the file is damaged."
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return model.eval()


def _load_tokenizer(source: str | Path, do_lower_case: bool) -> PreTrainedTokenizerBase:
    folder = Path(source)
    try:
        if (folder / "vocab.txt").is_file() and not (folder / "tokenizer_config.json").is_file():
            return BertTokenizer.from_pretrained(folder, do_lower_case=do_lower_case)
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the Hub client, the file system and tokenizer formats raise many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(
            f"No tokenizer at {source} ({reason}). Without a connection to the Hub, pass --tokenizer DIR: a folder with"
            " the tokenizer that the checkpoint was trained with, or with its vocab.txt alone."
        ) from error


def _fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, source: object, config: SwinBertConfig, overrides: Mapping[str, Any]
) -> None:
    """Checks the size of a tokenizer's vocabulary, and copies the ids of its special tokens to the configuration."""
    if len(tokenizer) != config.vocab_size:
        raise ConversionError(
            f"The tokenizer {source} has {len(tokenizer)} words, the checkpoint has embeddings of {config.vocab_size}:"
            " pass the tokenizer that it was trained with, --tokenizer DIR."
        )
    for name, token in (("pad", "pad"), ("bos", "cls"), ("eos", "sep"), ("mask", "mask")):
        token_id = getattr(tokenizer, f"{token}_token_id")
        if token_id is None:
            raise ConversionError(f"The tokenizer {source} has no {token} token: expected a BERT tokenizer.")
        if f"{name}_token_id" not in overrides:
            setattr(config, f"{name}_token_id", token_id)
    tokenizer.model_max_length = config.max_position_embeddings


def _generation_config(config: SwinBertConfig, arguments: Mapping[str, Any]) -> GenerationConfig:
    """Length and beams of the original's evaluation. As there, the last token of a caption is always [SEP]."""
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
    checkpoint: Path,
    output: Path,
    model: SwinBertForVideoCaptioning | VideoSwinModel,
    tensors: Tensors,
    mapped: dict[str, str],
    dropped: dict[str, str],
    notes: list[str],
) -> ConversionReport:
    return ConversionReport(
        source=str(checkpoint),
        output=output,
        kind=kind,
        config=model.config,
        mapped=mapped,
        dropped=dropped,
        stored_dtypes=dict(Counter(str(tensors[name].dtype).removeprefix("torch.") for name in mapped)),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        notes=notes,
    )


def _training(arguments: Mapping[str, Any]) -> str:
    """The card's section on training: the arguments that args.json holds."""
    quoted = [f"- `{name}`: {arguments[name]}" for name in _TRAINING_ARGUMENTS if arguments.get(name) not in (None, "")]
    return "\n".join(["From its `args.json`:", "", *quoted] if quoted else ["Unknown: there was no args.json."])


def _card(report: ConversionReport, config: SwinBertConfig, arguments: Mapping[str, Any]) -> str:
    """The model card of a converted checkpoint, with file names in the place of full paths."""
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
        provenance=f"```\n{public}\n```\n\nThe weights remain under the licence of their publisher.",
    )
