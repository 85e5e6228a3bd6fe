"""Monitoring of a run: scores and samples of generated captions, a warning of collapse, a figure of the curves."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from transformers import EvalPrediction

from swinbert.captioning.explaining.masks import MASK_CURVES, with_mask_curves
from swinbert.training.evaluation.scores import Scorer, corpus_scores
from swinbert.training.metrics import check_tools

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The scores that are logged; some metrics compute others too.
_LOGGED = ("Bleu_4", "ROUGE_L", "CIDEr", "CIDEr-D", "METEOR", "SPICE")
# The number of clips, and the share of them with one and the same caption, from which captions count as collapsed.
_COLLAPSE_CLIPS, _COLLAPSE_SHARE = 4, 0.9


class CaptionMetrics:
    """
    `compute_metrics` of a `Trainer` whose predictions are token ids of captions and whose labels are indices of clips.

    Scores captions against all references of their clips, prints some of them with a reference, and warns when nearly
    all captions are the same.

    Args:
        processor: decodes token ids.
        clips: what `load_clips` returns.
        metrics: names of `swinbert.training.metrics`.
        num_samples: number of captions to print.
        quiet: print nothing, for all processes but the first.
        extra_scorers: further scores; of their values, floats are logged, integers (counts) are not.

    Raises:
        MissingTool: a program that a metric needs is not installed.
    """

    def __init__(
        self,
        processor: Any,
        clips: datasets.Dataset,
        metrics: Sequence[str],
        num_samples: int = 0,
        quiet: bool = False,
        extra_scorers: Sequence[Scorer] = (),
    ):
        check_tools(metrics)  # here rather than at the first evaluation, hours later
        self.processor, self.captions, self.metrics = processor, clips["captions"], metrics
        self.num_samples, self.quiet, self.extra_scorers = num_samples, quiet, extra_scorers
        self._has_warned = False

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        ids = prediction.predictions.copy()
        ids[ids == -100] = self.processor.tokenizer.pad_token_id
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        # A clip that was repeated to fill the last batch of several processes counts once.
        generated = {str(index): text for index, text in zip(prediction.label_ids.tolist(), texts, strict=True)}
        references = {index: self.captions[int(index)] for index in generated}
        if not self.quiet:
            for index in list(generated)[: self.num_samples]:
                print(f"  generated: {generated[index]}\n  reference: {references[index][0]}", file=sys.stderr)
            if warning := collapse_warning(list(generated.values()), brief=self._has_warned):
                print(warning, file=sys.stderr)
                self._has_warned = True
        metrics = {"distinct_captions": len(set(generated.values())) / len(generated)}
        if self.metrics:
            scores, failed = corpus_scores(generated, references, self.metrics)
            metrics |= {name: value for name, value in scores.items() if name in _LOGGED}
            for name, reason in failed.items() if not self.quiet else ():
                print(f"WARNING: no score by {name}: {reason}", file=sys.stderr)
        for scorer in self.extra_scorers:
            metrics |= {
                name: value for name, value in scorer(generated, references).items() if isinstance(value, float)
            }
        return metrics


def collapse_warning(captions: Sequence[str], brief: bool = False) -> str | None:
    """A warning if nearly all captions are the same, else `None`; unless `brief`, it says what to do."""
    sentence, count = Counter(captions).most_common(1)[0]
    if len(captions) < _COLLAPSE_CLIPS or count < _COLLAPSE_SHARE * len(captions):
        return None
    warning = f"WARNING: {count} of {len(captions)} clips have the same caption, {sentence!r}"
    if brief:
        return f"{warning}."
    return (
        f"{warning}: the model ignores the clips. This is usual in the first evaluations of a model trained from"
        " scratch. If it persists, or comes after good scores: stop, start from an earlier checkpoint with a lower"
        " --learning_rate (3e-5 has worked where 3e-4 collapsed), and check that the video encoder starts from trained"
        " weights (--backbone) and that captions belong to their clips (`swinbert doctor`)."
    )


def plot_history(history: Sequence[dict[str, Any]], path: str | Path, extra_scores: Iterable[str] = ()) -> None:
    """
    Draws losses, scores and statistics of the sparse mask over the steps of a run; see `history_figure`.

    Args:
        path: of the image; nothing is written if there is nothing to draw.
    """
    if (figure := history_figure(history, extra_scores)) is not None:
        figure.savefig(path, dpi=120)


def history_figure(history: Sequence[dict[str, Any]], extra_scores: Iterable[str] = ()) -> "Figure | None":
    """
    A figure with a panel for each kind of curve of which there are any points; `None` without points.

    Args:
        history: `log_history` of the trainer's state.
        extra_scores: names of further scores of evaluation.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    history = with_mask_curves(history)
    panels = {
        "loss": (
            ("loss", "total, training"),
            ("caption_loss", "captions, training"),
            ("eval_caption_loss", "captions, evaluation"),
        ),
        "CIDEr": (
            ("eval_CIDEr", "evaluation"),
            ("reward", "reward of samples, training"),
            ("greedy_reward", "reward of greedy captions, training"),
        ),
        "other scores": (
            *((f"eval_{name}", name) for name in _LOGGED if not name.startswith("CIDEr")),
            *((f"eval_{name}", name.replace("_", " ")) for name in (*extra_scores, "distinct_captions")),
        ),
        "sparse mask": tuple(MASK_CURVES.items()),
    }
    drawn = {
        title: curves for title, curves in panels.items() if any(name in row for name, _ in curves for row in history)
    }
    if not drawn:
        return None
    figure = Figure(figsize=(5 * len(drawn), 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        for name, label in curves:
            points = {row["step"]: row[name] for row in history if name in row}
            if points:
                axes.plot(list(points), list(points.values()), label=label, marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
