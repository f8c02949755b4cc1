"""Attention patterns of heads in a circuit's run, beside those of the full model.

Weights are those of the run itself: queries and keys are what the partly closed edges make of them, and the model's own
kernel weighs them (`edgeprune.reading.attention_roles.kernel_weights`), so that mask, scale, rotary positions and
windows are the model's own whatever its family and kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from rich.table import Table
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.circuit_views import library
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.graph import EdgeGraph
from edgeprune.models.circuit_run import CircuitRun
from edgeprune.models.masked import MaskedModel
from edgeprune.nodes import writer_kind
from edgeprune.reading.attention_roles import HeadRoles, attention_to, head_roles, kernel_weights
from edgeprune.reading.prompts import Prompt, prompts_of, real_tokens

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Which = Literal["circuit", "full"]
LEAST = 0.05  # weights below it are left out of tables
_SHOWN_ROWS = 20


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
        for prompt, own, full in zip(self.prompts, self.circuit, self.full, strict=True):
            large = torch.maximum(own, full) >= least
            if queries == "scored":
                large &= torch.isin(torch.arange(len(prompt)), torch.tensor(prompt.scored))[:, None]
            for head, query, key in large.nonzero().tolist():
                found.append(
                    {
                        "head": self.heads[head],
                        "example": prompt.index,
                        "query": query,
                        "key": key,
                        "from": prompt.labels[query],
                        "to": prompt.labels[key],
                        "circuit": float(own[head, query, key]),
                        "full": float(full[head, query, key]),
                    }
                )
        return found

    def to_dataframe(self, least: float = LEAST) -> "pandas.DataFrame":
        """`rows` as a table of pandas, a library of the extra `analysis`."""
        columns = ["head", "example", "query", "key", "from", "to", "circuit", "full"]
        return library("pandas").DataFrame(self.rows(least), columns=columns)

    def plot(self, head: str, example: int = 0, path: str | Path | None = None) -> "Figure":
        """Draw one head's weights on one prompt, in the circuit and in the full model.

        Args:
            head: The head.
            example: Which of the prompts.
            path: An image file to write as well, such as `.png` or `.svg`.
        """
        from edgeprune.reading.figure import draw_attention

        return draw_attention(self, [head], example, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `heads`, and `prompts`, each with `index`, `tokens`, `roles`, `scored`, `circuit`, `full`.

        Weights are lists `[head][query][key]`, rounded to four decimals.
        """
        return {
            "heads": list(self.heads),
            "prompts": [
                {
                    "index": prompt.index,
                    "tokens": list(prompt.tokens),
                    "roles": {name: list(span) for name, span in prompt.roles.items()},
                    "scored": list(prompt.scored),
                    "circuit": _rounded(own),
                    "full": _rounded(full),
                }
                for prompt, own, full in zip(self.prompts, self.circuit, self.full, strict=True)
            ],
        }

    def __repr__(self) -> str:
        return f"AttentionPatterns({len(self.heads)} heads on {len(self.prompts)} prompts)"

    def __rich__(self) -> Table:
        rows = sorted(self.rows(queries="scored"), key=lambda row: -row["circuit"])
        table = Table(title=f"{self!r}: largest weights from where the answer is read", title_justify="left")
        for name in ("head", "example", "from", "to"):
            table.add_column(name)
        table.add_column("circuit", justify="right")
        table.add_column("full model", justify="right")
        for row in rows[:_SHOWN_ROWS]:
            texts = (row["head"], str(row["example"]), row["from"], row["to"])
            table.add_row(*texts, f"{row['circuit']:.3f}", f"{row['full']:.3f}")
        return table


def _rounded(weights: Tensor) -> list[Any]:
    return (weights.double() * 1e4).round().div(1e4).tolist()


# -------------------------------------------------------------------- from runs
def circuit_heads(circuit: Circuit) -> tuple[str, ...]:
    """Heads that matter in the circuit: a path of kept edges leads from them to the logits."""
    graph, keep = circuit.graph, circuit.keep
    heard = (keep & graph.reaching_logits(keep)[:, None]).any(0).tolist()
    return tuple(
        name for name, found in zip(graph.writers, heard, strict=True) if found and writer_kind(name) == "head"
    )


@torch.no_grad()
def attention_patterns(
    evaluator: Evaluator, circuit: Circuit, heads: Sequence[str] | None = None, tokenizer: Any = None
) -> AttentionPatterns:
    """Attention weights of heads in a circuit's run and in the full model's.

    Args:
        evaluator: Model, ablation and pairs; of long lists take `evaluator.limited(n)`.
        circuit: The circuit.
        heads: Any heads of the model; None: those of the circuit (`circuit_heads`).
        tokenizer: For the labels of tokens; see `prompts_of`.

    Raises:
        EdgepruneError: The circuit is of another graph, has no heads, or one asked for does not exist.
    """
    circuit.check_fits(evaluator.graph)
    chosen = circuit_heads(circuit) if heads is None else tuple(heads)
    if not chosen:
        raise EdgepruneError("no head of the circuit has a path to the logits; name `heads` to see others' attention")
    places = [_head_place(evaluator.graph, name) for name in chosen]
    prompts: list[Prompt] = []
    own: list[Tensor] = []
    full: list[Tensor] = []
    for batch in evaluator.batches:
        batch = batch.to(evaluator.model.device)
        everywhere = torch.eye(batch.clean.shape[1], device=batch.clean.device, dtype=torch.bool)
        parts = everywhere.expand(len(batch), -1, -1)
        run = _circuit_run(evaluator, batch, circuit.keep)
        found = _of_heads(attention_in(run, parts, {layer for layer, _ in places}), places)
        whole = attention_to(evaluator.model, batch.clean, batch.attention_mask, parts)
        other = _of_heads(dict(enumerate(whole)), places)
        prompts += prompts_of(batch, tokenizer)
        for row in range(len(batch)):
            span = real_tokens(batch, row)
            own.append(found[row, :, span, span].cpu())
            full.append(other[row, :, span, span].cpu())
    return AttentionPatterns(chosen, tuple(prompts), tuple(own), tuple(full))


@torch.no_grad()
def attention_in(run: CircuitRun, parts: Tensor, layers: set[int] | None = None) -> dict[int, Tensor]:
    """Attention that every token pays to sets of tokens in a circuit's run.

    Args:
        run: The circuit on one batch.
        parts: Bool or 0/1 `[batch, seq, part]`: which tokens each set has.
        layers: Which layers; None: all.

    Returns:
        By layer `[batch, seq, head, part]` in the model's dtype; rows of padding mean nothing.
    """
    context, shape = run.context(1), run.batch.clean.shape
    found: dict[int, Tensor] = {}
    for layer, values in enumerate(run.layers):
        if layers is None or layer in layers:
            qkv = (part.unflatten(0, shape) for part in values.qkv)
            q, k, _ = run.model.blocks[layer].heads(*qkv)
            found[layer] = kernel_weights(run.model, layer, q, k, parts, context)
    return found


def attention_by_role(evaluator: Evaluator, circuit: Circuit) -> tuple[HeadRoles, HeadRoles]:
    """Mean attention between the parts of the prompts, in the circuit's run and in the full model's; of all heads.

    Raises:
        EdgepruneError: The circuit is of another graph, or no prompt has a role.
    """
    circuit.check_fits(evaluator.graph)

    def in_circuit(batch: PairBatch, parts: Tensor) -> Tensor:
        return torch.stack(list(attention_in(_circuit_run(evaluator, batch, circuit.keep), parts).values()))

    model, batches, progress = evaluator.model, evaluator.batches, evaluator.progress
    return head_roles(model, batches, progress, in_circuit), head_roles(model, batches, progress)


def _circuit_run(evaluator: Evaluator, batch: PairBatch, keep: Tensor) -> CircuitRun:
    """The circuit on a batch that is on the model's device."""
    model: MaskedModel = evaluator.model
    _, ablated = evaluator.runs(batch, evaluator.split)
    return CircuitRun(model, batch, ablated, keep)


def _head_place(graph: EdgeGraph, name: str) -> tuple[int, int]:
    """Layer and head of a name such as `a3.h7`."""
    if name not in graph.writers or writer_kind(name) != "head":
        arch = graph.arch
        raise EdgepruneError(
            f"no head named {name!r} in this model; heads are a0.h0 to a{arch.num_layers - 1}.h{arch.num_heads - 1}"
        )
    layer, _, head = name[1:].partition(".h")
    return int(layer), int(head)


def _of_heads(found: dict[int, Tensor], places: Sequence[tuple[int, int]]) -> Tensor:
    """Weights of some heads, `[batch, head, query, key]`, from those by layer `[batch, query, head, key]`."""
    return torch.stack([found[layer][:, :, head] for layer, head in places], 1)
