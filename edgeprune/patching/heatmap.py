"""Heat maps of results of patching."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.patching.result import PatchingResult

CELL = 0.34  # inches
_UNITS = {"kl": "KL, nats", "logit_difference": "logit difference", "squared_error": "squared error"}
_SITES = {
    "residual": "residual stream",
    "attention_out": "attention output",
    "mlp_out": "MLP output",
    "z": "heads, output z",
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
    """Draw results side by side, on one scale, to an image file.

    Colours show the effect: 0 is white, no effect; red takes the metric towards the corrupted run, blue towards (or
    beyond) the clean one. The scale is symmetric about 0. Sites without a value are grey.

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
            raise EdgepruneError(f"results with {name} {values[0]!r} and {values[1]!r} share no scale; draw them apart")
    maps = [panel for result in results for panel in panels(result)]
    known = torch.cat([panel.effect[panel.effect.isfinite()] for panel in maps])
    if not len(known):
        raise EdgepruneError("no site has a value: the clean and the corrupted run have the same metric everywhere")
    limit = max(float(known.abs().max()), 1e-6)
    wide = max(len(panel.columns) for panel in maps)
    across = max(1, min(len(maps), 3, int(45 / max(wide, 6))))
    down = -(-len(maps) // across)
    width = across * (CELL * max(wide, 6) + 1.1) + 1.2
    height = down * (CELL * max(len(panel.rows) for panel in maps) + 1.5) + 0.6
    figure = Figure(figsize=(max(width, 5.5), max(height, 2.2)), layout="constrained")
    grid: Any = figure.subplots(down, across, squeeze=False)
    image: Any = None
    for axes, panel in zip(grid.flat, maps, strict=False):
        image = _draw(axes, panel, limit)
    for axes in grid.flat[len(maps) :]:
        axes.axis("off")
    unit = _UNITS.get(first.metric, first.metric)
    end = "clean run restored" if first.direction == "denoising" else "corrupted run reached"
    target = 1 if first.direction == "denoising" else -1
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 4 / height + 0.4), pad=0.02)
    bar.set_label(f"effect on {unit}\n(0: none, {target}: {end})", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"{first.model or 'model'}, {unit}, {first.direction}", fontsize=11)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # matplotlib names the formats it knows
        raise EdgepruneError(f"cannot draw to {path}: {error}") from None
    return Path(path)


def _draw(axes: Any, panel: Panel, limit: float) -> Any:
    axes.set_facecolor("0.75")
    image = axes.imshow(panel.effect.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="equal")
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
