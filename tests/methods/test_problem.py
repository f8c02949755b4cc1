"""What a loss is, by metric, and what it may not be."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EAP, ExactEdgePatching
from edgeprune.methods.attribution import closing_effects, open_gates
from edgeprune.methods.problem import FLAT, MEASURES, Metric, Problem
from tests.methods.small_problems import problem, random_pairs, tiny

SLOPED: list[Any] = sorted(set(MEASURES) - {"greater_than"})


def test_every_metric_has_a_loss() -> None:
    assert set(get_args(Metric)) == {*MEASURES, *FLAT}


@pytest.mark.parametrize("metric", get_args(Metric))
def test_a_loss_is_low_for_a_faithful_model(metric: Metric) -> None:
    made = with_years() if metric == "greater_than" else problem(tiny(), metric=metric)
    (batch, full, _), *_ = made.batches_with_runs()
    right = full.scatter_add(-1, batch.targets.clamp(min=0)[..., None], torch.full_like(full[..., :1], 3.0))
    better, worse = (right, full) if metric in MEASURES else (full, right)
    assert (made.losses(full, better, batch) < made.losses(full, worse, batch)).all()


def with_years() -> Problem:
    """One scored position each; three numbers are above the year and two, the year's own among them, are not."""
    pairs = [pair for pair in random_pairs() if len(pair.positions) == 1]
    made = problem(tiny(), pairs, metric="greater_than")
    answers, wrong = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])
    batches = [
        replace(
            batch,
            answers=answers.expand(len(batch), 1, 3),
            wrong_answers=wrong.expand(len(batch), 1, 2),
            targets=answers[:, :1].expand(len(batch), 1),
        )
        for batch in made.batches
    ]
    return replace(made, batches=batches)


@pytest.mark.parametrize("metric", SLOPED)
def test_eap_is_minus_the_slope_of_any_metric(metric: Metric) -> None:
    made = problem(tiny(), metric=metric)
    scores = EAP().discover(made, no_progress).scores
    assert scores is not None
    batch, full, ablated = next(made.batches_with_runs())
    gates, step = open_gates(made.model), 1e-5
    exact = closing_effects(made, batch, full, ablated, gates)
    reader, writer = made.model.graph.exists.nonzero()[7].tolist()
    moved = gates.clone()
    moved[reader, writer] -= step
    losses = [
        made.losses(full, made.model(batch.clean, values, ablated, batch.attention_mask, batch.positions), batch).sum()
        for values in (moved, gates)
    ]
    assert float(losses[0] - losses[1]) / step == pytest.approx(exact[reader, writer].item(), rel=1e-3, abs=1e-6)
    assert scores.abs().max() > 0


@pytest.mark.parametrize("metric", ["logit_difference_max", "probability_difference", "nll"])
def test_exact_patching_takes_any_metric(metric: Metric) -> None:
    made = problem(tiny(), metric=metric)
    scores = ExactEdgePatching().discover(made, no_progress).scores
    assert scores is not None
    keep = made.model.graph.all_open(torch.float64)
    reader, writer = made.model.graph.exists.nonzero()[3].tolist()
    keep[reader, writer] = 0
    rise = made.mean_loss(keep) - made.mean_loss(open_gates(made.model))
    assert scores[reader, writer].item() == pytest.approx(rise, abs=1e-6)


def test_pairs_without_what_the_metric_needs_are_refused() -> None:
    made = problem(tiny(), metric="logit_difference_max")
    batches = [replace(batch, wrong_answers=torch.full_like(batch.wrong_answers, -100)) for batch in made.batches]
    with pytest.raises(EdgepruneError, match="'logit_difference_max' is not defined for some pairs"):
        replace(made, batches=batches).mean_loss(open_gates(made.model))
