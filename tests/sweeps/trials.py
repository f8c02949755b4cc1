"""A stand-in for the `edgeprune` program, so that sweeps are tested in seconds: it obeys as a trial has to."""

import sys
from pathlib import Path

from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.store import Store

PROGRAM = f"""#!{sys.executable} -I
import json, os, pathlib, sys, time
run = pathlib.Path(os.environ["EDGEPRUNE_TRIAL"]) / "run"
run.mkdir()
given = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
names = [name for name in os.environ if name.startswith(("WANDB", "EDGEPRUNE"))]
(run / "seen.json").write_text(json.dumps([sys.argv[1:], {{name: os.environ[name] for name in names}}]))
with open(os.environ["STARTS"], "a") as starts:
    starts.write(run.parent.name + "\\n")
block = pathlib.Path(os.environ["STARTS"]).with_name("block")
while block.exists() and run.parent.name in block.read_text().split():
    time.sleep(0.02)
if given.get("fail") == "1":
    sys.exit("edgeprune: error: told to fail")
target = float(given.get("model.target", given.get("target", "0.5")))
(run / "metrics.csv").write_text(f"step,val/kl,train/penalty\\n1,9.0,\\n2,,4.0\\n3,{{target * target}},\\n")
(run / "config.yaml").write_text(json.dumps({{
    "seed_everything": int(given.get("seed_everything", 0)),
    "model": {{"name": "compiled:reverse", "objective": "kl", "recipe": {{"class_path": "x.EdgePruning"}}}},
    "data": {{"task": {{"class_path": "y.CompiledTask"}}}},
}}))
error = target * target + 0.01 * int(given.get("seed_everything", 0))
head = "asked,sparsity,edges,dangling,kl,squared_error,random_kl,random_squared_error,reached"
rows = [head, f"0.9,0.9,10,0,{{error}},nan,2.0,nan,True", f"final gates,0.8512,15,0,{{error / 2}},nan,1.5,nan,True"]
(run / "frontier.csv").write_text("\\n".join(rows) + "\\n")
"""

HEAD = "command: ['${env}', '${program}', fit, '${args}']\n"
GRID = HEAD + (
    "method: grid\n"
    "name: small\n"
    "metric: {name: val/kl, goal: minimize}\n"
    "parameters:\n"
    "  target: {values: [0.1, 0.2, 0.3]}\n"
    "  seed_everything: {values: [0, 1]}\n"
)


def write_sweep(folder: Path, text: str = GRID, name: str = "sweep.yaml") -> Path:
    """A sweep file for the stand-in program, which is written beside it."""
    program = folder / "bin" / "edgeprune"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    path = folder / name
    path.write_text(f"program: {program}\n{text}")
    return path


def make_store(folder: Path, text: str = GRID, size: int | None = None) -> Store:
    sweep = SweepFile.read(write_sweep(folder, text))
    return Store.make(folder / "sweep", sweep, size or sweep.size or 1)


def starts(folder: Path) -> list[str]:
    """Folders of trials in the order in which they were started."""
    file = folder / "starts"
    return file.read_text().split() if file.exists() else []
