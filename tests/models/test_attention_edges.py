"""Attention edges: queries of one role see own or ablated keys and values at tokens of another."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.models.before_norm import EdgesBeforeNorm
from edgeprune.models.block import Edits, keeping
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from tests.models.reference import slow_logits
from tests.models.test_conformance import WIRED, build, prompts
from tests.models.test_fixed_outputs import given_groups
from tests.models.test_roles import ABSENT, FEW, NUM_ROLES, POSITIONS, ROLE_OF, at, by_role


def attention_gates(model: MaskedModel, *groups: int, fractional: bool = True) -> Tensor:
    arch = model.graph.arch
    shape = (*groups, arch.num_layers, arch.num_heads, NUM_ROLES, NUM_ROLES)
    noise = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return (noise if fractional else (noise > 0.4).double()).requires_grad_()


def gradients(logits: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(logits.log_softmax(-1)[..., 0].sum(), leaves)


def assert_same(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """Logits, and their gradients to the leaves."""
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for own, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(own, other, atol=1e-8, rtol=1e-8)


def open_gates(model: MaskedModel) -> Tensor:
    return torch.ones_like(attention_gates(model)).requires_grad_()


# -------------------------------------------------------------------- token by token
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_equals_attention_token_by_token(family: Any, index: int) -> None:
    """Gates of edges by role, those of attention of groups of the batch as well."""
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, inside = model.record(corrupted), by_role(model), attention_gates(model, 2)
    expected = slow_logits(model, clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    found = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    (slopes,) = gradients(found, inside)
    torch.testing.assert_close(slopes, gradients(expected, inside)[0], atol=1e-8, rtol=1e-8)
    assert slopes[..., ABSENT, :].abs().max() == 0
    assert slopes[..., ABSENT].abs().max() == 0
    assert slopes.std(-1).max() > 1e-6  # roles differ
    assert slopes.std(-2).max() > 1e-6


@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_kernels_and_readers(family: Any, index: int, implementation: str, kv_readers: str) -> None:
    model = build(family, index, implementation=implementation, kv_readers=kv_readers)
    clean, corrupted = prompts(4)
    ablated, gates, inside = model.record(corrupted), by_role(model, 2), attention_gates(model, fractional=False)
    expected = slow_logits(model, clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    found = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    assert_same(found, expected, gates, inside)


@pytest.mark.parametrize("scored", POSITIONS)
@pytest.mark.parametrize(("family", "index"), FEW[:2])
def test_scored_positions(family: Any, index: int, scored: str) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, inside = model.record(corrupted), by_role(model), attention_gates(model)
    expected = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    found = model(clean, gates, ablated, positions=POSITIONS[scored], role_of=ROLE_OF, attention_gates=inside)
    expected = at(expected, POSITIONS[scored])
    assert_same(found, expected, gates, inside)


@pytest.mark.parametrize("kind", ["zero", "mean", "positional"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_other_ablations(family: Any, index: int, kind: str) -> None:
    """Ablated keys are then those of readers that take in the sum of what closed edges carry."""
    model = build(family, index)
    clean, corrupted = prompts(4)
    other, gates, inside = model.record(corrupted), by_role(model), attention_gates(model)
    ablated = {
        "zero": ablations.zero(model),
        "mean": other.map(lambda field: field.mean((1, 2), keepdim=True)),
        "positional": other.map(lambda field: field.mean(1, keepdim=True)),
    }[kind]
    full = ablated.combine(lambda field, like: field.expand_as(like), other)
    expected = slow_logits(model, clean, gates, full, role_of=ROLE_OF, attention_gates=inside)
    found = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    assert_same(found, expected, gates, inside)


@pytest.mark.parametrize(("family", "index"), FEW[:2])
def test_outputs_that_are_given(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, inside = model.record(corrupted), by_role(model), attention_gates(model)
    for fixed in given_groups(model, prompts(4)[1].flip(1)):
        expected = slow_logits(model, clean, gates, ablated, fixed=fixed, role_of=ROLE_OF, attention_gates=inside)
        found = model(clean, gates, ablated, fixed=fixed, role_of=ROLE_OF, attention_gates=inside)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with edges"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_gradients_match_central_differences(family: Any, index: int, alone: bool) -> None:
    """Of attention edges alone, every other edge open and without a gradient, or of both together."""
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, step = model.record(corrupted), by_role(model), 1e-5
    gates = model.graph.all_open(torch.float64) if alone else gates
    leaves = [attention_gates(model), *([] if alone else [gates])]
    generator = torch.Generator().manual_seed(2)
    ways = [torch.randn(leaf.shape, dtype=torch.float64, generator=generator) for leaf in leaves]

    def loss(inside: Tensor, edges: Tensor = gates) -> Tensor:
        logits = model(clean, edges, ablated, role_of=ROLE_OF, attention_gates=inside)
        return logits.log_softmax(-1)[..., 0].sum()

    slopes = torch.autograd.grad(loss(*leaves), leaves)
    with torch.no_grad():
        there, back = (
            loss(*(leaf + sign * step * way for leaf, way in zip(leaves, ways, strict=True))) for sign in (1, -1)
        )
    total = sum((slope * way).sum() for slope, way in zip(slopes, ways, strict=True))
    torch.testing.assert_close(total, (there - back) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_padding_does_not_matter(family: Any, index: int, side: str) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    gates, inside = by_role(model), attention_gates(model)
    expected = model(clean, gates, model.record(corrupted), role_of=ROLE_OF, attention_gates=inside)
    slopes = gradients(expected, gates, inside)

    def padded(real: Tensor, filler: int) -> Tensor:
        pad = torch.full((4, 3), filler)
        return torch.cat([pad, real] if side == "left" else [real, pad], 1)

    mask, real = padded(torch.ones_like(clean), 0), slice(3, None) if side == "left" else slice(7)
    for role in (0, ABSENT):
        ablated = model.record(padded(corrupted, 8), mask)
        roles = padded(ROLE_OF, role)
        found = model(padded(clean, 7), gates, ablated, mask, role_of=roles, attention_gates=inside)[:, real]
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(gradients(found, gates, inside), slopes, atol=1e-8, rtol=1e-8)


# -------------------------------------------------------------------- both ends
@pytest.mark.parametrize(("dtype", "kv_readers"), [(torch.float32, "head"), (torch.bfloat16, "group")])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_open_attention_edges_are_none_bit_for_bit(
    family: Any, index: int, dtype: torch.dtype, kv_readers: str
) -> None:
    model = build(family, index, dtype, kv_readers=kv_readers)
    clean, corrupted = prompts(4)
    ablated, inside = model.record(corrupted), open_gates(model)
    for gates in (model.graph.all_open(), by_role(model).detach().float()):
        gates.requires_grad_()
        expected = model(clean, gates, ablated, role_of=ROLE_OF if gates.ndim == 3 else None)
        assert torch.equal(model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside), expected)
        fixed = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside.detach())
        assert torch.equal(fixed, expected)
        assert torch.equal(*(gradients(logits, gates)[0] for logits in (fixed, expected)))


@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_gradients_where_all_are_open(family: Any, index: int, kv_readers: str) -> None:
    model = build(family, index, kv_readers=kv_readers)
    clean, corrupted = prompts(4)
    ablated, inside = model.record(corrupted), open_gates(model)
    gates = model.graph.all_open(torch.float64).requires_grad_()
    found = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    expected = slow_logits(model, clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    (of_edges, slopes), (plain,) = gradients(found, gates, inside), gradients(model(clean, gates, ablated), gates)
    torch.testing.assert_close(slopes, gradients(expected, inside)[0], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(of_edges, plain, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_closed_for_every_query_they_are_closed_readers(family: Any, index: int) -> None:
    """A head that sees ablated keys and values of a role everywhere: every edge into its k and v closed there."""
    model = build(family, index, kv_readers="head")
    clean, corrupted = prompts(4)
    graph, ablated, role = model.graph, model.record(corrupted), 3
    edges = graph.all_open(torch.float64).repeat(NUM_ROLES, 1, 1)
    inside, layer, head = open_gates(model).detach(), graph.arch.num_layers - 1, 1
    inside[layer, head, :, role] = 0
    for kind in (graph.rows(layer).k, graph.rows(layer).v):
        edges[role, kind.start + head] = 0
    expected = model(clean, edges, ablated, role_of=ROLE_OF)
    found = model(clean, graph.all_open(torch.float64), ablated, role_of=ROLE_OF, attention_gates=inside)
    if model.blocks[0].qk_norm == "layer":  # then a closed reader moves the norm of other heads' keys, too
        assert (found - expected).abs().max() > 1e-6
    else:
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert (found - model.full(clean)).abs().max() > 1e-4


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_closed_everywhere_queries_see_the_corrupted_run(family: Any, index: int) -> None:
    """Against the model's own steps, whose k and v are replaced by those of the corrupted run."""
    model = build(family, index)
    clean, corrupted = prompts(4)
    keys, values = list[Tensor](), list[Tensor]()
    model.run(corrupted, edits={"k": keeping(keys), "v": keeping(values)})
    edits: Edits = {"k": lambda layer, _: keys[layer], "v": lambda layer, _: values[layer]}
    expected = model.logits(model.run(clean, edits=edits))
    closed = torch.zeros_like(open_gates(model))
    found = model(clean, model.graph.all_open(), model.record(corrupted), role_of=ROLE_OF, attention_gates=closed)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert (found - model.full(clean)).abs().max() > 1e-4


# -------------------------------------------------------------------- which gates, which gradients
@pytest.mark.parametrize(("family", "index"), FEW)
def test_gates_of_edges_may_be_without_roles(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, inside, plain = model.record(corrupted), attention_gates(model), by_role(model).detach()[0]
    plain.requires_grad_()
    gates = plain.detach().repeat(NUM_ROLES, 1, 1).requires_grad_()
    expected = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
    found = model(clean, plain, ablated, role_of=ROLE_OF, attention_gates=inside)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    (plain_slopes, slopes), expected_slopes = gradients(found, plain, inside), gradients(expected, gates, inside)
    torch.testing.assert_close(plain_slopes, expected_slopes[0].sum(0), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(slopes, expected_slopes[1], atol=1e-10, rtol=1e-10)


def test_a_second_backward_gives_the_same() -> None:
    """Where the gates of edges get none, too, or are not asked for."""
    clean, corrupted = prompts(4)
    for case in FEW:
        model = build(*case.values)
        inside, gates = attention_gates(model), by_role(model)
        for edges in (gates.detach(), gates):
            logits = model(clean, edges, model.record(corrupted), role_of=ROLE_OF, attention_gates=inside)
            loss = logits.log_softmax(-1)[..., 0].sum()
            first, second = (torch.autograd.grad(loss, inside, retain_graph=True)[0] for _ in range(2))
            assert torch.equal(first, second)
            assert first.abs().max() > 1e-6


def test_gradients_in_half_precision() -> None:
    """Those of the same model in float64, to the rounding of its weights; in float16 small ones are not lost."""
    clean, corrupted = prompts(4)
    slopes: list[Tensor] = []
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = build(*FEW[0].values, dtype)
        inside, gates = attention_gates(model).detach().float().requires_grad_(), by_role(model).detach().float()
        logits = model(clean, gates, model.record(corrupted), role_of=ROLE_OF, attention_gates=inside)
        slopes += gradients(1e-4 * logits.double(), inside)
    exact, *halves = slopes
    for half, bound in zip(halves, (0.1, 0.02), strict=True):
        assert half.dtype == torch.float32
        assert (half - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize(("family", "index"), FEW)
def test_a_closed_edge_changes_its_queries_and_later_tokens(family: Any, index: int) -> None:
    """Query role 0, key role 3: of the first prompt tokens 0, 4 and 1, 2, 6. Only token 4 has such a key before it."""
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, full, gates = model.record(corrupted), model.full(clean), model.graph.all_open(torch.float64)
    for layer, moved in ((0, [4, 5, 6]), (model.graph.arch.num_layers - 1, [4])):
        inside = open_gates(model).detach()
        inside[layer, 1, 0, 3] = 0
        found = model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside)
        change = (found - full).abs().amax(-1)[0]
        assert (change > 1e-9).nonzero().flatten().tolist() == moved


# -------------------------------------------------------------------- a program whose attention is known
@pytest.mark.parametrize("length", [3, 5])
def test_the_attention_edges_that_a_program_needs(length: int) -> None:
    """Reversing: position p takes the token of length + 1 - p. Lengths agree, so nothing else that attends differs."""
    model, size = load_model("compiled:reverse", dtype="float64"), length + 1
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 3, (8, size), generator=generator)
    corrupted = (clean + torch.randint(1, 3, (8, size), generator=generator)) % 3  # another token everywhere
    clean[:, 0] = corrupted[:, 0] = 3
    edges = model.graph.with_roles(RoleSpec(tuple(f"p{place}" for place in range(size)))).attention
    needed = {f"a3.h0[p{place}<-p{size - place}]" for place in range(1, size)}
    ablated, gates, role_of = model.record(corrupted), model.graph.all_open(), torch.arange(size).expand(8, -1)
    full = model.full(clean)[:, 1:]

    def moved(keep: Tensor) -> Tensor:
        inside = edges.gates(keep, torch.float64)
        found = model(clean, gates, ablated, role_of=role_of, attention_gates=inside)[:, 1:]
        return (found - full).abs().amax((1, 2))

    found = set[str]()
    for place in edges.exists.nonzero().tolist():
        keep = edges.exists.clone()
        keep[tuple(place)] = False
        change = moved(keep)
        assert change.max() < 1e-4 or change.min() > 1
        found |= {edges.edge_name(*place)} if change.max() > 1 else set()
    assert found == needed
    assert moved(edges.keep_matrix(needed)).max() < 1e-4
    assert moved(edges.keep_matrix(sorted(needed)[1:])).min() > 1


# -------------------------------------------------------------------- what does not fit
def test_edges_before_the_norm_refuse_them() -> None:
    model = EdgesBeforeNorm(build(*next(case.values for case in WIRED if "Gemma2" in case.id)))
    clean, corrupted = prompts(4)
    ablated, gates = model.record(corrupted), model.graph.all_open()
    with pytest.raises(EdgepruneError, match="closing attention edges is not defined for edges before the norm"):
        model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=open_gates(model))


def test_gates_that_do_not_fit_are_refused() -> None:
    model = build(*FEW[0].values)
    clean, corrupted = prompts(4)
    ablated, gates, inside = model.record(corrupted), by_role(model), attention_gates(model)
    needs = r"this model needs \[layer, head, query role, key role\] = \(3, 4, roles, roles\)"
    cases: list[tuple[Tensor, Tensor | None, str]] = [
        (inside, None, "give role_of with attention_gates"),
        (inside[1:], ROLE_OF, rf"attention_gates have shape \(2, 4, 5, 5\), {needs}"),
        (inside[..., 1:], ROLE_OF, needs),
        (inside[0], ROLE_OF, needs),
        (inside[..., 1:, 1:], ROLE_OF, "role_of must be 0 to 3, the roles that gates are for, got 0 to 4"),
        (attention_gates(model, 3), ROLE_OF, "4 examples do not fall into 3 groups of equal size"),
        (inside, ROLE_OF[:, 1:], r"\[batch, seq\] = \(4, 7\), got torch.int64 of shape \(4, 6\)"),
    ]
    for own, roles, message in cases:
        with pytest.raises(EdgepruneError, match=message) as caught:
            model(clean, gates, ablated, role_of=roles, attention_gates=own)
        assert "\n" not in str(caught.value)
    with pytest.raises(EdgepruneError, match="carry ablated keys, not differences: leave relative out"):
        model(clean, gates, ablated, role_of=ROLE_OF, attention_gates=inside, relative=True)
