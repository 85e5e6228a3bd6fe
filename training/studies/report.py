"""Tables and pictures of finished runs: mean and standard deviation over seeds, whatever comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from swinbert.utils.files import write_json

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """
    One question, and the runs that answer it.

    Args:
        about: what is compared, and what the paper found.
        rows: what a row of the table is called -> its run.
        numbers: of the rows, where they lie on an axis.
        sparsity: whether the mask is of interest.
        curves: draw the mask by epoch instead of the last scores.
        compare_loss: whether the rows' losses can be compared.
    """

    name: str
    title: str
    about: str
    rows: Mapping[str, str]
    numbers: Sequence[float] = ()
    sparsity: bool = False
    curves: bool = False
    compare_loss: bool = True


@dataclass(frozen=True)
class Measure:
    title: str
    of: Callable[[Mapping[str, Any]], float | None]
    digits: int = 3


CIDER = Measure("CIDEr", lambda row: row.get("eval_CIDEr"))
EXACT = Measure("exact content", lambda row: row.get("eval_exact_content"))
# Without a mask the loss is that of the captions alone.
LOSS = Measure("caption loss", lambda row: row.get("eval_caption_loss", row.get("eval_loss")))
BELOW_HALF = Measure("mask below one half", lambda row: row.get("eval_mask_below_half", row.get("mask_below_half")))
ALIVE = Measure("mask alive", lambda row: row.get("eval_mask_alive", row.get("mask_alive")))
MEAN_MASK = Measure("mean of the mask", lambda row: row.get("eval_sparsity_loss", row.get("sparsity_loss")))


def measures(study: Study) -> list[Measure]:
    return [
        *(() if study.curves else (CIDER, EXACT)),
        *((LOSS,) if study.compare_loss and not study.curves else ()),
        *((BELOW_HALF, ALIVE) if study.sparsity else ()),
        *((MEAN_MASK,) if study.curves else ()),
    ]


def by_seed(results: Results, run: str, measure: Measure) -> dict[int, float]:
    """The last score of each seed of a run that is finished and has such a score."""
    values = {
        each["seed"]: measure.of(each["metrics"])
        for each in results.values()
        if each["run"] == run and "metrics" in each
    }
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def write_report(folder: Path, studies: Sequence[Study], results: Results, settings: Mapping[str, Any]) -> None:
    """Writes `studies.md`, `studies.json` and a picture of each study of which any run is finished."""
    trained = {name: each for name, each in results.items() if "metrics" in each}
    lines = ["# The paper's findings, rerun small", "", *_introduction(settings), ""]
    tables: dict[str, Any] = {}
    for study in studies:
        if not any(each["run"] in study.rows.values() for each in trained.values()):
            continue
        tables[study.name] = table(study, trained)
        (_draw_curves if study.curves else _draw_scores)(study, trained, folder / f"{study.name}.png")
        lines += [f"## {study.title}", "", study.about, "", *_markdown(study, tables[study.name]), ""]
        lines += [f"![{study.title}]({study.name}.png)", ""]
    if not tables:
        lines += ["No run is finished yet.", ""]
    seconds = sum(each["seconds"] for each in results.values())
    lines += [
        f"{len(results)} runs took {seconds / 3600:.1f} hours of one core each (without what was done before the"
        " last interruption of a run). Their commands are in `commands.sh`, all numbers in `studies.json`.",
        "",
    ]
    (folder / "studies.md").write_text("\n".join(lines), encoding="utf-8")
    write_json(folder / "studies.json", {"settings": settings, "tables": tables, "runs": results})


def _introduction(settings: Mapping[str, Any]) -> list[str]:
    extra = f" Besides, to every run: `{' '.join(settings['extra'])}`." if settings["extra"] else ""
    return [
        f"Moving shapes, solos and sequences (no passages): {settings['clips']} clips of each world to train on,"
        f" scores from {settings['eval_clips']} validation clips. For each seed, a backbone is pretrained from scratch"
        f" for {settings['pretraining_steps']} steps, by captioning the training clips of `shapes` at 8 frames; all"
        f" runs of that seed start from it, with a new fusion encoder, and take {settings['steps']} steps"
        f" ({settings['tuning_steps']} where one goes on from a finished run). The seed decides initial weights, order"
        f" of the clips, captions and masking; the clips are always the same.{extra}",
        "",
        "mean ± standard deviation over seeds. n: number of seeds. Δ CIDEr: difference to the first row, seed by seed,"
        " and in how many seeds it is above 0. Exact content: share of captions that say exactly what the clip shows."
        " CIDEr goes from 0 to 10, in the paper's units up to 1000. Mask below one half and alive: shares of its"
        " off-diagonal entries; alive are those whose attention weight is not 0 in float32.",
    ]


def table(study: Study, results: Results) -> list[dict[str, Any]]:
    """A row for each row of the study: its name, n, for each measure the seeds' values, and differences of CIDEr."""
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
        cells += [_spread(list(row["values"][measure.title].values()), measure.digits) for measure in chosen]
        if not study.curves:
            changes = list(row.get("difference", {}).values())
            above = sum(change > 0 for change in changes)
            cells.append(f"{_spread(changes, 3, sign='+')}, {above} of {len(changes)}" if changes else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    if not values:
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{spread}"


# --- Pictures ---------------------------------------------------------------------------------------------------------


def _draw_scores(study: Study, results: Results, file: Path) -> None:
    """A panel for each measure: the seeds as dots, mean and standard deviation beside them."""
    chosen = [
        measure for measure in measures(study) if any(by_seed(results, run, measure) for run in study.rows.values())
    ]
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    height = 3.6 if study.numbers else 1.2 + 0.5 * len(study.rows)
    figure = Figure(figsize=(4 * len(chosen), height), layout="constrained")
    figure.suptitle(study.title)
    for axes, measure in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        places: list[float] = []
        means: list[float] = []
        for place, run in zip(study.numbers or range(len(study.rows)), study.rows.values(), strict=True):
            values = list(by_seed(results, run, measure).values())
            if not values:
                continue
            places.append(place)
            means.append(mean(values))
            spread = stdev(values) if len(values) > 1 else 0.0
            bar = {"color": "C0", "capsize": 4, "marker": "o"}
            dots = {"color": "C1", "marker": ".", "linestyle": "", "alpha": 0.7, "zorder": 3}
            if study.numbers:
                axes.errorbar(place, means[-1], yerr=spread, **bar)
                axes.plot([place] * len(values), values, **dots)
            else:
                axes.errorbar(means[-1], place, xerr=spread, **bar)
                axes.plot(values, [place] * len(values), **dots)
        if study.numbers:
            axes.plot(places, means, color="C0")
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(study.numbers), list(study.rows))
            axes.minorticks_off()
        else:
            axes.set_yticks(range(len(study.rows)), list(study.rows) if axes.get_subplotspec().is_first_col() else [])
            axes.set_ylim(len(study.rows) - 0.5, -0.5)
        axes.set_title(measure.title, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def _draw_curves(study: Study, results: Results, file: Path) -> None:
    """The mask over the epochs: means of the seeds with a band of one standard deviation."""
    from matplotlib.figure import Figure

    chosen = measures(study)
    figure = Figure(figsize=(4.5 * len(chosen), 3.6), layout="constrained")
    figure.suptitle(study.title)
    for axes, measure in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        for number, (label, run) in enumerate(study.rows.items()):
            by_epoch: dict[float, list[float]] = {}
            for each in results.values():
                # Of each step once, though both training and evaluation log it.
                rows = {row["epoch"]: measure.of(row) for row in each["history"] if each["run"] == run}
                for epoch, value in rows.items():
                    if value is not None:
                        by_epoch.setdefault(epoch, []).append(value)
            epochs = sorted(by_epoch)
            means = [mean(by_epoch[epoch]) for epoch in epochs]
            spreads = [stdev(by_epoch[epoch]) if len(by_epoch[epoch]) > 1 else 0.0 for epoch in epochs]
            low, high = ([m + side * s for m, s in zip(means, spreads, strict=True)] for side in (-1, 1))
            style = {"color": f"C{number}", "linestyle": ("-", "--", ":", "-.")[number % 4]}
            axes.plot(epochs, means, label=label, **style)
            axes.fill_between(epochs, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", ylim=(-0.03, 1.03))
        axes.set_title(measure.title, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=110)
