"""Another example's values: whose, and at which tokens."""

from typing import Any

import pytest
import torch

from datamodules.align import align_prompts
from edgeprune.ablations import SourceExamples
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from tests.ablations.cases import PAIRS, UNEQUAL, against_the_right_edge, batch_of, fields, padded
from tests.methods.small_problems import random_pairs, tiny

SOURCES = ["clean", "corrupted"]


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    return tiny("gpt2")


def drawn(sources: SourceExamples, number: int) -> list[int]:
    return [sources.source_of(index) for index in range(number)]


def test_no_example_is_its_own_source_and_all_others_of_its_length_are_drawn() -> None:
    pairs = random_pairs(30)  # ten of each length
    lengths = [len(pair.clean) for pair in pairs]
    seen: dict[int, set[int]] = {index: set() for index in range(30)}
    for seed in range(80):
        for index, source in enumerate(drawn(SourceExamples([batch_of(pairs)], seed=seed), 30)):
            seen[index].add(source)
    for index, sources in seen.items():
        assert sources == {other for other in range(30) if other != index and lengths[other] == lengths[index]}


def test_sources_depend_on_the_seed_and_the_number_alone() -> None:
    pairs = random_pairs(12)
    whole = drawn(SourceExamples([batch_of(pairs)]), 12)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    assert drawn(SourceExamples([batch_of(pairs, shuffled[:5]), batch_of(pairs, shuffled[5:])]), 12) == whole
    assert drawn(SourceExamples([padded(batch_of(pairs), 2, 1)]), 12) == whole
    torch.manual_seed(7)  # the global generator has no part in it
    assert drawn(SourceExamples([batch_of(pairs)], "corrupted"), 12) == whole
    assert drawn(SourceExamples([batch_of(pairs)], seed=1), 12) != whole


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("pairs", [PAIRS, UNEQUAL], ids=["equal", "unequal"])
def test_values_are_those_of_the_source_run_alone(model: MaskedModel, pairs: Any, source: str) -> None:
    """Where the source has another length, as the data module aligns prompts of unequal length after a first token."""
    batch, runs = batch_of(pairs), ReferenceRuns(model, f"resample:{source}")
    runs.prepare([batch])
    states, sources = runs(batch, "train")[1], SourceExamples([batch], source)  # type: ignore[arg-type]
    for index, pair in enumerate(pairs):
        other = pairs[sources.source_of(index)]
        facing = align_prompts(len(pair.clean), len(other.clean), opening=1)
        if source == "corrupted" and other.alignment:
            facing = [other.alignment[position] for position in facing]
        alone = model.record(torch.tensor([other.clean if source == "clean" else other.corrupted]))
        for found, expected in zip(fields(states), fields(alone), strict=True):
            torch.testing.assert_close(found[:, index, : len(pair.clean)], expected[:, 0, facing])


@pytest.mark.parametrize("source", SOURCES)
def test_padding_of_the_prompt_or_of_the_sources_does_not_matter(model: MaskedModel, source: str) -> None:
    plain, runs = batch_of(PAIRS), ReferenceRuns(model, f"resample:{source}")
    runs.prepare([plain])
    expected = runs(plain, "train")[1]
    other = ReferenceRuns(model, f"resample:{source}")
    other.prepare([padded(batch_of(PAIRS, [3, 1, 5]), 1, 2), against_the_right_edge(batch_of(PAIRS, [0, 4, 2]))])
    for batch in (plain, padded(plain, 2, 1), against_the_right_edge(plain)):
        real = batch.attention_mask.bool()
        for found, wanted in zip(fields(other(batch, "train")[1]), fields(expected), strict=True):
            torch.testing.assert_close(found[:, real], wanted[:, plain.attention_mask.bool()])


def test_every_split_gives_its_own_values(model: MaskedModel) -> None:
    runs, batch = ReferenceRuns(model, "resample"), batch_of(PAIRS)
    runs.prepare([batch], "train")
    assert not runs.wants("train")
    assert runs.wants("validation")
    with pytest.raises(EdgepruneError, match=r"from the validation pairs.*runs.prepare\(batches, 'validation'\)"):
        runs(batch, "validation")
    runs.prepare([batch_of(list(reversed(PAIRS)))], "validation")
    train, validation = runs(batch, "train")[1], runs(batch, "validation")[1]
    assert not torch.equal(train.heads, validation.heads)


def test_too_few_pairs_or_an_unknown_one_are_refused(model: MaskedModel) -> None:
    with pytest.raises(EdgepruneError, match="from another pair of the split, which has 1; give at least two"):
        ReferenceRuns(model, "resample").prepare([batch_of(PAIRS, [0])])
    runs = ReferenceRuns(model, "resample")
    runs.prepare([batch_of(PAIRS, [0, 1, 2])])
    with pytest.raises(EdgepruneError, match=r"example 4 is not among the 3 pairs.*all pairs of the split"):
        runs(batch_of(PAIRS, [1, 4]), "train")
