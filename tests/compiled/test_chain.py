"""Chains of any size compute what they say, and exactly their circuit's edges matter."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks.compiled import CompiledTask
from edgeprune.compiled import CompiledTransformer, cases, load_compiled, minimal_circuits, true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning
from edgeprune.objectives.sparsity import GeometricPenalty
from lit_modules.pruning import PruningModule
from tests.compiled.slow import all_edges, all_runs, change, graph_of
from tests.compiled.test_programs import SAME

ROOT = Path(__file__).parents[2]
NAME = "chain-10x1"
SIZES = {"chain-1x1": 13, "chain-4x2": 204, NAME: 472, "chain-10x2": 1137, "chain-10x3": 2072, "chain-20x1": 1742}


def last_states(word: tuple[int, ...], num_layers: int) -> list[int]:
    """The state at every position, by the program's own description."""
    states = list(word)
    for layer in range(num_layers):
        if layer % 2 == 0:
            moved = [states[-1], *states[:-1]]
            states = [(own + token) % 4 for own, token in zip(moved, word, strict=True)]
        else:
            states = [word[state] for state in states]
    return states


@pytest.mark.parametrize("name", ["chain-1x1", "chain-5x2", NAME, "chain-20x1"])
def test_every_input_is_answered_right(name: str) -> None:
    num_layers = int(name.split("-")[1].split("x")[0])
    model, found = load_compiled(name), cases(name)
    assert len({ids for ids, _ in found}) == 4**4
    logits = model(torch.tensor([ids for ids, _ in found])).logits[:, 1:]
    for row, (ids, outputs) in zip(logits, found, strict=True):
        assert list(outputs) == row.argmax(-1).tolist() == last_states(ids[1:], num_layers)
    assert logits.softmax(-1).amax(-1).min() > 0.999


@pytest.mark.parametrize("name", SIZES)
def test_graphs_are_of_the_size_asked_for(name: str) -> None:
    model = load_compiled(name)
    graph = graph_of(model)
    layers, heads = map(int, name.split("-")[1].split("x"))
    assert (graph.arch.num_layers, graph.arch.num_heads, graph.num_edges) == (layers, heads, SIZES[name])
    assert model.name_or_path == f"compiled:{name}"


def columns(weight: Tensor, dim: int) -> set[int]:
    """Residual columns that some entry of a weight reads or writes."""
    return set(weight.ne(0).any(dim).nonzero().flatten().tolist())


def written(model: CompiledTransformer) -> Iterator[set[int]]:
    """Columns of each writer, in the graph's order."""
    yield columns(model.tok_embed.weight, 0)
    yield columns(model.pos_embed.weight, 0)
    for layer in model.layers:
        for weight in layer.attn.o_proj.weight.split(model.config.head_dim, 1):
            yield columns(weight, 1)
        yield columns(layer.mlp.fc_out.weight, 1) | columns(layer.mlp.fc_out.bias[None], 0)


def read(model: CompiledTransformer) -> Iterator[set[int]]:
    """Columns of each reader, in the graph's order."""
    for layer in model.layers:
        for projection in (layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj):
            for weight in projection.weight.split(model.config.head_dim):
                yield columns(weight, 0)
        yield columns(layer.mlp.fc_in.weight, 0)
    yield columns(model.unembed.weight, 0)


@pytest.mark.parametrize("name", ["chain-4x2", "chain-10x3"])
def test_edges_outside_the_circuit_bring_nothing_that_is_read(name: str) -> None:
    """So they matter in no context, whatever else is closed."""
    model = load_compiled(name).requires_grad_(False)
    graph, sources, sinks = graph_of(model), list(written(model)), list(read(model))
    assert graph.shape == (len(sinks), len(sources))
    meeting = {
        graph.edge_name(reader, writer)
        for reader, writer in graph.exists.nonzero().tolist()
        if sources[writer] & sinks[reader]
    }
    assert meeting == set(true_circuit(name, "zero"))


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_the_circuit_is_sufficient_and_none_of_its_edges_can_go(ablation: str) -> None:
    model = load_compiled(NAME).double().requires_grad_(False)
    runs, edges = all_runs(NAME, model, ablation), all_edges(model)
    (circuit,) = minimal_circuits(NAME, ablation)
    assert len(circuit) == {"zero": 41, "interchange": 26}[ablation]
    assert edges > set(circuit)
    assert change(model, runs, edges - set(circuit)) <= SAME
    for edge in circuit:
        assert change(model, runs, edges - set(circuit) | {edge}) >= 0.1, edge


def test_positions_are_the_only_edges_that_zero_and_interchange_differ_in() -> None:
    difference = set(true_circuit(NAME, "zero")) - set(true_circuit(NAME, "interchange"))
    assert set(true_circuit(NAME, "interchange")) < set(true_circuit(NAME, "zero"))
    assert {edge.partition("->")[0] for edge in difference} == {"pos_embed"}


RECIPE = yaml.safe_load((ROOT / "configs" / "ground_truth.yaml").read_text())["model"]["recipe"]["init_args"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_a_long_chain_is_recovered_with_the_setting_for_all(ablation: str) -> None:
    """Within the first hundred steps, at the lowest prices; the rest is for programs that need longer."""
    given = {key: value for key, value in RECIPE.items() if key != "sparsity_term"}
    price = RECIPE["sparsity_term"]["init_args"]["start"]
    recipe = EdgePruning(GeometricPenalty(price, price), **given)
    module = PruningModule(f"compiled:{NAME}", recipe, objective="squared_error", ablation=ablation)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = pl.Trainer(accelerator="cpu", max_steps=100, enable_model_summary=False, **quiet)
    trainer.fit(module, PairDataModule(CompiledTask(NAME), batch_size=32, cache=False))
    assert set(module.circuit().edges()) == set(true_circuit(NAME, ablation))


@pytest.mark.parametrize("name", ["chain", "chain-0x1", "chain-10", "chain-10x", "chain-100x1", "chain-3x2x1"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        EdgepruneError, match=f"named '{name}'; the known ones are: reverse, .*, and chain-LAYERSxHEADS"
    ):
        load_compiled(name)
