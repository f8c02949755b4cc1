"""The guide on compiled models says what is so: its code runs, and its table is that of the programs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune import compiled
from edgeprune.compiled import cases, load_compiled, minimal_circuits, output_kind, programs
from edgeprune.compiled.trained_induction import WEIGHTS, read_weights
from tests.compiled.slow import graph_of

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "compiled.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL) if "path/to" not in block]
ROWS = re.findall(r"^\| `(\w+)` \|(.*)\|$", GUIDE, flags=re.MULTILINE)


def run(marker: str) -> dict[str, Any]:
    (block,) = [block for block in BLOCKS if marker in block]
    names: dict[str, Any] = {}
    exec(compile(block, "guide", "exec"), names)
    return names


def test_names_of_the_first_example() -> None:
    names = run("programs()")
    (listed,) = re.findall(r"programs\(\)  # \((.*)\)", GUIDE)
    assert re.findall(r'"(\w+)"', listed) == list(programs())
    assert len(names["edges"]) == 11


def test_the_built_model_tells_repeats() -> None:
    model = run("build(")["model"]
    logits = model(torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]])).logits[:, 1:, 0]
    torch.testing.assert_close(logits, torch.tensor([[1.0, 0, 1], [0, 0, 0]]), rtol=0, atol=1e-6)


def test_brute_force_finds_the_two_circuits() -> None:
    names = run("brute_force(")
    minimal = names["found"].minimal()
    assert {frozenset(circuit) for circuit in minimal} == set(map(frozenset, minimal_circuits("or_gate", "zero")))


@pytest.mark.parametrize("name", [name for name in programs() if name != "trained_induction"])
def test_the_table_counts_right(name: str) -> None:
    (row,) = [cells.split("|") for program, cells in ROWS if program == name and cells.count("|") == 6]
    _, inputs, shape, edges, zero, interchange, output = (cell.strip() for cell in row)
    model = load_compiled(name)
    assert inputs.startswith(f"{len(cases(name))}:")
    assert shape.startswith(f"{model.config.num_hidden_layers} x {model.config.num_attention_heads}")
    assert int(edges) == graph_of(model).num_edges
    assert zero == " or ".join(str(len(circuit)) for circuit in minimal_circuits(name, "zero"))
    assert interchange == " or ".join(str(len(circuit)) for circuit in minimal_circuits(name, "interchange"))
    assert output == output_kind(name)


def test_the_figures_of_training_are_those_of_the_file() -> None:
    _, record = read_weights(Path(compiled.__file__).with_name(WEIGHTS))
    assert f"--steps {record['steps']} --seed {record['seed']}" in GUIDE
    assert f"{record['accuracy']:.1%}".replace("%", " %") in GUIDE
