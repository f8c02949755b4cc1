"""Scores of edges against EAP-IG's and auto-circuit's own; tolerances and differences found: README.md."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.methods.attribution import closing_effects, open_gates
from edgeprune.methods.discovery import AbstractDiscovery
from edgeprune.methods.eap import EAP
from edgeprune.methods.eap_ig import EAPIG
from edgeprune.methods.exact import ExactEdgePatching
from edgeprune.methods.information_flow import InformationFlowRoutes, proximity, shares
from edgeprune.methods.problem import Metric, Problem
from edgeprune.models.outputs import reader_inputs, writer_outputs
from tests.references import tiny_models
from tests.references.tiny_models import MODELS, close, matrix, model, problem, tokens_alone

METHODS: dict[str, Callable[[], AbstractDiscovery]] = {
    "eap": EAP,
    "ig_inputs": lambda: EAPIG("inputs", 5),
    "ig_act": lambda: EAPIG("activations", 5),
    "cc": lambda: EAPIG("clean_corrupted"),
}
TOLERANCE = {"gpt2": 5e-7, "llama": 2e-6}  # float32 remains in losses and in Llama's norms


def scores(method: AbstractDiscovery, given: Problem) -> Tensor:
    found = method.discover(given, no_progress).scores
    assert found is not None
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("metric", "method"),
    [
        ("logit_difference", "eap"),
        ("logit_difference", "ig_inputs"),
        ("logit_difference", "cc"),
        ("kl", "ig_inputs"),
        ("kl", "cc"),
    ],
)
def test_gradient_scores(name: str, metric: Metric, method: str) -> None:
    masked = model(name)
    found = scores(METHODS[method](), problem(masked, metric))
    close(found, matrix(masked.graph, "eap_ig", f"{name}/{metric}/{method}"), TOLERANCE[name])


@pytest.mark.parametrize("name", MODELS)
def test_eap_under_zero_ablation(name: str) -> None:
    """Of the tokens' embedding alone, where there are positions."""
    masked = model(name, split=True)
    found = tokens_alone(scores(EAP(), problem(masked, ablation="zero")), masked.graph)
    close(found, matrix(model(name).graph, "eap_ig", f"{name}/zero/eap"), TOLERANCE[name])


@pytest.mark.parametrize("name", MODELS)
def test_exact_effects(name: str) -> None:
    """Every sixth edge, from the first layer to the logits."""
    masked = model(name)
    graph = masked.graph
    cells = graph.exists.nonzero()[::6].tolist()
    found = scores(ExactEdgePatching(tuple(graph.edge_name(*cell) for cell in cells)), problem(masked))
    expected = matrix(graph, "eap_ig", f"{name}/logit_difference/exact")
    rows, columns = torch.tensor(cells).T
    assert len(cells) == 44
    close(found[rows, columns], expected[rows, columns], TOLERANCE[name])


def test_information_flow() -> None:
    masked = model("llama")
    close(scores(InformationFlowRoutes(), problem(masked)), matrix(masked.graph, "eap_ig", "llama/ifr"), 1e-7)


def test_information_flow_without_positions() -> None:
    """There a position embedding is no part of what a reader hears, here it is: leave it out of the same sums."""
    masked = model("gpt2", split=True)
    states = masked.record(tiny_models.pairs().clean)
    found = torch.zeros(masked.graph.shape, dtype=torch.float64)
    outputs = list(writer_outputs(masked, states))
    for item in reader_inputs(masked, states):
        near = torch.stack([proximity(output, item.stream) for output in outputs])
        near[1], near[item.num_visible :] = 0, 0
        found[item.rows] = shares(near).mean((1, 2))
    expected = matrix(model("gpt2").graph, "eap_ig", "gpt2/ifr")
    close(tokens_alone(found, masked.graph), expected, 1e-8)
    own = scores(InformationFlowRoutes(), problem(masked))
    assert own.sum(1) == pytest.approx(torch.ones(len(own)), abs=1e-9)
    assert (tokens_alone(own, masked.graph) - expected).abs().max() > 0.001  # the deviation that the docstring names


# ---------------------------------------------------------------- held activations
def test_activations_of_gpt2() -> None:
    masked = model("gpt2")
    found = scores(METHODS["ig_act"](), problem(masked))
    close(found, matrix(masked.graph, "eap_ig", "gpt2/logit_difference/ig_act"), TOLERANCE["gpt2"])


def test_activations_of_llama_but_for_a_fault_of_theirs() -> None:
    """There the runs that hold the embeddings give no gradient where layer 0's heads read them."""
    masked, steps = model("llama"), 5
    graph, given = masked.graph, problem(masked)
    found = torch.stack(list(held_runs(given, steps)))
    assert len(found) == 7 * steps
    expected = matrix(graph, "eap_ig", "llama/logit_difference/ig_act")
    ours = found.sum(0) / len(found)
    torch.testing.assert_close(scores(METHODS["ig_act"](), given), ours, atol=1e-9, rtol=0)
    lost = torch.zeros(graph.shape).bool()
    lost[: 3 * graph.arch.num_heads, 0] = True  # input->a0.*
    assert sorted(graph.edge_name(*cell) for cell in lost.nonzero().tolist()) == sorted(
        f"embed->a0.h{head}.{letter}" for head in range(4) for letter in "qkv"
    )
    close(ours[~lost], expected[~lost], TOLERANCE["llama"])
    assert (ours[lost] - expected[lost]).abs().max() > 0.05
    without = found.unflatten(0, (steps, 7))[:, 1:].sum((0, 1)) / len(found)
    close(without[lost], expected[lost], TOLERANCE["llama"])


def held_runs(given: Problem, steps: int) -> Iterator[Tensor]:
    """Scores of each run of `activations`, mean over pairs; of every step the embeddings come first."""
    gates = open_gates(given.model)
    for batch, full, ablated in given.batches_with_runs():
        for effects in EAPIG("activations", steps)._effects(given, batch, full, ablated, gates):
            yield effects / given.num_examples


# ---------------------------------------------------------------- auto-circuit
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_masks(name: str) -> None:
    masked = model(name)
    given, gates = problem(masked), open_gates(masked)
    ((batch, full, ablated),) = list(given.batches_with_runs())
    steps = [closing_effects(given, batch, full, ablated, gates * share / 5) / len(batch) for share in range(6)]
    close(steps[-1], matrix(masked.graph, "auto_circuit", f"{name}/mask_grad"), 1e-5)
    close(sum(steps[:-1], steps[-1]), matrix(masked.graph, "auto_circuit", f"{name}/mask_ig5"), 2e-5)
