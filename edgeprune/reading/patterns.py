"""Attention weights of heads on prompts, in a circuit's run beside the full model's: as values, a table, an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from rich.table import Table
from torch import Tensor

from edgeprune.circuit_views import library
from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_fields
from edgeprune.paths import save_figure
from edgeprune.reading.prompts import Prompt
from edgeprune.tables import Numbers, table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Which = Literal["circuit", "full"]
LEAST = 0.05  # weights below it are left out of tables
_COLUMNS = ("head", "example", "query", "key", "from", "to", "circuit", "full")
_SHOWN_ROWS = 20
_CELL = 0.17  # inches of an image
_MARGIN = 1.4  # for labels, inches
_MOST_LABELS = 64  # tokens that still have a label each


@final
@dataclass(frozen=True, eq=False)
class AttentionPatterns:
    """Attention weights of some heads on some prompts.

    Attributes:
        heads: Names such as `a3.h7`, H of them.
        prompts: The clean prompts.
        circuit: Weights in the circuit's run, one `[H, query, key]` for each prompt, in the model's dtype, on the CPU.
            Rows sum to 1, of models with attention sinks (gpt-oss) to less: the rest goes to the head's sink, which is
            no token and adds nothing to its values.
        full: Likewise in the full model's run.
    """

    heads: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    circuit: tuple[Tensor, ...]
    full: tuple[Tensor, ...]

    def of(self, head: str, example: int = 0, which: Which = "circuit") -> Tensor:
        """Weights of one head on one prompt, `[query, key]`.

        Raises:
            EdgepruneError: The head or the prompt is not among those here.
        """
        if head not in self.heads:
            raise EdgepruneError(f"no pattern of head {head!r} here; there are {', '.join(self.heads)}")
        if not 0 <= example < len(self.prompts):
            raise EdgepruneError(f"example must be 0 to {len(self.prompts) - 1}, the prompts read, got {example}")
        return (self.circuit if which == "circuit" else self.full)[example][self.heads.index(head)]

    def rows(self, least: float = LEAST, queries: Literal["all", "scored"] = "all") -> list[dict[str, Any]]:
        """A row for each weight of at least `least` in either run.

        Args:
            least: Weights below it in both runs are left out.
            queries: From which tokens: all, or those at which the answer is read.

        Returns:
            Each with `head`, `example` (number in the split), `query`, `key` (positions), `from`, `to` (their labels),
            `circuit`, `full`.
        """
        found: list[dict[str, Any]] = []
        for prompt, circuit, full in zip(self.prompts, self.circuit, self.full, strict=True):
            large = torch.maximum(circuit, full) >= least
            if queries == "scored":
                large &= torch.isin(torch.arange(len(prompt)), torch.tensor(prompt.scored))[:, None]
            for head, query, key in large.nonzero().tolist():
                labels = (prompt.labels[query], prompt.labels[key])
                weights = (float(run[head, query, key]) for run in (circuit, full))
                values = (self.heads[head], prompt.index, query, key, *labels, *weights)
                found.append(dict(zip(_COLUMNS, values, strict=True)))
        return found

    def to_dataframe(self, least: float = LEAST) -> "pandas.DataFrame":
        """`rows` as a table of pandas, a library of the extra `analysis`."""
        return library("pandas").DataFrame(self.rows(least), columns=list(_COLUMNS))

    def plot(self, head: str, example: int = 0, path: str | Path | None = None) -> "Figure":
        """Draw one head's weights on one prompt, in the circuit and in the full model.

        Args:
            head: The head.
            example: Which of the prompts.
            path: An image file to write as well, such as `.png` or `.svg`.
        """
        return draw_attention(self, [head], example, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `heads`, and `prompts`, each with `index`, `tokens`, `roles`, `scored`, `circuit`, `full`.

        Weights are lists `[head][query][key]`, rounded to four decimals.
        """
        runs = zip(self.prompts, self.circuit, self.full, strict=True)
        prompts = [
            json_fields(prompt, circuit=_rounded(circuit), full=_rounded(full)) for prompt, circuit, full in runs
        ]
        return {"heads": list(self.heads), "prompts": prompts}

    def __repr__(self) -> str:
        return f"AttentionPatterns({len(self.heads)} heads on {len(self.prompts)} prompts)"

    def __rich__(self) -> Table:
        rows = sorted(self.rows(queries="scored"), key=lambda row: -row["circuit"])
        columns = ["head", Numbers("example"), "from", "to", Numbers("circuit"), Numbers("full model")]
        names = ("head", "example", "from", "to", "circuit", "full")
        shown = [[row[name] for name in names] for row in rows[:_SHOWN_ROWS]]
        return table(f"{self!r}: largest weights from where the answer is read", columns, shown)


def _rounded(weights: Tensor) -> list[Any]:
    return (weights.double() * 1e4).round().div(1e4).tolist()


# -------------------------------------------------------------------- as an image
def draw_attention(
    patterns: AttentionPatterns, heads: Sequence[str], example: int = 0, path: str | Path | None = None
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
    side = max(1.5, _CELL * len(prompt))
    size = (2 * side + 2 * _MARGIN, len(heads) * (side + _MARGIN))
    figure = Figure(figsize=size, layout="constrained")
    grid: Any = figure.subplots(len(heads), 2, squeeze=False)
    images: list[Any] = []
    for axes, (head, which, shown) in zip(grid.flat, weights, strict=True):
        images.append(_draw(axes, shown, prompt, labelled=which == "circuit"))
        axes.set_title(f"{head}, {'circuit' if which == 'circuit' else 'full model'}", fontsize=9)
    bar = figure.colorbar(images[0], ax=grid, shrink=0.6 / len(heads), pad=0.02)
    bar.ax.tick_params(labelsize=7, length=2)
    if path is not None:
        save_figure(figure, Path(path), dpi=150, bbox_inches="tight")
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
