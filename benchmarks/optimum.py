"""How far from the best circuit of its size is what a method finds? Programs that are small enough for brute force.

    python benchmarks/optimum.py --seeds 3 --out docs/results/optimum.json
    python benchmarks/optimum.py --print docs/results/optimum.json

All methods see the same pairs, those that brute force goes through: squared error, mean over them, float64 (methods
that train: float32). Of every method one circuit for each number of edges n, from one edge to all but one, as it is and
polished. The best is the least error of all circuits of at most n edges. What the output file has is not repeated.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules import PairDataModule
from datamodules.collate import collate
from datamodules.tasks.base import AbstractTask, TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune import methods
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.console import no_progress
from edgeprune.evaluation.brute_force import BruteForce, brute_force
from edgeprune.methods.base import AbstractRecipe
from edgeprune.methods.discovery import AbstractDiscovery
from edgeprune.methods.polish import Polisher, Polishing
from edgeprune.methods.problem import Problem
from edgeprune.methods.selection import top_n
from edgeprune.models.loading import load_model
from edgeprune.objectives import squared_error
from lit_modules import PruningModule, SnapshotCircuits

PAIRS = {"hist": 24, "induction": 24, "or_gate": 96, "and_gate": 96}  # of the gates all: one answer is rare
PROGRAMS, ABLATIONS, STEPS = tuple(PAIRS), ("zero", "interchange"), 300
SCORED: dict[str, Callable[[int], AbstractDiscovery]] = {
    "random": lambda seed: methods.RandomScores(seed),
    "EAP": lambda seed: methods.EAP(seed=seed),
    "EAP-IG-inputs": lambda seed: methods.EAPIG("inputs", 5),
    "exact": lambda seed: methods.ExactEdgePatching(),
}
TRAINED: dict[str, Callable[[], AbstractRecipe]] = {
    "Edge Pruning": lambda: methods.EdgePruning(masks_per_batch=8, init_mean=5.0),
    "Edge Pruning, local": lambda: methods.EdgePruning(estimator="local", num_flips=16, init_mean=5.0),
    "Matryoshka": lambda: methods.Matryoshka(draw="log", masks_per_batch=8, stratified=True),
}
Row = dict[str, Any]


@dataclass
class FirstPairs(AbstractTask):
    """The first training pairs of a program, to train on and to validate."""

    program: str

    def splits(self, tokenizer: Any) -> dict[str, Sequence[TokenPair]]:
        """The same pairs for every split."""
        pairs = list(CompiledTask(self.program).splits(tokenizer)["train"])[: PAIRS[self.program]]
        return dict.fromkeys(("train", "validation", "test"), pairs)


class Known:
    """A program under one ablation, with the error of every circuit."""

    def __init__(self, program: str, ablation: str) -> None:
        self.program, self.ablation = program, ablation
        self.model = load_model(f"compiled:{program}", dtype="float64")
        self.graph = self.model.graph
        batch = collate(list(enumerate(FirstPairs(program).splits(None)["train"])))
        self.problem = Problem(self.model, [batch], ReferenceRuns(self.model, ablation, 1.0), "squared_error")
        _, ablated = self.problem.runs(batch, "train")
        self.found: BruteForce = brute_force(self.model, batch, ablated, squared_error, reduce="mean", progress=False)
        front = torch.tensor([point.error for point in self.found.front()], dtype=torch.float64)
        self.best = front.cummin(0).values.tolist()  # with at most so many edges

    def error(self, keep: Tensor) -> float:
        """Of a circuit, bool `[reader, writer]`."""
        return self.found.error(Circuit(self.graph, keep).edges())

    def rows(self, method: str, seed: int) -> Iterator[Row]:
        """What a method finds at each size, and that polished."""
        for size, keep in self.circuits(method, seed):
            keeps = {method: keep}
            if 0 < int(keep.sum()) < self.graph.num_edges:
                keeps[f"{method}, polished"] = Polisher(self.problem, keep, Polishing(max_passes=400)).run().keep
            for name, found in keeps.items():
                yield {
                    **{"program": self.program, "ablation": self.ablation, "method": name, "seed": seed, "size": size},
                    **{"error": self.error(found), "best": self.best[size], "empty": self.best[0]},
                }

    def circuits(self, method: str, seed: int) -> Iterator[tuple[int, Tensor]]:
        """A circuit for each number of edges."""
        sizes = range(1, self.graph.num_edges)
        if method in SCORED:
            scores = SCORED[method](seed).discover(self.problem, no_progress).scores
            assert scores is not None
            yield from ((size, top_n(self.graph, scores.abs(), size)) for size in sizes)
            return
        with tempfile.TemporaryDirectory() as folder:
            for path in self.trained(TRAINED[method](), seed, Path(folder)).glob("sparsity-*.safetensors"):
                circuit = Circuit.load(path)
                asked = 1 - float(path.stem.removeprefix("sparsity-"))
                yield round(asked * self.graph.num_edges), circuit.keep

    def trained(self, recipe: AbstractRecipe, seed: int, folder: Path) -> Path:
        """Train, with a snapshot at every size; their folder."""
        pl.seed_everything(seed, verbose=False)
        sizes = range(self.graph.num_edges - 1, 0, -1)
        snapshots = SnapshotCircuits([round(1 - size / self.graph.num_edges, 4) for size in sizes])
        name = f"compiled:{self.program}"
        module = PruningModule(name, recipe, objective="squared_error", ablation=self.ablation, seed=seed)
        quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            callbacks=[snapshots],
            logger=CSVLogger(folder, "fit", 0),
            enable_model_summary=False,
            **quiet,
        )
        trainer.fit(module, PairDataModule(FirstPairs(self.program), batch_size=24, seed=seed))
        return folder / "fit" / "version_0" / "circuits"


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line per method, one column per problem: how often the best, and how far from it on average."""
    problems = list(dict.fromkeys((row["program"], row["ablation"]) for row in rows))
    lines = ["| method | seeds | " + " | ".join(f"{name}, {ablation}" for name, ablation in problems) + " | all |"]
    lines.append("| --- " * (len(problems) + 3) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [cell([row for row in own if (row["program"], row["ablation"]) == problem]) for problem in problems]
        seeds = len({row["seed"] for row in own})
        lines.append(f"| {method} | {seeds} | " + " | ".join([*cells, cell(own)]) + " |")
    return "\n".join(lines)


def cell(rows: Sequence[Row]) -> str:
    """Sizes with the best circuit, and the mean error above it by that of the empty circuit, both in percent."""
    if not rows:
        return "-"
    above = [(row["error"] - row["best"]) / row["empty"] for row in rows]
    hits = sum(value < 1e-6 for value in above)
    return f"{100 * hits / len(above):.0f} %, {100 * sum(above) / len(above):.2f}"


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--out", type=Path, default=Path("optimum.json"))
    parser.add_argument("--print", type=Path, help="print the table of this file and run nothing")
    options = parser.parse_args()
    if options.print:
        print(table(json.loads(options.print.read_text())))
        return
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {(row["program"], row["ablation"], row["method"], row["seed"]) for row in rows}
    jobs = [
        (program, ablation, method, seed)
        for program in options.programs
        for ablation in ABLATIONS
        for method in (*SCORED, *TRAINED)
        for seed in range(1 if method in ("EAP-IG-inputs", "exact") else options.seeds)
        if (program, ablation, method, seed) not in done
    ]
    known: Known | None = None
    for program, ablation, method, seed in track(jobs, "runs", console=Console(stderr=True)):
        if known is None or (known.program, known.ablation) != (program, ablation):
            known = Known(program, ablation)
        rows += known.rows(method, seed)
        options.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(table(rows))


if __name__ == "__main__":
    main()
