"""Settings of Edge Pruning: what is refused before a model is loaded, and what the optimizer gets."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from edgeprune.errors import EdgepruneError
from edgeprune.gates import AbstractGates
from edgeprune.methods.warm_start import WarmStart
from edgeprune.objectives.sparsity import AbstractSparsityTerm

AttentionOption = bool | Literal["alone"]


def check_numbers(
    rate: float, warmup: float, weight_decay: float, betas: Sequence[float], init_std: float, node_rate: float | None
) -> None:
    """Refuse numbers that the optimizer, or the first gates, cannot have.

    Raises:
        EdgepruneError: One is.
    """
    if rate <= 0 or not 0 <= warmup < 1 or weight_decay < 0:
        raise EdgepruneError(
            f"need learning_rate > 0, learning_rate_warmup in [0, 1) and weight_decay >= 0, got {rate}, "
            f"{warmup} and {weight_decay}"
        )
    if not all(0 <= beta < 1 for beta in betas):
        raise EdgepruneError(f"both betas must lie in [0, 1), got {tuple(betas)}")
    if init_std < 0 or (node_rate is not None and node_rate <= 0):
        raise EdgepruneError(f"need init_std >= 0 and node_learning_rate > 0, got {init_std} and {node_rate}")


def check_attention(
    option: AttentionOption, sparsity: float | None, estimator: str, node_gates: bool, start: WarmStart | None
) -> None:
    """Refuse what attention edges cannot be learned with.

    Args:
        option: `attention_edges`.
        sparsity: `attention_sparsity`.
        estimator: How the error's gradient is found.
        node_gates: Whether writers have gates.
        start: Where gates of edges start, if that is not the same for all.

    Raises:
        EdgepruneError: It is no such option, or does not go with the others.
    """
    if option not in (True, False, "alone"):
        raise EdgepruneError(f"attention_edges must be true, false or 'alone', got {option!r}")
    if sparsity is not None and not 0 < sparsity < 1:
        raise EdgepruneError(
            f"attention_sparsity must lie in (0, 1), got {sparsity}; 0.95 keeps 5 % of attention edges"
        )
    if not option:
        if sparsity is not None:
            raise EdgepruneError("attention_sparsity has nothing to act on: set attention_edges to true")
        return
    if option == "alone" and sparsity is not None:
        raise EdgepruneError(
            "attention_edges 'alone' is cut at the sparsities that are asked for: leave attention_sparsity out"
        )
    if estimator == "local":
        raise EdgepruneError("estimator 'local' flips edges alone: set it to pathwise, or leave attention_edges out")
    if option == "alone" and node_gates:
        raise EdgepruneError("attention_edges 'alone' leaves edges open: set it to true, or leave node_gates out")
    if option == "alone" and start is not None and (start.keep_below is None or start.layer_sparsity is not None):
        raise EdgepruneError(
            "attention_edges 'alone' trains no edges, of which a warm start can only close some: give "
            "warm_start.keep_below without layer_sparsity, or leave warm_start out"
        )


def optimizer_groups(
    rates: Iterable[tuple[AbstractGates, float]],
    terms: Iterable[AbstractSparsityTerm | None],
    betas: tuple[float, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of the optimizer: gates, each with its learning rate, descend; multipliers ascend without decay."""
    shared = {"betas": betas, "weight_decay": weight_decay, "maximize": False}
    groups: list[dict[str, Any]] = [{"params": list(gates.parameters()), "lr": rate, **shared} for gates, rate in rates]
    for term in terms:
        if term is not None and (multipliers := list(term.parameters())):
            groups.append({"params": multipliers, "lr": term.learning_rate, "weight_decay": 0.0, "maximize": True})
    return groups
