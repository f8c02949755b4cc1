"""The evaluator: its ends, how often it runs the model, and what it refuses."""

from typing import Any

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from tests.methods.small_problems import problem, tiny


def evaluator(**changes: Any) -> Evaluator:
    asked = problem(tiny("gpt2"))
    return Evaluator(asked.model, asked.runs, asked.batches, "train", **changes)


def test_ends() -> None:
    """Open is the full model; closed is, under interchange, the corrupted run."""
    judge = evaluator()
    assert judge.ends.figure("kl", 0) == pytest.approx(0, abs=1e-6)
    batch = judge.batches[0]
    corrupted = judge.model.full(batch.corrupted, batch.attention_mask, batch.positions)
    target, distractor = (
        corrupted.gather(-1, ids.clamp(min=0)[..., None])[..., 0] for ids in (batch.targets, batch.distractors)
    )
    expected = ((target - distractor) * batch.position_mask).sum(-1) / batch.position_mask.sum(-1)
    torch.testing.assert_close(
        judge.ends.of("logit_difference")[1, : len(batch)], expected.double(), rtol=1e-4, atol=1e-5
    )


def test_many_circuits_share_the_full_and_the_ablated_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve of ten circuits records and runs the full model once per batch."""
    judge, calls = evaluator(), {"full": 0, "record": 0}
    for name in calls:
        original = getattr(judge.model, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(judge.model, name, counted)
    judge([judge.graph.all_open() * share / 10 for share in range(10)])
    assert calls == {"full": len(judge.batches), "record": len(judge.batches)}


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    judge = evaluator(progress=lambda *about: told.append(about))
    judge([judge.graph.all_open()], "a circuit")
    assert told == [("a circuit", number, 3) for number in range(4)]


def test_the_first_pairs_alone() -> None:
    judge = evaluator()
    assert [len(batch) for batch in judge.limited(3).batches] == [2, 1]
    assert judge.limited(3)([judge.graph.all_closed()]).index.tolist() == [0, 1, 2]
    assert judge.limited(99).num_examples == judge.num_examples == 5


def test_what_is_refused() -> None:
    judge = evaluator()
    with pytest.raises(EdgepruneError, match="no test pairs"):
        Evaluator(judge.model, judge.runs, [], "test")
    with pytest.raises(EdgepruneError, match="measure must be one of"):
        judge([judge.graph.all_open()], measures=["beauty"])
    with pytest.raises(EdgepruneError, match="keep has shape"):
        open_edges(judge, torch.ones(2, 2))
