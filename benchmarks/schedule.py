"""How should Edge Pruning be run? One setting changed at a time, on several problems; and one run against many.

    python benchmarks/schedule.py run reverse xproportion --seeds 0 1 2 --folder runs/schedule
    python benchmarks/schedule.py run ioi --folder runs/schedule            # needs `edgeprune get smollm2`; hours
    python benchmarks/schedule.py run stories --model FOLDER --seeds 0 1 2 --folder runs/schedule
    python benchmarks/schedule.py judge CIRCUIT... --data DATA.yaml --out FILE.json   # circuits of other runs
    python benchmarks/schedule.py noise CIRCUIT --data DATA.yaml                      # variance of the gradient
    python benchmarks/schedule_tables.py --folder runs/schedule --out docs/results/schedule

A run is `edgeprune fit` of a shipped config with the data of a problem and the recipe of a setting (`PROBLEMS`,
`SETTINGS`); its result goes to FOLDER/PROBLEM/SETTING-sSEED.json at once, and runs that have a result are not repeated.
Circuits of language models are judged on held-out test pairs, pair by pair; those of programs are held against the
known one. `stories` wants a small Llama that was trained on children's stories and tells "he" from "she", such as
`stories260K` of karpathy/tinyllamas as a Hugging Face folder.
"""

import argparse
import contextlib
import json
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from ground_truth import Problem as Known
from ground_truth import compared
from schedule_settings import NUM_TEST, PROBLEMS, SETTINGS, Problem, Values, is_new, resolved, write_stories

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli import main as edgeprune
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.comparison.roc import roc
from edgeprune.methods import EdgePruning
from edgeprune.metrics.measure import gated_logits, measure_examples
from edgeprune.models.loading import load_model
from edgeprune.objectives import OBJECTIVES, GeometricPenalty, masked_mean

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TERM = ("start", "end", "target", "warmup", "schedule", "multiplier_rate")  # of a setting, beside those of the recipe


# -------------------------------------------------------------------- run
@dataclass
class Place:
    """Where the runs of a problem go.

    Attributes:
        name: Of the problem.
        folder: Results, pairs and runs.
        model: Name or folder of the model.
    """

    name: str
    folder: Path
    model: str
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        self.problem = PROBLEMS[self.name]

    def data(self) -> Values:
        """The config's `data` section."""
        kind, settings = self.problem.task
        if kind == "JSONLTask":
            path = self.folder / "pairs.jsonl"
            if not path.exists():
                write_stories(path, self.model)
            settings = {**settings, "path": str(path)}
        task = {"class_path": kind, "init_args": settings}
        return {"task": task, "batch_size": self.problem.batch_size, "eval_batch_size": 50}

    def config(self, values: Values, seed: int, own: Path) -> Values:
        """The whole config of one run."""
        config: Values = yaml.safe_load((CONFIGS / f"{self.problem.config}.yaml").read_text())
        recipe = {key: value for key, value in values.items() if key not in ("steps", "clip", *TERM)}
        if "warm_start" in recipe:
            recipe["warm_start"] = {**recipe["warm_start"], "path": str(self.scores())}
        if recipe.pop("paced", False):
            del recipe["learning_rate"]
        else:
            recipe["sparsity_term"] = term(values)
        config["seed_everything"] = seed
        config["model"] |= {"name": self.model, "ablation": self.problem.ablation}
        config["model"]["recipe"]["init_args"] = recipe
        config["data"] = self.data()
        config["trainer"] |= {
            "max_steps": values["steps"],
            "val_check_interval": values["steps"],
            "gradient_clip_val": values.get("clip"),
            "enable_progress_bar": False,
            "default_root_dir": str(own),
            "callbacks": [
                {"class_path": "SnapshotCircuits", "init_args": {"sparsities": list(self.problem.sparsities)}}
            ],
        }
        config["trainer"]["logger"]["init_args"] = {"save_dir": str(own), "name": "fit", "version": 0}
        config["checkpoint"] = {"every_n_train_steps": values["steps"], "save_last": False}
        return config

    def scores(self) -> Path:
        """Scores of EAP-IG to start from, found once."""
        path = self.folder / "eap_ig" / "scores.safetensors"
        if not path.exists():
            config: Values = yaml.safe_load((CONFIGS / "discover" / "ioi_smollm2.yaml").read_text())
            config["model"] |= {"name": self.model, "ablation": self.problem.ablation}
            config |= {"data": self.data(), "limit": 100, "out": str(path.parent), "selection": None}
            config["metric"] = "squared_error" if self.problem.known() else "kl"
            config["method"] = {"class_path": "EAPIG", "init_args": {"variant": "inputs", "steps": 5}}
            call("discover", config, self.folder / "eap_ig.yaml")
        return path

    def run(self, setting: str, seed: int) -> Values:
        """Fit and judge."""
        values = resolved(self.problem, setting)
        own = self.folder / f"{slug(setting)}-s{seed}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        config = self.config(values, seed, own)
        begin, busy = time.perf_counter(), time.process_time()
        call("fit", config, own / "run.yaml")
        row: Values = {"problem": self.name, "setting": setting, "seed": seed, "values": values}
        row |= {
            "minutes": round((time.perf_counter() - begin) / 60, 2),
            "processor_minutes": round((time.process_time() - busy) / 60, 2),
        }
        paths = sorted(own.rglob("circuits/*.safetensors"))
        known = self.problem.known()
        if known is not None:
            return {**row, **against(known, Circuit.load(own / "fit" / "version_0" / "circuits" / "final.safetensors"))}
        return {**row, "circuits": judged(paths, own / "run.yaml", self.model)}


def term(values: Values) -> Values:
    """The sparsity term of a setting."""
    if "target" not in values:
        return {"class_path": "GeometricPenalty", "init_args": {key: values[key] for key in ("start", "end")}}
    own = {key: values[key] for key in ("target", "warmup", "schedule") if key in values}
    return {"class_path": "Lagrangian", "init_args": {**own, "learning_rate": values.get("multiplier_rate", 0.8)}}


def slug(name: str) -> str:
    """A setting's name as that of a file."""
    kept = "".join(letter if letter.isalnum() or letter == "." else " " for letter in name)
    return "_".join(kept.split())


def call(command: str, config: Values, path: Path) -> None:
    """Write the config and run a command of `edgeprune` with it; what it prints goes to a log beside it."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with path.with_suffix(".log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = edgeprune([command, "--config", str(path)])
    if status:
        raise RuntimeError(f"{path} failed, see {path.with_suffix('.log')}")


# -------------------------------------------------------------------- judge
def against(known: Known, circuit: Circuit) -> Values:
    """The circuit of all gates above one half against the known one; and how well log-alphas rank the edges."""
    found = compared(known, circuit)
    truth = Circuit.from_edges(circuit.graph, min(known.truths, key=len))
    return {**found, "auc": round(roc(circuit, truth).auc, 4)}


def judged(paths: Sequence[Path], config: Path, model: str, num_pairs: int = NUM_TEST) -> list[Values]:
    """Every circuit on the first test pairs: mean, and the KL of each pair."""
    circuits = [Circuit.load(path) for path in paths]
    header = circuits[0].header
    loaded = load_model(model, **header["model_options"])
    batches = pair_batches(read_data_config(str(config), tokenizer=model), "test", num_pairs, 50)
    runs = ReferenceRuns(loaded, header["ablation"])
    found = measure_examples(loaded, runs, batches, [circuit.gates() for circuit in circuits], "test")
    return [
        {
            "name": path.stem,
            "edges": circuit.num_edges,
            "all_edges": circuit.graph.num_edges,
            "sparsity": round(circuit.sparsity, 5),
            "dangling": circuit.num_dangling,
            "reached": circuit.header.get("reached", True),
            "step": circuit.header["step"],
            **{name: round(figures[name], 4) for name in ("kl", "logit_difference", "accuracy", "exact_match")},
            "kl_of_pairs": [round(value, 4) for value in pairs],
        }
        for path, circuit, figures, pairs in zip(
            paths, circuits, found.as_dicts(), found.of("kl").tolist(), strict=True
        )
    ]


def run(options: argparse.Namespace) -> None:
    """Run what has no result yet: seed after seed, so that what is there can be compared at any time."""
    torch.set_num_threads(options.threads)
    for seed, name in product(options.seeds, options.problems):
        place = Place(name, options.folder.resolve() / name, PROBLEMS[name].model or options.model or "")
        if not place.model:
            raise SystemExit(f"{name} needs --model FOLDER")
        place.folder.mkdir(parents=True, exist_ok=True)
        for setting in options.settings or SETTINGS:
            result = place.folder / f"{slug(setting)}-s{seed}.json"
            if result.exists() or not is_new(place.problem, setting):
                continue
            print(f"{time.strftime('%H:%M')} {name}, {setting}, seed {seed}", flush=True)
            try:
                row = place.run(setting, seed)
            except RuntimeError:
                traceback.print_exc()
                continue
            result.write_text(json.dumps(row) + "\n")
            print("    " + short(row), flush=True)


def short(row: Mapping[str, Any]) -> str:
    """A result on one line."""
    if "circuits" in row:
        return ", ".join(f"{each['name']} {each['kl']:.3f}" for each in row["circuits"]) + f"; {row['minutes']} minutes"
    return f"missing {len(row['missing'])}, extra {len(row['extra'])}, AUC {row['auc']}; {row['minutes']} minutes"


def judge(options: argparse.Namespace) -> None:
    """Judge circuits of other runs on the test pairs of a config."""
    model = Circuit.load(options.circuits[0]).header["model"]
    rows = judged(options.circuits, options.data, model, options.pairs)
    options.out.write_text(json.dumps(rows) + "\n")
    for row in rows:
        print({key: value for key, value in row.items() if key != "kl_of_pairs"})


# -------------------------------------------------------------------- noise
SAMPLES = ((1, False), (2, False), (2, True), (4, False), (4, True), (8, False), (8, True))  # number, antithetic


def noise(options: argparse.Namespace) -> None:
    """Variance of the KL's gradient in the log-alphas over draws of the gates, summed over edges, for one batch."""
    circuit = Circuit.load(options.circuit)
    if circuit.scores is None:
        raise SystemExit(f"{options.circuit} holds no scores")
    model = circuit.header["model"]
    loaded = load_model(model, **circuit.header["model_options"])
    scores = circuit.scores
    (batch, *_) = pair_batches(read_data_config(str(options.data), tokenizer=model), "train", 8, 8)
    full, ablated = ReferenceRuns(loaded, circuit.header["ablation"])(batch, "train")

    def error_of(gates: torch.Tensor) -> torch.Tensor:
        return masked_mean(OBJECTIVES["kl"](full, gated_logits(loaded, batch, gates, ablated)), batch.position_mask)

    for number, antithetic in SAMPLES:
        recipe = EdgePruning(GeometricPenalty(), masks_per_batch=number, antithetic=antithetic)
        recipe.build(loaded.graph)
        recipe.edges.log_alpha.data = loaded.graph.to_vector(scores).float()
        errors = [recipe.expected_error(error_of, seed, 0)[0] for seed in range(options.draws)]
        slopes = torch.stack([torch.autograd.grad(error, recipe.edges.log_alpha)[0] for error in errors]).double()
        own = (slopes - slopes.mean(0)).square().sum(1) * options.draws / (options.draws - 1)
        print(
            f"{number} samples{', antithetic' * antithetic}: {own.mean():.3e} +- {own.std() / options.draws**0.5:.1e}"
        )


def main() -> None:
    """Choose the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run", help="fit and judge")
    part.add_argument("problems", nargs="+", choices=PROBLEMS)
    part.add_argument("--settings", nargs="+", choices=SETTINGS, help="default: all")
    part.add_argument("--seeds", nargs="+", type=int, default=[0])
    part.add_argument("--folder", type=Path, default=Path("runs/schedule"))
    part.add_argument("--model", help="model of `stories`")
    part.add_argument("--threads", type=int, default=1)
    part.set_defaults(work=run)
    part = parts.add_parser("judge", help="measure circuits of other runs")
    part.add_argument("circuits", nargs="+", type=Path)
    part.add_argument("--data", type=Path, required=True)
    part.add_argument("--out", type=Path, required=True)
    part.add_argument("--pairs", type=int, default=NUM_TEST)
    part.set_defaults(work=judge)
    part = parts.add_parser("noise", help="variance of the gradient at a snapshot, by samples per batch")
    part.add_argument("circuit", type=Path)
    part.add_argument("--data", type=Path, required=True)
    part.add_argument("--draws", type=int, default=200)
    part.set_defaults(work=noise)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
