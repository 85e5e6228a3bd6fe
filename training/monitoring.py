"""What a run tells of itself: scores of generated captions, samples, warnings, and a picture of its curves."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import EvalPrediction

from swinbert.training.evaluation.scores import corpus_scores
from swinbert.training.metrics import check_tools
from swinbert.training.moving_shapes.scoring import exact_content_scores as world_scores

# Scores that are logged, of those that a metric has.
_LOGGED = ("Bleu_4", "ROUGE_L", "CIDEr", "CIDEr-D", "METEOR", "SPICE")
# From so many clips on, and at such a share of one sentence, captions have collapsed.
_COLLAPSE_CLIPS, _COLLAPSE_SHARE = 4, 0.9


class CaptionMetrics:
    """
    `compute_metrics` of a `Trainer` whose predictions are ids of generated captions and whose labels are clip numbers.

    Scores captions against all references of their clips, prints a few beside a reference, and warns when nearly all
    are one sentence.

    Args:
        processor: a `SwinBertProcessor`, or that of a GIT.
        clips: what `load_clips` returns.
        metrics: names of `swinbert.training.metrics`.
        num_samples: captions to print.
        quiet: print nothing, as all processes but the first.

    Raises:
        MissingTool: a metric lacks something here.
    """

    def __init__(
        self,
        processor: Any,
        clips: datasets.Dataset,
        metrics: Sequence[str],
        num_samples: int = 0,
        quiet: bool = False,
    ):
        check_tools(metrics)  # not hours later, at the first evaluation
        self.processor, self.captions, self.metrics = processor, clips["captions"], metrics
        self.num_samples, self.quiet, self._warned = num_samples, quiet, False

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        ids = prediction.predictions.copy()
        ids[ids == -100] = self.processor.tokenizer.pad_token_id
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        # By clip, so that one that fills up the last batch of several processes counts once.
        generated = {str(index): text for index, text in zip(prediction.label_ids.tolist(), texts, strict=True)}
        references = {index: self.captions[int(index)] for index in generated}
        if not self.quiet:
            for index in list(generated)[: self.num_samples]:
                print(f"  generated: {generated[index]}\n  reference: {references[index][0]}", file=sys.stderr)
            if warning := collapse_warning(list(generated.values()), brief=self._warned):
                print(warning, file=sys.stderr)
                self._warned = True
        metrics = {"distinct_captions": len(set(generated.values())) / len(generated)}
        if self.metrics:
            scores, failed = corpus_scores(generated, references, self.metrics)
            metrics |= {name: value for name, value in scores.items() if name in _LOGGED}
            for name, reason in failed.items() if not self.quiet else ():
                print(f"WARNING: no score by {name}: {reason}", file=sys.stderr)
        exact = world_scores(generated, references)
        return metrics | {name: value for name, value in exact.items() if name == "exact_content"}


def collapse_warning(captions: Sequence[str], brief: bool = False) -> str | None:
    """A warning if nearly all captions are one sentence; unless `brief`, with what to do."""
    sentence, count = Counter(captions).most_common(1)[0]
    if len(captions) < _COLLAPSE_CLIPS or count < _COLLAPSE_SHARE * len(captions):
        return None
    warning = f"WARNING: {count} of {len(captions)} clips get one and the same caption, {sentence!r}"
    if brief:
        return f"{warning}."
    return (
        f"{warning}: the model ignores its clips. At the first evaluations of a model from scratch this is usual. If it"
        " stays, or comes after good scores: stop, go back to an earlier checkpoint and lower --learning_rate (3e-5 has"
        " mended this where 3e-4 collapsed), and see that the video encoder starts from trained weights (--backbone),"
        " and that clips and captions belong together (`swinbert doctor`)."
    )


def plot_history(history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """
    Draws losses, scores and the sparse mask over the steps of a run into a picture.

    Args:
        history: `log_history` of the trainer's state.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

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
            ("eval_exact_content", "exact content"),
            ("eval_distinct_captions", "distinct captions"),
        ),
        "sparse mask": (
            ("eval_sparsity_loss", "mean value"),
            ("eval_mask_below_half", "share below one half"),
            ("eval_mask_alive", "share alive in float32"),
        ),
    }
    drawn = {
        title: curves for title, curves in panels.items() if any(name in row for name, _ in curves for row in history)
    }
    if not drawn:
        return
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
    figure.savefig(path, dpi=120)
