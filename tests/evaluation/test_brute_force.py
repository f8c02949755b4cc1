import random
import re

import pytest
import torch

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune import ablations
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.compiled import CompiledConfig, CompiledTransformer, minimal_circuits, true_circuit
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.brute_force import BruteForce, brute_force
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.objectives.losses import kl_divergence
from tests.files import GROUND_TRUTH


def pairs_of(program: str, num: int) -> PairBatch:
    splits = CompiledTask(program=program).splits(None)
    pairs = [pair for split in splits.values() for pair in split]
    return collate(list(enumerate(random.Random(0).sample(pairs, min(num, len(pairs))))))


def ablated_states(model: MaskedModel, batch: PairBatch, ablation: str) -> WriterStates:
    return ablations.zero(model) if ablation == "zero" else model.record(batch.corrupted, batch.attention_mask)


def compiled(program: str) -> MaskedModel:
    return load_model(f"compiled:{program}", dtype="float64")


def search(program: str, ablation: str, num: int = 64, **options: object) -> BruteForce:
    model, batch = compiled(program), pairs_of(program, num)
    return brute_force(model, batch, ablated_states(model, batch, ablation), progress=False, **options)


def as_sets(circuits: tuple[tuple[str, ...], ...]) -> set[frozenset[str]]:
    assert len({frozenset(circuit) for circuit in circuits}) == len(circuits)
    return {frozenset(circuit) for circuit in circuits}


# -------------------------------------------------------------------- against the masked model
def random_model(**settings: object) -> MaskedModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 7,
        "hidden_size": 6,
        "head_dim": 3,
        "intermediate_size": 5,
        "d_out": 3,
        "num_hidden_layers": 1,
    }
    model = CompiledTransformer(CompiledConfig(**{**shape, "num_attention_heads": 1, **settings})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # biases too
    return MaskedModel(model, split_embedding=True)


@pytest.fixture
def batch() -> PairBatch:
    """Two lengths, and one to three scored positions."""
    rows = [((1, 2, 3, 4), (1, 4, 2, 6), (1, 2, 3)), ((1, 5, 0), (1, 3, 3), (2,)), ((1, 6, 6, 0), (1, 0, 2, 5), (0, 3))]
    pairs = [TokenPair(*row, (IGNORE,) * len(row[2]), (IGNORE,) * len(row[2])) for row in rows]
    return collate(list(enumerate(pairs)))


SHAPES = {
    "bidirectional": {},
    "causal": {"causal": True, "attn_scale": 0.6},
    "two heads": {"num_attention_heads": 2},
    "two layers": {"num_hidden_layers": 2, "intermediate_size": 0, "causal": True},
}


@pytest.mark.parametrize("ablation", ["zero", "interchange", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_errors_are_those_of_the_masked_model(shape: str, ablation: str, reduce: str, batch: PairBatch) -> None:
    model = random_model(**SHAPES[shape])
    graph = model.graph
    edges = [graph.edge_name(*index) for index in graph.exists.nonzero().tolist()]
    rng = random.Random(0)
    rng.shuffle(edges)
    among, rest = edges[:10], rng.choice(["open", "closed"])
    states = ablations.mean(model, batch.corrupted) if ablation == "mean" else ablated_states(model, batch, ablation)
    found = brute_force(model, batch, states, kl_divergence, reduce=reduce, among=among, rest=rest, progress=False)
    assert set(found.edges) == set(among)
    assert found.errors.shape == (2**10,)
    full = model.full(batch.clean, batch.attention_mask, batch.positions)
    for number in [0, 2**10 - 1, *rng.sample(range(2**10), 30)]:
        keep = [edge for bit, edge in enumerate(found.edges) if number >> bit & 1]
        gates = graph.keep_matrix([*keep, *(edges[10:] if rest == "open" else [])]).double()
        outputs = model(batch.clean, gates, states, batch.attention_mask, batch.positions)
        values = [row[mask] for row, mask in zip(kl_divergence(full, outputs), batch.position_mask, strict=True)]
        expected = max(map(max, values)) if reduce == "max" else sum(row.mean() for row in values) / len(values)
        assert found.errors[number].item() == pytest.approx(float(expected), abs=1e-12)
        assert found.error(keep) == found.errors[number].item()


def test_circuits_of_a_random_model_are_merged_only_where_they_must_be_equal(batch: PairBatch) -> None:
    """Under zero ablation, counted by hand for one head (q, k, v read two writers each) and its MLP."""
    found = brute_force(random_model(), batch, ablations.zero(random_model()), kl_divergence, reduce="mean")
    assert len(found.edges) == 13
    patterns = 4 * 3 + 1  # a silent k makes attention uniform, whatever q is
    heads = patterns * 3 + 1  # a silent v makes the head constant, whatever the pattern
    silent_mlp = 4 * (heads + 1)  # the logits read two embeddings, and a head or not
    with_mlp = 4 * 4 * (3 * heads + 1)  # the head feeds the MLP, the logits, both or neither
    assert len(found.errors.round(decimals=9).unique()) == silent_mlp + with_mlp  # float64 rounds near 1e-15


def test_padding_and_batch_mates_change_nothing(batch: PairBatch) -> None:
    model = random_model(causal=True)
    whole = brute_force(model, batch, ablations.zero(model), progress=False).errors
    alone = []
    for row in range(len(batch)):
        length = int(batch.attention_mask[row].sum())
        positions = batch.positions[row][batch.position_mask[row]].tolist()
        clean, corrupted = batch.clean[row, :length].tolist(), batch.corrupted[row, :length].tolist()
        unknown = (IGNORE,) * len(positions)
        one = collate([(0, TokenPair(tuple(clean), tuple(corrupted), tuple(positions), unknown, unknown))])
        alone.append(brute_force(model, one, ablations.zero(model), progress=False).errors)
    torch.testing.assert_close(torch.stack(alone).amax(0), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_little_memory_changes_nothing_until_one_example_is_too_much(
    batch: PairBatch, ablation: str, reduce: str
) -> None:
    model = random_model()
    states = ablated_states(model, batch, ablation)
    options = {"reduce": reduce, "progress": False}
    expected = brute_force(model, batch, states, kl_divergence, **options).errors
    enough = next(size for size in range(50, 5000, 50) if fits(model, batch, states, size / 1e6, options))
    in_parts = brute_force(model, batch, states, kl_divergence, memory_gb=enough / 1e6, **options).errors
    torch.testing.assert_close(in_parts, expected, rtol=0, atol=1e-12)
    with pytest.raises(EdgepruneError, match="13 edges of this model take more than 1e-06 GB; raise memory_gb or name"):
        brute_force(model, batch, states, memory_gb=1e-6, **options)


def fits(model: MaskedModel, batch: PairBatch, states: WriterStates, memory_gb: float, options: dict) -> bool:
    try:
        brute_force(model, batch, states, memory_gb=memory_gb, **options)
    except EdgepruneError:
        return False
    return True


# -------------------------------------------------------------------- known circuits
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
@pytest.mark.parametrize("program", ["hist", "or_gate", "and_gate", "induction"])
def test_minimal_circuits_are_the_known_ones(program: str, ablation: str) -> None:
    found = search(program, ablation, 138)
    known = minimal_circuits(program, ablation)
    assert as_sets(found.minimal()) == as_sets(known)
    assert as_sets(found.irreducible()) == as_sets(known)
    front = found.front()
    size = len(known[0])
    assert [point.num_edges for point in front] == list(range(len(found.edges) + 1))
    assert as_sets(front[size].circuits) == as_sets(known)
    assert front[size].num_circuits == len(known)
    assert front[size].error <= 1e-6 < 0.1 < min(point.error for point in front[:size])


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
@pytest.mark.parametrize("program", ["xproportion", "sort", "reverse"])
def test_a_large_graph_is_searched_among_edges_in_question(program: str, ablation: str) -> None:
    """The zero circuit holds the interchange circuit; the others among the edges are taken at random."""
    graph = compiled(program).graph
    edges = [graph.edge_name(*index) for index in graph.exists.nonzero().tolist()]
    others = [edge for edge in edges if edge not in true_circuit(program, "zero")]
    among = [*true_circuit(program, "zero"), *random.Random(0).sample(others, 8)]
    for rest in ("closed", "open"):
        found = search(program, ablation, 24, among=among, rest=rest)
        (circuit,) = found.minimal()
        assert set(circuit) - set(found.always) == set(true_circuit(program, ablation))


@pytest.mark.parametrize(
    ("name", "ablation"),
    [("hist", "zero"), ("hist", "interchange"), ("and_gate", "zero"), ("and_gate", "interchange"), ("or_gate", "zero")],
)
def test_known_circuits_of_ground_truth_folders_come_out(name: str, ablation: str) -> None:
    folder = GROUND_TRUTH / name
    model = load_model(folder, dtype="float64")
    vocab, length = model.hf.config.vocab, model.hf.config.n_ctx
    bos = model.hf.config.bos_token_id
    symbols = [token for token in range(len(vocab)) if vocab[token] not in ("BOS", "compiler_pad")]
    rng = random.Random(0)
    first = () if bos is None else (bos,)
    draws = [first + tuple(rng.choice(symbols) for _ in range(length - len(first))) for _ in range(64)]
    draws += [first + (symbols[-1],) * (length - len(first))]  # for a gate: all inputs true
    scored = tuple(range(length))[-1:] if bos is None else tuple(range(1, length))
    unknown = (IGNORE,) * len(scored)
    pairs = [TokenPair(clean, other, scored, unknown, unknown) for clean, other in zip(draws, draws[::-1], strict=True)]
    batch = collate(list(enumerate(pairs)))
    found = brute_force(model, batch, ablated_states(model, batch, ablation), progress=False)
    minimal = as_sets(found.minimal(tolerance=1e-3))
    known = frozenset(known_edges(folder, ablation))
    if name == "or_gate":  # the file lists the edge that is necessary alone; with one head it is a circuit
        assert minimal == {known | {"a0.h0->m0"}, known | {"a0.h1->m0"}}
    else:
        assert minimal == {known}


# -------------------------------------------------------------------- reading the result
def made_up(errors: dict[str, float], default: float = 1.0) -> BruteForce:
    """A result over three edges: errors by the letters of the open ones."""
    model = random_model()
    values = torch.full((8,), default)
    for letters, error in errors.items():
        values[sum(1 << "abc".index(letter) for letter in letters)] = error
    return BruteForce(model.graph, ("a", "b", "c"), (), values)


def test_minimal_has_no_better_subset_and_irreducible_none_that_is_one_edge_smaller() -> None:
    found = made_up({"a": 0.0, "abc": 0.0})
    assert found.minimal() == (("a",),)
    assert found.irreducible() == (("a",), ("a", "b", "c"))  # b and c can only go together
    assert found.minimal(tolerance=1.0) == ((),)
    assert made_up({}).minimal() == ()


def test_the_front_lists_ties_up_to_a_limit() -> None:
    found = made_up({"a": 0.5, "c": 0.5, "ab": 0.25, "abc": 0.0})
    assert [(point.error, point.num_circuits) for point in found.front()] == [(1, 1), (0.5, 2), (0.25, 1), (0, 1)]
    assert found.front()[1].circuits == (("a",), ("c",))
    assert found.front(limit=1)[1].circuits == (("a",),)
    assert found.front(ties=0.3)[1].num_circuits == 2


def test_an_error_can_be_looked_up_by_edges() -> None:
    found = made_up({"ac": 0.125})
    assert found.error(["c", "a"]) == 0.125
    with pytest.raises(EdgepruneError, match="edge 'd' was not among the edges to choose from: a, b, c"):
        found.error(["d"])


# -------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "94 edges have 2^94 circuits; brute force takes 1 to 24 edges: name those to choose from in `among`"),
        ({"among": []}, "0 edges have"),
        ({"among": ["m0->logit"]}, "no reader named 'logit' in this graph; did you mean 'logits'?"),
        ({"among": ["m0->m1"], "reduce": "sum"}, "reduce must be 'max' or 'mean', .* got 'sum' and 'closed'"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message) if "^" in message else message):
        search("reverse", "zero", 4, **options)


def test_other_architectures_are_refused(batch: PairBatch) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = MaskedModel(GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=1, n_positions=8)))
    with pytest.raises(EdgepruneError, match="compiled transformers only, not 'gpt2'"):
        brute_force(model, batch, ablations.zero(model))


def test_half_precision_is_refused(batch: PairBatch) -> None:
    model = load_model("compiled:hist", dtype="bfloat16")
    with pytest.raises(EdgepruneError, match=r"in float64 or float32, the model is in torch\.bfloat16 on cpu; load it"):
        brute_force(model, batch, ablations.zero(model))
