"""Seconds that ACDC needs per 1,000 candidate edges: plain, with reuse, and with reuse and speculation.

    python benchmarks/acdc.py
    python benchmarks/acdc.py --at a11.h3.q a6.h3.q a0.h3.q --shares 0.05 1 --examples 16 --threads 1

GPT-2 small shape with random weights (seed 0, float32), 8 examples of 16 random tokens, the last position scored by KL.
A whole run has 32,491 candidates, so it is sampled: the logits, and in every other layer the MLP and one attention
reader, q, k and v in turn. At each the circuit is as a run has it there: all edges into earlier receivers open, of
those into later ones a given share, drawn at random. Candidates go at the same rate: losses are computed, but the
decisions are drawn, which fixes how much speculation wastes. The three kinds answer the same candidates of a receiver
one kind after the other; what starting a receiver costs is measured apart. Both are weighted by the receivers and
candidates that the sample stands for: an attention reader for all those of its layer and of the one below, an MLP
for two. With `--at` only the receivers of these names, with reuse and speculation: processor seconds to begin the
receiver and for 200 tests.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.graph import EdgeGraph
from edgeprune.methods.acdc import num_ahead, updated_rate
from edgeprune.methods.acdc_losses import AbstractLosses, DownstreamLosses, PlainLosses
from edgeprune.methods.acdc_order import sender_order
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel

KINDS = ("plain", "reuse", "speculative")


class Sample(NamedTuple):
    """A receiver, and how many receivers and candidates of a whole run it stands for."""

    reader: int
    receivers: int
    candidates: int


def make_problem(examples: int, seq: int) -> Problem:
    """Random weights, random tokens."""
    torch.manual_seed(0)
    model = MaskedModel(AutoModelForCausalLM.from_config(GPT2Config()).eval())
    clean, corrupted = torch.randint(0, 50257, (2, examples, seq))
    one = torch.ones(examples, 1, dtype=torch.long)
    batch = PairBatch(
        clean=clean, corrupted=corrupted, attention_mask=torch.ones_like(clean), positions=one * (seq - 1),
        position_mask=one.bool(), targets=one, distractors=one, index=torch.arange(examples),
    )  # fmt: skip
    return Problem(model, [batch], ReferenceRuns(model, "interchange", budget_gb=4.0), "kl")


def samples(graph: EdgeGraph) -> list[Sample]:
    """Late, middle and early receivers; every edge is represented once."""
    arch, chosen = graph.arch, [Sample(len(graph.readers) - 1, 1, graph.num_visible[-1])]
    for layer in range(arch.num_layers - 1, -1, -2):
        pair = [layer, layer - 1]
        first = [graph.first_reader(number) for number in pair]
        mlps = [number + arch.num_attention_readers for number in first]
        head = arch.num_heads * (layer // 2 % 3)  # q, k, v in turn
        per_reader = [graph.num_visible[number] for number in first]
        chosen.append(Sample(mlps[0], 2, sum(graph.num_visible[number] for number in mlps)))
        chosen.append(
            Sample(first[0] + head + layer % arch.num_heads, 2 * arch.num_attention_readers,
                   arch.num_attention_readers * sum(per_reader))
        )  # fmt: skip
    assert sum(sample.candidates for sample in chosen) == graph.num_edges
    assert sum(sample.receivers for sample in chosen) == len(graph.readers)
    return chosen


def circuit_at(graph: EdgeGraph, reader: int, share: float) -> Tensor:
    """The circuit when `reader` is begun, if a share of the edges of later receivers was kept."""
    noise = torch.rand(graph.shape, generator=torch.Generator().manual_seed(reader))
    later = torch.arange(len(graph.readers))[:, None] > reader
    return graph.exists & ((noise < share) | ~later)


def answer(losses: AbstractLosses, asked: list[int], kept: set[int], rate: float, most: int) -> float:
    """Decide on all of `asked` as the method does, at most `most` at once; returns the rate of removals after it."""
    closed: list[int] = []
    while asked:
        some = asked[: num_ahead(rate, 0.15, most)]
        losses.prefixes(closed, some)
        removed = next((number for number, writer in enumerate(some) if writer in kept), len(some))
        closed += some[:removed]
        decided = some[: removed + 1]
        for writer in decided:
            rate = updated_rate(rate, writer not in kept)
        asked = asked[len(decided) :]
    return rate


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(problem: Problem, share: float, stretch: int, max_ahead: int) -> dict[str, list[dict[str, float]]]:
    """For each kind and sample: seconds to begin the receiver, seconds per candidate."""
    graph = problem.model.graph
    makers = {"plain": PlainLosses(problem)} | {kind: DownstreamLosses(problem, 4.0, max_ahead) for kind in KINDS[1:]}
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    rate = 1 - share
    for sample in samples(graph):
        keep = circuit_at(graph, sample.reader, share)
        asked = sender_order(graph, sample.reader, "normal", "normal", 0)[:stretch]
        rng = random.Random(sample.reader)
        kept = {writer for writer in asked if rng.random() < share}
        for kind in KINDS:
            losses = makers[kind]
            begin = timed(lambda losses=losses, keep=keep, sample=sample: losses.begin(keep, (sample.reader,)))
            some = asked[: max(1, stretch // 4)] if kind == "plain" else asked  # plain costs the same for each
            most = max_ahead if kind == "speculative" else 1
            start = time.perf_counter()
            after = answer(losses, some, kept, rate, most)
            seconds = (time.perf_counter() - start) / len(some)
            rate = after if kind == "speculative" else rate
            rows[kind].append({"begin": begin, "candidate": seconds})
        print(
            graph.readers[sample.reader], {kind: round(rows[kind][-1]["candidate"] * 1e3) for kind in KINDS}, flush=True
        )
    return rows


def measure_at(problem: Problem, names: Sequence[str], share: float, stretch: int, max_ahead: int) -> None:
    """Print rows of a table: processor seconds to begin each receiver, and for 200 tests there."""
    graph, losses = problem.model.graph, DownstreamLosses(problem, 4.0, max_ahead)
    losses.begin(graph.exists, (0,))  # runs of the batch are made once
    for name in names:
        reader = graph.readers.index(name)
        asked = sender_order(graph, reader, "normal", "normal", 0)[:stretch]
        rng, keep = random.Random(reader), circuit_at(graph, reader, share)
        kept = {writer for writer in asked if rng.random() < share}
        start = time.process_time()
        losses.begin(keep, (reader,))
        begun = time.process_time()
        answer(losses, asked, kept, 1 - share, max_ahead)
        tests = (time.process_time() - begun) * 200 / len(asked)
        print(f"| {name} | {share:.0%} | {begun - start:.2f} | {tests:.1f} |", flush=True)


def whole(chosen: Sequence[Sample], rows: list[dict[str, float]]) -> float:
    """Seconds of a whole run."""
    return sum(
        sample.receivers * row["begin"] + sample.candidates * row["candidate"]
        for sample, row in zip(chosen, rows, strict=True)
    )


def main() -> None:
    """Measure at each share, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.3, 1.0])
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--seq", type=int, default=16)
    parser.add_argument("--stretch", type=int, default=24, help="candidates per receiver")
    parser.add_argument("--max-ahead", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at", nargs="+", help="names of receivers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = make_problem(options.examples, options.seq)
    graph, lines = problem.model.graph, list[str]()
    if options.at:
        print("| receiver | edges kept | to begin it, s | 200 tests, s |", "|---|---:|---:|---:|", sep="\n")
        for share in options.shares:
            measure_at(problem, options.at, share, options.stretch, options.max_ahead)
        return
    for share in options.shares:
        rows = measure(problem, share, options.stretch, options.max_ahead)
        total = {kind: whole(samples(graph), rows[kind]) for kind in KINDS}
        per_thousand = {kind: seconds / graph.num_edges * 1000 for kind, seconds in total.items()}
        lines.append(
            f"| {share:.0%} | "
            + " | ".join(f"{per_thousand[kind]:.1f}" for kind in KINDS)
            + " | "
            + " | ".join(f"{total['plain'] / total[kind]:.1f}" for kind in KINDS[1:])
            + " |"
        )
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"options": vars(options), "torch": torch.__version__, "peak": " ".join(peak.split()[1:])}))
    print("| edges kept | plain | reuse | reuse and speculation | times: reuse | reuse and speculation |")
    print("|---|---|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main()
