"""Pictures of a sparse attention mask: which video tokens see each other, and how that came about in training.

Shapes: (T', H', W') the grid of the video tokens, N of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from swinbert.captioning.explaining.encoded_clips import LayerAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From dark to bright, in steps that all kinds of colour vision tell apart.
_COLOURS = "cividis"
_MAX_MOMENTS = 8
_WEIGHT = "model.sparse_mask.weight"
# Statistics of the mask that training logs, and what they are called.
MASK_CURVES = {
    "sparsity_loss": "mean value",
    "mask_below_half": "share below one half",
    "mask_alive": "share alive in float32",
}


def mask_figure(
    mask: Any,
    grid: tuple[int, int, int],
    layers: Sequence[LayerAttention] = (),
    run: Path | None = None,
) -> "Figure":
    """
    A sparse mask as time x time and as the places that one token sees, before and after the threshold of 0.5.

    Args:
        mask: a [`SparseVideoMask`].
        grid: (T', H', W').
        layers: attention in each layer on a clip, for a panel.
        run: an output folder of `swinbert train`: its checkpoints and its log become a row, the mask over the steps.
    """
    from matplotlib.figure import Figure

    soft = mask.soft_values().detach().cpu().fill_diagonal_(1.0).numpy()
    steps = masks_of_run(run) if run is not None else {}
    history = history_of_run(run) if run is not None else []
    has_growth = bool(steps) or any(name in row for row in history for name in MASK_CURVES)
    ratios = [1.5, 1.0] + [1.0] * has_growth
    figure = Figure(figsize=(10, 2.6 * sum(ratios)), dpi=100, layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(len(ratios), 1, height_ratios=ratios)
    statistics = mask.statistics()
    figure.suptitle(
        f"Sparse mask among {statistics.size:,} video tokens: {1 - statistics.share_below_half:.1%} of the pairs at or"
        f" above 0.5, {statistics.share_alive:.1%} alive, the same in every layer",
        fontsize=11,
    )
    _draw_times(parts[0], soft, grid, layers, statistics.share_alive)
    _draw_places(parts[1], soft, grid)
    if has_growth:
        _draw_growth(parts[2], steps, history, grid[0])
    return figure


def time_by_time(soft: np.ndarray, times: int) -> np.ndarray:
    """Mean of a mask (N, N) over the places of its rows and columns, (T', T')."""
    places = len(soft) // times
    return soft.reshape(times, places, times, places).mean((1, 3))


def masks_of_run(folder: Path) -> dict[int, np.ndarray]:
    """Step -> soft mask (N, N), of the checkpoints in an output folder of `swinbert train`."""
    masks = {}
    for file in folder.glob("checkpoint-*/model.safetensors"):
        step = re.fullmatch(r"checkpoint-(\d+)", file.parent.name)
        with safe_open(file, framework="pt") as weights:
            if step and _WEIGHT in weights.keys():
                soft = torch.sigmoid(weights.get_tensor(_WEIGHT).float()).fill_diagonal_(1.0)
                masks[int(step[1])] = soft.numpy()
    return dict(sorted(masks.items()))


def history_of_run(folder: Path) -> list[dict[str, Any]]:
    """What `swinbert train` logged; nothing where `folder` is not of a run."""
    file = folder / "trainer_state.json"
    return with_mask_curves(json.loads(file.read_bytes())["log_history"]) if file.is_file() else []


def with_mask_curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A log in which the mask has one curve: its statistics do not depend on whether a step trained or evaluated."""
    return [{**row, **{name: row[f"eval_{name}"] for name in MASK_CURVES if f"eval_{name}" in row}} for row in history]


def _image(axes: "Axes", values: np.ndarray, title: str, **ticks: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(values, cmap=_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set(**ticks)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_ticklocs().size:
            axis.set_major_locator(MaxNLocator(integer=True))
    return image


def _draw_times(
    figure: Any, soft: np.ndarray, grid: tuple[int, int, int], layers: Sequence[LayerAttention], share_alive: float
) -> None:
    axes = figure.subplots(1, 2 + bool(layers))
    _image(axes[0], time_by_time(soft, grid[0]), "time x time: mean", xlabel="time seen", ylabel="time of the token")
    kept = time_by_time((soft >= 0.5).astype(np.float32), grid[0])
    image = _image(axes[1], kept, "after the threshold of 0.5: share kept", xlabel="time seen")
    figure.colorbar(image, ax=axes[1], shrink=0.8)
    if layers:
        numbers = np.arange(1, len(layers) + 1)
        axes[2].bar(numbers - 0.2, [100 * layer.alive for layer in layers], 0.4, label="pairs alive", color="#00224e")
        axes[2].bar(
            numbers + 0.2,
            [100 * layer.others for layer in layers],
            0.4,
            label="attention to other tokens",
            color="#e8b800",
        )
        axes[2].set(
            title="each layer, on this clip",
            xlabel="layer",
            ylabel="%",
            ylim=(0, 140),
            yticks=range(0, 101, 20),
            xticks=numbers,
        )
        axes[2].title.set_fontsize(9)
        axes[2].tick_params(labelsize=8)
        axes[2].legend(fontsize=8, loc="upper center")


def _draw_places(figure: Any, soft: np.ndarray, grid: tuple[int, int, int]) -> None:
    """What the token in the middle sees at several times, before and after the threshold."""
    time, height, width = grid
    middle = time // 2, height // 2, width // 2
    seen = soft.reshape(*grid, *grid)[middle]
    first = max(0, min(middle[0] - _MAX_MOMENTS // 2, time - _MAX_MOMENTS))
    moments = range(first, min(time, first + _MAX_MOMENTS))
    figure.suptitle(
        f"Places seen by the token at time {middle[0]}, row {middle[1]}, column {middle[2]} (framed)", fontsize=9
    )
    axes = figure.subplots(2, len(moments), squeeze=False)
    for row, values in enumerate((seen, (seen >= 0.5).astype(np.float32))):
        for column, moment in enumerate(moments):
            _image(axes[row, column], values[moment], "" if row else f"time {moment}", xticks=[], yticks=[])
            if moment == middle[0]:
                corner = middle[2] - 0.5, middle[1] - 0.5
                axes[row, column].add_patch(_frame(corner))
        axes[row, 0].set_ylabel(("mask", "kept")[row], fontsize=8)


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="#d1001f", linewidth=2)


def _draw_growth(
    figure: Any, steps: Mapping[int, np.ndarray], history: Sequence[Mapping[str, Any]], times: int
) -> None:
    """The mask at several steps of training, and its statistics over all of them."""
    chosen = (
        [list(steps)[number] for number in np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))]
        if steps
        else []
    )
    axes = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [2], squeeze=False)[0]
    for each, step in zip(axes[:-1], chosen, strict=True):
        _image(each, time_by_time(steps[step], times), f"step {step:,}", xticks=[], yticks=[])
    for name, label in MASK_CURVES.items():
        points = {row["step"]: row[name] for row in history if name in row}
        if points:
            axes[-1].plot(list(points), list(points.values()), label=label, marker="." if len(points) < 30 else None)
    axes[-1].set(xlabel="step", ylim=(0, 1))
    axes[-1].tick_params(labelsize=8)
    axes[-1].grid(alpha=0.3)
    if axes[-1].lines:
        axes[-1].legend(fontsize=8)


__all__ = ["MASK_CURVES", "history_of_run", "mask_figure", "masks_of_run", "time_by_time", "with_mask_curves"]
