"""The same work by other people's programs, side by side with ours: CPU seconds, peak memory, and whether they agree.

    python benchmarks/peers.py --auto-circuit-python AC/bin/python --circuitkit-python CK/bin/python
    python benchmarks/peers.py --size small --out peers.json

A tool takes part if it is given. auto-circuit and CircuitKIT come from PyPI, each in an environment of its own; EAP-IG
and ACDC are folders with their sources (the one that holds `eap` or `acdc`), run by `--lens-python`, a Python with
TransformerLens and what they need. Every piece of work is a process of its own (`peers_work.py`) with one thread;
seconds are those of its processor for the work alone, without imports and loading; peak memory is that of the process.

GPT-2 small's shape with random weights, made once, 16 pairs of 16 random tokens in one batch, float32, the last token
scored: the difference of two logits, for ACDC KL. Work:

- EAP.
- EAP-IG over inputs, 5 steps. auto-circuit's moves all gates at once, so its numbers are other ones. CircuitKIT's steps
  are 1 to 5, EAP-IG's and ours 0 to 4: ours are moved to 1 to 5 where they are compared with it.
- Evaluation of a circuit and, in the same process, of a further one, both cut from our EAP scores, without loose ends.
- ACDC's tests of all edges into query heads of the last and of the middle layer, as many heads as have 200 edges,
  scaled to 200, every other edge in place. Tau is what 80 % of our effects lie below where all tested edges go.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from markdown_tables import markdown
from transformers import GPT2Config, GPT2LMHeadModel

from edgeprune.graph import EdgeGraph
from edgeprune.methods.acdc_order import sender_order
from edgeprune.methods.selection import prune_dangling, top_n
from edgeprune.models.loading import load_model

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "small": {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 500, "n_positions": 64},
}
WORK = {
    "eap": "EAP, s a pair",
    "eap_ig": "EAP-IG, 5 steps, s a pair",
    "evaluate": "evaluation of a circuit; of a further one, s a pair",
    "acdc_last": "ACDC, 200 tests, last layer, s",
    "acdc_middle": "ACDC, 200 tests, middle layer, s",
}
TESTS = 200
Found = dict[str, Any]


class Tool(NamedTuple):
    """What runs it, where its sources are, what it can do, and why it is missing."""

    python: Path | None
    sources: Path | None
    work: Sequence[str]
    missing: str


def tools(options: argparse.Namespace) -> dict[str, Tool]:
    """All, ours first."""
    gradients, tests = ["eap", "eap_ig", "evaluate"], ["acdc_last", "acdc_middle"]
    lens, everything = options.lens_python, list(WORK)
    return {
        "edgeprune": Tool(Path(sys.executable), None, everything, ""),
        "EAP-IG": Tool(lens if options.eap_ig else None, options.eap_ig, gradients, "--eap-ig, --lens-python"),
        "CircuitKIT": Tool(options.circuitkit_python, None, gradients, "--circuitkit-python"),
        "auto-circuit": Tool(options.auto_circuit_python, None, everything, "--auto-circuit-python"),
        "ACDC": Tool(lens if options.acdc else None, options.acdc, tests, "--acdc, --lens-python"),
    }


# ---------------------------------------------------------------- the problem
def make_folder(folder: Path, size: str, examples: int, seq: int) -> EdgeGraph:
    """Model, pairs and ACDC's edges; the circuits come from our scores."""
    torch.manual_seed(0)
    config = GPT2Config(**SHAPES[size], initializer_range=0.05, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    clean, corrupted = torch.randint(0, config.vocab_size, (2, examples, seq)).tolist()
    right, wrong = torch.randint(0, config.vocab_size, (2, examples)).tolist()
    pairs = {"clean": clean, "corrupted": corrupted, "right": right, "wrong": wrong}
    (folder / "pairs.json").write_text(json.dumps(pairs))
    graph = load_model(str(folder / "model")).graph
    middle, last = graph.arch.num_layers // 2, graph.arch.num_layers - 1
    tests = {"tau": {}, "acdc_last": tested(graph, last), "acdc_middle": tested(graph, middle)}
    (folder / "tests.json").write_text(json.dumps(tests))
    return graph


def tested(graph: EdgeGraph, layer: int) -> list[str]:
    """Edges into the query readers of a layer, last head first, until there are enough."""
    edges = list[str]()
    for head in reversed(range(graph.arch.num_heads)):
        reader = graph.readers.index(f"a{layer}.h{head}.q")
        edges += [graph.edge_name(reader, writer) for writer in sender_order(graph, reader, "normal", "normal", 0)]
        if len(edges) >= TESTS:
            break
    return edges


def cut_circuits(folder: Path, graph: EdgeGraph, scores: Mapping[str, float]) -> None:
    """The top 5 % and the top 20 % of edges, without those that lie on no path."""
    matrix = torch.zeros(graph.shape)
    for edge, score in scores.items():
        matrix[graph.index(edge)] = score
    kept = [prune_dangling(graph, top_n(graph, matrix, graph.num_edges // share, absolute=True)) for share in (20, 5)]
    names = [[graph.edge_name(*cell) for cell in keep.nonzero().tolist()] for keep in kept]
    (folder / "circuits.json").write_text(json.dumps(names))


def set_tau(folder: Path, work: str, effects: Sequence[float]) -> None:
    """So that four edges of five go, by `effects` of a run in which all went."""
    content = json.loads((folder / "tests.json").read_text())
    content["tau"][work] = torch.tensor(effects).quantile(0.8).item()
    (folder / "tests.json").write_text(json.dumps(content))


# ---------------------------------------------------------------- runs
def run(name: str, tool: Tool, work: str, folder: Path) -> Found:
    """One piece of work in a process of its own; what it said last, if it failed."""
    result = folder / f"{name}_{work}.json"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = {} if name == "edgeprune" else {"PYTHONPATH": str(tool.sources or "")}
    script = [str(Path(__file__).with_name("peers_work.py")), name, work, str(folder), str(result)]
    done = subprocess.run(
        [str(tool.python), *script], env={**os.environ, **threads, **paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    if done.returncode:
        return {"failed": ((done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"])[-1]}
    return json.loads(result.read_text())


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks, float64."""
    return values.argsort().argsort().double()


def agreement(own: Found, other: Found, *, from_1: bool) -> Found:
    """How far another tool's numbers are from ours; from step 1 on, where its integrated gradients begin there."""
    if from_1 and "scores_from_1" in own:
        own = {"scores": own["scores_from_1"]}
    if "scores" in own and "scores" in other:
        if own["scores"].keys() != other["scores"].keys():
            return {"other edges": len(own["scores"].keys() ^ other["scores"].keys())}
        ours = torch.tensor(list(own["scores"].values()), dtype=torch.float64)
        theirs = torch.tensor([other["scores"][edge] for edge in own["scores"]], dtype=torch.float64)
        return {
            "largest difference / largest score": ((ours - theirs).abs().max() / ours.abs().max()).item(),
            "Spearman": torch.corrcoef(torch.stack([ranks(ours), ranks(theirs)]))[0, 1].item(),
        }
    if "values" in own and "values" in other:
        ours, theirs = torch.tensor(own["values"]), torch.tensor(other["values"])
        return {
            "largest difference of logit differences": (ours - theirs).abs().max().item(),
            "spread of ours": ours.std().item(),
        }
    if "removed" in own and "removed" in other:
        return {"removed": len(other["removed"]), "decided otherwise": len({*own["removed"]} ^ {*other["removed"]})}
    return {}


def measure(folder: Path, chosen: Mapping[str, Tool], graph: EdgeGraph, only: Sequence[str]) -> list[Found]:
    """A row for every tool and piece of work."""
    rows, own = list[Found](), dict[str, Found]()
    for work in WORK:
        if work not in only and work != "eap":
            continue
        for name, tool in chosen.items():
            if work not in tool.work:
                continue
            found = run(name, tool, work, folder)
            if name == "edgeprune":
                if "effects" in found:  # the first run was without a tau
                    set_tau(folder, work, found["effects"])
                    found = run(name, tool, work, folder)
                own[work] = found
                if "failed" in found:
                    raise SystemExit(f"edgeprune, {work}: {found['failed']}")
                if work == "eap":
                    cut_circuits(folder, graph, found["scores"])
            row: Found = {"tool": name, "work": work}
            row |= {k: found[k] for k in ("failed", "seconds", "further_seconds", "peak_gb", "versions") if k in found}
            row |= (
                {"agreement": agreement(own[work], found, from_1=name == "CircuitKIT")} if name != "edgeprune" else {}
            )
            if "removed" in found:
                row["removed"] = len(found["removed"])
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


# ---------------------------------------------------------------- tables
def cell(row: Found | None, pairs: int, tests: Mapping[str, int]) -> str:
    """Seconds."""
    if row is None or "failed" in row:
        return "" if row is None else "failed"
    work, seconds = row["work"], row["seconds"]
    if work in tests:
        return f"{seconds * TESTS / tests[work]:.3g}"
    further = f"; {row['further_seconds'] / pairs:.3g}" if work == "evaluate" else ""
    return f"{seconds / pairs:.3g}{further}"


def tables(rows: Sequence[Found], pairs: int, tests: Mapping[str, int]) -> str:
    """Seconds and memory, then agreement."""
    names = list(dict.fromkeys(row["tool"] for row in rows))
    by_key = {(row["tool"], row["work"]): row for row in rows}
    works = [work for work in WORK if any(row["work"] == work for row in rows)]
    lines = [[WORK[work], *(cell(by_key.get((name, work)), pairs, tests) for name in names)] for work in works]
    for work in works:
        peaks = [by_key.get((name, work), {}).get("peak_gb") for name in names]
        lines.append([f"peak GB, {work}", *("" if peak is None else f"{peak:.2f}" for peak in peaks)])
    agreed = [
        [row["tool"], row["work"], f"{what} {value:.3g}" if isinstance(value, float) else f"{what} {value}"]
        for row in rows
        for what, value in row.get("agreement", {}).items()
    ]
    return f"{markdown(['', *names], lines)}\n\n{markdown(['tool', 'work', 'against edgeprune'], agreed)}"


def main() -> None:
    """Run what is there, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto-circuit-python", type=Path, help="Python with auto-circuit")
    parser.add_argument("--circuitkit-python", type=Path, help="Python with circuitkit")
    parser.add_argument("--eap-ig", type=Path, help="folder that holds the package `eap`")
    parser.add_argument("--acdc", type=Path, help="folder that holds the package `acdc`")
    parser.add_argument("--lens-python", type=Path, help="Python with TransformerLens, for --eap-ig and --acdc")
    parser.add_argument("--size", choices=SHAPES, default="gpt2", help="small: 2 layers of width 64, seconds")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), help="EAP is always measured")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file for settings, rows and versions")
    options = parser.parse_args()
    every = tools(options)
    for name, tool in every.items():
        if tool.python is None:
            print(f"{name} is left out: give {tool.missing}", file=sys.stderr)
    chosen = {name: tool for name, tool in every.items() if tool.python is not None}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        graph = make_folder(folder, options.size, options.pairs, options.tokens)
        tests = {work: len(edges) for work, edges in json.loads((folder / "tests.json").read_text()).items()
                 if work in WORK}  # fmt: skip
        rows = measure(folder, chosen, graph, options.work)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {"settings": settings, "edges": graph.num_edges, "tests": tests, "python": platform.python_version(),
               "cpus": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(tables(rows, options.pairs, tests))


if __name__ == "__main__":
    main()
