"""A compiled transformer with edges closed, in the most literal way: every reader sums its writers anew."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.batch import IGNORE
from edgeprune.compiled import Case, CompiledTransformer, cases
from edgeprune.graph import ArchSpec, EdgeGraph


def graph_of(model: CompiledTransformer) -> EdgeGraph:
    config = model.config
    heads = config.num_attention_heads
    return EdgeGraph(
        ArchSpec(
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=heads,
            split_embedding=True,
            has_mlp=config.intermediate_size > 0,
        )
    )


def forward(
    model: CompiledTransformer,
    ids: Tensor,
    closed: Collection[str] = (),
    ablated: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits `[batch, seq, d_out]` and all writers' outputs; a closed edge carries `ablated[writer]` or zero.

    No padding. The shared output bias of attention has no writer: it reaches all later readers.
    """
    config, closed = model.config, set(closed)
    writers: dict[str, Tensor] = {
        "tok_embed": model.tok_embed.weight[ids],
        "pos_embed": model.pos_embed.weight[: ids.shape[1]].expand(*ids.shape, -1),
    }
    shared = torch.zeros_like(writers["tok_embed"])

    def read(reader: str) -> Tensor:
        total = shared
        for writer, value in writers.items():
            if f"{writer}->{reader}" in closed:
                value = ablated[writer] if ablated else torch.zeros_like(value)
            total = total + value
        return total

    for number, layer in enumerate(model.layers):
        attn, found = layer.attn, {}
        for head in range(config.num_attention_heads):
            name, cut = f"a{number}.h{head}", slice(head * config.head_dim, (head + 1) * config.head_dim)
            q, k, v = (
                read(f"{name}.{kind}") @ getattr(attn, f"{kind}_proj").weight[cut].T
                + getattr(attn, f"{kind}_proj").bias[cut]
                for kind in "qkv"
            )
            scores = q @ k.transpose(1, 2) * config.attn_scale
            if config.causal:
                later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.inf)
            found[name] = scores.softmax(-1) @ v @ attn.o_proj.weight[:, cut].T
        writers |= found
        shared = shared + attn.o_proj.bias
        if layer.mlp is not None:
            hidden = (read(f"m{number}") @ layer.mlp.fc_in.weight.T + layer.mlp.fc_in.bias).clamp(min=0)
            writers[f"m{number}"] = hidden @ layer.mlp.fc_out.weight.T + layer.mlp.fc_out.bias
    return read("logits") @ model.unembed.weight.T, writers


class Runs(NamedTuple):
    """Inputs of one length and what closing edges is held against.

    `ids` `[batch, seq]`; `asked`, where the program specifies the output, bool `[batch, seq]`; `full`, the output of
    the whole model; `ablated`, what closed edges carry (None: zero).
    """

    ids: Tensor
    asked: Tensor
    full: Tensor
    ablated: dict[str, Tensor] | None


def all_edges(model: CompiledTransformer) -> set[str]:
    graph = graph_of(model)
    return {graph.edge_name(*index) for index in graph.exists.nonzero().tolist()}


def all_runs(name: str, model: CompiledTransformer, ablation: str) -> list[Runs]:
    """Every valid input of a program, one batch per length; under interchange, with two pairings of the inputs."""
    by_length: dict[int, list[Case]] = defaultdict(list)
    for case in cases(name):
        by_length[len(case[0])].append(case)
    runs = []
    for group in by_length.values():
        ids = torch.tensor([row for row, _ in group])
        asked = torch.tensor([[False] + [value != IGNORE for value in outputs] for _, outputs in group])
        full = forward(model, ids)[0]
        if ablation == "zero":
            runs.append(Runs(ids, asked, full, None))
        else:
            runs += [Runs(ids, asked, full, forward(model, other)[1]) for other in (ids.flip(0), ids.roll(1, 0))]
    return runs


def change(model: CompiledTransformer, runs: list[Runs], closed: Collection[str]) -> float:
    """Largest change of any output that the program specifies."""
    return max(
        (forward(model, run.ids, closed, run.ablated)[0] - run.full)[run.asked].abs().max().item() for run in runs
    )
