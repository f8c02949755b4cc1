"""How low is the KL at every sparsity? All methods on one task: equal numbers of passes, several seeds, held-out pairs.

    edgeprune get smollm2
    python benchmarks/frontier.py run ioi --folder runs/frontier              # hours; what is done is not repeated
    python benchmarks/frontier.py judge ioi --folder runs/frontier --out docs/results/frontier_ioi.json
    python benchmarks/frontier.py print --out docs/results/frontier_ioi.json --plot docs/results/frontier_ioi.png

Each run is one command, `edgeprune fit`, `discover` or `polish`, in a process of its own, or one for each circuit
(`frontier_settings.py`). A method with settings to choose from tries all of them with the first seed and keeps the one
whose circuits have the lowest mean KL on the validation pairs. Time is that of the whole process: model, pairs, search,
validation; `core-minutes` is its processor time, which says what it takes where nothing else uses the machine. `judge`
runs every circuit on the test pairs, which no method saw, and compares methods pair by pair; areas over all sizes of a
method, and nestedness, are in `frontier_merits.py`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from frontier_merits import MEASURES, Found, merits
from frontier_settings import ENTRIES, PROBLEMS, RECIPE, ROOT, SPARSITIES, STRONGEST, Entry, Problem, Tries
from frontier_tables import plot, tables
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.methods.selection import prune_dangling, top_n
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.measure import gates_of, measure_examples
from edgeprune.models.loading import load_model
from edgeprune.statistics.paired import paired_difference

DONE, CHOSEN = "done.json", "chosen.json"
CONFIG, BARE = "fit.yaml", "bare.yaml"  # with the shipped recipe, and without: others would inherit its settings
LOGGER = "--trainer.logger.init_args"
WRITTEN = "circuits/*-*.safetensors"  # sparsity-0.9500, tau-0.01; not the final gates'
KEPT = ("kl", "logit_difference", "accuracy", "exact_match")
SHOWN = [KEPT.index(name) for name in MEASURES]  # over sizes


# -------------------------------------------------------------------- run
def run(options: argparse.Namespace) -> None:
    """Run what is missing: seed after seed, so that what is there can be compared at any time."""
    place: Path = options.folder.resolve() / options.problem
    place.mkdir(parents=True, exist_ok=True)
    problem = PROBLEMS[options.problem].placed(place, options.model)
    for name in (CONFIG, BARE):
        problem.write(place / name, recipe=name == CONFIG)
    for seed in options.seeds:
        for name in options.only or (ENTRIES if problem.all_methods else STRONGEST):
            count = len(tries(problem, name))
            if seed == options.seeds[0]:
                for number in range(count):
                    run_one(problem, place, name, number, seed, options)
                choose(place, name, seed, count)
            elif ENTRIES[name].seeds and (place / name / CHOSEN).exists():
                number = json.loads((place / name / CHOSEN).read_text())["number"]
                run_one(problem, place, name, number, seed, options)


def tries(problem: Problem, name: str) -> Tries:
    """The settings that a method may choose from."""
    return problem.tries.get(name, ENTRIES[name].tries)


def run_one(problem: Problem, place: Path, name: str, number: int, seed: int, options: argparse.Namespace) -> None:
    """What is missing of one setting with one seed; of polished circuits, those of the sparsities asked for."""
    own = place / name / f"{number}-s{seed}"
    record = {"minutes": 0.0, "processor_minutes": 0.0, "peak_gb": 0.0}
    asked = lines(problem, place, name, number, seed, own)
    if ENTRIES[name].of:
        if (own / DONE).exists():
            record = json.loads((own / DONE).read_text())
        (own / "circuits").mkdir(parents=True, exist_ok=True)
        asked = [line for line in asked if wanted(written(line), options.sparsities)]
    elif (own / DONE).exists():
        return
    else:
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
    for line in asked:
        print(f"{time.strftime('%H:%M')} {name}, setting {number}, seed {seed} ...", flush=True)
        took = timed(line, own.parent / f"{own.name}.log", options.threads)
        record = {key: (max if key == "peak_gb" else sum)((record[key], took[key])) for key in record}
        print(f"    {took['processor_minutes']:.1f} minutes of one core", flush=True)
    (own / DONE).write_text(json.dumps({key: round(value, 2) for key, value in record.items()}, indent=1) + "\n")


def written(line: Sequence[str]) -> Path:
    """The file that a command of `polish` writes, or one that stays at the size of a circuit."""
    given = dict(part.split("=", 1) for part in line if "=" in part)
    if "--out" in given:
        return Path(given["--out"])
    folder = Path(given[f"{LOGGER}.save_dir"]) / given[f"{LOGGER}.name"] / f"version_{given[f'{LOGGER}.version']}"
    return folder / "circuits" / f"{given[f'{LOGGER}.name']}.safetensors"


def wanted(path: Path, sparsities: Sequence[float]) -> bool:
    """Whether a circuit is among those asked for and not there yet."""
    return not path.exists() and path.stem in {f"sparsity-{sparsity:.4f}" for sparsity in sparsities}


def lines(problem: Problem, place: Path, name: str, number: int, seed: int, own: Path) -> Iterator[list[str]]:
    """The commands of a run."""
    entry = ENTRIES[name]
    more = [part.format(seed=seed, place=place) for part in tries(problem, name)[number]]
    own_recipe = any(part.startswith(f"{RECIPE}=") for part in more)
    config = str(place / (BARE if own_recipe else CONFIG))
    if entry.command == "fit":
        yield ["fit", "--config", config, *more, f"--seed_everything={seed}", *logged(own, "fit")]
    elif entry.command == "discover":
        sizes = [] if "--selection=null" in more else [f"--selection.sparsities={list(SPARSITIES)}"]
        model = f"--model.name={problem.model}"
        task = problem.arguments()
        yield ["discover", "--config", "configs/discover/ioi_smollm2.yaml", model, *task, *more, *sizes, f"--out={own}"]
    else:
        assert entry.of is not None
        if not (place / entry.of / CHOSEN).exists():
            raise SystemExit(f"{entry.label} needs the circuits of {entry.of}: run that first")
        start = best(place, entry.of, seed)
        for path in sorted(start.rglob(WRITTEN)):
            out = own / "circuits" / path.name
            if not Circuit.load(path).num_edges:  # nothing to swap
                shutil.copy(path, out)
            elif entry.command == "regrow":
                sparsity = path.stem.removeprefix("sparsity-")
                yield [
                    *("fit", "--config", config, *more, f"{RECIPE}.init_args.warm_start.path={path}"),
                    f"{RECIPE}.init_args.sparsity_term.init_args.end={sparsity}",
                    *(f"--trainer.callbacks.init_args.sparsities=[{sparsity}]", f"--seed_everything={seed}"),
                    *logged(own, path.stem),
                ]
            else:
                yield ["polish", str(path), "--config", config, *more, f"--seed={seed}", f"--out={out}"]


def logged(folder: Path, name: str) -> list[str]:
    """Options for where a run's files go."""
    return [f"{LOGGER}.save_dir={folder}", f"{LOGGER}.name={name}", f"{LOGGER}.version=0"]


def best(place: Path, name: str, seed: int) -> Path:
    """The folder of a method's chosen run."""
    chosen = json.loads((place / name / CHOSEN).read_text())
    return place / name / f"{chosen['number']}-s{seed if ENTRIES[name].seeds else chosen['seed']}"


def choose(place: Path, name: str, seed: int, count: int) -> None:
    """Of `count` settings, keep the one whose circuits have the lowest mean KL on the validation pairs."""
    found: dict[int, float] = {}
    for number in range(count if count > 1 else 0):
        circuits = [Circuit.load(path) for path in (place / name / f"{number}-s{seed}").rglob(WRITTEN)]
        found[number] = sum(circuit.header["metrics"]["kl"] for circuit in circuits) / len(circuits)
    record = {"number": min(found, key=lambda number: found[number], default=0), "seed": seed, "validation": found}
    (place / name / CHOSEN).write_text(json.dumps(record) + "\n")


def timed(arguments: Sequence[str], log: Path, threads: int) -> dict[str, float]:
    """Run a command of `edgeprune`; its time, in minutes, and its peak memory, in GB."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with log.open("a") as file:
        command = [sys.executable, "-m", "edgeprune", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\nfailed, see {log}")
    return {
        "minutes": (time.perf_counter() - begin) / 60,
        "processor_minutes": (usage.ru_utime + usage.ru_stime) / 60,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


# -------------------------------------------------------------------- judge
def circuits_of(own: Path, entry: Entry) -> Iterator[tuple[str, Circuit]]:
    """The circuits of a run, by asked sparsity: those that it wrote, and those cut from its final gates."""
    for path in sorted(own.rglob(WRITTEN)):
        yield path.stem.removeprefix("sparsity-"), Circuit.load(path)
    if entry.cut:
        (path,) = own.rglob("circuits/final.safetensors")
        ranked = Circuit.load(path)
        assert ranked.scores is not None
        for sparsity in SPARSITIES:
            if ranked.sparsity > sparsity:
                keep = top_n(ranked.graph, ranked.scores, round((1 - sparsity) * ranked.graph.num_edges))
                yield f"{sparsity:.4f}", Circuit(ranked.graph, prune_dangling(ranked.graph, keep), None, {})


class Judge:
    """The model and pairs of a problem; what was measured is kept in a file, by the circuit's edges."""

    def __init__(self, problem: Problem, place: Path, pairs: int | None) -> None:
        self.place, self.pairs, self.measured = place, pairs, dict[str, dict[str, torch.Tensor]]()
        self.model = load_model(problem.model, kv_readers="group")
        self.data = read_data_config(str(place / CONFIG))
        self.runs = ReferenceRuns(self.model, "interchange")
        for split in ("validation", "test"):
            path = self._path(split)
            self.measured[split] = load_file(path) if path.exists() else {}

    def _path(self, split: str) -> Path:
        return self.place / f"{split}{'' if self._limit(split) is None else f'-{self.pairs}'}.safetensors"

    def _limit(self, split: str) -> int | None:
        return self.pairs if split == "test" else None

    def values(self, circuits: Sequence[Circuit], split: str) -> list[torch.Tensor]:
        """Measures of each pair, `[measure, pair]`, for every circuit."""
        known = self.measured[split]
        new = {digest(circuit): circuit for circuit in circuits if digest(circuit) not in known}
        if new:
            shown = track(
                pair_batches(self.data, split, self._limit(split), 25),
                description=f"{len(new)} circuits on {split} pairs",
                console=Console(stderr=True),
            )
            gates = [gates_of(circuit) for circuit in new.values()]
            found = measure_examples(self.model, self.runs, shown, gates, split, KEPT)
            known |= {name: values.clone() for name, values in zip(new, found.values, strict=True)}
            save_file(known, self._path(split))
        return [known[digest(circuit)] for circuit in circuits]


def judge(options: argparse.Namespace) -> None:
    """Measure the circuits of every chosen run that is done."""
    place: Path = options.folder.resolve() / options.problem
    problem = PROBLEMS[options.problem].placed(place, options.model)
    measured = Judge(problem, place, options.pairs)
    methods: dict[str, Any] = {}
    runs: dict[str, list[Found]] = {}  # of each method, those of its seeds
    pairs: dict[tuple[str, str], list[torch.Tensor]] = {}  # by method and sparsity: of each seed, KL of each pair
    for name, entry in ENTRIES.items():
        if not (place / name / CHOSEN).exists() or (options.only and name not in options.only):
            continue
        chosen = json.loads((place / name / CHOSEN).read_text())
        seeds = sorted(place.glob(f"{name}/{chosen['number']}-s*/{DONE}"))
        rows: dict[str, Any] = {}
        for path in seeds:
            picked = picked_circuits(path.parent, entry, measured)
            found = measured.values(list(picked.values()), "test")
            runs.setdefault(name, []).append(Found(list(picked.values()), torch.stack(found)[:, SHOWN]))
            for (sparsity, _), values in zip(picked.items(), found, strict=True):
                pairs.setdefault((name, sparsity), []).append(values[KEPT.index("kl")])
            circuits = {
                sparsity: row(circuit, values)
                for (sparsity, circuit), values in zip(picked.items(), found, strict=True)
            }
            rows[path.parent.name.rpartition("-s")[2]] = {**json.loads(path.read_text()), "circuits": circuits}
        command = next(lines(problem, place, name, chosen["number"], chosen["seed"], Path("OUT")))
        if entry.of is not None:  # it took what its circuits took, and more
            for seed, own in rows.items():
                of_start = json.loads((best(place, entry.of, int(seed)) / DONE).read_text())
                for key in ("minutes", "processor_minutes"):
                    own[key] = round(own[key] + of_start[key], 2)
        methods[name] = {
            "label": entry.label,
            "passes": entry.passes,
            "tries": len(tries(problem, name)),
            "validation": chosen["validation"],
            "command": " ".join(["edgeprune", *command]).replace(str(place), f"runs/frontier/{options.problem}"),
            "seeds": rows,
        }
    graph = measured.model.graph
    ends = measured.values([Circuit(graph, graph.exists), Circuit.from_edges(graph, [])], "test")
    result = {
        "problem": problem.title,
        "num_examples": next(iter(pairs.values()))[0].shape[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "transformers": transformers.__version__,
        },
        "methods": methods,
        "merits": merits(runs, torch.stack(ends)[:, SHOWN], options.against),
        "differences": list(differences(pairs, options.against)),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def picked_circuits(own: Path, entry: Entry, measured: Judge) -> dict[str, Circuit]:
    """By asked sparsity the circuit, or of several the one with the lowest KL on the validation pairs."""
    found: dict[str, list[Circuit]] = {}
    for sparsity, circuit in circuits_of(own, entry):
        found.setdefault(sparsity, []).append(circuit)
    measured.values([one for circuits in found.values() if len(circuits) > 1 for one in circuits], "validation")

    def kl(circuit: Circuit) -> float:
        (values,) = measured.values([circuit], "validation")  # known by now
        return float(values[KEPT.index("kl")].mean())

    return {
        sparsity: min(circuits, key=kl) if len(circuits) > 1 else circuits[0]
        for sparsity, circuits in sorted(found.items())
    }


def row(circuit: Circuit, values: torch.Tensor) -> dict[str, Any]:
    """What the tables show of a circuit."""
    return {
        "edges": circuit.num_edges,
        "sparsity": round(circuit.sparsity, 5),
        "dangling": circuit.num_dangling,
        **{name: round(value, 4) for name, value in zip(KEPT, values.nanmean(1).tolist(), strict=True)},
    }


def differences(pairs: dict[tuple[str, str], list[torch.Tensor]], against: str) -> Iterator[dict[str, Any]]:
    """KL of every method minus that of one, each the mean over its seeds, pair by pair, with an interval over pairs."""
    for (name, sparsity), values in pairs.items():
        if name == against or (against, sparsity) not in pairs:
            continue
        both = torch.stack([torch.stack(each).mean(0) for each in (values, pairs[against, sparsity])])[:, None]
        examples = ExampleValues(("kl",), both, torch.ones_like(both), torch.arange(both.shape[-1]))
        found = paired_difference(examples, 0, 1, "kl")
        figure = {key: round(value, 4) for key, value in vars(found.figure).items()}
        yield {"method": name, "minus": against, "sparsity": sparsity, **figure, "p_value": found.p_value}


def digest(circuit: Circuit) -> str:
    """Of the edges."""
    return hashlib.sha256(circuit.keep.numpy().tobytes()).hexdigest()[:16]


# -------------------------------------------------------------------- print
def show(options: argparse.Namespace) -> None:
    """Markdown tables, and a plot of KL."""
    result = json.loads(options.out.read_text())
    print(*tables(result), sep="\n\n")
    if options.plot:
        plot(result, options.plot)


def main() -> None:
    """Choose the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run", help="find circuits")
    part.add_argument("problem", choices=PROBLEMS)
    part.add_argument("--folder", type=Path, default=Path("runs/frontier"))
    part.add_argument("--model", help="model of `stories`, such as stories260K of karpathy/tinyllamas as a folder")
    part.add_argument("--only", nargs="+", choices=ENTRIES, help="default: all")
    part.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    part.add_argument(
        "--sparsities", nargs="+", type=float, choices=SPARSITIES, default=SPARSITIES, help="of circuits to be polished"
    )
    part.add_argument("--threads", type=int, default=1)
    part.set_defaults(work=run)
    part = parts.add_parser("judge", help="measure them on the test pairs")
    part.add_argument("problem", choices=PROBLEMS)
    part.add_argument("--folder", type=Path, default=Path("runs/frontier"))
    part.add_argument("--model", help="model of `stories`, such as stories260K of karpathy/tinyllamas as a folder")
    part.add_argument("--out", type=Path, required=True)
    part.add_argument("--only", nargs="+", choices=ENTRIES, help="default: all that were run")
    part.add_argument("--pairs", type=int, help="the first so many test pairs; default: all")
    part.add_argument("--against", choices=ENTRIES, default="edge_pruning", help="method that others are compared with")
    part.set_defaults(work=judge)
    part = parts.add_parser("print", help="tables and plot of a result file")
    part.add_argument("--out", type=Path, required=True)
    part.add_argument("--plot", type=Path)
    part.set_defaults(work=show)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
