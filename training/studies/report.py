"""The report of the studies: tables and figures with means and standard deviations over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from swinbert.training.studies.plan import Study
from swinbert.utils.files import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Job -> its result, as `read_results` returns them.
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measure:
    """A column of the tables: `value_in` finds its value in a row of the training log."""

    title: str
    value_in: Callable[[Mapping[str, Any]], float | None]
    digits: int = 3


CIDER = Measure("CIDEr", lambda row: row.get("eval_CIDEr"))
EXACT = Measure("exact content", lambda row: row.get("eval_exact_content"))
# Without a mask the loss is that of the captions alone.
LOSS = Measure("caption loss", lambda row: row.get("eval_caption_loss", row.get("eval_loss")))
BELOW_HALF = Measure("mask below one half", lambda row: row.get("eval_mask_below_half", row.get("mask_below_half")))
ALIVE = Measure("mask alive", lambda row: row.get("eval_mask_alive", row.get("mask_alive")))
MEAN_MASK = Measure("mean of the mask", lambda row: row.get("eval_sparsity_loss", row.get("sparsity_loss")))


def measures(study: Study) -> list[Measure]:
    """The measures that a study reports."""
    return [
        *(() if study.curves else (CIDER, EXACT)),
        *((LOSS,) if study.compare_loss and not study.curves else ()),
        *((BELOW_HALF, ALIVE) if study.sparsity else ()),
        *((MEAN_MASK,) if study.curves else ()),
    ]


def by_seed(results: Results, run: str, measure: Measure) -> dict[int, float]:
    """Seed -> the final value of a measure, for the seeds of a run that have finished."""
    values = {
        each["seed"]: measure.value_in(each["metrics"])
        for each in results.values()
        if each["run"] == run and "metrics" in each
    }
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def write_report(folder: Path, studies: Sequence[Study], results: Results, settings: Mapping[str, Any]) -> None:
    """Writes `studies.md`, `studies.json` and a figure of each study of which any run has finished."""
    trained = {name: each for name, each in results.items() if "metrics" in each}
    lines = ["# The paper's findings, reproduced at small scale", "", *_introduction(settings), ""]
    tables: dict[str, Any] = {}
    for study in studies:
        if not any(each["run"] in study.rows.values() for each in trained.values()):
            continue
        tables[study.name] = table(study, trained)
        draw = curves_figure if study.curves else scores_figure
        draw(study, trained).savefig(folder / f"{study.name}.png", dpi=110)
        lines += [f"## {study.title}", "", study.about, "", *_markdown(study, tables[study.name]), ""]
        lines += [f"![{study.title}]({study.name}.png)", ""]
    if not tables:
        lines += ["No run has finished yet.", ""]
    seconds = sum(each["seconds"] for each in results.values())
    lines += [
        f"{len(results)} jobs took {seconds / 3600:.1f} hours of one core each (not counting what was done before a"
        " job was interrupted). Their commands are in `commands.sh`, all numbers in `studies.json`.",
        "",
    ]
    write_atomically(folder / "studies.md", "\n".join(lines))
    write_json(folder / "studies.json", {"settings": settings, "tables": tables, "runs": results})


def _introduction(settings: Mapping[str, Any]) -> list[str]:
    extra = f" Further arguments of every run: `{' '.join(settings['extra'])}`." if settings["extra"] else ""
    return [
        f"Moving shapes, solos and sequences (no passages): {settings['clips']} clips of each world to train on,"
        f" scores from {settings['eval_clips']} validation clips. For each seed, a backbone is pretrained from scratch"
        f" for {settings['pretraining_steps']} steps, by captioning the training clips of `shapes` at 8 frames; all"
        f" runs of that seed start from it, with a fusion encoder from scratch, and take {settings['steps']} steps"
        f" ({settings['tuning_steps']} where one starts from a finished run). The seed determines initial weights, the"
        f" order of the clips, captions and masking; the clips are always the same.{extra}",
        "",
        "Values are mean ± standard deviation over seeds; n is the number of seeds. Δ CIDEr: difference from the first"
        " row for the same seed, and the number of seeds in which it is above 0. Exact content: share of captions that"
        " describe exactly what the clip shows. CIDEr ranges from 0 to 10, in the paper's units to 1000. Mask below one"
        " half, and alive: shares of the mask's off-diagonal entries; an entry is alive if its attention weight in"
        " float32 is not 0.",
    ]


def table(study: Study, results: Results) -> list[dict[str, Any]]:
    """
    The table of a study, row by row.

    Returns:
        For each row `row` (its label), `run`, `n` (number of seeds), `values` (measure -> seed -> value) and, from the
        second row on, `difference` (seed -> difference of CIDEr from the first row).
    """
    first = by_seed(results, next(iter(study.rows.values())), CIDER)
    rows: list[dict[str, Any]] = []
    for label, run in study.rows.items():
        values = {measure.title: by_seed(results, run, measure) for measure in measures(study)}
        row = {"row": label, "run": run, "n": len(by_seed(results, run, LOSS)), "values": values}
        if not study.curves and rows:
            own = by_seed(results, run, CIDER)
            row["difference"] = {seed: own[seed] - first[seed] for seed in own if seed in first}
        rows.append(row)
    return rows


def _markdown(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    chosen = measures(study)
    titles = ["", "n", *(measure.title for measure in chosen), *([] if study.curves else ["Δ CIDEr"])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["row"], str(row["n"])]
        cells += [
            _mean_and_deviation(list(row["values"][measure.title].values()), measure.digits) for measure in chosen
        ]
        if not study.curves:
            changes = list(row.get("difference", {}).values())
            above = sum(change > 0 for change in changes)
            cells.append(f"{_mean_and_deviation(changes, 3, sign='+')}, {above} of {len(changes)}" if changes else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean_and_deviation(values: Sequence[float], digits: int, sign: str = "") -> str:
    if not values:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{deviation}"


# --- Figures ----------------------------------------------------------------------------------------------------------


def scores_figure(study: Study, results: Results) -> "Figure":
    """A panel for each measure: the values of all seeds as dots, and their mean and standard deviation."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    chosen = [
        measure for measure in measures(study) if any(by_seed(results, run, measure) for run in study.rows.values())
    ]
    height = 3.6 if study.numbers else 1.2 + 0.5 * len(study.rows)
    figure = Figure(figsize=(4 * len(chosen), height), layout="constrained")
    figure.suptitle(study.title)
    for axes, measure in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        values = [list(by_seed(results, run, measure).values()) for run in study.rows.values()]
        (_draw_on_scale if study.numbers else _draw_rows)(axes, study, values)
        axes.set_title(measure.title, fontsize="medium")
        axes.grid(alpha=0.3)
    return figure


_MEAN_STYLE: dict[str, Any] = {"color": "C0", "capsize": 4, "marker": "o"}
_SEEDS_STYLE: dict[str, Any] = {"color": "C1", "marker": ".", "linestyle": "", "alpha": 0.7, "zorder": 3}


def _draw_on_scale(axes: "Axes", study: Study, values: Sequence[Sequence[float]]) -> None:
    """Rows from left to right at the study's numbers; `values` are those of the seeds, row by row."""
    drawn = [(number, seeds) for number, seeds in zip(study.numbers, values, strict=True) if seeds]
    for number, seeds in drawn:
        axes.errorbar(number, mean(seeds), yerr=_deviation(seeds), **_MEAN_STYLE)
        axes.plot([number] * len(seeds), seeds, **_SEEDS_STYLE)
    axes.plot([number for number, _ in drawn], [mean(seeds) for _, seeds in drawn], color="C0")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(study.numbers), list(study.rows))
    axes.minorticks_off()


def _draw_rows(axes: "Axes", study: Study, values: Sequence[Sequence[float]]) -> None:
    """Rows from top to bottom; `values` are those of the seeds, row by row."""
    for place, seeds in enumerate(values):
        if seeds:
            axes.errorbar(mean(seeds), place, xerr=_deviation(seeds), **_MEAN_STYLE)
            axes.plot(seeds, [place] * len(seeds), **_SEEDS_STYLE)
    is_first = axes.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    axes.set_yticks(range(len(study.rows)), list(study.rows) if is_first else [])
    axes.set_ylim(len(study.rows) - 0.5, -0.5)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def curves_figure(study: Study, results: Results) -> "Figure":
    """A panel for each measure of the mask: means over seeds by epoch, in a band of one standard deviation."""
    from matplotlib.figure import Figure

    chosen = measures(study)
    figure = Figure(figsize=(4.5 * len(chosen), 3.6), layout="constrained")
    figure.suptitle(study.title)
    for axes, measure in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        for number, (label, run) in enumerate(study.rows.items()):
            values = _by_epoch(results, run, measure)
            means = [mean(seeds) for seeds in values.values()]
            deviations = [_deviation(seeds) for seeds in values.values()]
            low, high = ([m + side * d for m, d in zip(means, deviations, strict=True)] for side in (-1, 1))
            style = {"color": f"C{number}", "linestyle": ("-", "--", ":", "-.")[number % 4]}
            axes.plot(list(values), means, label=label, **style)
            axes.fill_between(list(values), low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", ylim=(-0.03, 1.03))
        axes.set_title(measure.title, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure


def _by_epoch(results: Results, run: str, measure: Measure) -> dict[float, list[float]]:
    """Epoch -> the values of all seeds."""
    values: dict[float, list[float]] = {}
    for result in results.values():
        # Training and evaluation may both log the same epoch: it counts once.
        rows = {row["epoch"]: measure.value_in(row) for row in result["history"] if result["run"] == run}
        for epoch, value in rows.items():
            if value is not None:
                values.setdefault(epoch, []).append(value)
    return dict(sorted(values.items()))
