"""Gates by role: every token has the gates of its role, wherever it stands and however many tokens have it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.models.before_norm import EdgesBeforeNorm
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import ReadOps
from edgeprune.models.reads import KEEP
from tests.models.reference import slow_logits
from tests.models.test_conformance import WIRED, build, prompts
from tests.models.test_fixed_outputs import given_groups

# Roles lie anywhere, are of any number of tokens, another one in each prompt; nothing has role 1.
ROLE_OF = torch.tensor([[0, 3, 3, 2, 0, 4, 3], [2, 2, 2, 2, 2, 2, 2], [4, 0, 3, 0, 4, 4, 2], [3, 2, 0, 3, 4, 2, 2]])
NUM_ROLES, ABSENT = 5, 1
POSITIONS = {
    "all": None,
    "some": torch.tensor([[6, 2], [1, 1], [0, 5], [3, 6]]),
    "of one role": torch.tensor([[3], [5], [6], [1]]),
}
SMALL = ("GPT2-gpt20", "Llama-llama1", "GPTNeoX-gpt_neox0", "Gemma2-gemma20", "Mixtral-mixtral0")
FEW = [case for case in WIRED if case.id in SMALL]


def by_role(model: MaskedModel, *groups: int, fractional: bool = True) -> Tensor:
    shape = (*groups, NUM_ROLES, *model.graph.shape)
    noise = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (noise if fractional else (noise > 0.4).double()).requires_grad_()


def at(logits: Tensor, positions: Tensor | None) -> Tensor:
    return logits if positions is None else logits[torch.arange(len(logits))[:, None], positions]


def gradient(logits: Tensor, gates: Tensor) -> Tensor:
    return torch.autograd.grad(logits.log_softmax(-1)[..., 0].sum(), gates)[0]


# -------------------------------------------------------------------- the sum over edges, token by token
@pytest.mark.parametrize("groups", [(), (2,)], ids=["", "groups"])
@pytest.mark.parametrize("scored", POSITIONS)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_equals_the_sum_over_edges_of_each_token(family: Any, index: int, scored: str, groups: tuple[int, ...]) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, positions = model.record(corrupted), by_role(model, *groups), POSITIONS[scored]
    expected = at(slow_logits(model, clean, gates, ablated, role_of=ROLE_OF), positions)
    found = model(clean, gates, ablated, positions=positions, role_of=ROLE_OF)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    slopes = gradient(found, gates)
    torch.testing.assert_close(slopes, gradient(expected, gates), atol=1e-8, rtol=1e-8)
    assert slopes[..., ABSENT, :, :].abs().max() == 0
    assert slopes[..., ~model.graph.exists].abs().max() == 0
    assert slopes.std(-3).max() > 1e-6  # roles differ


@pytest.mark.parametrize("kind", ["zero", "mean", "difference"])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_other_ablations(family: Any, index: int, kind: str) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    own, other, gates = model.record(clean), model.record(corrupted), by_role(model, fractional=False)
    ablated = {
        "zero": ablations.zero(model),
        "mean": other.map(lambda field: field.mean((1, 2), keepdim=True)),
        "difference": other.minus(own),
    }[kind]
    relative = kind == "difference"
    full = ablated.combine(lambda field, like: field.expand_as(like), own)
    expected = slow_logits(model, clean, gates, full, relative=relative, role_of=ROLE_OF)
    found = model(clean, gates, ablated, relative=relative, role_of=ROLE_OF)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    if not relative:
        torch.testing.assert_close(gradient(found, gates), gradient(expected, gates), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("family", "index"), FEW[:2])
def test_outputs_that_are_given(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates = model.record(corrupted), by_role(model)
    for fixed in given_groups(model, prompts(4)[1].flip(1)):
        expected = slow_logits(model, clean, gates, ablated, fixed=fixed, role_of=ROLE_OF)
        found = model(clean, gates, ablated, fixed=fixed, role_of=ROLE_OF)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("family", "index"), FEW)
def test_gradients_match_central_differences(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, gates, step = model.record(corrupted), by_role(model), 1e-5
    direction = torch.randn(gates.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(values: Tensor) -> Tensor:
        return model(clean, values, ablated, role_of=ROLE_OF).log_softmax(-1)[..., 0].sum()

    (slopes,) = torch.autograd.grad(loss(gates), gates)
    with torch.no_grad():
        difference = (loss(gates + step * direction) - loss(gates - step * direction)) / (2 * step)
    torch.testing.assert_close((slopes * direction).sum(), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_role_of_padding_does_not_matter(side: str) -> None:
    model = build(*FEW[0].values)
    clean, corrupted = prompts(4)
    gates = by_role(model)
    expected = model(clean, gates, model.record(corrupted), role_of=ROLE_OF)

    def padded(real: Tensor, filler: int) -> Tensor:
        pad = torch.full((4, 3), filler)
        return torch.cat([pad, real] if side == "left" else [real, pad], 1)

    mask, real = padded(torch.ones_like(clean), 0), slice(3, None) if side == "left" else slice(7)
    for role in range(NUM_ROLES):
        ablated = model.record(padded(corrupted, 8), mask)
        found = model(padded(clean, 7), gates, ablated, mask, role_of=padded(ROLE_OF, role))
        torch.testing.assert_close(found[:, real], expected, atol=1e-10, rtol=0)


# -------------------------------------------------------------------- against runs without roles
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_open_gates_of_all_roles_leave_logits_untouched(family: Any, index: int, dtype: torch.dtype) -> None:
    model = build(family, index, dtype)
    clean, corrupted = prompts(4)
    gates = model.graph.all_open().repeat(NUM_ROLES, 1, 1).requires_grad_()
    ablated = model.record(corrupted)
    found = model(clean, gates, ablated, role_of=ROLE_OF)
    assert torch.equal(found, model.hf(clean).logits)
    if dtype == torch.float64:
        plain = model.graph.all_open().requires_grad_()
        expected = gradient(model(clean, plain, ablated), plain)
        torch.testing.assert_close(gradient(found, gates).sum(0), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("family", "index"), FEW)
def test_roles_with_the_same_gates_are_no_roles(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, plain = model.record(corrupted), by_role(model).detach()[0].requires_grad_()
    gates = plain.detach().repeat(NUM_ROLES, 1, 1).requires_grad_()
    expected, found = model(clean, plain, ablated), model(clean, gates, ablated, role_of=ROLE_OF)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(found, gates).sum(0), gradient(expected, plain), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "index"), FEW)
def test_one_role_for_all_tokens_is_the_plain_run_bit_for_bit(family: Any, index: int, dtype: torch.dtype) -> None:
    model = build(family, index, dtype)
    clean, corrupted = prompts(4)
    ablated, gates = model.record(corrupted), by_role(model).detach().float().requires_grad_()
    found = model(clean, gates, ablated, role_of=torch.full_like(clean, 3))
    expected = model(clean, gates[3], ablated)
    assert torch.equal(found, expected)
    assert torch.equal(gradient(found, gates), gradient(expected, gates))


def test_gates_stay_exact_in_half_precision() -> None:
    """Those of the same model in float64, to the rounding of its weights."""
    clean, corrupted = prompts(4)
    slopes: list[Tensor] = []
    for dtype in (torch.float64, torch.bfloat16):
        model = build(*FEW[0].values, dtype)
        gates = by_role(model).detach().float().requires_grad_()
        slopes.append(gradient(model(clean, gates, model.record(corrupted), role_of=ROLE_OF).double(), gates))
    assert slopes[1].dtype == torch.float32
    assert (slopes[1] - slopes[0]).norm() / slopes[0].norm() < 0.1


# -------------------------------------------------------------------- where an edge acts
@pytest.mark.parametrize(("family", "index"), FEW)
def test_an_edge_closed_at_a_role_changes_its_tokens_and_later_ones(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(4)
    ablated, full = model.record(corrupted), model.full(clean)
    graph, is_role = model.graph, ROLE_OF == 3
    first = is_role.long().argmax(1) + 100 * ~is_role.any(1)
    later = torch.arange(clean.shape[1]) >= first[:, None]
    for edge, reaches in (("embed->a0.h0.v", later), ("embed->logits", is_role), ("embed->a0.h1.q", is_role)):
        gates = graph.all_open(torch.float64).repeat(NUM_ROLES, 1, 1)
        row, column = graph.index(edge)
        gates[3, row, column] = 0
        moved = (model(clean, gates, ablated, role_of=ROLE_OF) - full).abs().amax(-1)
        if edge.endswith("q"):  # at its tokens in the first layer, from there on to later ones
            assert moved[~later].max() < 1e-12
            assert moved[is_role].max() > 1e-4
        else:
            assert moved[~reaches].max() < 1e-12
            assert moved[reaches].max() > 1e-4
        assert moved[1].max() < 1e-12  # has no token of the role


# -------------------------------------------------------------------- memory, operations
@pytest.mark.parametrize("keep", ["0", "64"])
@pytest.mark.parametrize("segment_readers", [1, 96])
@pytest.mark.parametrize("name", ["host", "cuda"])
def test_segments_kept_inputs_and_operations_change_nothing(
    name: str, segment_readers: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEEP, keep)
    clean, corrupted = prompts(4)
    for case in FEW[:3]:
        model = build(*case.values, read_ops=name)
        gates, ablated = by_role(model), model.record(corrupted)
        expected = model(clean, gates, ablated, role_of=ROLE_OF)
        for ops in (ReadOps, *ReadOps.__subclasses__()):
            monkeypatch.setattr(ops, "segment_readers", segment_readers)
        found = model(clean, gates, ablated, role_of=ROLE_OF)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        slow = slow_logits(model, clean, gates, ablated, role_of=ROLE_OF)
        torch.testing.assert_close(gradient(found, gates), gradient(slow, gates), atol=1e-8, rtol=1e-8)


# -------------------------------------------------------------------- what does not fit
def test_a_fused_read_refuses_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(*FEW[0].values)
    clean, corrupted = prompts(4)
    ablated = model.record(corrupted)
    monkeypatch.setattr(ReadOps, "fused", True)
    with pytest.raises(EdgepruneError, match="read_ops='triton' does not read edges by role; take 'cuda'"):
        model(clean, by_role(model), ablated, role_of=ROLE_OF)


def test_edges_before_the_norm_refuse_roles() -> None:
    model = EdgesBeforeNorm(build(*next(case.values for case in WIRED if "Gemma2" in case.id)))
    clean, corrupted = prompts(4)
    with pytest.raises(EdgepruneError, match=r"know gates \[reader, writer\] alone"):
        model(clean, by_role(model), model.record(corrupted), role_of=ROLE_OF)
    with pytest.raises(EdgepruneError, match="an edge at a role is not defined for edges before the norm"):
        model.use_roles(RoleSpec(("a", "b")))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_says_which_edges_can_matter(causal: bool) -> None:
    """Scored at the first token alone: only where attention looks ahead does a later one's value reach it."""
    family: Any = next(case.values[0] for case in WIRED if "Compiled" in str(case.id))
    model = build(family, 1 if causal else 0)  # of `Compiled.tiny`
    model.use_roles(RoleSpec(("p0", "p1"), sees=(("p0",), ("p0", "p1")), scored=("p0",)))
    assert model.family.causal == causal
    graph, (clean, corrupted) = model.graph, prompts(4)
    later = graph.index("tok_embed->a0.h0.v@p1" if graph.arch.split_embedding else "embed->a0.h0.v@p1")
    assert bool(graph.dangling(graph.exists)[later]) == causal
    keep = graph.exists.clone()
    keep[later] = False
    roles, first = torch.tensor([[0, *[1] * 6]]).expand(4, 7), torch.zeros(4, 1, dtype=torch.long)
    closed = model(clean, keep.double(), model.record(corrupted), positions=first, role_of=roles)
    assert torch.equal(closed, model.full(clean, positions=first)) == causal


def test_gates_and_roles_that_do_not_fit_are_refused() -> None:
    model = build(*FEW[0].values)
    clean, corrupted = prompts(4)
    ablated, gates = model.record(corrupted), by_role(model)
    cases: list[tuple[Tensor, Tensor, str]] = [
        (gates[0], ROLE_OF, r"needs \[role, reader, writer\], the last two = "),
        (gates[..., 1:], ROLE_OF, r"gates have shape \(5, "),
        (gates[:4], ROLE_OF, "role_of must be 0 to 3, the roles that gates are for, got 0 to 4"),
        (gates, ROLE_OF - 1, "got -1 to 3"),
        (gates, ROLE_OF[:, 1:], r"\[batch, seq\] = \(4, 7\), got torch.int64 of shape \(4, 6\)"),
        (gates, ROLE_OF.double(), "got torch.float64"),
        (by_role(model, 3), ROLE_OF, "4 examples do not fall into 3 groups of equal size"),
    ]
    for own, roles, message in cases:
        with pytest.raises(EdgepruneError, match=message) as caught:
            model(clean, own, ablated, role_of=roles)
        assert "\n" not in str(caught.value)
