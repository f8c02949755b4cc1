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
import random
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
from ground_truth import compared, of_program
from transformers import AutoTokenizer

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
NUM_TEST = 100
TERM = ("start", "end", "target", "warmup", "schedule", "multiplier_rate")  # of a setting, beside those of the recipe
Values = dict[str, Any]


# -------------------------------------------------------------------- problems
@dataclass(frozen=True)
class Problem:
    """A model with pairs, and the setting that others are compared with.

    Attributes:
        config: Shipped config that the rest is taken from.
        base: The setting.
        sparsities: Snapshots to judge.
        model: Name; None: from the command line.
        task: Class and settings; `JSONLTask`: the pairs of `write_stories`.
        ablation: For programs, of which the circuit is known.
        batch_size: Pairs in a step.
    """

    config: str
    base: Values
    sparsities: tuple[float, ...]
    model: str | None
    task: tuple[str, Values]
    ablation: str = "interchange"
    batch_size: int = 8

    def known(self) -> Known | None:
        """The known circuit, if this is a program."""
        if self.model is None or not self.model.startswith("compiled:"):
            return None
        found = of_program(self.model.removeprefix("compiled:"))
        return next(problem for problem in found if problem.ablation == self.ablation)


SPLITS = {"num_train": 400, "num_validation": 10, "num_test": NUM_TEST, "entities": "shared"}
SHORT = {  # the shipped configs/ioi_smollm2.yaml in a third of its steps: three times the rate
    "steps": 200,
    "start": 500.0,
    "end": 1500.0,
    "learning_rate": 0.1,
    "betas": [0.9, 0.99],
    "init_mean": 2.0,
    "masks_per_batch": 8,
}
PROGRAM = {
    "steps": 600,
    "start": 0.02,
    "end": 0.1,
    "learning_rate": 0.05,
    "betas": [0.9, 0.9],
    "init_mean": 5.0,
    "masks_per_batch": 1,
}


def program(name: str, ablation: str) -> Problem:
    """A compiled program, by the pathwise estimator."""
    task = ("CompiledTask", {"program": name})
    return Problem("ground_truth", PROGRAM, (0.5,), f"compiled:{name}", task, ablation, batch_size=64)


PROBLEMS = {
    "reverse": program("reverse", "zero"),
    "reverse_interchange": program("reverse", "interchange"),
    "xproportion": program("xproportion", "zero"),
    "stories": Problem(
        "ioi_smollm2",
        {**SHORT, "steps": 300, "start": 10.0, "end": 300.0},
        (0.8, 0.9, 0.95, 0.97, 0.98),
        None,
        ("JSONLTask", {}),
    ),
    "ioi": Problem(
        "ioi_smollm2",
        SHORT,
        (0.95, 0.98, 0.99),
        "smollm2",
        ("IOI", {**SPLITS, "corruption": "abc", "templates": 1}),
    ),
    "pronoun": Problem("ioi_smollm2", SHORT, (0.95, 0.98, 0.99), "smollm2", ("GenderedPronoun", SPLITS)),
}

# -------------------------------------------------------------------- settings
# What each changes of the problem's base setting; those that change nothing there are left out. "price" multiplies the
# penalty's start and end, "price_from" is its start over its end, "fixed" a constant price over the base's end; "share"
# multiplies the number of steps, "rate" the learning rate.
PUBLISHED = {
    "penalty_on": "sample",
    "learning_rate": 0.8,
    "learning_rate_warmup": 0.0667,
    "learning_rate_decay": True,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "init_mean": 10.0,
    "init_std": 0.01,
    "node_gates": True,
    "masks_per_batch": 1,
    "multiplier_rate": 0.8,
    "warmup": 0.8333,
    "clip": 1.0,
}
SETTINGS: dict[str, Values] = {
    "base": {},
    **{f"init {mean:g}": {"init_mean": mean} for mean in (0.0, 2.0, 4.0, 5.0, 10.0)},
    **{f"rate {rate:g}": {"learning_rate": rate} for rate in (0.01, 0.03, 0.05, 0.1, 0.3)},
    "rate falls to 0": {"learning_rate_decay": True},
    "betas .9 .9": {"betas": [0.9, 0.9]},
    "betas .9 .95": {"betas": [0.9, 0.95]},
    "betas .9 .99": {"betas": [0.9, 0.99]},
    "betas .9 .999": {"betas": [0.9, 0.999]},
    "price / 3": {"price": 1 / 3},
    "price x 3": {"price": 3.0},
    "price constant": {"price_from": 1.0},
    "price from 1/10": {"price_from": 0.1},
    "price from 1/100": {"price_from": 0.01},
    "steps / 4": {"share": 0.25},
    "steps / 2": {"share": 0.5},
    "steps x 2": {"share": 2.0},
    "steps x 2, rate 0.03": {"share": 2.0, "learning_rate": 0.03},
    "steps / 4, rate x 4": {"share": 0.25, "rate": 4.0},
    "penalty on the sample": {"penalty_on": "sample"},
    "1 mask": {"masks_per_batch": 1},
    "2 masks": {"masks_per_batch": 2},
    "2 masks, antithetic": {"masks_per_batch": 2, "antithetic": True},
    "8 masks": {"masks_per_batch": 8},
    "8 masks, antithetic": {"masks_per_batch": 8, "antithetic": True},
    "warm start": {"warm_start": {"magnitude": True}},
    "warm start, 30 % trained": {"warm_start": {"magnitude": True, "keep_below": 0.3}},
    "weight decay .01": {"weight_decay": 0.01},
    # one run per sparsity: the published form at equal and at the published number of steps, and fixed prices
    **{f"Lagrangian to {target:g}": {"target": target} for target in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)},
    **{
        f"Lagrangian to {target:g}, multipliers x 10": {"target": target, "multiplier_rate": 8.0}
        for target in (0.95, 0.97, 0.98)
    },
    "Lagrangian to 0.98, log, multipliers x 10": {"target": 0.98, "schedule": "log", "multiplier_rate": 8.0},
    **{
        f"published to {target:g}": {**PUBLISHED, "target": target, "steps": 3000} for target in (0.9, 0.95, 0.98, 1.02)
    },
    **{
        f"published / 5 to {target:g}": {**PUBLISHED, "target": target, "steps": 600}
        for target in (0.9, 0.95, 0.98, 1.02)
    },
    **{f"constant price {part:g}": {"fixed": part} for part in (0.03, 0.1, 0.3, 1.0)},
}


def resolved(problem: Problem, name: str) -> Values:
    """All values of a setting: those of the recipe, `steps`, `clip` and those of the sparsity term."""
    change = dict(SETTINGS[name])
    values = {**problem.base, **change}
    factors = {key: values.pop(key, None) for key in ("price", "price_from", "share", "rate", "fixed")}
    if factors["share"]:
        values["steps"] = round(values["steps"] * factors["share"])
    if factors["rate"]:
        values["learning_rate"] *= factors["rate"]
    if factors["price"]:
        values["start"], values["end"] = (factors["price"] * values[key] for key in ("start", "end"))
    if factors["price_from"]:
        values["start"] = factors["price_from"] * values["end"]
    if factors["fixed"]:
        values["start"] = values["end"] = factors["fixed"] * values["end"]
    if "target" in values:
        del values["start"], values["end"]
    return values


def is_new(problem: Problem, name: str) -> bool:
    """Whether a setting differs from the base."""
    return name == "base" or resolved(problem, name) != resolved(problem, "base")


# -------------------------------------------------------------------- pairs of the stories model
GIRLS = ["Lily", "Sue", "Mia", "Amy", "Anna", "Lucy", "Jane", "Emma", "Sara", "Molly", "Ella"]
BOYS = ["Tim", "Tom", "Ben", "Max", "Sam", "Jack", "Bob", "Billy", "Timmy", "John", "Leo", "Joe"]
FEELINGS = ["sad", "happy", "scared", "tired", "angry", "hungry", "excited", "curious"]
PLACES = ["park", "house", "garden", "room", "store", "forest", "kitchen", "water"]
THINGS = ["dog", "cat", "tree", "ball", "bird", "box", "car", "fish"]
STORIES = (  # sentence, words, whether the pronoun begins a sentence
    ("{name} was {word} because", FEELINGS, False),
    ("{name} was in the {word}.", PLACES, True),
    ("One day, {name} went to the {word}.", PLACES, True),
    ("{name} liked to play with the {word}.", THINGS, True),
)


def write_stories(path: Path, tokenizer: str) -> None:
    """Pairs for `JSONLTask`: a name, and a pronoun that fits; corrupted: a name of the other gender and equal length.

    No clean prompt occurs twice. A fifth of the pairs is for testing, a small part for validation.
    """
    words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    length = {name: len(words.tokenize(f" {name}")) for name in (*GIRLS, *BOYS)}
    rng = random.Random(0)
    lines: list[Values] = []
    for (sentence, fillings, begins), own in product(STORIES, (GIRLS, BOYS)):
        answers = ("She", "He") if begins else ("she", "he")
        right, wrong = answers if own is GIRLS else answers[::-1]
        for word, name in product(fillings, own):
            others = [other for other in (BOYS if own is GIRLS else GIRLS) if length[other] == length[name]]
            if others:
                clean, corrupted = (sentence.format(name=each, word=word) for each in (name, rng.choice(others)))
                lines.append(
                    {
                        "clean": f"{clean}<predict> {right}</predict>",
                        "corrupted": f"{corrupted}<predict> {wrong}</predict>",
                    }
                )
    rng.shuffle(lines)
    for number, line in enumerate(lines):
        line["split"] = "test" if number < NUM_TEST else "validation" if number < NUM_TEST + 20 else "train"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    model = circuit.header["model"]
    loaded = load_model(model, **circuit.header["model_options"])
    (batch, *_) = pair_batches(read_data_config(str(options.data), tokenizer=model), "train", 8, 8)
    full, ablated = ReferenceRuns(loaded, circuit.header["ablation"])(batch, "train")

    def error_of(gates: torch.Tensor) -> torch.Tensor:
        return masked_mean(OBJECTIVES["kl"](full, gated_logits(loaded, batch, gates, ablated)), batch.position_mask)

    for number, antithetic in SAMPLES:
        recipe = EdgePruning(GeometricPenalty(), masks_per_batch=number, antithetic=antithetic)
        recipe.build(loaded.graph)
        recipe.edges.log_alpha.data = loaded.graph.to_vector(circuit.scores).float()
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
