"""`swinbert evaluate`: captions the clips of a split and scores the captions, or scores a file of captions."""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinbert.captioning import Caption, captions
from swinbert.captioning.journal import CaptionJournal, compared, rounded
from swinbert.processing import VideoCaptioningPipeline
from swinbert.processing.clip_reading_swinbert import available_cores
from swinbert.training.evaluation.caption_files import read_predictions, read_references
from swinbert.training.evaluation.clips import EvaluationClips, check_references, load_evaluation_clips
from swinbert.training.evaluation.scores import Evaluation, Scorer, choose_metrics, score_captions, write_scores
from swinbert.utils.progress import progress
from swinbert.utils.text import first_names, one_line


def clips_to_caption(clips: EvaluationClips, journal: CaptionJournal) -> list[int]:
    """Numbers of the clips without a caption, including those that failed and those whose file has changed."""
    numbers = {name: number for number, name in enumerate(clips.ids)}

    def is_outdated(line: dict[str, Any]) -> bool:
        return line["caption"] is None or line["size"] != clips.file_size(numbers[line["id"]])

    journal.remove(is_outdated)
    return [number for number, name in enumerate(clips.ids[: clips.number]) if name not in journal.lines]


def _write_captions(
    stream: Iterable[Caption], clips: EvaluationClips, numbers: Sequence[int], journal: CaptionJournal
) -> dict[str, float]:
    """
    Writes each caption of the stream into the journal, and warns of clips that could not be captioned.

    Returns:
        `seconds_per_clip`, if there are clips.
    """
    started = time.perf_counter()
    try:
        for number, caption in zip(numbers, progress(stream, "Captioning", len(numbers)), strict=True):
            score, error = rounded(caption.score), caption.error
            line = {"id": caption.clip, "caption": caption.text, "score": score, "error": error}
            journal.append([{**line, "size": clips.file_size(number)}])
            if caption.error is not None:
                warnings.warn(f"{caption.clip}: {caption.error}", stacklevel=3)
    except (OSError, RuntimeError) as error:  # a full disk, a worker that died
        reason = " ".join(one_line(error).split()[:60]).rstrip(".")
        raise RuntimeError(
            f"{reason}. The captions so far are in {journal.file}, and the same command continues from there;"
            " --batch-size and --num-workers may differ."
        ) from error
    seconds = time.perf_counter() - started
    return {"seconds_per_clip": round(seconds / len(numbers), 4)} if numbers else {}


def evaluate(
    captioner: VideoCaptioningPipeline,
    clips: EvaluationClips,
    folder: Path | None = None,
    *,
    metrics: Iterable[str] | None = None,
    scorers: Sequence[Scorer] = (),
    batch_size: int = 8,
    num_workers: int = 0,
) -> Evaluation:
    """
    Captions clips without sampling (greedy search, or the captioner's beam search) and scores the captions.

    `folder` gets `predictions.jsonl` line by line, `settings.json` (all that decides a caption), `scores.json`, and
    `coco_results.json` and `coco_annotations.json` for the COCO tools. A call with the same settings continues an
    interrupted one. The summary has `seconds_per_clip`, reading included, of the clips that this call captioned.

    Args:
        folder: by default one in `outputs/evaluation/`, named after model, data and settings.
        metrics: names of `swinbert.training.metrics`; by default all but SPICE that can be computed here, with a
            warning if METEOR cannot.
        scorers: further scores for the summary.
        batch_size: clips in one forward pass.
        num_workers: processes that read clips; 0 reads in threads of this process.

    Raises:
        ValueError: `folder` belongs to a run with other settings; an unknown metric.
        MissingTool: METEOR or SPICE is asked for, and something that it needs is not installed. Nothing was captioned.
        BlockingIOError: another process writes to `folder`.
        RuntimeError: captioning stopped; the next call continues.
    """
    chosen, left_out = choose_metrics(metrics)
    if clips.references is not None and "meteor" in left_out and metrics is None:
        warnings.warn(f"METEOR is left out: {left_out['meteor']}", stacklevel=2)
    settings = {"dataset": clips.settings(), **captions((), captioner, do_sample=False).settings}
    folder = default_folder(settings) if folder is None else folder
    with CaptionJournal(folder, settings) as journal:
        numbers = clips_to_caption(clips, journal)
        if known := clips.number - len(numbers):
            warnings.warn(
                f"{known} of {clips.number} clips have their captions in {journal.file} already.", stacklevel=2
            )
        stream = captions(
            clips, captioner, batch_size=batch_size, num_workers=num_workers, only=numbers, do_sample=False
        )
        speed = _write_captions(stream, clips, numbers, journal)
        journal.sort(clips.ids)
        lines = [journal.lines[name] for name in clips.ids[: clips.number]]
    result = Evaluation(
        captions={line["id"]: line["caption"] for line in lines if line["caption"] is not None},
        missing={line["id"]: line["error"] for line in lines if line["caption"] is None},
        references=clips.references,
        summary={"split": clips.split, **({"limit": clips.number} if clips.number < len(clips) else {}), **speed},
        left_out=left_out,
        folder=folder,
    )
    return _scored(result, chosen, scorers, settings, clips.references_from)


def default_folder(settings: Mapping[str, Any]) -> Path:
    """The folder of an evaluation: one for each combination of settings."""
    what = Path(settings["model"]["name"]).name, Path(settings["dataset"]["name"]).name, settings["dataset"]["split"]
    digest = hashlib.sha256(json.dumps(compared(settings), sort_keys=True).encode()).hexdigest()
    return Path("outputs", "evaluation", "-".join([*what, digest[:8]]))


def evaluate_split(
    load_captioner: Callable[[], VideoCaptioningPipeline],
    dataset: str,
    split: str,
    references: str | Path | None = None,
    folder: Path | None = None,
    *,
    metrics: Iterable[str] | None = None,
    scorers: Sequence[Scorer] = (),
    limit: int | None = None,
    allow_missing: bool = False,
    batch_size: int = 8,
    num_workers: int | None = None,
) -> Evaluation:
    """
    `evaluate` of the clips of `load_evaluation_clips`, whose errors come before the model is loaded.

    Args:
        load_captioner: called once the clips, references and metrics are known to be usable.
        num_workers: by default up to four, and one core less than there are.
    """
    choose_metrics(metrics)
    clips = load_evaluation_clips(dataset, split, references, limit=limit, allow_missing=allow_missing)
    if num_workers is None:
        num_workers = min(4, len(available_cores()) - 1)
    return evaluate(
        load_captioner(),
        clips,
        folder,
        metrics=metrics,
        scorers=scorers,
        batch_size=batch_size,
        num_workers=num_workers,
    )


def evaluate_file(
    predictions: str | Path,
    dataset: str | None,
    split: str,
    references: str | Path | None = None,
    folder: Path | None = None,
    **scoring: Any,
) -> Evaluation:
    """`evaluate_predictions` with the references of a file or, without one, of a split of a dataset."""
    if references is not None:
        captions_of_clips: Mapping[str, Sequence[str]] | None = read_references(references, split)
    else:
        captions_of_clips = load_evaluation_clips(str(dataset), split).references
    if captions_of_clips is None:
        raise ValueError(f"{dataset} has no captions in split {split!r}: name a file with --references.")
    source = str(references or f"{dataset}, split {split!r}")
    return evaluate_predictions(predictions, captions_of_clips, folder, references_from=source, **scoring)


def evaluate_predictions(
    predictions: str | Path,
    references: Mapping[str, Sequence[str]],
    folder: Path | None = None,
    *,
    references_from: str = "",
    metrics: Iterable[str] | None = None,
    scorers: Sequence[Scorer] = (),
    allow_missing: bool = False,
) -> Evaluation:
    """
    Scores a file of predictions, see `read_predictions`.

    Args:
        references: of exactly the clips of the file.
        folder: gets `scores.json` and the files for the COCO tools; without it, nothing is written.
        references_from: where the references come from, for the record.
        scorers: further scores for the summary.
        allow_missing: accept a file that lacks some of the clips, and score the others.

    Raises:
        ValueError: predictions for clips without references, or references for clips without predictions.
    """
    chosen, left_out = choose_metrics(metrics)
    found, missing = read_predictions(predictions)
    if unknown := [name for name in (*found, *missing) if name not in references]:
        raise ValueError(
            f"{predictions} has {len(unknown)} of {len(found) + len(missing)} predictions for clips without"
            f" references: {first_names(unknown)}. Clips with references are called"
            f" {first_names(list(references), 3)}: is this another split, or are clips named differently?"
        )
    check_references(found.keys() | missing.keys(), references, str(predictions), allow_missing)
    missing |= {name: "no prediction" for name in references if name not in found and name not in missing}
    settings = {"predictions": str(predictions), "sha256": hashlib.sha256(Path(predictions).read_bytes()).hexdigest()}
    settings_file = Path(predictions).with_name("settings.json")
    if settings_file.is_file():  # perhaps of `evaluate`
        with contextlib.suppress(ValueError):
            settings["made_with"] = json.loads(settings_file.read_text(encoding="utf-8"))
    if folder is not None:
        if (folder / "settings.json").exists() and folder.resolve() != settings_file.parent.resolve():
            raise ValueError(f"{folder} holds an evaluation of other predictions: name another output folder.")
        folder.mkdir(parents=True, exist_ok=True)
    result = Evaluation(found, missing, references, {}, left_out, folder)
    return _scored(result, chosen, scorers, settings, references_from)


def _scored(
    evaluation: Evaluation,
    metrics: Sequence[str],
    scorers: Sequence[Scorer],
    settings: dict[str, Any],
    references_from: str,
) -> Evaluation:
    """Adds the scores, and writes the files."""
    captions_of, references = evaluation.captions, evaluation.references
    scores, failed = score_captions(captions_of, evaluation.missing, references, metrics, scorers)
    evaluation.summary |= scores
    evaluation.left_out |= failed
    if references is not None:
        evaluation.references = {name: list(references[name]) for name in captions_of}
    write_scores(evaluation, settings, references_from)
    return evaluation


__all__ = ["evaluate", "evaluate_file", "evaluate_predictions", "evaluate_split"]
