"""Measurements as Markdown tables and as a plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measurement import Row, Table


def markdown(table: Table, peak: float) -> str:
    """
    A table as Markdown: median seconds and their range, speed-up over the baseline (per item, median over rounds), and
    the other measurements.

    Args:
        peak: FLOP per second of a matrix product on this machine.
    """
    measured = {row.name: row for row in table.rows if row.seconds}
    base = measured.get(table.baseline or "")
    columns = {
        "": [row.name for row in table.rows],
        "seconds": [f"{row.median:.3g}" if row.seconds else "" for row in table.rows],
        "range": [f"{min(row.seconds):.3g}-{max(row.seconds):.3g}" if row.seconds else "" for row in table.rows],
        "CPU seconds": [f"{statistics.median(row.cpu_seconds):.3g}" if row.cpu_seconds else "" for row in table.rows],
        "a second": [f"{row.items / row.median:.3g}" if row.seconds and row.items > 1 else "" for row in table.rows],
        f"times as fast as {table.baseline}": [_format_ratio(base, row) for row in table.rows],
        "target": [_target(base, row) for row in table.rows],
        "GFLOP": [f"{row.flop / 1e9:.3g}" if row.flop else "" for row in table.rows],
        "of the peak": [f"{row.flop / row.median / peak:.0%}" if row.flop else "" for row in table.rows],
        "memory": [f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes is not None else "" for row in table.rows],
        "note": [row.note for row in table.rows],
    }
    columns = {name: values for name, values in columns.items() if any(values)}
    lines = [f"**{table.title}**", "", _line(columns), _line("---" for _ in columns)]
    return "\n".join([*lines, *map(_line, zip(*columns.values(), strict=True))])


def _ratio(base: Row | None, row: Row) -> float | None:
    """How many times as fast a row is as the baseline, item by item: the median over rounds."""
    if base is None or not row.seconds:
        return None
    ratio = statistics.median(b / r for b, r in zip(base.seconds, row.seconds, strict=True))
    return ratio * row.items / base.items


def _format_ratio(base: Row | None, row: Row) -> str:
    ratio = _ratio(base, row)
    return "" if ratio is None else f"{ratio:.2f}"


def _target(base: Row | None, row: Row) -> str:
    """The target and whether the row meets it; if not, what limits it."""
    ratio = _ratio(base, row)
    if row.target is None or ratio is None:
        return ""
    if ratio >= row.target:
        return f"{row.target:g}: met"
    return f"{row.target:g}: missed" + (f" ({row.limit})" if row.limit else "")


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _heading(results: dict[str, Any]) -> str:
    """Machine, settings and matrix peak as a list in Markdown."""
    facts = {**results["machine"], **results["settings"]}
    lines = [
        f"- {name.replace('_', ' ')}: {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in facts.items()
        if value not in ([], None)
    ]
    return "\n".join([*lines, f"- matrix peak: {results['matrix_peak'] / 1e9:,.0f} GFLOP/s"])


def _plot(tables: Sequence[Table], path: Path) -> None:
    """Plots a panel for each table: median seconds, and from the fastest to the slowest round. Needs matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    heights = [1.2 + 0.35 * len(table.rows) for table in tables]
    figure, panels = pyplot.subplots(
        len(tables), 1, figsize=(8, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for table, panel in zip(tables, panels[:, 0], strict=True):
        rows = [row for row in reversed(table.rows) if row.seconds]
        medians = [row.median for row in rows]
        spread = [[row.median - min(row.seconds) for row in rows], [max(row.seconds) - row.median for row in rows]]
        panel.barh([row.name for row in rows], medians, xerr=spread, color="#4c72b0", ecolor="#333333")
        panel.set_title(table.title, fontsize=9, loc="left")
        panel.set_xlabel("seconds", fontsize=8)
        panel.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write(results: dict[str, Any], output: Path) -> bool:
    """
    Writes all tables as benchmark.md and, if matplotlib is installed, as the picture benchmark.png.

    Returns:
        Whether the picture was written.
    """
    tables = [Table.load(table) for part in results["parts"].values() for table in part]
    text = "\n\n".join([_heading(results), *(markdown(table, results["matrix_peak"]) for table in tables)])
    (output / "benchmark.md").write_text(text + "\n")
    try:
        _plot(tables, output / "benchmark.png")
    except ModuleNotFoundError:
        return False
    return True
