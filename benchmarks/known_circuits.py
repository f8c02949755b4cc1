"""Do the methods find circuits that are known? Programs of this project, both ablations.

    python benchmarks/known_circuits.py --attribution --training --out docs/results/known_circuits
    python benchmarks/known_circuits.py --out docs/results/known_circuits      # only write the page again

`--attribution`: methods that score edges, on the first 64 training pairs under squared error; the circuit is as many
edges as the known one has, those with the highest absolute scores. Seeds count where a method draws something.
`--training`: subnetwork probing and UGS by their shipped configs, each run a whole process of one thread; the circuit
is every edge whose gate ends above one half. Edge Pruning is in `ground_truth.py`.

Writes OUT.json and OUT.md. Runs that OUT.json has already are not repeated.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from ground_truth import Problem, compared, fit, of_program
from rich.console import Console
from rich.progress import track

from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from edgeprune import methods
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.compiled import programs
from edgeprune.methods.discovery import AbstractDiscovery
from edgeprune.methods.problem import Problem as DiscoveryProblem
from edgeprune.models.loading import load_model

CONFIGS = Path(__file__).parent.parent / "configs"
NUM_PAIRS, BATCH = 64, 32
PARTS = ("attribution", "training")
Row = dict[str, Any]

# Column -> the method for a seed.
SEEDED: dict[str, Callable[..., AbstractDiscovery]] = {
    "EAP": methods.EAP,
    "RelP": partial(methods.EAP, rules=methods.BackwardRules("detach", "secant", "half", "detach")),
    "GIM": partial(methods.EAP, rules=methods.BackwardRules("detach", "plain", "half", "temperature")),
    "random": methods.RandomScores,
}
FIXED: dict[str, AbstractDiscovery] = {
    "inputs": methods.EAPIG("inputs", 5),
    "activations": methods.EAPIG("activations", 5),
    "clean_corrupted": methods.EAPIG("clean_corrupted"),
    "local": methods.EAPIG("local", 5),
    "gates": methods.EAPIG("gates", 20),
    "exact": methods.ExactEdgePatching(),
    "flow": methods.InformationFlowRoutes(),
    "magnitude": methods.ActivationMagnitude(),
    "CD": methods.ContextualDecomposition(),
}
COLUMNS = ("EAP", "RelP", "GIM", *FIXED, "random")


class Trained(NamedTuple):
    """A recipe by its shipped config, which is made for `reverse` under zero ablation.

    `price` is the setting that says what an open gate costs, and its value for `xproportion`, whose squared errors are
    smaller than the divergences of `reverse`; None: this one is run for `reverse` under zero ablation only.
    """

    config: str
    price: str | None
    start: str | None = None


TRAINED = {
    "SP, nodes": Trained("subnetwork_probing", "penalty_weight=0.1"),
    "SP, edges": Trained("edge_probing", "penalty_weight=0.05"),
    "UGS": Trained("ugs", "edge_weight=0.0005"),
    "DiscoGP": Trained("disco_induction", "sparsity_term.init_args.peak=0.05", "sparsity_term.init_args.peak=0.1"),
    "SP, edges, start 1.609": Trained("edge_probing", None, "init=1.609"),
    "UGS, start 1": Trained("ugs", None, "init=1.0"),
}
SETTING = "--model.recipe.init_args."
XPROPORTION = ("--model.objective=squared_error", "--trainer.max_steps=200")


# -------------------------------------------------------------------- methods that score
def attribution_jobs(names: Sequence[str], seeds: int) -> Iterator[Row]:
    """What is to be run, as the keys of a row."""
    for name in names:
        for problem in of_program(name):
            for method in COLUMNS:
                for seed in range(seeds if method in SEEDED else 1):
                    yield {"problem": problem.name, "ablation": problem.ablation, "method": method, "seed": seed}


def attribute(job: Row) -> Row:
    """One method on one problem."""
    problem = problem_of(job)
    name = problem.name.removeprefix("compiled:")
    pairs = list(enumerate(CompiledTask(name).splits(None)["train"]))[:NUM_PAIRS]
    batches = [collate(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]
    model = load_model(problem.name)
    runs = ReferenceRuns(model, job["ablation"], budget_gb=1.0)
    problem_given = DiscoveryProblem(model, batches, runs, "squared_error")
    method = SEEDED[job["method"]](seed=job["seed"]) if job["method"] in SEEDED else FIXED[job["method"]]
    begin = time.perf_counter()
    scores = method.discover(problem_given, no_progress).scores
    seconds = time.perf_counter() - begin
    assert scores is not None  # these methods score edges
    sizes = {len(edges) for edges in problem.truths}
    circuits = [Circuit.from_scores(model.graph, scores.abs(), num_edges=size) for size in sizes]
    rows = [compared(problem, circuit) for circuit in circuits]
    best = min(rows, key=num_missing)
    return {**job, "settings": method.describe(), "pairs": len(pairs), **best, "seconds": round(seconds, 2)}


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


def num_missing(row: Row) -> int:
    """Needed edges that a circuit lacks."""
    return len(row["missing"])


def problem_of(job: Row) -> Problem:
    """The problem that a row names."""
    found = of_program(job["problem"].removeprefix("compiled:"))
    return next(problem for problem in found if problem.ablation == job["ablation"])


# -------------------------------------------------------------------- methods that train
def training_jobs(seeds: int) -> Iterator[Row]:
    """What is to be run, as the keys of a row."""
    for name in ("reverse", "xproportion"):
        for ablation in ("zero", "interchange"):
            for method, recipe in TRAINED.items():
                fits = recipe.price or (name, ablation) == ("reverse", "zero")
                for seed in range(seeds if fits else 0):
                    yield {"problem": f"compiled:{name}", "ablation": ablation, "method": method, "seed": seed}


def train(job: Row) -> Row:
    """One recipe on one problem."""
    problem, recipe = problem_of(job), TRAINED[job["method"]]
    settings = [f"--model.ablation={job['ablation']}", f"--seed_everything={job['seed']}"]
    if recipe.start:
        settings.append(f"{SETTING}{recipe.start}")
    if problem.name == "compiled:xproportion":
        settings += [*XPROPORTION, f"{SETTING}{recipe.price}"]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        circuit = fit(CONFIGS / f"{recipe.config}.yaml", [*problem.arguments, *settings], folder)
    seconds = time.perf_counter() - begin
    return {**job, "settings": settings, **compared(problem, circuit), "seconds": round(seconds, 1)}


# -------------------------------------------------------------------- the page
def overlap(row: Row) -> float:
    """F1 of the edges found."""
    both = row["true_edges"] - len(row["missing"])
    return 2 * both / (row["true_edges"] + both + len(row["extra"]))


def score_cell(rows: Sequence[Row]) -> str:
    """F1, mean over seeds."""
    return f"{statistics.mean(overlap(row) for row in rows):.2f}" if rows else "-"


def gate_cell(rows: Sequence[Row]) -> str:
    """Needed edges found, and edges too many: their range over seeds."""
    found = [row["true_edges"] - len(row["missing"]) for row in rows]
    extra = [len(row["extra"]) for row in rows]
    return f"{spread(found)}, {spread(extra)} too many ({len(rows)})" if rows else "-"


def spread(values: Sequence[int]) -> str:
    """The value, or the lowest and the highest."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def table(rows: Sequence[Row], columns: Sequence[str], cell: Any) -> str:
    """Markdown: one line per problem, one column per method."""
    lines = ["| program | ablation | edges | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    for problem, ablation in dict.fromkeys((row["problem"], row["ablation"]) for row in rows):
        own = [row for row in rows if (row["problem"], row["ablation"]) == (problem, ablation)]
        cells = [cell([row for row in own if row["method"] == column]) for column in columns]
        size = f"{own[0]['true_edges']} of {own[0]['all_edges']}"
        lines.append(f"| {problem.removeprefix('compiled:')} | {ablation} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# Known circuits: which methods find them?

Programs of this project, whose circuits are known under both ablations. Written by

    python benchmarks/known_circuits.py --attribution --seeds {seeds} --training --training-seeds {training_seeds} \\
      --out docs/results/known_circuits

`edges` is the size of the known circuit and of the graph. Where two circuits are minimal (`or_gate`, zero), the nearer
one counts. Edge Pruning is in [ground_truth.md](ground_truth.md), what to conclude in
[the guide](../guides/methods.md).

## Methods that score edges

F1 of the known circuit and the same number of edges with the highest absolute scores: first {pairs} training pairs,
squared error. `EAP` (second order, {samples} samples), `random`, `RelP` and `GIM`: mean over {seeds} seeds. The last
two are `EAP` by backward rules, `RelP` with constant attention weights: without them it is `EAP` here, for these programs
have neither norms nor activations other than ReLU. `inputs` to `gates` are the variants of `EAPIG`, 5 steps
(`gates`: 20); `CD` is contextual decomposition at its defaults.

{attribution}

These runs took {minutes:.1f} minutes together, one thread (other work used the machine beside some of them).

## Methods that train

Needed edges found, edges too many, and in brackets how many seeds, for edges whose gate ends above one half (lowest to
highest where seeds differ). The shipped configs `subnetwork_probing.yaml`, `edge_probing.yaml`, `ugs.yaml`, and
`disco_induction.yaml` with a price of 0.1; for `xproportion` 200 steps, squared error and prices {prices}.
The last two columns start from the published initial values instead of open gates. Slowest run: {slowest:.0f} s, one
thread (other work may have used the machine beside it).

{training}

Versions: Python {python}, torch {torch}, lightning {lightning}.
"""


def page(record: dict[str, Any]) -> str:
    """The whole page from the rows of both parts."""
    scored, trained = record["attribution"], record["training"]
    eap = [row for row in scored if row["method"] == "EAP"]
    return PAGE.format(
        pairs=NUM_PAIRS,
        samples=max((row["settings"]["samples"] for row in eap), default=0),
        seeds=len({row["seed"] for row in eap}),
        attribution=table(scored, COLUMNS, score_cell),
        minutes=sum(row["seconds"] for row in scored) / 60,
        prices=", ".join(recipe.price.split("=")[1] for recipe in TRAINED.values() if recipe.price),
        training_seeds=len({row["seed"] for row in trained}),
        slowest=max((row["seconds"] for row in trained), default=0),
        training=table(trained, tuple(TRAINED), gate_cell),
        **record["versions"],
    )


def lines_of(record: dict[str, Any]) -> str:
    """JSON with one line per run."""
    parts = (f'"{part}": [\n' + ",\n".join(map(json.dumps, record[part])) + "\n]" for part in PARTS)
    return "{\n" + ",\n".join([*parts, f'"versions": {json.dumps(record["versions"])}']) + "\n}\n"


def main() -> None:
    """Run what is missing in the record, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attribution", action="store_true", help="run the methods that score edges")
    parser.add_argument("--training", action="store_true", help="run the methods that train")
    parser.add_argument("--seeds", type=int, default=5, help="of methods that score and draw something")
    parser.add_argument("--training-seeds", type=int, default=3, help="of methods that train")
    parser.add_argument("--jobs", type=int, default=1, help="training processes at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("known_circuits"), help="without the ending")
    options = parser.parse_args()
    data, text = options.out.with_suffix(".json"), options.out.with_suffix(".md")
    record: dict[str, Any] = json.loads(data.read_text()) if data.exists() else {part: [] for part in PARTS}
    record["versions"] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
    }
    torch.set_num_threads(1)
    known = [name for name in programs() if name != "trained_induction"]
    jobs = {
        "attribution": (attribute, attribution_jobs(known, options.seeds), 1),
        "training": (train, training_jobs(options.training_seeds), options.jobs),
    }
    for part, (work, wanted, at_a_time) in jobs.items():
        if not getattr(options, part):
            continue
        rows: list[Row] = record[part]
        left = [job for job in wanted if not any(job.items() <= row.items() for row in rows)]
        with ThreadPoolExecutor(at_a_time) as pool:
            for row in track(pool.map(work, left), part, total=len(left), console=Console(stderr=True)):
                rows.append(row)
                data.write_text(lines_of(record))
    text.write_text(page(record))


if __name__ == "__main__":
    main()
