"""Heat maps of results of patching."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.patching.result import PatchingResult
from edgeprune.paths import save_figure

WIDTH, HEIGHT = 0.36, 0.2  # of a cell, inches
_UNITS = {"kl": "KL, nats", "logit_difference": "logit difference", "squared_error": "squared error"}
_SITES = {
    "residual": "residual stream",
    "attention_out": "attention output",
    "mlp_out": "MLP output",
    "z": "heads, output z",
    "head_out": "heads, what they write",
    "q": "heads, query",
    "k": "heads, key",
    "v": "heads, value",
}


class Panel(NamedTuple):
    """One heat map: its effects `[row, column]`, and the names of both."""

    title: str
    effect: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    row_axis: str
    column_axis: str


def panels(result: PatchingResult) -> list[Panel]:
    """The maps of a result: one for two axes; for three, one for each entry of the last; a single row for one."""
    title, effect = _SITES.get(result.what, result.what), result.effect
    if "mlps" in result.about:
        title += f" (MLPs between: {result.about['mlps']})"
    if effect.dim() == 1:
        return [Panel(title, effect[None], [""], result.labels[0], "", result.dims[0])]
    if effect.dim() == 2:
        rows, columns = result.labels
        return [Panel(title, effect, rows, columns, result.dims[0], result.dims[1])]
    rows, columns, last = result.labels
    return [
        Panel(f"{title}, {result.dims[2]} {name}", effect[..., number], rows, columns, *result.dims[:2])
        for number, name in enumerate(last)
    ]


def draw_heatmaps(results: Sequence[PatchingResult], path: str | Path) -> Path:
    """Draw results side by side to an image file; each has a scale of its own, symmetric about 0.

    Colours show the effect: white is none; red takes the metric towards the corrupted run, blue towards the clean one,
    or beyond it. Sites without a value are grey.

    Args:
        results: Results of one model, metric and direction.
        path: An image file, such as `.png` or `.pdf`.

    Raises:
        EdgepruneError: There is nothing to draw, or the results do not belong together.
    """
    from matplotlib.figure import Figure

    first = results[0]
    for name in ("model", "metric", "direction"):
        values = list(dict.fromkeys(getattr(result, name) for result in results))
        if len(values) > 1:
            raise EdgepruneError(f"{name} {values[0]!r} and {values[1]!r} do not go into one image; draw them apart")
    maps = [(panel, _limit(result)) for result in results for panel in panels(result)]
    across = min(len(maps), 3)
    down = -(-len(maps) // across)
    widths = [max(4, *(len(panel.columns) for panel, _ in maps[column::across])) for column in range(across)]
    width = max(4.5, WIDTH * sum(widths) + 1.9 * across)
    height = 0.8 + down * (HEIGHT * max(2, *(len(panel.rows) for panel, _ in maps)) + 1.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid: Any = figure.subplots(down, across, squeeze=False, width_ratios=widths)
    for axes, (panel, limit) in zip(grid.flat, maps, strict=False):
        image = _draw(axes, panel, limit)
        bar = figure.colorbar(image, ax=axes, aspect=max(8, 5 * height / down), pad=0.03)
        bar.ax.tick_params(labelsize=7, length=2)
    for axes in grid.flat[len(maps) :]:
        axes.axis("off")
    figure.suptitle("\n".join(_title(first, int(width * 13))), fontsize=9)
    save_figure(figure, Path(path), dpi=150)
    return Path(path)


def _limit(result: PatchingResult) -> float:
    """The largest effect either way."""
    known = result.effect[result.effect.isfinite()]
    if not len(known):
        raise EdgepruneError(f"{result.what}: no site has a value, for both runs have the same metric; nothing to draw")
    return max(float(known.abs().max()), 1e-6)


def _title(result: PatchingResult, width: int) -> list[str]:
    """Model, metric, direction, and what a colour says, in lines of at most `width` characters."""
    unit = _UNITS.get(result.metric, result.metric)
    what = f"{result.model or 'a model'}: effect on {unit}, {result.direction}"
    legend = "0: none, -1: the corrupted run" if result.direction == "noising" else "0: none, 1: the clean run"
    return textwrap.wrap(what, width) + textwrap.wrap(legend, width)


def _draw(axes: Any, panel: Panel, limit: float) -> Any:
    axes.set_facecolor("0.75")
    image = axes.imshow(panel.effect.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.column_axis, fontsize=8)
    axes.set_ylabel(panel.row_axis, fontsize=8)
    long = max(map(len, panel.columns)) > 3
    for axis, names in ((axes.xaxis, panel.columns), (axes.yaxis, panel.rows)):
        step = -(-len(names) // 32)  # labels stay readable
        ticks = range(0, len(names), step)
        axis.set_ticks(list(ticks), [names[tick] for tick in ticks])
    axes.tick_params(labelsize=7, length=2)
    if long:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks([edge - 0.5 for edge in range(1, len(panel.columns))], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, len(panel.rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    return image
