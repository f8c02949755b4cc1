"""Does one setting without a price walk every task? The runs of `schedule.py` named "pace", against the hand-set price.

    P='--settings pace base --seeds 0 1 2 --folder runs/schedule'
    python benchmarks/schedule.py run stories --model FOLDER $P
    python benchmarks/schedule.py run ioi pronoun greater_than agreement capitals $P  # edgeprune get smollm2; hours
    python benchmarks/pace.py --folder runs/schedule

The runner goes on where it was stopped. `"pace, steps x 3"` is another of its settings. Writes what stands between
`<!-- runs -->` and `<!-- end -->` in the page. "Off" is how far the steps at which the gates got as sparse as asked are
from those of the schedule: the largest over sparsities and seeds, in hundredths of the run.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_tables import fill, markdown
from schedule_settings import PROBLEMS
from schedule_tables import at, merged, read

from edgeprune.objectives.pace import SOONER, Pace

PAGES = Path(__file__).resolve().parents[1] / "docs" / "results"
SETTINGS = ("pace", "pace, steps x 3", "base")
NAMES = {"base": "hand-set price"}
Row = dict[str, Any]


def planned(sparsity: float, end: float, steps: int) -> float:
    """Step at which the schedule of `Pace` has a sparsity."""
    share = (math.log(1 - sparsity) / math.log(1 - end)) ** (1 / SOONER)
    return steps * (1 - Pace(end).hold) * share


def line(problem: str, setting: str, rows: Sequence[Row]) -> list[str]:
    """A setting's seeds on one line."""
    sparsities = PROBLEMS[problem].sparsities
    steps = rows[0]["values"]["steps"]
    cells: list[str] = []
    for sparsity in sparsities:
        found = [at(row, sparsity) for row in rows]
        missed = any(not item["reached"] for item in found)
        cells.append(f"{statistics.mean(item['kl'] for item in found):.3f}{' *' * missed}")
    off = max(abs(at(row, each)["step"] - planned(each, sparsities[-1], steps)) for row in rows for each in sparsities)
    paced = setting.startswith("pace")
    return [
        *(problem, NAMES.get(setting, setting), str(len(rows)), str(steps)),
        ", ".join(f"{each:g}" for each in sparsities),
        " / ".join(cells),
        " / ".join(f"{statistics.mean(at(row, each)['step'] for row in rows):.0f}" for each in sparsities),
        f"{100 * off / steps:.0f}" if paced else "",
    ]


def main() -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/schedule"))
    parser.add_argument("--kept", type=Path, default=PAGES / "schedule.json", help="older runs of the hand-set price")
    parser.add_argument("--out", type=Path, default=PAGES / "pace.md")
    options = parser.parse_args()
    by_name: dict[tuple[str, str], list[Row]] = {}
    for row in merged(read(options.folder), json.loads(options.kept.read_text())):
        if "circuits" in row:
            by_name.setdefault((row["problem"], row["setting"]), []).append(row)
    keys = [(problem, setting) for problem in PROBLEMS for setting in SETTINGS if (problem, setting) in by_name]
    heads = ("task", "setting", "seeds", "steps", "sparsity", "KL", "at step", "off, %")
    table = markdown(heads, [line(*key, by_name[key]) for key in keys])
    fill(options.out, {"runs": table})


if __name__ == "__main__":
    main()
