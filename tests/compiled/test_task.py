import pytest

from datamodules.tasks.compiled import CompiledTask
from edgeprune.batch import IGNORE
from edgeprune.compiled import cases
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"program": "sort"}, "no compiled program named 'sort'"),
        (
            {"lengths": (0, 2)},
            r"lengths must be some of \[1, 2, 3, 4, 5\] for program 'reverse', got \(0, 2\)",
        ),
        ({"lengths": ()}, r"got \(\)"),
        ({"num_test": -1}, "must not be negative"),
        ({"lengths": (3,)}, r"363 pairs asked for, 'reverse' has 27 inputs of lengths \(3,\)"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        CompiledTask(**settings)
