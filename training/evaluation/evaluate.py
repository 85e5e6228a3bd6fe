"""`swinbert evaluate`: the clips of a split are captioned, and the captions are scored.

    swinbert evaluate --model FOLDER_OR_HUB_ID --dataset my_clips --split test

In the order of the data: clips and references, captions, scores.
"""

import contextlib
import copy
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow.compute as pc
from torch.utils.data import DataLoader, Dataset

from swinbert.captioning.journal import PredictionLog, compared
from swinbert.captioning.settings import caption_settings
from swinbert.processing import VideoCaptioningPipeline
from swinbert.processing.pipeline_swinbert import collate
from swinbert.training.data.sources import clip_source, load_clips
from swinbert.training.evaluation.caption_files import clip_ids, read_predictions, read_references, write_coco
from swinbert.training.metrics import METRICS, METRICS_WITHOUT_JAVA, MissingTool, check_tools, score
from swinbert.training.moving_shapes.scoring import exact_content_scores
from swinbert.training.prepare.videos import progress
from swinbert.utils.files import write_json
from swinbert.utils.text import first_names

METRIC_TOKENIZER = "Penn Treebank as in the COCO caption tools, swinbert.training.metrics.ptb_tokenize"

# --- Clips and references ---------------------------------------------------------------------------------------------


@dataclass
class EvaluationClips:
    """
    What is captioned, and what its captions are compared with.

    Args:
        dataset, split: where the clips are from.
        clips: all of the split, videos undecoded.
        ids: one for each clip.
        references: clip -> its captions, of the clips that are scored; `None` where nobody has any.
        references_from: where from.
        number: how many of the clips are captioned, from the first one.
    """

    dataset: str
    split: str
    clips: datasets.Dataset
    ids: list[str]
    references: dict[str, list[str]] | None
    references_from: str
    number: int

    def settings(self) -> dict[str, Any]:
        """Which clips they are: names and ranges, of which a hash."""
        nothing = [None] * len(self.ids)
        ranges = (list(self.clips[name]) if name in self.clips.column_names else nothing for name in ("start", "end"))
        listing = json.dumps(list(zip(self.ids, *ranges, strict=True))).encode()
        digest = hashlib.sha256(listing).hexdigest()
        return {"name": self.dataset, "split": self.split, "clips": len(self.ids), "clips_sha256": digest}


def load_evaluation_clips(
    dataset: str,
    split: str,
    references: str | Path | None = None,
    *,
    limit: int | None = None,
    allow_missing: bool = False,
) -> EvaluationClips:
    """
    The clips of a split, and their own captions or those of the file `references` to score with.

    Args:
        limit: only the first clips.
        allow_missing: go on where the file has references of other clips too.

    Raises:
        ValueError, FileNotFoundError: no such dataset, split or file; references that are not those of the clips.
    """
    clips = load_clips(dataset, split, need_captions=False)
    ids = _ids(clips, f"{dataset}, split {split!r}")
    number = len(ids) if limit is None else min(limit, len(ids))
    given = None
    if references is not None:
        given = read_references(references, split)
        if lacking := [name for name in ids if name not in given]:
            raise ValueError(
                f"{references} has no references for {len(lacking)} of {len(ids)} clips of split {split!r}:"
                f" {first_names(lacking)}. There, clips have such names as {first_names(list(given), 3)}."
            )
        _check_wanted(set(ids), given, f"{dataset}, split {split!r},", allow_missing)
    elif "captions" in clips.column_names:
        given = dict(zip(ids, clips["captions"], strict=True))
    chosen = None if given is None else {name: list(given[name]) for name in ids[:number]}
    return EvaluationClips(str(dataset), split, clips, ids, chosen, str(references or dataset), number)


def _ids(clips: datasets.Dataset, where: str) -> list[str]:
    """As `clip_ids`; of clips that have neither a name nor a named file, their numbers."""
    columns = [name for name in clips.column_names if name not in ("video", "captions")]
    rows = list(clips.select_columns(columns)) if columns else [{} for _ in range(len(clips))]
    if not {"id", "video_id", "image_id", "file_name", "path"} & set(columns):
        videos = clips.select_columns(["video"]).with_format("arrow")
        paths = [path for batch in videos.iter(100) for path in pc.struct_field(batch["video"], "path").to_pylist()]
        if None in paths:
            return [str(number) for number in range(len(clips))]
        rows = [{**row, "file_name": Path(path).name} for row, path in zip(rows, paths, strict=True)]
    return clip_ids(rows, where)


def _check_wanted(found: set[str], references: Mapping[str, Any], where: str, allow_missing: bool) -> None:
    """Refuses references to clips that are not there: a score would be that of other clips than it seems."""
    lacking = [name for name in references if name not in found]
    if lacking and not allow_missing:
        raise ValueError(
            f"{where} lacks {len(lacking)} of {len(references)} clips that have references: {first_names(lacking)}. To"
            " score the others all the same, say --allow-missing."
        )


def choose_metrics(metrics: Iterable[str] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """
    The metrics to compute, by default all but SPICE that can be computed here; and why the others are left out.

    Raises:
        ValueError: an unknown one.
        MissingTool: METEOR or SPICE is asked for by its name, and lacks something here.
    """
    if metrics is not None:
        chosen = tuple(dict.fromkeys(metrics))
        if unknown := [name for name in chosen if name not in METRICS]:
            raise ValueError(f"Expected some of the metrics {', '.join(METRICS)}, found {first_names(unknown)}.")
        check_tools(chosen)
        return chosen, {name: "not asked for" for name in METRICS if name not in chosen}
    left_out = {"spice": "which needs a download and 8 GB: ask for it by its name (--metrics)"}
    try:
        check_tools(["meteor"])
    except MissingTool as error:
        return METRICS_WITHOUT_JAVA, {"meteor": str(error), **left_out}
    return (*METRICS_WITHOUT_JAVA, "meteor"), left_out


# --- Captions ---------------------------------------------------------------------------------------------------------


class _ClipsToRead(Dataset):
    """(number of the clip, bytes of its file, what the pipeline reads from it, or the error that kept it)."""

    def __init__(self, pipe: VideoCaptioningPipeline, clips: datasets.Dataset):
        # Workers read clips: they need no weights.
        self.pipe, self.clips = copy.copy(pipe), clips
        self.pipe.model = SimpleNamespace(config=pipe.model.config)  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, int | None, dict[str, Any]]:
        clip = self.clips[index]
        try:
            wanted = {"video": clip_source(clip), "start": clip.get("start"), "end": clip.get("end")}
            read = self.pipe.preprocess(wanted, **{**self.pipe._preprocess_params, "on_error": "raise"})
        except Exception as error:  # whatever is wrong with one clip, the others go on
            reason = " ".join(str(getattr(error, "message", error)).split())
            read = {"error": [reason or type(error).__name__]}
        return index, _size(clip), read


def _size(clip: Mapping[str, Any]) -> int | None:
    """Bytes of a clip's file, by which another file of the same name is noticed; `None` where nobody can tell."""
    if clip["video"]["bytes"] is not None:
        return len(clip["video"]["bytes"])
    try:
        return clip["size"] if clip.get("shard") else os.stat(clip["video"]["path"]).st_size
    except OSError:
        return None


def _collate_read(items: list[tuple[int, int | None, dict[str, Any]]]) -> tuple[Any, Any, dict[str, Any]]:
    indices, sizes, clips = zip(*items, strict=True)
    return indices, sizes, collate(list(clips))


def clips_to_caption(clips: EvaluationClips, log: PredictionLog) -> list[int]:
    """Numbers of the clips without a caption, those that failed and those whose file has changed among them."""
    numbers = {name: number for number, name in enumerate(clips.ids)}

    def is_out_of_date(line: dict[str, Any]) -> bool:
        return line["caption"] is None or line["size"] != _size(clips.clips[numbers[line["id"]]])

    log.forget(is_out_of_date)
    return [number for number, name in enumerate(clips.ids[: clips.number]) if name not in log.lines]


def caption_clips(
    pipe: VideoCaptioningPipeline,
    clips: EvaluationClips,
    numbers: Iterable[int],
    log: PredictionLog,
    batch_size: int = 8,
    num_workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Lines for the clips of these numbers, in their order; each comes when it has been written to the log."""
    # Batches are the same however often a run is interrupted between them.
    batches: dict[int, list[int]] = {}
    for number in numbers:
        batches.setdefault(number // batch_size, []).append(number)
    loader = DataLoader(
        _ClipsToRead(pipe, clips.clips),
        batch_sampler=list(batches.values()),
        num_workers=num_workers,
        collate_fn=_collate_read,
    )
    for indices, sizes, batch in loader:
        outputs = pipe.forward(batch, do_sample=False)
        lines = []
        for row, (index, size) in enumerate(zip(indices, sizes, strict=True)):
            (best, *_) = pipe.postprocess({name: [values[row]] for name, values in outputs.items()})
            # The digits beyond depend on which clips are in a batch together.
            value = None if best["score"] is None else round(best["score"], 4)
            line = {"id": clips.ids[index], "caption": best["generated_text"], "score": value}
            lines.append({**line, "error": best.get("error"), "size": size})
        log.append(lines)
        yield from lines


# --- Scores -----------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """
    Captions, and what they are worth.

    Args:
        captions: clip -> its caption.
        missing: clip -> why it has none.
        references: clip -> its references, of the clips of `captions`; `None` where nobody has any.
        summary: numbers of clips and references, and scores.
        left_out: metric -> why there is no score by it.
        folder: where the files are.
    """

    captions: dict[str, str]
    missing: dict[str, str]
    references: dict[str, list[str]] | None
    summary: dict[str, Any]
    left_out: dict[str, str]
    folder: Path | None


def evaluate(
    pipe: VideoCaptioningPipeline,
    clips: EvaluationClips,
    folder: Path | None = None,
    *,
    metrics: Iterable[str] | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    revision: str | None = None,
) -> Evaluation:
    """
    Captions clips and scores the captions. Greedy search, or beam search where `pipe` says so; nothing is drawn.

    `folder` gets `predictions.jsonl` line by line, `settings.json` (all that decides a caption), `scores.json`, and
    `coco_results.json` and `coco_annotations.json` for the tools of COCO. A call with the same settings goes on where
    another one ended, however it ended.

    Args:
        folder: by default one in `outputs/evaluation/` that is named after model, data and settings.
        metrics: names of `swinbert.training.metrics`; by default all but SPICE that can be computed here, and a
            warning where METEOR cannot.
        batch_size: clips in one forward pass.
        num_workers: processes that read and decode clips; 0 does it in this one.
        revision: that the model was loaded with.

    Raises:
        ValueError: `folder` belongs to a run with other settings; an unknown metric.
        MissingTool: METEOR or SPICE is asked for, and lacks something here; nothing was captioned.
        BlockingIOError: another process is writing to `folder`.
    """
    chosen, left_out = choose_metrics(metrics)
    if clips.references is not None and "meteor" in left_out and metrics is None:
        warnings.warn(f"METEOR is left out: {left_out['meteor']}", stacklevel=2)
    settings = {"dataset": clips.settings(), **caption_settings(pipe, revision)}
    folder = default_folder(settings) if folder is None else folder
    with PredictionLog(folder, settings) as log:
        numbers = clips_to_caption(clips, log)
        if known := clips.number - len(numbers):
            warnings.warn(f"{known} of {clips.number} clips have their captions in {log.file} already.", stacklevel=2)
        made = caption_clips(pipe, clips, numbers, log, batch_size, num_workers)
        try:
            for line in progress(made, "Captioning", len(numbers)):
                if line["error"] is not None:
                    warnings.warn(f"{line['id']}: {line['error']}", stacklevel=2)
        except (OSError, RuntimeError) as error:  # no memory, a worker that died, a full disk
            reason = " ".join(str(error).split()[:60]).rstrip(".")
            raise RuntimeError(
                f"{reason}. The captions so far are in {log.file}, and the same command goes on from there;"
                " --batch-size and --num-workers may be others."
            ) from error
        log.sort(clips.ids)
        lines = [log.lines[name] for name in clips.ids[: clips.number]]
    captions = {line["id"]: line["caption"] for line in lines if line["caption"] is not None}
    missing = {line["id"]: line["error"] for line in lines if line["caption"] is None}
    summary = {"split": clips.split, **({"limit": clips.number} if clips.number < len(clips.ids) else {})}
    return _scored(
        captions, missing, clips.references, clips.references_from, chosen, left_out, summary, settings, folder
    )


def default_folder(settings: Mapping[str, Any]) -> Path:
    """The same for equal settings, another one for others."""
    what = Path(settings["model"]["name"]).name, Path(settings["dataset"]["name"]).name, settings["dataset"]["split"]
    digest = hashlib.sha256(json.dumps(compared(settings), sort_keys=True).encode()).hexdigest()
    return Path("outputs", "evaluation", "-".join([*what, digest[:8]]))


def evaluate_predictions(
    predictions: str | Path,
    references: Mapping[str, Sequence[str]],
    folder: Path | None = None,
    *,
    references_from: str = "",
    metrics: Iterable[str] | None = None,
    allow_missing: bool = False,
) -> Evaluation:
    """
    Scores a file of predictions, see `read_predictions`.

    Args:
        references: of exactly the clips of the file.
        folder: gets `scores.json` and the files for the tools of COCO; nothing is written without it.
        references_from: is reported.
        allow_missing: score what there is, where the file lacks some of the clips.

    Raises:
        ValueError: predictions for clips without references, or references for clips without predictions.
    """
    chosen, left_out = choose_metrics(metrics)
    captions, missing = read_predictions(predictions)
    if unknown := [name for name in (*captions, *missing) if name not in references]:
        raise ValueError(
            f"{predictions} has {len(unknown)} of {len(captions) + len(missing)} predictions for clips without"
            f" references: {first_names(unknown)}. These are such clips as"
            f" {first_names(list(references), 3)}: are they of another split, or are clips named otherwise?"
        )
    _check_wanted(captions.keys() | missing.keys(), references, str(predictions), allow_missing)
    missing |= {name: "no prediction" for name in references if name not in captions and name not in missing}
    settings = {"predictions": str(predictions), "sha256": hashlib.sha256(Path(predictions).read_bytes()).hexdigest()}
    made = Path(predictions).with_name("settings.json")
    if made.is_file():  # perhaps those of `evaluate`
        with contextlib.suppress(ValueError):
            settings["made_with"] = json.loads(made.read_text(encoding="utf-8"))
    if folder is not None:
        if (folder / "settings.json").exists() and folder.resolve() != made.parent.resolve():
            raise ValueError(f"{folder} holds an evaluation of other predictions: name another output folder.")
        folder.mkdir(parents=True, exist_ok=True)
    return _scored(captions, missing, references, references_from, chosen, left_out, {}, settings, folder)


def _scored(
    captions: dict[str, str],
    missing: dict[str, str],
    references: Mapping[str, Sequence[str]] | None,
    references_from: str,
    metrics: Sequence[str],
    left_out: dict[str, str],
    summary: dict[str, Any],
    settings: dict[str, Any],
    folder: Path | None,
) -> Evaluation:
    """Scores what has a caption, and writes everything down."""
    summary |= {"clips": len(captions), "missing": len(missing)}
    wanted = None if references is None else {name: list(references[name]) for name in captions}
    if captions:
        summary["distinct_captions"] = len(set(captions.values())) / len(captions)
    if captions and wanted:
        summary["references"] = sum(map(len, wanted.values()))
        summary |= exact_content_scores(captions, wanted)
        scores, failed = corpus_scores(captions, wanted, metrics)
        summary |= scores
        left_out |= failed
    if folder is not None:
        write_coco(folder, captions, wanted)
        about: dict[str, Any] = {"missing_clips": missing, "settings": settings}
        if wanted is not None:
            content_hash = hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()
            about["references_from"] = {"name": references_from, "sha256": content_hash}
            about |= {"metric_tokenizer": METRIC_TOKENIZER, "left_out": left_out}
        write_json(folder / "scores.json", {**summary, **about})
    return Evaluation(captions, missing, wanted, summary, left_out, folder)


def corpus_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of all clips, and why some are not among them: a Java program that fails costs the others nothing."""
    try:
        return score(captions, references, metrics)["corpus"], {}
    except RuntimeError as error:
        plain = [name for name in metrics if name in METRICS_WITHOUT_JAVA]
        failed = {name: str(error) for name in metrics if name not in plain}
        return (score(captions, references, plain)["corpus"] if plain else {}), failed


def main(argv: Sequence[str] | None = None) -> Any:
    """`swinbert evaluate`; returns what it prints."""
    from swinbert.cli import app

    return app(["evaluate", *(sys.argv[1:] if argv is None else argv)], standalone_mode=False)


if __name__ == "__main__":
    from swinbert.cli import app

    app(["evaluate", *sys.argv[1:]], prog_name="swinbert")
