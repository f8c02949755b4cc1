"""The report of docs/results/ioi_report.html: circuits of SmolLM2 at one sparsity under every ablation.

    edgeprune get smollm2
    python benchmarks/frontier.py run ioi --only edge_pruning eap_ig_inputs --seeds 0
    python benchmarks/ioi_report.py --methods runs/frontier/ioi --folder runs/ioi_report --out OUT

Learns the constants of optimal ablation, in fewer and longer steps than by default (`LEARNING`): the default would
take hours here. Then it is one `edgeprune evaluate`, whose command is in the JSON and on the page.
"""

import argparse
import shutil
from pathlib import Path

from edgeprune.ablations import LearningOptions, learn_constants, save_states
from edgeprune.circuit import Circuit
from edgeprune.cli import main as edgeprune
from edgeprune.cli.data import read_data_config
from edgeprune.cli.evaluate import EVERY_ABLATION
from edgeprune.cli.pairs import pair_batches
from edgeprune.console import ProgressReporter
from edgeprune.models.loading import load_model

CONFIG = "configs/ioi_smollm2.yaml"
METHODS = {"edge_pruning": "edge_pruning", "eap_ig": "eap_ig_inputs"}
SPARSITY = "sparsity-0.9800.safetensors"
LEARNING = LearningOptions(learning_rate=0.02, max_steps=6, checked=2)
LIMITS = ("--limit", "100", "--seeds", "2", "--random", "20", "--test-limit", "12", "--minimality-edges", "200")


def learn(path: Path) -> None:
    """Constants on the training pairs, to a file."""
    model = load_model("smollm2", kv_readers="group")
    batches = pair_batches(read_data_config(CONFIG, tokenizer="smollm2"), "train")
    with ProgressReporter(stderr=True) as bars:
        learned = learn_constants(model, batches, LEARNING, bars.report)
    save_states(path, model, learned.states, vars(LEARNING))


def main() -> None:
    """Learn what is missing, gather the circuits, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .json and .html are added")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    constants = folder / "constants.safetensors"
    if not constants.exists():
        learn(constants)
    files = [folder / f"{name}.safetensors" for name in (*METHODS, "random")]
    for path, method in zip(files, METHODS.values(), strict=False):
        (found,) = (options.methods / method).rglob(SPARSITY)
        shutil.copyfile(found, path)
    first = Circuit.load(files[0])
    header = {name: first.header[name] for name in ("model", "model_options", "ablation") if name in first.header}
    drawn = Circuit.random(first.graph, first.num_edges, seed=100)
    Circuit(first.graph, drawn.keep, drawn.scores, {**drawn.header, **header}).save(files[-1])
    ablations = [f"optimal:{constants}" if name == "optimal" else name for name in EVERY_ABLATION]
    pages = [f"--json={options.out}.json", f"--report={options.out}.html"]
    circuits = [str(path) for path in files]
    asked = ["--config", CONFIG, "--ablations", ",".join(ablations), "--tests", "all", *LIMITS, *pages]
    raise SystemExit(edgeprune(["evaluate", *circuits, *asked]))


if __name__ == "__main__":
    main()
