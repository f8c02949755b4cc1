"""Every program computes what it says on all its inputs, and its circuits are what its docstring says."""

from collections import Counter
from math import comb, factorial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE
from edgeprune.compiled import (
    CompiledTransformer,
    cases,
    load_compiled,
    minimal_circuits,
    output_kind,
    programs,
    true_circuit,
)
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.errors import EdgepruneError
from tests.compiled.slow import Runs, all_edges, all_runs, change
from tests.files import GROUND_TRUTH

SAME = 1e-6  # of outputs of size 1 to 10; what leaks past attention is exp(-20) = 2e-9 of a value


class Expected(NamedTuple):
    """Sizes that are known by counting, and an independent word for what the program computes."""

    num_cases: int
    num_edges: int
    zero: int
    interchange: int


# words over 4 symbols with `twice` >= 1 of them twice and `once` of them once, in any order
NUM_REPEATING = sum(
    comb(4, twice) * comb(4 - twice, once) * factorial(2 * twice + once) // 2**twice
    for twice in range(1, 5)
    for once in range(5 - twice)
)
WRITTEN = {
    "reverse": Expected(3 + 9 + 27 + 81 + 243, 94, 11, 2),
    "xproportion": Expected(4 + 16 + 64 + 256 + 1024, 32, 5, 3),
    "hist": Expected(4 + 16 + 64 + 256 + 1024, 13, 6, 4),
    "sort": Expected(4 + 16 + 64 + 256 + 1024, 59, 12, 7),
    "or_gate": Expected(2 + 8 + 128, 21, 3, 5),
    "and_gate": Expected(2 + 8 + 128, 21, 5, 5),
    "induction": Expected(NUM_REPEATING, 19, 7, 5),
}


def answer(name: str, word: list[str], place: int) -> float | str | None:
    """What the output for the token at `place` of `word` means; None where the program does not say."""
    if name == "reverse":
        return word[-1 - place]
    if name == "xproportion":
        return sum(letter == "x" for letter in word[: place + 1]) / (place + 1)
    if name == "hist":
        return str(Counter(word)[word[place]])
    if name == "sort":
        return sorted(word)[place]
    if name in ("or_gate", "and_gate"):
        return float("1" in word) if name == "or_gate" else float("0" not in word)
    earlier = [index for index in range(place) if word[index] == word[place]]
    return word[earlier[-1] + 1] if earlier else None


def padded(name: str, model: CompiledTransformer) -> tuple[Tensor, Tensor]:
    """All inputs in one batch `[case, seq]`, and its attention mask."""
    rows = [ids for ids, _ in cases(name)]
    longest, pad = max(map(len, rows)), model.config.pad_token_id or 0
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return torch.tensor([row + (pad,) * (longest - len(row)) for row in rows]), mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_valid_input_is_answered_right(name: str, implementation: str) -> None:
    model = load_compiled(name).requires_grad_(False)
    model.set_attn_implementation(implementation)
    ids, mask = padded(name, model)
    assert len(ids) == len({tuple(row) for row in ids.tolist()})
    logits = model(ids, attention_mask=mask).logits
    for row, (tokens, outputs) in zip(logits, cases(name), strict=True):
        word = [model.config.vocab[token] for token in tokens[1:]]
        assert len(outputs) == len(word)
        for place, output in enumerate(outputs):
            expected = answer(name, word, place)
            if expected is None:
                assert output == IGNORE
            elif output_kind(name) == "numerical":
                assert output == expected
                assert abs(row[place + 1, 0] - expected) <= SAME
            else:
                assert model.config.output_labels[output] == expected
                assert row[place + 1].softmax(-1)[output] > 0.999


@pytest.mark.parametrize("name", WRITTEN)
def test_inputs_begin_with_bos_and_have_company_of_their_length(name: str) -> None:
    bos = load_compiled(name).config.bos_token_id
    assert len(cases(name)) == WRITTEN[name].num_cases
    assert {ids[0] for ids, _ in cases(name)} == {bos}
    assert bos not in {token for ids, _ in cases(name) for token in ids[1:]}
    assert min(Counter(len(ids) for ids, _ in cases(name)).values()) > 1


@pytest.fixture(
    scope="module", params=[(name, ablation) for name in WRITTEN for ablation in ("zero", "interchange")], ids="-".join
)
def case(request: pytest.FixtureRequest) -> tuple[str, str, CompiledTransformer, list[Runs]]:
    name, ablation = request.param
    model = load_compiled(name).double().requires_grad_(False)
    return name, ablation, model, all_runs(name, model, ablation)


Case = tuple[str, str, CompiledTransformer, list[Runs]]


def test_exactly_the_true_edges_matter(case: Case) -> None:
    """Closing any of them alone changes an output, closing any other alone, or all others, does not."""
    name, ablation, model, runs = case
    edges, circuits = all_edges(model), minimal_circuits(name, ablation)
    assert len(edges) == WRITTEN[name].num_edges
    assert len(true_circuit(name, ablation)) == len(circuits[0]) == getattr(WRITTEN[name], ablation)
    changes = {edge: change(model, runs, {edge}) for edge in edges}
    in_all = set.intersection(*map(set, circuits))  # with several circuits, only what they share is irreplaceable
    assert {edge for edge in edges if changes[edge] >= 0.1} == in_all
    assert max(changes[edge] for edge in edges - in_all) <= SAME
    assert change(model, runs, edges - set().union(*circuits)) <= SAME


def test_each_circuit_is_sufficient_and_none_of_its_edges_can_go(case: Case) -> None:
    name, ablation, model, runs = case
    edges = all_edges(model)
    for circuit in minimal_circuits(name, ablation):
        assert change(model, runs, edges - set(circuit)) <= SAME
        for edge in circuit:
            assert change(model, runs, edges - set(circuit) | {edge}) >= 0.1, edge


def test_the_or_gate_has_two_circuits_under_zero_ablation_and_one_under_interchange() -> None:
    first, second = minimal_circuits("or_gate", "zero")
    assert {edge.replace("h1", "h0") for edge in second} == set(first) != set(second)
    assert set(minimal_circuits("or_gate", "interchange")[0]) == {*first, *second}


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
@pytest.mark.parametrize("name", ["reverse", "xproportion", "hist"])
def test_circuits_are_those_of_the_known_models(name: str, ablation: str) -> None:
    assert set(known_edges(GROUND_TRUTH / name, ablation)) == set(true_circuit(name, ablation))


def test_unknown_names_are_refused() -> None:
    known = ", ".join(programs())
    with pytest.raises(EdgepruneError, match=f"no compiled program named 'nope'; the known ones are: {known}"):
        load_compiled("nope")
    with pytest.raises(EdgepruneError, match="'mean'; use one of zero, interchange"):
        true_circuit("reverse", "mean")
