"""The `swinbert` command: one thin function for each subcommand, which imports what it alone needs."""

import glob
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from swinbert import bundled_model
from swinbert.processing import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import torch

    from swinbert.training.evaluation.evaluate import Evaluation

BUNDLED_MODEL_NOTICE = (
    "No --model was given: using the bundled demo, which knows moving shapes and nothing else. For real clips name a"
    " GIT checkpoint of the Hub (--model microsoft/git-base-vatex), or a SwinBERT checkpoint that you hold, after"
    " `swinbert convert`."
)

app = typer.Typer(
    help="Video captioning with SwinBERT: a clip in, an English sentence out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class OutputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"


class BenchmarkSize(StrEnum):
    base = "base"
    tiny = "tiny"


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class CaptionDType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


@app.command()
def caption(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIP", help="Files, folders (searched recursively), globs, URLs; - reads a list from stdin."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="SwinBERT or GIT model: a folder or a name on the Hub.")
    ] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="One line for each clip in this form.")
    ] = OutputFormat.text,
    num_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames to sample; the model's own number if absent.")
    ] = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption from here.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Caption up to here.")] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Width of the beam search; 1 is greedy.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Longest caption, in tokens, with [CLS] and [SEP].")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1...; auto is cuda where there is one.")
    ] = "auto",
    dtype: Annotated[
        CaptionDType,
        typer.Option(
            help="auto is bfloat16 where the hardware computes in it, else float32; int8 is for linear layers on a CPU."
        ),
    ] = CaptionDType.auto,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub.")
    ] = None,
):
    """
    Caption clips, one line on stdout for each.

    As text a line is CLIP, a tab and the caption; where the only argument is one file or URL, it is the caption alone.
    As jsonl a line is {"path", "caption", "score", "error"}. A clip that cannot be read is reported on stderr, the
    others go on, and the exit code is 1.
    """
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter(f"--start {start:g} must be before --end {end:g}.")
    found = list(_expand(clips))
    generation = {"num_beams": beams, "max_length": max_length}
    pipe = None
    if any(error is None for _, error in found):
        pipe = _load_pipeline(
            model,
            device=_device(device),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            num_frames=num_frames,
            **{name: value for name, value in generation.items() if value is not None},
        )
    alone = len(clips) == 1 and found == [(clips[0], None)]
    captions = _captions(pipe, [clip for clip, error in found if error is None], start, end)
    num_failed = 0
    with _lines_and_progress(len(found)) as write:
        for clip, error in found:
            result = {"path": clip, "caption": None, "score": None, "error": error}
            if error is None:
                result.update(next(captions))
            if result["error"] is not None:
                num_failed += 1
                _say(f"{clip}: {result['error']}")
            if output_format is OutputFormat.jsonl:
                write(json.dumps(result))
            elif result["error"] is not None:
                write(None)
            else:
                write(result["caption"] if alone else f"{clip}\t{result['caption']}")
    if num_failed:
        if len(found) > 1:
            _say(f"{num_failed} of {len(found)} clips have no caption.")
        raise typer.Exit(1)


def _expand(arguments: Iterable[str], from_stdin: bool = False) -> Iterator[tuple[str, str | None]]:
    """(clip, `None` or why it is none) for all that the arguments name, in their order; folders and globs sorted."""
    for argument in arguments:
        path = Path(argument)
        if argument == "-" and not from_stdin:
            yield from _expand((line.strip() for line in sys.stdin if line.strip()), from_stdin=True)
        elif "://" in argument or path.is_file():
            yield argument, None
        elif path.is_dir():
            inside = [str(file) for file in sorted(path.rglob("*")) if _is_video(file)]
            yield from ((file, None) for file in inside)
            if not inside:
                yield argument, f"no video in this folder; looked for {' '.join(sorted(VIDEO_SUFFIXES))}"
        elif glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            yield from _expand(matches, from_stdin=True)
            if not matches:
                yield argument, "no file matches this pattern"
        else:
            yield argument, "there is no such file"


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _captions(pipe, clips: list[str], start: float | None, end: float | None) -> Iterator[dict[str, Any]]:
    """`caption` and `score`, or `error`, of each clip; those that come next are read while one is captioned."""
    results = iter(pipe(({"video": clip, "start": start, "end": end} for clip in clips), on_error="raise"))
    for _ in clips:
        # Whatever is wrong with one clip, the others go on.
        try:
            (best, *_) = next(results)
        except Exception as error:
            yield {"error": _reason(error)}
        else:
            yield {"caption": best["generated_text"], "score": best["score"]}


@contextmanager
def _lines_and_progress(num_clips: int) -> Iterator[Callable[[str | None], None]]:
    """
    Gives a function that writes the line of one clip, if it has one, to stdout, and moves a progress bar: on stderr,
    where that is a terminal and there are many clips.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names need not be valid text.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if num_clips < 2 or not sys.stderr.isatty():
        yield lambda line: None if line is None else print(line, flush=True)
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)

    def write(line: str | None) -> None:
        if line is not None:
            # The bar makes room where both are the same terminal; what rich redirects would land on stderr.
            progress.stop()
            print(line, flush=True)
            progress.start()
        progress.advance(task)

    with progress:
        task = progress.add_task("Captioning", total=num_clips)
        yield write


def _load_pipeline(
    model: str | None,
    *,
    device: "torch.device",
    dtype: DType | CaptionDType,
    trust_remote_code: bool,
    revision: str | None,
    **parameters,
):
    """A `VideoCaptioningPipeline`; what keeps it from loading ends the command with one message."""
    if model is None:
        model = bundled_model()
        if not Path(model, "config.json").is_file():
            _fail(f"The bundled checkpoint is missing from {model}: install the package again, or name a --model.")
        _say(BUNDLED_MODEL_NOTICE)
    model = _model_folder_or_name(model)
    _quiet_transformers()
    from transformers import pipeline

    from swinbert.deployment.quantization import quantize_linear
    from swinbert.processing import VideoCaptioningPipeline

    with _unusable_model(model):
        pipe = pipeline(
            "video-captioning",
            model=model,
            # Ours, whatever pipeline code the model brings along.
            pipeline_class=VideoCaptioningPipeline,
            device=device,
            dtype=_torch_dtype(dtype, device),
            # `None` would ask on the terminal.
            trust_remote_code=trust_remote_code,
            revision=revision,
            **parameters,
        )
        if dtype is CaptionDType.int8:
            quantize_linear(pipe.model)
        return pipe


@contextmanager
def _unusable_model(model: str) -> Iterator[None]:
    """Ends the command with one message, whatever keeps a model from loading."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        _fail(f"Cannot use the model {model!r}: {_explain(error)}")


def _model_folder_or_name(model: str) -> str:
    path = Path(model).expanduser()
    if path.is_file():
        _fail(
            f"--model {model} is a file; expected a model folder or a name on the Hub. A released SwinBERT checkpoint"
            f" becomes a folder by `swinbert convert --checkpoint {model} --output DIR`."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            _fail(f"--model {model} is a folder without config.json; expected one that `save_pretrained` wrote.")
        return str(path)
    if model.count("/") > 1 or model.startswith((".", "~", "/")) or os.sep != "/" and os.sep in model:
        _fail(f"--model {model}: no such folder, and not a name on the Hub, which is OWNER/NAME.")
    return model


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"--device {name}: expected auto, cpu, cuda or cuda:NUMBER.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        _fail(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu.")
    return device


def _torch_dtype(dtype: DType | CaptionDType, device: "torch.device") -> "torch.dtype":
    import torch

    from swinbert.deployment.quantization import computes_in_bfloat16

    if dtype is CaptionDType.int8:
        return torch.float32  # from which it is made
    if dtype.value != "auto":
        return getattr(torch, dtype.value)
    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(metavar="ID|DIR", help="The bundled demo if absent.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub.")
    ] = None,
):
    """Show a model's configuration, number of parameters and, for SwinBERT, how sparse its attention mask is."""
    name = _model_folder_or_name(bundled_model() if model is None else model)
    _quiet_transformers()
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    import swinbert.processing  # noqa: F401  # makes our classes known to the Auto classes
    from swinbert.conversion import mask_statistics

    loading = {"trust_remote_code": trust_remote_code, "revision": revision}
    with _unusable_model(name):
        config = AutoConfig.from_pretrained(name, **loading)
        captions = type(config) in AutoModelForImageTextToText._model_mapping
        loaded = (AutoModelForImageTextToText if captions else AutoModel).from_pretrained(name, **loading)
    typer.echo(f"{name}: {type(loaded).__name__}, {loaded.num_parameters():,} parameters, {loaded.dtype}")
    if config.model_type == "swinbert":
        typer.echo(f"sparse mask ({config.sparse_mask}): {mask_statistics(loaded) or 'none'}")
        if loaded.model.sparse_mask is not None:
            typer.echo(f"attention among video tokens: {loaded.model.sparse_mask.plan()}")
    typer.echo(config.to_json_string(), nl=False)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Option(metavar="FILE", help="model.bin of SwinBERT, or a Swin's weights.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder that does not exist yet, or is empty.")],
    args: Annotated[
        Path | None, typer.Option(metavar="FILE", help="args.json of the training; looked for beside the checkpoint.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Looked for beside the checkpoint, then bert-base-uncased.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Configuration field that cannot be read off; repeatable."),
    ] = None,
):
    """
    Convert a released checkpoint to a folder that from_pretrained loads.

    Takes SwinBERT captioning models, Video Swin backbones (mmaction, torchvision) and 2D Swin image models (timm),
    which are inflated to video.
    """
    _quiet_transformers()
    from swinbert.conversion import ConversionError, parse_overrides
    from swinbert.conversion import convert as convert_any

    try:
        report = convert_any(
            checkpoint, output, args=args, tokenizer=tokenizer, overrides=parse_overrides(overrides or [])
        )
    except (ConversionError, OSError) as error:
        _fail(str(error))
    typer.echo(report)


@app.command("make-shapes")
def make_shapes(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that does not exist yet, or is empty.")],
    train: Annotated[int, typer.Option(min=0, metavar="N", help="Clips to train on.")] = 16000,
    validation: Annotated[int, typer.Option(min=0, metavar="N", help="Clips to validate on.")] = 200,
    test: Annotated[
        int, typer.Option(min=0, metavar="N", help="Clips to test on, with combinations that training lacks.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same files.")] = 0,
    world: Annotated[
        str, typer.Option(metavar="NAME", help="shapes; or tiles, with other shapes and words.")
    ] = "shapes",
    kinds: Annotated[
        str, typer.Option(metavar="A,B", help="Kinds of clip: one action, two, or passing a wall.")
    ] = "solo,sequence,passage",
):
    """Write a VideoFolder of short clips of moving shapes, each with several captions."""
    with _missing_extra("train"):
        from swinbert.training import moving_shapes
    try:
        folder = moving_shapes.make_shapes(
            output, train=train, validation=validation, test=test, seed=seed, world=world, kinds=kinds.split(",")
        )
    except (OSError, ValueError) as error:
        _fail(str(error))
    typer.echo(folder)


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="msvd, msrvtt, vatex, youcook2, tvc or tsv.")],
    annotations: Annotated[
        list[str], typer.Argument(metavar="ANNOTATION", help="Original annotation files, each FILE or SPLIT=FILE.")
    ],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the videos are; TSVs of frames need none.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder of links; else metadata.jsonl goes to the videos.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Write the dataset without what is missing or unreadable.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Open every video.")] = True,
):
    """Make a dataset to train on from a benchmark's annotation files, and report what is wrong with it."""
    with _missing_extra("train"):
        from swinbert.training.prepare import prepare as prepare_dataset

        try:
            report = prepare_dataset(
                benchmark, annotations, videos=videos, output=output, allow_missing=allow_missing, check=check
            )
        except (ValueError, OSError) as error:
            _fail(str(error))
    typer.echo(report)


@app.command()
def evaluate(
    dataset: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Clips, with captions unless --references has them.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="SwinBERT or GIT model: a folder or a name on the Hub.")
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Of the dataset and of JSON lines that name theirs.")
    ] = "test",
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score these captions: COCO results, or JSON lines.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Captions to compare with: COCO annotations, or JSON lines.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Separated by commas; by default all but SPICE.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where files go; by default a folder in outputs/evaluation for each setting."),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Width of the beam search; 1 is greedy.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Longest caption, in tokens, with [CLS] and [SEP].")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames to sample; the model's own number if absent.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first clips.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score the rest where clips with references are not there.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Clips in one forward pass.")] = 8,
    num_workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that decode; by default up to four.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1...; auto is cuda where there is one.")
    ] = "auto",
    dtype: Annotated[
        DType, typer.Option(help="auto is bfloat16 where the hardware computes in it, else float32.")
    ] = DType.auto,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub.")
    ] = None,
) -> dict[str, Any]:
    """
    Caption the clips of a split and score the captions, or score a file of captions.

    Predictions are written line by line; the same command goes on where it was interrupted. The scores are printed as
    one line of JSON, and are in the output folder with all that decides them. A clip that cannot be read is reported,
    the others go on, and the exit code is 1.
    """
    if dataset is None and (predictions is None or references is None):
        raise typer.BadParameter("Expected --dataset, or --predictions with --references (or with --dataset).")
    of_captioning = {"model": model, "beams": beams, "max-length": max_length, "num-frames": num_frames, "limit": limit}
    if predictions is not None and (given := [name for name, value in of_captioning.items() if value is not None]):
        raise typer.BadParameter(f"--predictions is scored as it is: leave out --{given[0]}.")
    _quiet_transformers()
    with _missing_extra("train"):
        from swinbert.training.evaluation import evaluate as evaluation
    try:
        asked = None if metrics is None else metrics.split(",")
        evaluation.choose_metrics(asked)  # before a model is loaded
        if predictions is not None:
            if references is None:
                wanted = evaluation.load_evaluation_clips(str(dataset), split).references
            else:
                wanted = evaluation.read_references(references, split)
            if wanted is None:
                raise ValueError(f"{dataset} has no captions in split {split!r}: name a file of --references.")
            result = evaluation.evaluate_predictions(
                predictions,
                wanted,
                output,
                references_from=str(references or f"{dataset}, split {split!r}"),
                metrics=asked,
                allow_missing=allow_missing,
            )
        else:
            clips = evaluation.load_evaluation_clips(
                str(dataset), split, references, limit=limit, allow_missing=allow_missing
            )
            generation = {"num_beams": beams, "max_length": max_length}
            pipe = _load_pipeline(
                model,
                device=_device(device),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                revision=revision,
                num_frames=num_frames,
                **{name: value for name, value in generation.items() if value is not None},
            )
            result = evaluation.evaluate(
                pipe,
                clips,
                output,
                metrics=asked,
                batch_size=batch_size,
                num_workers=min(4, (os.cpu_count() or 1) - 1) if num_workers is None else num_workers,
                revision=revision,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        _fail(str(error))
    _report_evaluation(result)
    typer.echo(json.dumps(result.summary))
    if result.missing or set(asked or ()) & result.left_out.keys():
        raise typer.Exit(1)
    return result.summary


def _report_evaluation(result: "Evaluation") -> None:
    """What the numbers alone would not say."""
    if "exact" in result.summary and result.references is not None:
        from swinbert.training.moving_shapes.scoring import exact_content

        for name, caption in result.captions.items():
            reference = result.references[name][0]
            if exact_content([caption], [reference]) == [False]:
                print(f"{name}\n  generated: {caption}\n  reference: {reference}", file=sys.stderr)
    if len(result.captions) > 3 and len(set(result.captions.values())) == 1:
        _say(f"All clips have one and the same caption, {next(iter(result.captions.values()))!r}.")
    if result.references is None:
        _say("These clips have no captions to compare with: predictions, and no scores.")
    else:
        for name, reason in result.left_out.items():
            _say(f"Left out: {name}, {reason}.")
    if result.missing:
        num_clips = len(result.captions) + len(result.missing)
        _say(
            f"{len(result.missing)} of {num_clips} clips have no caption; scores are of the other"
            f" {len(result.captions)}."
        )
    if result.folder is not None:
        _say(f"Predictions and scores are in {result.folder}.")


@app.command()
def doctor(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Folder, parquet, tar shards or a name on the Hub.")
    ],
    splits: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="Only this split; repeatable, or with commas.")
    ] = None,
    clips_per_split: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Decode so many clips of each split; all if absent.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Gets doctor.json and doctor.png, sampled frames and captions.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="Whose tokenizer and length of captions to measure by.")
    ] = None,
    max_caption_length: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Tokens of the longest caption; the model's, or 50.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Frames to decode of each clip.")] = 4,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes; as many as there are cores if absent.")
    ] = None,
):
    """
    Look for what is wrong with a dataset before training finds it.

    Broken videos, clips out of range, empty, long and repeated captions, clips that are in two splits. The exit code is
    1 where something would break training.
    """
    tokenizer, longest = None, 50
    with _missing_extra("train"):
        from swinbert.training.data.doctor import examine

        if model is not None:
            tokenizer, longest = _tokenizer_and_length(_model_folder_or_name(model))
        try:
            report = examine(
                dataset,
                splits=[name for given in splits or () for name in given.split(",")],
                clips_per_split=clips_per_split,
                num_frames=frames,
                tokenizer=tokenizer,
                max_caption_length=max_caption_length or longest,
                workers=workers,
                output=output,
            )
        except (ValueError, OSError) as error:
            _fail(str(error))
    typer.echo(report)
    if not report.complete:
        raise typer.Exit(130)
    if report.breaks_training:
        raise typer.Exit(1)


def _tokenizer_and_length(model: str) -> tuple[Any, int]:
    _quiet_transformers()
    from transformers import AutoConfig, AutoTokenizer

    import swinbert.processing  # noqa: F401  # makes our classes known to the Auto classes

    with _unusable_model(model):
        config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return tokenizer, getattr(config, "max_caption_length", 50)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context):
    """Train a model; `swinbert train --help` lists the arguments of transformers' Trainer and ours."""
    with _missing_extra("train"):
        from swinbert.training.checkpoints import RunError
        from swinbert.training.metrics import MissingTool
        from swinbert.training.train import build_trainer, run
    try:
        trainer = build_trainer(context.args)
    except (ValueError, OSError, RunError, MissingTool) as error:
        _fail(str(error))
    try:
        run(trainer)
    except (FloatingPointError, RunError) as error:
        _fail(str(error))


@app.command()
def harden(
    model: Annotated[str, typer.Argument(metavar="ID|DIR", help="SwinBERT with a soft sparse mask.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder that does not exist yet, or is empty.")],
    threshold: Annotated[float, typer.Option(metavar="M", help="Entries of the mask from here on stay.")] = 0.5,
):
    """Make a soft sparse mask binary; train a few more steps afterwards (`swinbert train --model DIR`)."""
    _quiet_transformers()
    with _missing_extra("train"):
        from swinbert.training.hardening import harden as harden_model
    try:
        report = harden_model(_model_folder_or_name(model), output, threshold)
    except (ValueError, OSError) as error:
        _fail(str(error))
    typer.echo(report)


@app.command()
def bench(
    only: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Some of the parts, separated by commas; all if absent.")
    ] = None,
    size: Annotated[
        BenchmarkSize, typer.Option(help="The released base model, or a tiny one that shows in seconds how it works.")
    ] = BenchmarkSize.base,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds, in which contestants take turns.")] = 5,
    clips: Annotated[
        list[Path] | None,
        typer.Option("--clip", metavar="FILE", exists=True, dir_okay=False, help="To decode; repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Gets benchmark.json, after every part, benchmark.md and benchmark.png.")
    ] = Path("outputs/benchmark"),
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1...; auto is cuda where there is one.")
    ] = "auto",
    dtype: Annotated[
        DType, typer.Option(help="auto is bfloat16 where the hardware computes in it, else float32.")
    ] = DType.auto,
):
    """
    Measure speed and memory on this machine, beside a plain re-statement of the original's algorithm and other peers.

    Parts: decode, stages, encoder, words, caption, beams, masks, frames, batch, training, overlap. What benchmark.json
    holds already, measured with the same settings, is not measured again. Weights are random; clips are generated
    where none are given.
    """
    _quiet_transformers()
    from swinbert.benchmarks import PARTS, Table, report, run

    def show(tables: list[Table], peak: float) -> None:
        for table in tables:
            typer.echo(f"{report.markdown(table, peak)}\n")

    on = _device(device)
    try:
        results = run(
            list(PARTS) if only is None else [part.strip() for part in only.split(",")],
            output,
            size=size.value,
            repeats=repeats,
            device=on,
            dtype=_torch_dtype(dtype, on),
            clips=clips or (),
            progress=_say,
            done=show,
        )
    except (ValueError, OSError) as error:
        _fail(str(error))
    report.write(results, output)
    try:
        report.plot(results, output / "benchmark.png")
    except ModuleNotFoundError:
        _say("No picture: that needs matplotlib (pip install 'swinbert[train]').")
    _say(f"All numbers are in {output}.")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a SwinBERT model and its processor.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="On the Hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Made if it does not exist; main if absent.")
    ] = None,
):
    """
    Check that a folder is complete and holds no pickle, and upload it to the Hub.

    Only what has changed is uploaded, and the same command goes on after an interruption. A folder without README.md
    gets a first model card, for you to complete. Prints the commit, for revision=.
    """
    _quiet_transformers()
    from swinbert.deployment.hub import PushError
    from swinbert.deployment.hub import push as push_folder

    try:
        commit, wrote_card = push_folder(folder, repository, private=private, revision=revision)
    except (PushError, OSError) as error:
        _fail(str(error))
    if wrote_card:
        _say(f"{folder / 'README.md'} is a first model card: complete it, and push again.")
    typer.echo(commit.commit_url)


@contextmanager
def _missing_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("swinbert"):
            raise
        _fail(f"This needs {error.name}, which is not installed: pip install 'swinbert[{extra}]'.")


def _quiet_transformers() -> None:
    """No progress bars and advice of libraries around what was asked for; our own warnings, of a clip, are one line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module=r"swinbert\.")
    warnings.showwarning = lambda message, *_: _say(str(message))


def _explain(error: Exception) -> str:
    """An exception of model loading in one paragraph, with what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # transformers packs the tracebacks of its attempts into one message; the last line is the reason.
    reason = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines[:3])
    if "trust_remote_code" in reason:
        return f"{reason} Here that is --trust-remote-code: it runs the code of that repository."
    if isinstance(error, OSError):
        return f"{reason} A name on the Hub needs a network connection or an earlier download; a folder needs neither."
    return reason or type(error).__name__


def _reason(error: Exception) -> str:
    """The message of an exception on one line; without the name of the clip, which `VideoDecodeError` puts in front."""
    return " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__


def _say(message: str) -> None:
    print(f"swinbert: {message}", file=sys.stderr, flush=True)


def _fail(message: str) -> NoReturn:
    _say(message)
    sys.exit(1)  # not `typer.Exit`, a RuntimeError, which a handler on the way would take for another failure


def main() -> None:
    """Entry point of the `swinbert` command."""
    app(prog_name="swinbert")


if __name__ == "__main__":
    main()
