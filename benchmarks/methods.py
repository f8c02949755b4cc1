"""Every method on one task: indirect object identification in SmolLM2, one held-out set of pairs for all circuits.

    edgeprune get smollm2
    python benchmarks/methods.py run --folder runs/methods       # hours; what is there already is not repeated
    python benchmarks/methods.py judge --folder runs/methods --out docs/results/methods.json
    python benchmarks/methods.py print --out docs/results/methods.json --plot docs/results/methods.png

Each method is one command, `edgeprune fit` or `edgeprune discover`, in a process of its own. Time is that of the whole
process: model, pairs, search, and the circuits' validation; processor time of the same process says what it takes on
one core where nothing else uses the machine. `judge` runs every circuit on the first `--pairs` test pairs, which no
method saw: those that the run wrote; where scores have signs, also those of the highest signed scores; and of methods
that train, which pass sparsities on the way to theirs, also those that are cut from the final gates.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from methods_tables import SPARSITIES, answers, cost_and_kl, own_sizes, plot, signed
from rich.console import Console
from rich.progress import track

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.methods.selection import prune_dangling, top_n
from edgeprune.metrics.measure import measure_examples
from edgeprune.models.loading import load_model

ROOT = Path(__file__).resolve().parents[1]
FIT, DISCOVER = ROOT / "configs" / "ioi_smollm2.yaml", ROOT / "configs" / "discover" / "ioi_smollm2.yaml"
RECIPE = "--model.recipe"
DONE = "done.json"


@dataclass(frozen=True)
class Entry:
    """A method with its settings.

    Attributes:
        label: As the tables say it.
        command: `fit` or `discover`.
        arguments: Beside the config; `{folder}` is the folder of all runs.
        more: Circuits to judge beside those that the run writes: `signed` or `final`.
    """

    label: str
    command: str
    arguments: tuple[str, ...] = ()
    more: str = ""

    def line(self, folder: Path | str) -> list[str]:
        """The command's arguments."""
        config = FIT if self.command == "fit" else DISCOVER
        relative = config.relative_to(ROOT)
        return [self.command, "--config", str(relative), *(part.format(folder=folder) for part in self.arguments)]


def _recipe(name: str, **settings: Any) -> tuple[str, ...]:
    return (f"{RECIPE}={name}", *(f"{RECIPE}.init_args.{key}={value}" for key, value in settings.items()))


def _method(name: str, metric: str, *more: str) -> tuple[str, ...]:
    return (f"--method={name}", f"--metric={metric}", *more)


IG_STEPS = ("--method.steps=5", "--limit=100")
FEW = ("--limit=4", "--data.batch_size=4", "--selection=null")
ENTRIES: dict[str, Entry] = {
    "random": Entry("random", "discover", _method("RandomScores", "kl")),
    "activation_magnitude": Entry("activation magnitude", "discover", _method("ActivationMagnitude", "kl")),
    "ifr": Entry("IFR", "discover", _method("InformationFlowRoutes", "kl", "--selection.rule=greedy")),
    "hisp": Entry("HISP", "discover", _method("HISP", "logit_difference", "--selection.absolute=false")),
    "eap_ld": Entry("EAP, logit difference", "discover", _method("EAP", "logit_difference"), "signed"),
    "eap_kl": Entry("EAP, KL", "discover", _method("EAP", "kl")),
    "eap_ig_inputs_ld": Entry(
        "EAP-IG-inputs, logit difference", "discover", _method("EAPIG", "logit_difference", *IG_STEPS), "signed"
    ),
    "eap_ig_inputs_kl": Entry("EAP-IG-inputs, KL", "discover", _method("EAPIG", "kl", *IG_STEPS), "signed"),
    "eap_ig_activations_kl": Entry(
        "EAP-IG-activations, KL",
        "discover",
        _method("EAPIG", "kl", *IG_STEPS, "--method.variant=activations", "--limit=16"),
    ),
    "eap_ig_gates_kl": Entry(
        "IG over all gates, KL", "discover", _method("EAPIG", "kl", *IG_STEPS, "--method.variant=gates")
    ),
    "acdc": Entry("ACDC", "discover", _method("ACDC", "kl", "--method.taus=[0.1,0.03,0.01]", *FEW)),
    "acdc_fine": Entry("ACDC, fine", "discover", _method("ACDC", "kl", "--method.taus=[0.002]", *FEW)),
    "sp_nodes": Entry(
        "SP, nodes",
        "fit",
        (
            *_recipe("SubnetworkProbing", granularity="nodes", penalty_weight=20, learning_rate=0.1),
            "--trainer.max_steps=250",
        ),
        "final",
    ),
    "sp_edges": Entry(
        "SP, edges",
        "fit",
        (
            *_recipe("SubnetworkProbing", granularity="edges", penalty_weight=300, learning_rate=0.1),
            "--trainer.max_steps=250",
        ),
        "final",
    ),
    "ugs": Entry(
        "UGS",
        "fit",
        (
            *_recipe("UGS", edge_weight=0.014, learning_rate=0.05, samples_per_step=1, masks_per_batch=8),
            "--trainer.max_steps=250",
        ),
        "final",
    ),
    "edge_pruning": Entry("Edge Pruning", "fit", (), "final"),
    "edge_pruning_warm": Entry(
        "Edge Pruning, warm-started",
        "fit",
        (
            f"{RECIPE}.init_args.warm_start.path={{folder}}/eap_ig_inputs_kl/scores.safetensors",
            f"{RECIPE}.init_args.warm_start.magnitude=true",
            f"{RECIPE}.init_args.warm_start.keep_below=0.3",
            f"{RECIPE}.init_args.sparsity_term=GeometricPenalty",
            f"{RECIPE}.init_args.sparsity_term.init_args.start=500",
            f"{RECIPE}.init_args.sparsity_term.init_args.end=10000",
            "--trainer.max_steps=300",
        ),
        "final",
    ),
}


# -------------------------------------------------------------------- run
def run(options: argparse.Namespace) -> None:
    """Run what is missing, one process after the other."""
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or ENTRIES:
        own = folder / name
        if (own / DONE).exists():
            continue
        entry = ENTRIES[name]
        if entry.command == "fit":
            shutil.rmtree(own, ignore_errors=True)
            logger = "--trainer.logger.init_args"
            places = [f"{logger}.save_dir={folder}", f"{logger}.name={name}", f"{logger}.version=0"]
        else:
            places = [f"--out={own}"]
        print(f"{name} ...", flush=True)
        record = timed([*entry.line(folder), *places], folder / f"{name}.log")
        (own / DONE).write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {record['minutes']} minutes, {record['processor_minutes']} of one core", flush=True)


def timed(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a command of `edgeprune`; its time, in minutes, and its peak memory, in GB."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(ROOT)
    begin = time.perf_counter()
    with log.open("w") as file:
        command = [sys.executable, "-m", "edgeprune", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\nfailed, see {log}")
    return {
        "minutes": round((time.perf_counter() - begin) / 60, 2),
        "processor_minutes": round((usage.ru_utime + usage.ru_stime) / 60, 2),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


# -------------------------------------------------------------------- judge
def judge(options: argparse.Namespace) -> None:
    """Run all circuits on the test pairs; those that the output file has already are not repeated."""
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"methods": {}}
    if result.get("num_examples", options.pairs) != options.pairs:
        raise SystemExit(f"{options.out} is of {result['num_examples']} pairs; remove it, or ask for as many")
    names = [name for name in ENTRIES if (options.folder / name / DONE).exists()]
    found = {name: dict(_circuits(options.folder / name, ENTRIES[name].more)) for name in names}
    jobs = [
        (name, key, circuit)
        for name in names
        for key, circuit in found[name].items()
        if result["methods"].get(name, {}).get("circuits", {}).get(key, {}).get("digest") != _digest(circuit)
    ]
    rows = _measure([circuit for _, _, circuit in jobs], options.pairs)
    for name in names:
        record = json.loads((options.folder / name / DONE).read_text())
        own = result["methods"].setdefault(name, {"circuits": {}})
        own |= {"label": ENTRIES[name].label, **record}
        own["command"] = " ".join(["edgeprune", *ENTRIES[name].line("runs/methods")])
    for (name, key, circuit), measures in zip(jobs, rows, strict=True):
        result["methods"][name]["circuits"][key] = _row(circuit, measures)
    result |= _about(rows[0]["num_examples"] if rows else result["num_examples"])
    result["methods"] = {name: result["methods"][name] for name in ENTRIES if name in result["methods"]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _circuits(folder: Path, more: str) -> Iterator[tuple[str, Circuit]]:
    """The circuits of a run by name, and those that are cut once more from its scores."""
    for path in sorted(folder.rglob("circuits/*.safetensors")):
        yield path.stem, Circuit.load(path)
    if more:
        (path,) = folder.rglob("scores.safetensors" if more == "signed" else "final.safetensors")
        ranked = Circuit.load(path)
        assert ranked.scores is not None
        for sparsity in SPARSITIES:
            keep = top_n(ranked.graph, ranked.scores, round((1 - sparsity) * ranked.graph.num_edges))
            yield f"{more}-{sparsity:.4f}", Circuit(ranked.graph, prune_dangling(ranked.graph, keep), None, {})


def _measure(circuits: Sequence[Circuit], num_pairs: int) -> list[dict[str, float]]:
    """Faithfulness on the first test pairs."""
    if not circuits:
        return []
    data = read_data_config(str(FIT), tokenizer="smollm2")
    model = load_model("smollm2", kv_readers="group")
    batches = pair_batches(data, "test", num_pairs, data.eval_batch_size)
    gates = [circuit.gates() for circuit in circuits]
    shown = track(batches, description="judging", console=Console(stderr=True))
    return measure_examples(model, ReferenceRuns(model, "interchange"), shown, gates, "test").as_dicts()


def _row(circuit: Circuit, measures: dict[str, float]) -> dict[str, Any]:
    header = circuit.header
    own = {key: header[key] for key in ("reached", "tau", "num_examples") if key in header}
    return {
        "edges": circuit.num_edges,
        "all_edges": circuit.graph.num_edges,
        "sparsity": round(circuit.sparsity, 5),
        "dangling": circuit.num_dangling,
        **{key: round(measures[key], 4) for key in ("kl", "logit_difference", "accuracy", "exact_match")},
        **own,
        "digest": _digest(circuit),
    }


def _digest(circuit: Circuit) -> str:
    return hashlib.sha256(circuit.keep.numpy().tobytes()).hexdigest()[:16]


def _about(num_examples: float) -> dict[str, Any]:
    return {
        "num_examples": int(num_examples),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "transformers": transformers.__version__,
        },
    }


# -------------------------------------------------------------------- print
def show(options: argparse.Namespace) -> None:
    """Markdown tables, and a plot of KL."""
    result = json.loads(options.out.read_text())
    methods: dict[str, Any] = result["methods"]
    print(cost_and_kl(methods), answers(methods), own_sizes(methods), signed(methods), sep="\n\n")
    print("\n".join(f"- {own['label']}: `{own['command']}`" for own in methods.values()))
    if options.plot:
        plot(methods, options.plot)


def main() -> None:
    """Choose the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run", help="find circuits")
    part.add_argument("--folder", type=Path, default=Path("runs/methods"))
    part.add_argument("--only", nargs="+", choices=ENTRIES)
    part.set_defaults(work=run)
    part = parts.add_parser("judge", help="measure them on the test pairs")
    part.add_argument("--folder", type=Path, default=Path("runs/methods"))
    part.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "methods.json")
    part.add_argument("--pairs", type=int, default=100)
    part.set_defaults(work=judge)
    part = parts.add_parser("print", help="tables and plot of a result file")
    part.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "methods.json")
    part.add_argument("--plot", type=Path)
    part.set_defaults(work=show)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
