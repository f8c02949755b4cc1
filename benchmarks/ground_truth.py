"""Does Edge Pruning find circuits that are known? One setting for every model, both ablations, several seeds.

    python benchmarks/ground_truth.py --seeds 5 --out docs/results/ground_truth.json
    python benchmarks/ground_truth.py --print docs/results/ground_truth.json

The models are the programs of this project, deep ones (`chain-10x3`: ten layers of three heads) among them, and the
folders of format `tracr-circuit-data/1` in `tests/data/ground_truth`, or in another `--folder`. Each run is a whole
process: `edgeprune fit --config configs/ground_truth.yaml` with the model, the ablation, the seed and the estimator
set. With `--here` all runs are made in this process, one after the other: the same steps without starting anew, logs,
snapshots and reports; seconds are then those of a processor core. Runs that the output file has are not repeated.

With `--positions` edges are those at positions, and so are circuits: inputs of one length each, the truth being the
known circuit without what can be closed at single positions, in float64 (`edgeprune.evaluation.at_roles`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import yaml
from rich.console import Console
from rich.progress import track

from datamodules import PairDataModule
from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from datamodules.tasks.tracr import TracrTask
from edgeprune.ablations import zero
from edgeprune.circuit import Circuit
from edgeprune.compiled import cases, minimal_circuits, programs
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.at_roles import closed_where_possible
from edgeprune.evaluation.brute_force import brute_force
from edgeprune.methods import EdgePruning
from edgeprune.models.loading import load_model
from edgeprune.objectives.sparsity import GeometricPenalty
from edgeprune.roles import roles_of_option
from lit_modules.pruning import PruningModule

ROOT = Path(__file__).resolve().parents[1]
CONFIG, FOLDERS = ROOT / "configs" / "ground_truth.yaml", ROOT / "tests" / "data" / "ground_truth"
ABLATIONS = ("zero", "interchange")
SPLITS = ("train", "validation", "test")
LONGEST = 3  # tokens beside BOS, of inputs whose positions are told apart
DEEP = ("chain-10x1", "chain-10x2", "chain-10x3", "chain-20x1")
# The pathwise estimator, at the best single setting that was found for it: smaller steps, more of them.
RECIPE = "--model.recipe.init_args."
ESTIMATORS = {
    "local": [],
    "pathwise": [
        f"{RECIPE}estimator=pathwise",
        f"{RECIPE}learning_rate=0.05",
        "--trainer.max_steps=1200",
    ],
}


class Problem(NamedTuple):
    """One model under one ablation, and the circuits that count as the truth."""

    name: str
    ablation: str
    arguments: list[str]
    truths: list[list[str]]
    length: int | None = None  # of inputs, where edges are those at positions


def of_folder(folder: Path) -> list[Problem]:
    """A ground-truth folder under each ablation that it knows.

    The truth is the folder's causal circuit. Where that is not enough for the output (edges that can stand in for each
    other), it is any minimal circuit, by brute force.
    """
    problems: list[Problem] = []
    for ablation in ABLATIONS:
        try:
            causal = list(known_edges(folder, ablation))
        except EdgepruneError:
            continue  # this folder has no circuit for the ablation
        minimal = known_edges(folder, ablation, "minimal")
        truths = [causal] if set(minimal) <= set(causal) else all_minimal(folder, ablation)
        arguments = [
            f"--model.name={folder}",
            "--data.task=TracrTask",
            f"--data.task.path={folder}",
            f"--data.task.pairs={'none' if ablation == 'zero' else ablation}",
            "--data.task.held_out=false",
        ]
        problems.append(Problem(f"tracr {folder.name}", ablation, arguments, truths))
    return problems


def all_minimal(folder: Path, ablation: str) -> list[list[str]]:
    """All minimal circuits, at the threshold of the folder (0.01 of the raw output)."""
    model = load_model(folder, dtype="float64")
    kind = "none" if ablation == "zero" else ablation
    batch = collate(list(enumerate(TracrTask(str(folder), pairs=kind, held_out=False).splits(None)["train"])))
    ablated = zero(model) if ablation == "zero" else model.record(batch.corrupted, batch.attention_mask)
    found = brute_force(model, batch, ablated, progress=False)
    return [list(edges) for edges in found.minimal(tolerance=0.01)]


def of_program(name: str) -> list[Problem]:
    """A program of this project under both ablations."""
    arguments = [f"--model.name=compiled:{name}", f"--data.task.init_args.program={name}"]
    return [
        Problem(f"compiled:{name}", ablation, arguments, [list(edges) for edges in minimal_circuits(name, ablation)])  # pyright: ignore
        for ablation in ABLATIONS
    ]


def at_positions(name: str) -> list[Problem]:
    """A program under both ablations, edges by position: its longest inputs of up to `LONGEST` tokens beside BOS."""
    length = max(size for ids, _ in cases(name) if (size := len(ids) - 1) <= LONGEST)
    task, problems = task_of_length(name, length), list[Problem]()
    arguments = [f"--model.name=compiled:{name}", f"--data.task.init_args.program={name}", "--model.roles=positions"]
    arguments += [f"--data.task.init_args.lengths=[{length}]"]
    arguments += [f"--data.task.init_args.num_{split}={getattr(task, f'num_{split}')}" for split in SPLITS]
    batch = collate(list(enumerate(task.splits(None)["train"])))
    for ablation in ABLATIONS:
        model = load_model(f"compiled:{name}", dtype="float64")
        graph = model.graph
        model.use_roles(roles_of_option("positions", [batch]))
        ablated = zero(model) if ablation == "zero" else model.record(batch.corrupted, batch.attention_mask)
        known = [Circuit.from_edges(graph, edges) for edges in minimal_circuits(name, ablation)]
        truths = [closed_where_possible(model, batch, ablated, circuit).edges() for circuit in known]
        problems.append(Problem(f"compiled:{name} of {length}", ablation, arguments, truths, length))
    return problems


def task_of_length(name: str, length: int) -> CompiledTask:
    """Its inputs of one length, all but two to train on."""
    number = sum(len(ids) == length + 1 for ids, _ in cases(name))
    return CompiledTask(name, lengths=(length,), num_train=number - 2, num_validation=1, num_test=1)


def fit(config: Path, arguments: Sequence[str], folder: str) -> Circuit:
    """One process in `folder`, one thread; the circuit that the gates end at."""
    command = [sys.executable, "-m", "edgeprune", "fit", f"--config={config}", *arguments]
    command += ["--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    (path,) = Path(folder).rglob("final.safetensors")
    return Circuit.load(path)


def fit_here(config: Path, problem: Problem, seed: int) -> Circuit:
    """The same gates, trained in this process, one thread: no logs, snapshots and reports."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in problem.arguments)
    values = yaml.safe_load(config.read_text())
    model, data, recipe = values["model"], values["data"], values["model"]["recipe"]["init_args"]
    penalty = GeometricPenalty(**recipe.pop("sparsity_term")["init_args"])
    if "data.task" in given:
        task = TracrTask(given["data.task.path"], pairs=given["data.task.pairs"], held_out=False)  # pyright: ignore
    elif problem.length is not None:
        task = task_of_length(given["data.task.init_args.program"], problem.length)
    else:
        task = CompiledTask(given["data.task.init_args.program"])
    pl.seed_everything(seed, verbose=False)
    module = PruningModule(
        given["model.name"],
        EdgePruning(penalty, **recipe),
        objective=model["objective"],
        ablation=problem.ablation,
        seed=seed,
        roles=None if problem.length is None else "positions",
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=values["trainer"]["max_steps"],
        enable_model_summary=False,
        **quiet,  # pyright: ignore
    )
    trainer.fit(module, PairDataModule(task, batch_size=data["batch_size"], seed=seed))
    return module.circuit()


def compared(problem: Problem, circuit: Circuit) -> dict[str, Any]:
    """A circuit against the nearest truth."""
    found = set(circuit.edges())
    truth = min((set(edges) for edges in problem.truths), key=lambda edges: len(edges ^ found))
    return {
        "true_edges": len(truth),
        "all_edges": circuit.graph.num_edges,
        "missing": sorted(truth - found),
        "extra": sorted(found - truth),
    }


def run(problem: Problem, estimator: str, seed: int, folder: str | None) -> dict[str, Any]:
    """The circuit of one run against the nearest truth; without a folder to run in, trained in this process."""
    clock = time.process_time if folder is None else time.perf_counter
    begin = clock()
    if folder is None:
        circuit = fit_here(CONFIG, problem, seed)
    else:
        arguments = [*problem.arguments, f"--model.ablation={problem.ablation}", f"--seed_everything={seed}"]
        circuit = fit(CONFIG, [*arguments, *ESTIMATORS[estimator]], folder)
    return {
        "problem": problem.name,
        "ablation": problem.ablation,
        "estimator": estimator,
        "seed": seed,
        **compared(problem, circuit),
        "seconds": round(clock() - begin, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per problem, one group of columns per estimator."""
    estimators = [name for name in ESTIMATORS if any(row["estimator"] == name for row in rows)]
    lines = [
        "| model | ablation | edges | true |"
        + "".join(f" {name}: exact | missing | extra | s |" for name in estimators)
    ]
    lines.append("|---|---|---|---|" + "---|---|---|---|" * len(estimators))
    for problem, ablation in dict.fromkeys((row["problem"], row["ablation"]) for row in rows):
        own = [row for row in rows if (row["problem"], row["ablation"]) == (problem, ablation)]
        cells = f"| {problem} | {ablation} | {own[0]['all_edges']} | {own[0]['true_edges']} |"
        for name in estimators:
            runs = [row for row in own if row["estimator"] == name]
            exact = sum(not row["missing"] and not row["extra"] for row in runs)
            missing, extra = (sum(len(row[key]) for row in runs) / max(1, len(runs)) for key in ("missing", "extra"))
            slowest = max((row["seconds"] for row in runs), default=0)
            cells += f" {exact} of {len(runs)} | {missing:.1f} | {extra:.1f} | {slowest:.0f} |" if runs else " - |" * 4
        lines.append(cells)
    return "\n".join(lines)


def main() -> None:
    """Run what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDERS, help="of ground-truth folders")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=["local"])
    parser.add_argument("--only", nargs="+", help="names of problems, such as 'tracr sort' or compiled:sort")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--here", action="store_true", help="the local estimator alone, all runs in this process")
    parser.add_argument("--positions", action="store_true", help="edges at positions, of this project's programs")
    parser.add_argument("--out", type=Path, default=Path("ground_truth.json"))
    parser.add_argument("--print", type=Path, dest="shown", help="only print the table of a file")
    options = parser.parse_args()
    if options.shown:
        print(table(json.loads(options.shown.read_text())))
        return
    names = [name for name in programs() if name != "trained_induction"]
    if options.positions:
        problems = [problem for name in names for problem in at_positions(name)]
    else:
        folders = sorted(file.parent.resolve() for file in options.folder.glob("*/circuit.json"))
        problems = [problem for folder in folders for problem in of_folder(folder)]
        problems += [problem for name in (*names, *DEEP) for problem in of_program(name)]
    problems = [problem for problem in problems if not options.only or problem.name in options.only]
    rows: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {(row["problem"], row["ablation"], row["estimator"], row["seed"]) for row in rows}
    jobs = [
        (problem, estimator, seed)
        for estimator in options.estimators
        for problem in problems
        for seed in range(options.seeds)
        if (problem.name, problem.ablation, estimator, seed) not in done
    ]

    def work(job: tuple[Problem, str, int]) -> dict[str, Any]:
        if options.here:
            return run(*job, None)
        with tempfile.TemporaryDirectory() as folder:
            return run(*job, folder)

    if options.here:
        torch.set_num_threads(1)
    with ThreadPoolExecutor(1 if options.here else options.jobs) as pool:
        for row in track(pool.map(work, jobs), total=len(jobs), console=Console(stderr=True)):
            rows.append(row)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
