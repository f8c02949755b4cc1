"""Attention patterns as an image: one row for each head, the circuit's run left, the full model's right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.paths import save_figure
from edgeprune.reading.prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edgeprune.reading.attention import AttentionPatterns

CELL = 0.17  # inches
_MARGIN = 1.4  # for labels, inches
_MOST_LABELS = 64  # tokens that still have a label each


def draw_attention(
    patterns: "AttentionPatterns", heads: Sequence[str], example: int = 0, path: str | Path | None = None
) -> "Figure":
    """Draw some heads' weights on one prompt. Rows are queries, columns keys; white is 0, dark blue is 1.

    Args:
        patterns: The weights.
        heads: Heads among them, from top to bottom.
        example: Which of the prompts.
        path: An image file to write as well, such as `.png` or `.svg`.

    Raises:
        EdgepruneError: A head or prompt is not there, or matplotlib does not know the file's format.
    """
    from matplotlib.figure import Figure

    weights = [(head, which, patterns.of(head, example, which)) for head in heads for which in ("circuit", "full")]
    if not weights:
        raise EdgepruneError("there are no heads to draw; name at least one")
    prompt = patterns.prompts[example]
    side = max(1.5, CELL * len(prompt))
    size = (2 * side + 2 * _MARGIN, len(heads) * (side + _MARGIN))
    figure = Figure(figsize=size, layout="constrained")
    grid: Any = figure.subplots(len(heads), 2, squeeze=False)
    images: list[Any] = []
    for axes, (head, which, own) in zip(grid.flat, weights, strict=True):
        images.append(_draw(axes, own, prompt, labelled=which == "circuit"))
        axes.set_title(f"{head}, {'circuit' if which == 'circuit' else 'full model'}", fontsize=9)
    bar = figure.colorbar(images[0], ax=grid, shrink=0.6 / len(heads), pad=0.02)
    bar.ax.tick_params(labelsize=7, length=2)
    if path is not None:
        try:
            save_figure(figure, Path(path), dpi=150, bbox_inches="tight")
        except ValueError as error:  # matplotlib names the formats it knows
            raise EdgepruneError(f"cannot draw to {path}: {error}") from None
    return figure


def _draw(axes: Any, weights: Tensor, prompt: Prompt, labelled: bool) -> Any:
    image = axes.imshow(weights.double().numpy(), cmap="Blues", vmin=0, vmax=1)
    step = -(-len(prompt) // _MOST_LABELS)
    ticks = list(range(0, len(prompt), step))
    labels = [_plain(prompt.labels[place]) for place in ticks]
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels if labelled else [""] * len(ticks))
    axes.tick_params(labelsize=6, length=1.5)
    return image


def _plain(label: str) -> str:
    """A label in which matplotlib finds no formula."""
    return label.replace("$", "\\$")
