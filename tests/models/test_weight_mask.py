"""Masks on weights: files, models before and after, the model of what is left, densities by head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import edgeprune as ep
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.family import registry
from edgeprune.models.gated_weights import gated_names
from edgeprune.models.loading import fingerprint, load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.weight_mask import WeightMask, applied_mask
from tests.ablations.cases import batch_of
from tests.methods.small_problems import random_pairs
from tests.models.test_conformance import CASES, VOCAB, WIRED, build

IDS = torch.randint(0, VOCAB, (3, 6), generator=torch.Generator().manual_seed(0))


def model(family: str = "llama", index: int = 1) -> MaskedModel:
    return build(registry()[family], index)


def values(of: MaskedModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in of.hf.named_parameters()}


def random_mask(of: MaskedModel, density: float = 0.3, seed: int = 0, patterns: Any = None) -> WeightMask:
    generator, named = torch.Generator().manual_seed(seed), dict(of.hf.named_parameters())
    keep = {name: torch.rand(named[name].shape, generator=generator) < density for name in gated_names(of, patterns)}
    return WeightMask.of(of, keep, {"model": "tiny", "seed": seed})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


# ------------------------------------------------------------------ which weights
def test_by_default_the_matrices_of_the_layers_are_gated() -> None:
    of = model()
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(3) for part in parts}
    assert set(gated_names(of)) == expected


def test_patterns_choose_weights() -> None:
    found = gated_names(model("gpt2", 0), ["*.attn.*", "*.0.mlp.c_fc.bias"])
    assert len(found) == 3 * 4 + 1
    assert all(".attn." in name or name == "transformer.h.0.mlp.c_fc.bias" for name in found)


@pytest.mark.parametrize(("patterns", "message"), [(["*mlpp*"], "no weight .* fits '\\*mlpp\\*'"), ([], "is empty")])
def test_patterns_that_choose_nothing_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        gated_names(model(), patterns)


# ------------------------------------------------------------------ on a model
def test_inside_the_mask_weights_are_zero_and_afterwards_what_they_were() -> None:
    of = model()
    mask, before = random_mask(of), values(of)
    with mask(of):
        inside = values(of)
        assert applied_mask(of) is not None
    assert applied_mask(of) is None
    for name, keep in mask.keep.items():
        assert torch.equal(inside[name], torch.where(keep, before[name], 0))
    assert all(torch.equal(inside[name], before[name]) for name in before.keys() - mask.keep.keys())
    assert same(values(of), before)


def test_weights_come_back_after_an_exception() -> None:
    of = model()
    before = values(of)
    with pytest.raises(RuntimeError, match="halfway"), random_mask(of)(of):
        raise RuntimeError("halfway")
    assert same(values(of), before)


def test_a_lifted_mask_lies_on_the_weights_again_also_after_an_exception() -> None:
    of = model()
    before, applied = values(of), random_mask(of).apply(of)
    inside = values(of)
    with applied.lifted():
        assert same(values(of), before)
        assert applied_mask(of) is None
    with pytest.raises(RuntimeError, match="halfway"), applied.lifted():
        raise RuntimeError("halfway")
    assert same(values(of), inside)
    applied.restore()
    applied.restore()
    assert same(values(of), before)


def test_a_hugging_face_model_takes_a_mask_as_well() -> None:
    of = model()
    with random_mask(of)(of.hf):
        alone = of.hf(IDS).logits
        torch.testing.assert_close(of.full(IDS), alone)
    assert not torch.allclose(of.full(IDS), alone)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_the_masked_model_runs_on_the_masked_weights(family: Any, index: int) -> None:
    """Also with open gates that are given one by one: what the model keeps of its weights is made anew."""
    of = build(family, index)
    gates, ablated = torch.ones(of.graph.shape, dtype=torch.float64), of.record(IDS.flip(0))
    before = of(IDS, gates, ablated)
    mask = random_mask(of, 0.7)
    weights = {name: weight.masked_fill(~mask.keep[name], 0) if name in mask.keep else weight
               for name, weight in values(of).items()}  # fmt: skip
    expected: Any = functional_call(of.hf, weights, (IDS,))
    with mask(of):
        torch.testing.assert_close(of(IDS, gates, of.record(IDS.flip(0))), expected.logits)
    torch.testing.assert_close(of(IDS, gates, ablated), before)


def test_of_a_mask_that_keeps_all_the_complement_has_what_is_not_gated() -> None:
    of = model("gpt2", 0)
    mask, before = random_mask(of, 2.0, patterns=["*.attn.*", "*.mlp.*"]), values(of)
    assert mask.density == 1
    with mask(of):
        assert same(values(of), before)
    with mask.complement()(of):
        left = {name for name, weight in of.hf.named_parameters() if weight.any()}
        assert left == {name for name, _ in of.hf.named_parameters()} - mask.keep.keys()


def test_a_mask_for_other_weights_is_refused_and_nothing_changes() -> None:
    of, other = model(), model()
    next(other.hf.parameters()).data[0, 0] += 1
    before = values(other)
    with pytest.raises(EdgepruneError, match=r"belongs to weights with fingerprint .* load tiny, without a mask on it"):
        random_mask(of).apply(other)
    with pytest.raises(EdgepruneError, match=r"tensor model\.layers\.0.* which the model has not"):
        random_mask(of).apply(model("gpt2", 0))
    assert same(values(other), before)


def test_a_fingerprint_tells_masks_apart_that_differ_in_one_weight() -> None:
    of = model()
    mask = random_mask(of)
    name, keep = next(iter(mask.keep.items()))
    flipped = keep.clone()
    flipped[1, 1] = ~flipped[1, 1]
    found = {fingerprint(of)}
    for one in (mask, WeightMask.of(of, {**mask.keep, name: flipped})):
        with one(of):
            found.add(fingerprint(of))
    assert len(found) == 3
    assert fingerprint(of) in found


# ------------------------------------------------------------------ files
def test_a_file_holds_one_bit_per_weight_and_gives_the_mask_back(tmp_path: Path) -> None:
    of = load_model("compiled:reverse")
    mask = random_mask(of, patterns=["*"])
    assert any(part.numel() % 8 for part in mask.keep.values()), "some tensor ends within a byte"
    path = mask.save(tmp_path / "mask.safetensors")
    assert path.stat().st_size < mask.num_weights / 8 + 12_000
    read = ep.WeightMask.load(path)
    assert read.keep.keys() == mask.keep.keys()
    assert all(torch.equal(read.keep[name], part) for name, part in mask.keep.items())
    assert (read.weights, read.nodes, read.header["seed"]) == (mask.weights, mask.nodes, 0)
    again = read.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_a_model_can_be_loaded_with_its_mask(tmp_path: Path) -> None:
    plain = load_model("compiled:reverse")
    mask = random_mask(plain, 0.5)
    path = mask.save(tmp_path / "mask.safetensors")
    masked = load_model("compiled:reverse", weight_mask=str(path))
    with mask(plain):
        assert same(values(masked), values(plain))
        assert fingerprint(masked) == fingerprint(plain)
    with pytest.raises(EdgepruneError, match="no weight mask file at"):
        load_model("compiled:reverse", weight_mask=str(tmp_path / "none.safetensors"))
    with pytest.raises(EdgepruneError, match="which the model has not"):
        load_model("compiled:hist", weight_mask=str(path))


# ------------------------------------------------------------------ densities
@pytest.mark.parametrize(("family", "index"), CASES)
def test_every_head_and_mlp_of_every_family_has_its_own_weights(family: Any, index: int) -> None:
    """One head's weights by the family's own views: no other head keeps any but what it shares with that one."""
    of = build(family, index)
    names, arch = gated_names(of), of.graph.arch
    named = dict(of.hf.named_parameters())
    nodes = WeightMask.of(of, {name: torch.ones_like(named[name], dtype=torch.bool) for name in names}).nodes
    heads = {f"a{layer}.h{head}" for layer in range(arch.num_layers) for head in range(arch.num_heads)}
    mlps = {f"m{layer}" for layer in range(arch.num_layers)} if arch.has_mlp else set[str]()
    assert nodes == dict.fromkeys(heads | mlps, 1.0)
    before = values(of)
    for name in names:
        named[name].data.zero_()
    block, last = of.blocks[1], arch.num_heads - 1
    block.qkv_weights()[0][last] = 1  # a view
    keep = {name: named[name] != 0 for name in names}
    for name in names:
        named[name].data.copy_(before[name])
    found = WeightMask.of(of, keep).nodes
    assert {name for name, share in found.items() if share} == {f"a1.h{last}"}
    assert 0 < found[f"a1.h{last}"] < 1


def test_two_masks_are_compared_weight_by_weight() -> None:
    of = model()
    first, second = (random_mask(of, 0.5, seed) for seed in (0, 1))
    both = sum(int((first.keep[name] & second.keep[name]).sum()) for name in first.keep)
    either = sum(int((first.keep[name] | second.keep[name]).sum()) for name in first.keep)
    assert first.jaccard(second) == both / either
    assert first.jaccard(first) == 1
    assert first.densities() == {name: part.double().mean().item() for name, part in first.keep.items()}


# ------------------------------------------------------------------ reference runs
ABLATIONS = {"interchange": 0.1, "mean": 0.0}  # and GB for kept runs: a mean is kept whatever room there is


def runs_of(of: MaskedModel, ablation: str) -> tuple[ReferenceRuns, PairBatch]:
    """With something kept."""
    runs, batch = ReferenceRuns(of, ablation, ABLATIONS[ablation]), batch_of(random_pairs(3))
    runs.prepare([batch])
    runs(batch, "train")
    return runs, batch


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_runs_kept_without_a_mask_are_not_used_with_one(ablation: str) -> None:
    of = model()
    runs, batch = runs_of(of, ablation)
    mask = random_mask(of)
    with (
        mask(of),
        pytest.raises(EdgepruneError, match=f"kept with weight mask None, on the model is now {mask.digest}"),
    ):
        runs(batch, "train")
    full, _ = runs(batch, "train")  # what was kept is good again
    assert torch.equal(full, of.full(batch.clean, batch.attention_mask, batch.positions).float())


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_runs_kept_with_a_mask_are_not_used_with_another_or_none(ablation: str) -> None:
    of = model()
    first, second = random_mask(of), random_mask(of, seed=1)
    with first(of):
        runs, batch = runs_of(of, ablation)
    with pytest.raises(EdgepruneError, match=f"kept with weight mask {first.digest}, on the model is now None"):
        runs(batch, "train")
    with second(of), pytest.raises(EdgepruneError, match=f"is now {second.digest}: make new ReferenceRuns"):
        runs(batch, "train")
    with first(of):  # put on again
        runs(batch, "train")


def test_runs_of_which_nothing_is_kept_follow_the_weights() -> None:
    of = model()
    runs, batch = ReferenceRuns(of, "interchange"), batch_of(random_pairs(3))
    full, _ = runs(batch, "train")
    with random_mask(of)(of):
        masked, _ = runs(batch, "train")
        assert torch.equal(masked, of.full(batch.clean, batch.attention_mask, batch.positions).float())
    assert not torch.equal(masked, full)
