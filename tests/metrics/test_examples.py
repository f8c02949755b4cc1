"""Values of examples: figures, groups, and the run that makes them against one run per circuit."""

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.measure import measure_examples
from edgeprune.metrics.registry import MEASURES
from tests.methods.small_problems import problem, tiny

NAN = float("nan")


def values() -> ExampleValues:
    """Two circuits, a mean and a ratio, four examples of which one has no mean."""
    data = torch.tensor([[[1.0, 2, NAN, 3], [2, 2, 2, 2]], [[0, 0, NAN, 6], [1, 1, 1, 1]]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1, 1, 1], [1, 2, 3, 4]], dtype=torch.float64).expand(2, -1, -1)
    return ExampleValues(("kl", "logit_difference_percent"), data, weights, torch.tensor([3, 1, 2, 0]))


def test_figures_are_sums_over_defined_examples() -> None:
    found = values()
    assert found.figures().tolist() == [[2.0, 0.8], [2.0, 0.4]]
    assert found.defined().tolist() == [[3, 4], [3, 4]]
    assert found.figure("kl", 1) == 2.0
    assert found.as_dicts()[0] == {"kl": 2.0, "logit_difference_percent": 0.8, "num_examples": 4}


def test_groups_cut_the_examples() -> None:
    parts = values().groups(["b", "a", "a", "b"])
    assert list(parts) == ["b", "a"]
    assert parts["b"].index.tolist() == [3, 0]
    assert parts["a"].figures().tolist() == [[2.0, 0.8], [0.0, 0.4]]
    with pytest.raises(EdgepruneError, match="4 examples need as many labels, got 1"):
        values().groups(["a"])
    with pytest.raises(EdgepruneError, match="was not taken"):
        values().of("js")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_circuits_run_together_are_those_run_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of circuits in a run, and as the torchmetrics have it."""
    asked = problem(tiny(family))
    gates = [torch.rand(asked.model.graph.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    gates += [asked.model.graph.exists]
    every = tuple(name for name, measure in MEASURES.items() if measure.task is None)
    together = measure_examples(asked.model, asked.runs, asked.batches, gates, "train", every)
    monkeypatch.setattr("edgeprune.metrics.measure.TOKENS_AT_ONCE", 1)
    alone = measure_examples(asked.model, asked.runs, asked.batches, gates, "train", every)
    torch.testing.assert_close(together.values, alone.values, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert together.figure("kl", 5) == pytest.approx(0, abs=1e-6)
    metrics = faithfulness(measures=every)
    for batch, full, ablated in asked.batches_with_runs():
        circuit = asked.model(batch.clean, gates[0], ablated, batch.attention_mask, batch.positions).float()
        metrics.update(full, circuit, batch)
    expected = {name: float(value) for name, value in metrics.compute().items()}
    assert together.as_dicts()[0] == pytest.approx(expected | {"num_examples": 5}, rel=1e-4, abs=1e-6, nan_ok=True)
    (standard, *_) = measure_examples(asked.model, asked.runs, asked.batches, gates, "train").as_dicts()
    assert standard == pytest.approx({name: together.as_dicts()[0][name] for name in standard}, rel=1e-4, abs=1e-6)
