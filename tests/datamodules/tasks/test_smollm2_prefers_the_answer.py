"""SmolLM2 solves the generated tasks, so that there is something to find in it: the full model on test pairs."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from datamodules import (
    IOI,
    BooleanExpressions,
    Capitals,
    Docstring,
    GenderedPronoun,
    GreaterThan,
    Induction,
    PairDataModule,
    SubjectVerb,
    WordPairs,
)
from datamodules.tasks.base import AbstractTask
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.models.fetched import is_complete, model_folder
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]
PAIRS = 40

# Lowest share of the first 40 test pairs on which the right answers together get more probability than the wrong ones,
# at every scored position; in brackets what was measured (benchmarks/tasks.py --pairs 40).
SHARES: list[tuple[AbstractTask, float]] = [
    (IOI(), 0.9),  # [0.95]
    (GreaterThan(), 0.9),  # [0.975], for the tens digit and for the ones digit
    (GenderedPronoun(), 0.9),  # [0.975]
    (SubjectVerb(), 0.95),  # [1.0]
    (Capitals(), 0.95),  # [1.0]
    (Docstring(), 0.55),  # [0.65]: one right name against five; above the distractor alone it is 0.975
    (BooleanExpressions(), 0.45),  # [0.625]: chance is 0.5; the model is too small to evaluate expressions
    (WordPairs(num_test=PAIRS), 0.95),  # [1.0], by instruction
    (Induction(num_scored=5), 0.9),  # [0.975], for the last five of twenty tokens
]


@pytest.fixture(scope="module")
def model() -> Iterator[MaskedModel]:
    """The full model; one thread, as many as are sure to be there."""
    if not is_complete("smollm2"):
        pytest.skip(f"SmolLM2 is not at {model_folder('smollm2')}; `edgeprune get smollm2` fetches it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("smollm2")
    torch.set_num_threads(threads)


def prefers_the_answer(logits: Tensor, batch: PairBatch) -> Tensor:
    """Rows on which the right answers together are more probable than the wrong ones wherever they are scored."""
    probs = logits.float().softmax(-1)
    right, wrong = (
        probs.gather(-1, ids.clamp(min=0)).masked_fill(ids == IGNORE, 0.0).sum(-1)
        for ids in (batch.answers, batch.wrong_answers)
    )
    return ((right > wrong) | ~batch.position_mask).all(-1)


@torch.no_grad()
@pytest.mark.parametrize(("task", "share"), SHARES, ids=[type(task).__name__ for task, _ in SHARES])
def test_the_full_model_prefers_the_answer(model: MaskedModel, task: AbstractTask, share: float) -> None:
    data = PairDataModule(task, "smollm2", eval_batch_size=PAIRS, cache=False)
    batch = next(iter(data.test_dataloader()))
    logits = model.full(batch.clean, batch.attention_mask, batch.positions)
    prefers = prefers_the_answer(logits, batch)
    assert len(prefers) == PAIRS
    assert prefers.double().mean() >= share
