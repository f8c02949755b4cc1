"""Information flow routes: published numbers, sums, and the cases in which published code fails."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.compiled import CompiledConfig, CompiledTransformer
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import InformationFlowRoutes
from edgeprune.methods.information_flow import proximity, shares
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel
from tests.methods.small_problems import problem, random_pairs, tiny
from tests.models.reference import writer_outputs
from tests.models.test_conformance import VOCAB, WIRED, build


def scores_of(question: Problem, norm: int = 1) -> Tensor:
    scores = InformationFlowRoutes(norm).discover(question, no_progress).scores
    assert scores is not None
    return scores


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(1, 1), (-1, 0), (2, 1)], [0.43613, 0, 0.56387]),
        ([(1, 1), (2, 2), (1, 1)], [0.25, 0.5, 0.25]),
    ],
)
def test_published_numbers_with_the_l2_norm(parts: list[tuple[int, int]], expected: list[float]) -> None:
    vectors = torch.tensor(parts, dtype=torch.float64)
    found = shares(proximity(vectors, vectors.sum(0), norm=2))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_published_numbers_with_a_threshold() -> None:
    parts = torch.tensor([[0.05, 0.05], [0.15, 0.05], [0.8, 0.9]], dtype=torch.float64)
    expected = torch.tensor([[0, 0], [0.157894, 0], [0.842105, 1]], dtype=torch.float64)
    torch.testing.assert_close(shares(parts, 0.1), expected, atol=1e-6, rtol=0)
    assert shares(parts[:2], 0.9).tolist() == [[0, 0]] * 2


def test_shares_above_a_threshold_sum_to_one_at_every_token() -> None:
    """What one token drops does not come back, though another token keeps it."""
    question = problem(tiny(), random_pairs(3))
    plain = scores_of(question)
    found = InformationFlowRoutes(threshold=0.2).discover(question, no_progress).scores
    assert found is not None
    heard = found.sum(1) > 0
    torch.testing.assert_close(
        found.sum(1)[heard], torch.ones(int(heard.sum()), dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert heard.sum() > len(heard) / 2
    assert (found == 0).sum() > (plain == 0).sum()


def test_shares_of_parts_none_of_which_is_near_are_zero() -> None:
    assert shares(torch.zeros(3, 2)).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_shares_of_every_reader_sum_to_one(family: Any, index: int) -> None:
    question = problem(build(family, index), random_pairs(2, seed=1))  # every reader hears a writer at each token
    scores, exists = scores_of(question), question.model.graph.exists
    assert (scores >= 0).all()
    assert (scores[~exists] == 0).all()
    torch.testing.assert_close(scores.sum(1), torch.ones(len(scores), dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", [1, 2])
def test_the_logits_row_by_hand(norm: int) -> None:
    question = problem(tiny(split_embedding=True), random_pairs(3))
    model = question.model
    expected = torch.zeros(len(model.graph.writers), dtype=torch.float64)
    for pair in random_pairs(3):
        ids = torch.tensor([pair.clean])
        stream = model.run(ids)[0]
        outputs = [output[0] for output in writer_outputs(model, model.record(ids))]
        for token in range(len(pair.clean)):
            whole = stream[token].abs().sum() if norm == 1 else stream[token].square().sum().sqrt()
            near: list[float] = []
            for output in outputs:
                rest = stream[token] - output[token]
                length = rest.abs().sum() if norm == 1 else rest.square().sum().sqrt()
                near.append(max(0.0, (whole - length).item()))
            expected += torch.tensor(near, dtype=torch.float64) / sum(near) / len(pair.clean) / 3
    torch.testing.assert_close(scores_of(question, norm)[-1], expected, atol=1e-9, rtol=0)


def test_neither_metric_nor_corrupted_prompts_nor_batches_matter() -> None:
    model, pairs = tiny(), random_pairs()
    same = [type(pair)(pair.clean, pair.clean, pair.positions, pair.targets, pair.distractors) for pair in pairs]
    expected = scores_of(problem(model, pairs))
    torch.testing.assert_close(scores_of(problem(model, same, cuts=(), metric="kl")), expected)


def test_one_head_per_layer_and_an_embedding_that_is_zero() -> None:
    """Published code fails with one head, and gives NaN where no writer is near its reader."""
    torch.manual_seed(0)
    hf = CompiledTransformer(
        CompiledConfig(vocab_size=VOCAB, d_out=VOCAB, hidden_size=8, num_hidden_layers=2, num_attention_heads=1)
    )
    hf.tok_embed.weight.data.zero_()
    hf.pos_embed.weight.data.zero_()
    scores = scores_of(problem(MaskedModel(hf.double().eval(), split_embedding=True)))
    assert scores.isfinite().all()
    assert (scores[0] == 0).all()  # q of the first head reads zero


def test_another_norm_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="got 3"):
        InformationFlowRoutes(3)
    with pytest.raises(EdgepruneError, match=r"threshold must lie in \[0, 1\), got 1"):
        InformationFlowRoutes(threshold=1)
