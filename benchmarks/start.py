"""How long commands take before they do anything: help pages, and `fit` up to the end of its first step.

    python benchmarks/start.py --rounds 5

Whole processes, one after the other in each round, so that all cases meet the same machine. The bar to be measured
against is the time that Python takes to import torch, Lightning and transformers.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeprune.console import report_console
from edgeprune.tables import Numbers, table

ROOT = Path(__file__).parents[1]
BAR = "import torch, lightning, transformers"
FIRST_STEP = """
import os
from edgeprune.cli import main
from lit_modules import PruningModule

def leave(self, *_):
    os._exit(0)

PruningModule.on_train_batch_end = leave
main(["fit", "--config", {config!r}])
os._exit(1)
"""
HELP = "import sys; from edgeprune.cli import main; sys.exit(main({words!r}))"
COMMANDS = ("fit", "discover", "evaluate", "compare", "convert", "draw", "data", "sweep", "configs", "get")


def seconds(code: str, folder: str) -> tuple[float, float]:
    """Processor time (user and system) and wall time of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", nargs="*", default=COMMANDS, help="whose help pages to show")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args()
    cases = {BAR: BAR, "fit: first step": FIRST_STEP.format(config=str(ROOT / "configs" / "quickstart.yaml"))}
    cases |= {f"{name} --help": HELP.format(words=[name, "--help"]) for name in options.commands}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for name, code in cases.items():
                figures = seconds(code, folder)
                if number:  # the first round fills the machine's file cache
                    found[name].append(figures)
    bar = statistics.median(cpu for cpu, _ in found[BAR])
    rows = list[list[str | float]]()
    for name, figures in found.items():
        cpu, wall = (statistics.median(values) for values in zip(*figures, strict=True))
        rows.append([name, cpu, cpu / bar, wall])
    columns = ["process", *(Numbers(name, 2) for name in ("processor time, s", "of the imports", "wall, s"))]
    report_console().print(table(None, columns, rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
