"""What the comparison of methods says of all sizes of a method: values by hand, on two pairs."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.graph import ArchSpec, EdgeGraph

GRAPH = EdgeGraph(ArchSpec(num_layers=10, num_heads=8, num_kv_heads=8))
ENDS = torch.tensor([[[4.0, 2.0], [1.0, 1.0]], [[0.0, -2.0], [0.0, 0.0]]])  # f = 1 and 0 on both pairs


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    """The scripts import one another by name, as in their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield


def merits(*arguments: Any) -> Any:
    return importlib.import_module("frontier_merits").merits(*arguments)


def found(seed: int, faithfulness: tuple[float, float], right: tuple[float, float]) -> Any:
    """Circuits of 90 and 99 % of random edges, with the same values on both pairs but for what is right."""
    circuits = [Circuit.random(GRAPH, round(share * GRAPH.num_edges), seed) for share in (0.1, 0.01)]
    values = [[(ENDS[1, 0] + 4 * value).tolist(), list(right)] for value in faithfulness]
    return importlib.import_module("frontier_merits").Found(circuits, torch.tensor(values))


def area(small: float, large: float, last: float, *, log: bool) -> float:
    """Of 0 below 1 %, `small` from there, `large` from 10 % to 50 %, and `last` at 100 %."""
    points = torch.tensor([0.0] * 3 + [small] * 3 + [large] * 3 + [last], dtype=torch.float64)
    axis = torch.tensor([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], dtype=torch.float64)
    if log:
        return float(torch.trapezoid(points, axis.log()) / math.log(1000))
    return float(torch.trapezoid(points, axis))


def test_areas_are_means_over_seeds_with_intervals_over_pairs() -> None:
    """Right on the first pair alone: a quarter of the draws have it twice, a quarter never."""
    one = [found(0, (0.5, 0.25), (1, 0)), found(1, (0.75, 0.5), (1, 0))]
    other = [found(2, (1.0, 1.0), (1, 1))]
    result = merits({"edge_pruning": other, "random": one}, ENDS, "edge_pruning")
    cpr = [area(0.25, 0.5, 1, log=False), area(0.5, 0.75, 1, log=False)]
    own = result["random"]["areas"]
    assert own["cpr"] == {key: pytest.approx(sum(cpr) / 2, abs=1e-4) for key in ("value", "low", "high")} | {
        "seeds": pytest.approx(cpr, abs=1e-4)
    }
    cmd = [0.999 - each for each in cpr]  # f is at most 1 here
    assert own["cmd"]["seeds"] == pytest.approx(cmd, abs=1e-4)
    accuracy = [area(right, right, 1, log=True) for right in (0.5, 0.0, 1.0)]
    assert [own["accuracy_area"][key] for key in ("value", "low", "high")] == pytest.approx(accuracy, abs=1e-4)
    minus = result["random"]["minus"]
    assert minus["cpr"]["value"] == pytest.approx(sum(cpr) / 2 - area(1, 1, 1, log=False), abs=1e-4)
    assert minus["accuracy_area"]["low"] == pytest.approx(accuracy[1] - accuracy[2], abs=1e-4)
    assert minus["accuracy_area"]["high"] == pytest.approx(0, abs=1e-4)
    assert result["edge_pruning"]["minus"] is None


def test_nestedness_of_each_seed() -> None:
    """Random circuits of one seed are cut from one noise, and nested; of two seeds they share what chance gives."""
    one, other = (found(seed, (1, 1), (1, 1)) for seed in (0, 1))
    mixed = one._replace(circuits=[one.circuits[0], other.circuits[1]])
    nested, random = merits({"a": [one, mixed]}, ENDS, "none")["a"]["nested"]
    assert nested["share"] == 1
    assert random["expected"] == nested["expected"] == pytest.approx(0.1, abs=1e-3)
    assert random["share"] == pytest.approx(0.1, abs=0.1)


def test_the_tables_have_them() -> None:
    row = {"edges": 9, "sparsity": 0.9, "kl": 0.2, "logit_difference": 3.0, "accuracy": 0.9}
    seeds = {"0": {"circuits": {"0.9000": row}, "processor_minutes": 1.0, "peak_gb": 1.0}}
    own: dict[str, Any] = {"passes": None, "tries": 1, "command": "edgeprune", "seeds": seeds}
    runs = {
        "edge_pruning": [found(2, (1.0, 1.0), (1, 1))],
        "random": [found(0, (0.5, 0.25), (1, 0)), found(1, (0.5, 0.25), (1, 0))],
    }
    methods = {name: {**own, "label": name} for name in runs}
    result = {"methods": methods, "differences": [], "merits": merits(runs, ENDS, "edge_pruning")}
    shown = list(importlib.import_module("frontier_tables").tables(result))
    (areas,) = [text for text in shown if text.startswith("| over all sizes")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in areas.splitlines()]
    assert lines[0][1:] == ["CPR", "CMD", "accuracy over log size", "nested in the next larger", "by chance"]
    random = next(line for line in lines if line[0] == "random")
    value = area(0.25, 0.5, 1, log=False)
    assert random[1] == f"{value:.3f} ({value:.3f} to {value:.3f})"
    assert random[4:] == ["1.000 (1.000 to 1.000)", "0.100"]
    (minus,) = [text for text in shown if text.startswith("| minus that of Edge Pruning")]
    assert f"{value - area(1, 1, 1, log=False):+.3f}" in minus
