import hashlib

import pytest

from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from edgeprune.batch import IGNORE
from edgeprune.compiled import cases, load_compiled, output_kind, programs
from edgeprune.errors import EdgepruneError


def test_splits_share_out_all_inputs() -> None:
    splits = CompiledTask().splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {
        "train": 254,
        "validation": 54,
        "test": 55,
    }
    clean = [pair.clean for pairs in splits.values() for pair in pairs]
    assert sorted(clean) == sorted(ids for ids, _ in cases("reverse"))


def test_the_quickstart_pairs_are_what_they_have_always_been() -> None:
    splits = {
        name: [(pair.clean, pair.corrupted, pair.positions, pair.targets, pair.distractors) for pair in pairs]
        for name, pairs in CompiledTask(program="reverse").splits(None).items()
    }
    digest = hashlib.sha256(repr(splits).encode()).hexdigest()
    assert digest == "a3ddbd0567ae441b6b9572387165c82079e99e6b888e727573485ef660bb8cd1"


def test_pairs_ask_for_the_reversed_input_at_every_position() -> None:
    for pair in CompiledTask().splits(None)["test"]:
        assert len(pair.corrupted) == len(pair.clean)
        assert pair.corrupted != pair.clean
        assert pair.corrupted[0] == pair.clean[0] == 3
        assert pair.positions == tuple(range(1, len(pair.clean)))
        assert pair.targets == tuple(reversed(pair.clean[1:]))
        assert set(pair.distractors) == {IGNORE}


def test_the_seed_fixes_everything() -> None:
    assert CompiledTask(seed=1).splits(None) == CompiledTask(seed=1).splits(None)
    assert CompiledTask(seed=1).splits(None) != CompiledTask(seed=2).splits(None)


def test_lengths_choose_inputs() -> None:
    splits = CompiledTask(lengths=(2, 3), num_train=20, num_validation=10, num_test=6).splits(None)
    assert {len(pair.positions) for pairs in splits.values() for pair in pairs} == {2, 3}


@pytest.mark.parametrize("program", programs())
def test_every_program_gives_pairs_that_its_model_answers(program: str) -> None:
    splits = CompiledTask(program=program).splits(None)
    pairs = [pair for split in splits.values() for pair in split]
    assert len({pair.clean for pair in pairs}) == len(pairs) == len(cases(program))
    assert [len(splits[name]) for name in ("train", "validation")] == [len(pairs) * part // 100 for part in (70, 15)]
    assert all(len(pair.clean) == len(pair.corrupted) and pair.clean != pair.corrupted for pair in pairs)
    assert {pair.corrupted for pair in pairs} <= {pair.clean for pair in pairs}
    batch = collate(list(enumerate(splits["test"])))
    logits = load_compiled(program)(batch.clean, attention_mask=batch.attention_mask).logits
    found = logits.argmax(-1).gather(1, batch.positions)
    if output_kind(program) == "numerical":
        assert set(batch.targets.flatten().tolist()) == {IGNORE}
    else:
        assert (found == batch.targets)[batch.position_mask].float().mean() > 0.95  # trained models may err


def test_positions_without_a_specified_output_are_not_scored() -> None:
    outputs = dict(cases("induction"))
    for pair in CompiledTask(program="induction", num_train=100).splits(None)["train"]:
        asked = [place for place, value in enumerate(outputs[pair.clean], start=1) if value != IGNORE]
        assert list(pair.positions) == asked
        assert IGNORE not in pair.targets


def test_sizes_that_are_not_given_are_shares_of_the_inputs() -> None:
    splits = CompiledTask(lengths=(3,), num_train=10).splits(None)
    assert [len(pairs) for pairs in splits.values()] == [10, 4, 5]  # of 27


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"program": "nope"}, "no compiled program named 'nope'"),
        (
            {"lengths": (0, 2)},
            r"lengths must be some of \[1, 2, 3, 4, 5\] for program 'reverse', got \(0, 2\)",
        ),
        ({"lengths": ()}, r"got \(\)"),
        ({"num_test": -1}, "must not be negative"),
        (
            {"lengths": (3,), "num_train": 20},
            r"29 pairs asked for, 'reverse' has 27 inputs of lengths \(3,\): lower num_train",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        CompiledTask(**settings)
