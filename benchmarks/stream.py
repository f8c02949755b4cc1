"""Many training pairs and few, with equal steps: time, and KL on held-out pairs.

    python benchmarks/stream.py run path/to/stories260k --seeds 0 1 2 --folder runs/stream
    python benchmarks/stream.py table --folder runs/stream --out docs/results/stream.md

Repeated random tokens (`Induction`). All runs of a seed have the same steps, batch, schedule and seed of the gates, and
are judged on the same pairs, which are checked to be none of those that were trained on. A run is a JSON file, written
when it ends; those that are there are not made again. The table goes between `<!-- runs -->` and `<!-- end -->`.
"""

import argparse
import json
import math
import re
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning.pytorch as pl
import torch
from markdown_tables import fill, markdown
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks import Induction
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.methods import EdgePruning
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.measure import measure_examples
from edgeprune.statistics.paired import paired_difference
from lit_modules import PruningModule, SnapshotCircuits

ARMS: dict[str, dict[str, Any]] = {
    "100": {"num_train": 100},
    "1,600": {"num_train": 1600},
    "1,600, runs not kept": {"num_train": 1600, "cache_gb": 0.0},
    "100,000": {"num_train": 100_000},
    "drawn anew": {"num_train": 1600, "stream": True},
}
BASE = "1,600"
SPARSITIES = [0.9, 0.95, 0.98]
HELD_OUT = 1000
LENGTH = 10


class Seen(pl.Callback):
    """Notes the prompts of every step."""

    def __init__(self) -> None:
        self.prompts: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: PairBatch, _: int
    ) -> None:
        """Keep the clean prompts."""
        self.prompts.append(batch.clean)


def data_of(model: str, options: argparse.Namespace, num_train: int, *, stream: bool, seed: int) -> PairDataModule:
    """Pairs of a run."""
    task = Induction(num_train=num_train, num_validation=50, num_test=HELD_OUT, length=LENGTH, seed=seed)
    return PairDataModule(task, model, batch_size=options.batch_size, cache=False, stream=stream, seed=seed)


def run(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train once, and judge the circuits."""
    arm: dict[str, Any] = {"stream": False, "cache_gb": 2.0, **ARMS[name]}
    held_out = data_of(options.model, options, 1, stream=False, seed=10_000 + seed)
    data = data_of(options.model, options, arm["num_train"], stream=arm["stream"], seed=seed)
    start, begin = time.perf_counter(), time.process_time()
    data.setup("fit")
    ready = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - begin}
    module = PruningModule(options.model, EdgePruning(), seed=seed, cache_gb=arm["cache_gb"])
    seen, snapshots = Seen(), SnapshotCircuits(SPARSITIES)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_steps=options.steps,
            max_epochs=-1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[seen, snapshots],
        )
        start, begin = time.perf_counter(), time.process_time()
        trainer.fit(module, data)
    fitted = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - begin}
    prompts = {tuple(row) for batch in seen.prompts for row in batch.tolist()}
    assert prompts.isdisjoint(pair.clean for pair in held_out.pairs("test"))
    circuits = {f"{item.sparsity}": item.circuit for item in snapshots.snapshots if item.sparsity is not None}
    values = measure_examples(
        module.masked,
        ReferenceRuns(module.masked, module.ablation),
        held_out.test_dataloader(),
        [circuit.gates() for circuit in circuits.values()],
        "test",
        ["kl"],
    ).of("kl")
    return {
        **{"pairs": name, "seed": seed, "steps": options.steps, "batch": options.batch_size},
        **{"different prompts": len(prompts), "ready": ready, "fit": fitted, "kept": len(module.runs.store)},
        "kl": {sparsity: row.tolist() for sparsity, row in zip(circuits, values, strict=True)},
    }


def table(options: argparse.Namespace) -> str:
    """One line for each number of pairs."""
    rows = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*.json"))]
    by_arm = {name: [row for row in rows if row["pairs"] == name] for name in ARMS}
    by_arm = {name: found for name, found in by_arm.items() if found}
    heads = [
        "training pairs",
        "seeds",
        "different prompts seen",
        "pairs ready, s",
        "a step, ms of processor time",
        "wall",
    ]
    heads += [text for sparsity in SPARSITIES for text in (f"KL at {100 * sparsity:g} %", f"minus {BASE}")]
    lines: list[list[str]] = []
    for name, found in by_arm.items():
        step = {key: [1000 * row["fit"][key] / row["steps"] for row in found] for key in ("cpu", "seconds")}
        cells = [name, str(len(found)), f"{mean(row['different prompts'] for row in found):,.0f}"]
        cells += [f"{mean(row['ready']['cpu'] for row in found):.1f}", *(_spread(step[key], ".0f") for key in step)]
        for sparsity in map(str, SPARSITIES):
            cells.append(_spread([mean(row["kl"][sparsity]) for row in found], ".4f"))
            cells.append("" if name == BASE else _difference(found, by_arm[BASE], sparsity))
        lines.append(cells)
    return markdown(heads, lines)


def _spread(values: list[float], form: str) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def _difference(found: list[dict[str, Any]], base: list[dict[str, Any]], sparsity: str) -> str:
    """Difference with its 95 % interval over the held-out pairs of all seeds; each seed has its own."""
    seeds = {row["seed"] for row in found} & {row["seed"] for row in base}
    both = [
        torch.tensor([kl for row in rows if row["seed"] in seeds for kl in row["kl"][sparsity]], dtype=torch.float64)
        for rows in (found, base)
    ]
    values = torch.stack(both)[:, None]
    made = ExampleValues(("kl",), values, torch.ones_like(values), torch.arange(values.shape[-1]))
    figure = paired_difference(made, 0, 1, "kl").figure
    assert not math.isnan(figure.value)
    return f"{figure.value:+.4f} ({figure.low:+.4f} to {figure.high:+.4f})"


def main() -> None:
    """Run, or fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("model", nargs="?", default="stories260k", help="folder or name")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3125)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("runs/stream"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "run":
        options.folder.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name in options.arms:
                path = options.folder / f"{re.sub(r'[ ,]+', '-', name)}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(options, name, seed)))
                    print(path, flush=True)
    elif options.out is None:
        print(table(options))
    else:
        fill(options.out, {"runs": table(options)})


if __name__ == "__main__":
    main()
