"""ACDC written plainly: one candidate, one run of the masked model. Used to check the fast one edge for edge."""

import random
import re

import torch
from torch import Tensor

from edgeprune.batch import IGNORE
from edgeprune.methods.problem import Problem

Item = tuple[str, list[str]]


def loss_of(problem: Problem, gates: Tensor) -> float:
    """Mean over all examples, one at a time, from the definition of each metric."""
    values: list[float] = []
    for batch, full, ablated in problem.batches_with_runs():
        circuit = problem.model(batch.clean, gates, ablated, batch.attention_mask, batch.positions).float()
        for row, mask in enumerate(batch.position_mask):
            ours, theirs = circuit[row][mask], full[row][mask]
            if problem.metric == "kl":
                p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
                values.append((p.exp() * (p - q)).sum(-1).mean().item())
            elif problem.metric == "squared_error":
                values.append((ours - theirs).square().sum(-1).mean().item())
            else:
                right, wrong = batch.targets[row][mask], batch.distractors[row][mask]
                assert IGNORE not in wrong
                steps = torch.arange(len(ours))
                values.append(-(ours[steps, right] - ours[steps, wrong]).mean().item())
    return sum(values) / len(values)


def sort_key(name: str) -> tuple[int, int]:
    """Late layers first; in a layer the MLP first; embeddings last."""
    if "embed" in name:
        return 1, 0
    return -int(re.findall(r"\d+", name)[0]), 0 if name[0] == "m" else 1


def senders(problem: Problem, reader: int, names: str, indices: str, seed: int) -> list[str]:
    graph = problem.model.graph
    visible = [name for column, name in enumerate(graph.writers) if graph.exists[reader, column]]
    groups: dict[str, list[str]] = {}
    for name in sorted(visible, key=sort_key):
        groups.setdefault(name.partition(".")[0], []).insert(0, name)
    rng = random.Random(f"{seed} {graph.readers[reader]}")

    def arrange(items: list, order: str) -> list:
        if order == "random":
            return rng.sample(items, len(items))
        return items[::-1] if order == "reverse" else items

    return [name for group in arrange(list(groups.values()), names) for name in arrange(group, indices)]


def heard(problem: Problem, gates: Tensor, reader: str) -> bool:
    graph = problem.model.graph
    arch = graph.arch
    if reader == "logits":
        return True
    if "." in reader:
        layer, head, kind = re.fullmatch(r"a(\d+)\.h(\d+)\.([qkv])", reader).groups()
        share = 1 if kind == "q" else arch.num_heads // arch.num_kv_readers
        nodes = [f"a{layer}.h{int(head) * share + number}" for number in range(share)]
    else:
        nodes = [reader]
    return any(gates[:, graph.writers.index(node)].any() for node in nodes)


def sequential(
    problem: Problem,
    tau: float,
    absolute: bool = False,
    names: str = "normal",
    indices: str = "normal",
    seed: int = 0,
    direct_edges: bool = False,
) -> tuple[set[str], dict[str, float]]:
    """Names of kept edges, and the effect of each edge that was tested."""
    graph = problem.model.graph
    gates = graph.all_open(problem.model.dtype)
    effects: dict[str, float] = {}
    tested: set[str] = set()
    for row, reader in reversed(list(enumerate(graph.readers))):
        layer = reader.partition(".")[0]
        if direct_edges and "." in reader and layer not in tested:
            tested.add(layer)
            inputs = [name for name in graph.readers if name.startswith(f"{layer}.")]
            for whole in sorted(inputs, key=graph.readers.index, reverse=True):
                if heard(problem, gates, whole):
                    without = gates.clone()
                    without[graph.readers.index(whole)] = 0
                    effect = loss_of(problem, without) - loss_of(problem, gates)
                    if (abs(effect) if absolute else effect) < tau:
                        gates = without
        if not heard(problem, gates, reader) or not gates[row].any():
            gates[row] = 0
            continue
        current = loss_of(problem, gates)
        for sender in senders(problem, row, names, indices, seed):
            column = graph.writers.index(sender)
            gates[row, column] = 0
            without = loss_of(problem, gates)
            effects[f"{sender}->{reader}"] = effect = without - current
            if (abs(effect) if absolute else effect) < tau:
                current = without
            else:
                gates[row, column] = 1
    return {graph.edge_name(*index) for index in gates.nonzero().tolist()}, effects
