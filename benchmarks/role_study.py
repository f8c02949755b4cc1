r"""Edges at roles against plain edges: how many are needed for the same KL, and do they lie where the literature says?

    edgeprune fit --config configs/ioi_roles_smollm2.yaml --data.task.init_args.num_validation 200 \
        --data.task.init_args.num_test 1000
    python benchmarks/frontier.py run ioi --only edge_pruning --seeds 0 --folder runs/frontier
    python benchmarks/role_study.py --roles runs/ioi_roles_smollm2/version_0 \
        --plain runs/frontier/ioi/edge_pruning/0-s0/fit/version_0 --json OUT.json --plot OUT.png

A plain edge is one at every role: the plain circuit is taken to the graph with roles, and dangling edges at roles are
dropped from both kinds. Where a plain circuit's KL lies between two of the circuits with roles, the number that these
would need is read off between them, linear in the logarithms.

Heads are put into groups by the full model's attention on clean prompts, as IOI's literature (arXiv 2211.00593) names
them: from END to IO (name movers), from END to S2 (S-inhibition), from S2 to S1 (duplicate tokens), from S2 to S1+1
(induction), from S1+1 to S1 (previous token), where the share is `SHARE` or more; a head may be in several.
"""

import argparse
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from markdown_tables import markdown

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.console import ProgressReporter
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.measure import gates_of
from edgeprune.models.loading import load_model
from edgeprune.nodes import node_names, nodes_of_readers, reader_kind
from edgeprune.reading.attention_roles import HeadRoles, head_roles

mpl.use("Agg")

SHARE = 0.3  # of a query's attention, for a head to be in a group
GROUPS = {  # from, to
    "name mover": ("END", "IO"),
    "S-inhibition": ("END", "S2"),
    "duplicate token": ("S2", "S1"),
    "induction": ("S2", "S1+1"),
    "previous token": ("S1+1", "S1"),
}
KINDS = {"queries": ("q",), "keys and values": ("k", "v")}
MEASURES = ("kl", "logit_difference", "accuracy", "exact_match")
Json = dict[str, Any]


def snapshots(folder: Path) -> list[Circuit]:
    """The circuits of a run, the largest first."""
    files = sorted((folder / "circuits").glob("sparsity-*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} has no snapshots in `circuits`")
    return [Circuit.load(file) for file in files]


# -------------------------------------------------------------------- size
def row(kind: str, circuit: Circuit, values: Sequence[float]) -> Json:
    """Sizes and figures; a circuit of the graph with roles, without what dangles."""
    union = circuit.union()
    sizes = {"edges_at_roles": circuit.num_edges, "edges": union.num_edges, "nodes": len(union.nodes())}
    roles = dict(zip(circuit.roles, circuit.keep.sum((1, 2)).tolist(), strict=True))
    return {"kind": kind, **sizes, **dict(zip(MEASURES, values, strict=True)), "by_role": roles}


def size_at(rows: Sequence[Json], kl: float, what: str) -> float | None:
    """Size at which a frontier has that KL, between two of its circuits; None outside."""
    for larger, smaller in pairwise(rows):
        low, high = larger["kl"], smaller["kl"]
        if low <= kl <= high:
            share = math.log(kl / low) / math.log(high / low)
            return larger[what] * (smaller[what] / larger[what]) ** share
    return None


# -------------------------------------------------------------------- places
def group_heads(attention: HeadRoles) -> dict[str, list[str]]:
    """Heads of each group, of the whole model."""
    found: dict[str, list[str]] = {}
    for group, (query, key) in GROUPS.items():
        shares = attention.patterns[:, attention.queries.index(query), attention.keys.index(key)]
        found[group] = [head for head, share in zip(attention.heads, shares.tolist(), strict=True) if share >= SHARE]
    return found


def places(circuit: Circuit, heads: Sequence[str]) -> Json:
    """Of edges into the queries, and into keys and values, of these heads: how many at each role."""
    graph, numbers = circuit.graph, {name: place for place, name in enumerate(node_names(circuit.graph))}
    wanted = {numbers[head] for head in heads}
    readers = [bool(wanted & set(nodes)) for nodes in nodes_of_readers(graph)]
    found: Json = {}
    for name, kinds in KINDS.items():
        mine = torch.tensor([
            own and reader_kind(reader) in kinds for own, reader in zip(readers, graph.readers, strict=True)
        ])  # fmt: skip
        found[name] = dict(zip(circuit.roles, circuit.keep[:, mine].sum((1, 2)).tolist(), strict=True))
    return found


# -------------------------------------------------------------------- all
def study(options: argparse.Namespace) -> Json:
    """Run both kinds of circuits on the test pairs, and count."""
    with_roles, plain = snapshots(options.roles), snapshots(options.plain)
    spec = with_roles[0].graph.roles
    if spec is None:
        raise SystemExit(f"{options.roles}: these circuits have no roles")
    data = read_data_config(str(options.roles / "config.yaml"))
    model = load_model(with_roles[0].header["model"], kv_readers="group")
    batches = pair_batches(data, "test", options.limit, data.eval_batch_size)
    model.use_roles(spec)
    kinds = ["plain"] * len(plain) + ["roles"] * len(with_roles)
    circuits = [one.without_dangling() for one in (*(one.with_roles(spec) for one in plain), *with_roles)]
    with ProgressReporter(stderr=True) as bars:
        runs = ReferenceRuns(model, "interchange", 2.0)
        evaluator = Evaluator(model, runs, batches, "test", MEASURES, bars.report)
        figures = evaluator([gates_of(circuit) for circuit in circuits]).figures().tolist()
        attention = head_roles(model, batches, bars.report)
    rows = [row(*each) for each in zip(kinds, circuits, figures, strict=True)]
    frontier = [one for one in rows if one["kind"] == "roles"]
    equal = [
        {"kl": one["kl"], "plain": one[what], "roles": size_at(frontier, one["kl"], what), "size": what}
        for what in ("edges_at_roles", "edges")
        for one in rows
        if one["kind"] == "plain"
    ]
    groups = group_heads(attention)
    chosen = circuits[len(plain) :]
    by_group = [
        {"edges_at_roles": circuit.num_edges, "group": group, "heads": kept, **places(circuit, kept)}
        for circuit in chosen
        for group, heads in groups.items()
        for kept in [[head for head in heads if head in circuit.union().nodes()]]
    ]
    existing = [
        {"group": group, "heads": heads, **places(Circuit(model.graph, model.graph.exists, None, {}), heads)}
        for group, heads in groups.items()
    ]
    pairs = evaluator.num_examples
    return {"pairs": pairs, "share": SHARE, "circuits": rows, "equal": equal, "places": by_group, "existing": existing}


def tables(result: Json) -> str:
    """In Markdown."""
    roles = list(result["circuits"][0]["by_role"])
    heads = ["circuit", "edges at roles", "edges", "KL", "logit diff.", "accuracy", *roles]
    lines = [
        [one["kind"], f"{one['edges_at_roles']:,}", f"{one['edges']:,}"]
        + [f"{one[name]:.3f}" for name in ("kl", "logit_difference", "accuracy")]
        + [f"{count:,}" for count in one["by_role"].values()]
        for one in result["circuits"]
    ]
    parts = [markdown(heads, lines)]
    lines = [
        [f"{one['kl']:.3f}", one["size"].replace("_", " "), f"{one['plain']:,}"]
        + ([f"{one['roles']:,.0f}", f"{one['roles'] / one['plain']:.2f}"] if one["roles"] else ["-", "-"])
        for one in result["equal"]
    ]
    parts.append(markdown(["KL", "what is counted", "plain", "with roles", "ratio"], lines))
    lines = [
        [f"{one['edges_at_roles']:,}", one["group"], ", ".join(one["heads"]) or "-", kind]
        + [str(one[kind][role]) for role in roles]
        for one in result["places"][-2 * len(GROUPS) :]  # of the two smallest circuits
        for kind in KINDS
    ]
    parts.append(markdown(["circuit of", "heads", "which", "edges into", *roles], lines))
    return "\n\n".join(parts)


def plot(result: Json, path: Path) -> None:
    """KL against size, and where the edges of each group of heads are in the smallest circuit."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), gridspec_kw={"width_ratios": [1, 1.2]})
    for kind, marker in (("plain", "o"), ("roles", "s")):
        rows = [one for one in result["circuits"] if one["kind"] == kind]
        label = {"plain": "plain edges, at every role", "roles": "edges at roles"}[kind]
        left.plot([one["edges_at_roles"] for one in rows], [one["kl"] for one in rows], marker=marker, label=label)
    left.set(xscale="log", yscale="log", xlabel="edges at roles", ylabel="KL(full model || circuit)")
    left.legend(frameon=False)
    roles = list(result["circuits"][0]["by_role"])
    last = result["places"][-len(GROUPS) :]
    size = last[0]["edges_at_roles"]
    names = [(one, kind) for one in last for kind in KINDS]
    counts = torch.tensor([[one[kind][role] for role in roles] for one, kind in names], dtype=torch.float64)
    right.imshow(counts / counts.sum(1, keepdim=True).clamp(min=1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(counts.int().tolist()):
        top = max(line)
        for x, count in enumerate(line):
            colour = "white" if count > 0.6 * sum(line) and count == top else "black"
            right.text(x, y, str(count), ha="center", va="center", fontsize=8, color=colour)
    right.set_xticks(range(len(roles)), roles)
    right.set_yticks(range(len(names)), [f"{one['group']}: {kind}" for one, kind in names], fontsize=8)
    right.set_title(f"Edges into groups of heads by role, circuit of {size:,}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is not in the file yet, print tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", type=Path, help="folder of the run with roles")
    parser.add_argument("--plain", type=Path, help="folder of the run without")
    parser.add_argument("--limit", type=int, help="the first so many test pairs; default: all")
    parser.add_argument("--json", type=Path, required=True, help="figures; read if --roles is not given")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.roles:
        options.json.write_text(json.dumps(study(options), indent=1) + "\n")
    result = json.loads(options.json.read_text())
    print(tables(result))
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
