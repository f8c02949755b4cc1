"""What all measures of the registry have in common, and their figures over many examples."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.faithfulness import Faithfulness, faithfulness
from edgeprune.metrics.registry import MEASURES, STANDARD, measures_for
from tests.metrics.test_functional import BATCH, CIRCUIT, FULL, LENGTHS, POSITIONS, ROWS
from tests.metrics.test_greater_than import YEARS, by_tails
from tests.metrics.test_greater_than import logits as year_logits

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "metrics.md"
YEAR_LOGITS = tuple(year_logits(len(YEARS), 1, 130, seed=seed) for seed in (0, 1))
MEASURES_OF_RUNS = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
IDEAL = {  # of the full model against itself; other measures look at the circuit alone
    **dict.fromkeys(("kl", "kl_reverse", "js", "kl_answers", "squared_error"), 0.0),
    **dict.fromkeys(("exact_match", "cosine_similarity", "cosine_similarity_centred"), 1.0),
    **dict.fromkeys(("kendall_tau", "greater_than_kendall_tau"), 1.0),
    **dict.fromkeys(("logit_difference_percent", "logit_difference_percent_per_example"), 100.0),
}
ALONE = [name for name in MEASURES if name not in IDEAL]
DISTRIBUTION = ("kl", "kl_reverse", "js", "accuracy_top1", "exact_match", "answer_rank")
NEEDS_TWO_OUTPUTS = (*DISTRIBUTION, "cosine_similarity", "cosine_similarity_centred")
NEEDS_WRONG = ("logit_difference", "logit_difference_percent", "logit_difference_percent_per_example")
NEEDS_WRONG_SET = ("logit_difference_sets", "logit_difference_max", "accuracy_answers")
NEEDS_TARGET = ("nll", "nll_answers", "accuracy", "accuracy_top1", "answer_rank", *NEEDS_WRONG, "logit_difference_max")
NEEDS_PAIR = ("kl_answers", "kendall_tau", "nll_answers")
Case = tuple[Tensor, Tensor, PairBatch]


def case(name: str) -> Case:
    """Logits of two models and a batch that suit the measure."""
    return (*YEAR_LOGITS, by_tails()) if MEASURES[name].task else (FULL, CIRCUIT, BATCH)


def changed(batch: PairBatch, **fields: Any) -> PairBatch:
    return PairBatch(**{**vars(batch), **fields})


def part(given: Case, rows: slice) -> Case:
    full, circuit, batch = given
    fields = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return full[rows], circuit[rows], PairBatch(**fields)


def figure(name: str, *cases: Case) -> float:
    metric = Faithfulness(name)
    for given in cases:
        metric.update(*given)
    return float(metric.compute())


# -------------------------------------------------------------------- each measure
@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_defined_and_keeps_the_type(name: str) -> None:
    full, circuit, batch = case(name)
    values = MEASURES[name].values(full, circuit, batch)
    assert values.shape == (len(batch),)
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    single = MEASURES[name].values(full.float(), circuit.float(), batch)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), values, rtol=1e-4, atol=1e-5)  # a percentage has small denominators


@pytest.mark.parametrize("name", IDEAL)
def test_the_full_model_is_ideal(name: str) -> None:
    full, circuit, batch = case(name)
    # a cosine's product and norms are rounded in another order
    assert figure(name, (full, full, batch)) == pytest.approx(IDEAL[name], abs=1e-12)
    if IDEAL[name] in (0.0, 100.0):
        assert figure(name, (full, circuit, batch)) != pytest.approx(IDEAL[name], abs=1e-3)
    else:
        assert figure(name, (full, circuit, batch)) < 0.9


@pytest.mark.parametrize("name", ALONE)
def test_measures_of_the_circuit_do_not_look_at_the_full_model(name: str) -> None:
    full, circuit, batch = case(name)
    of = MEASURES[name].values
    assert torch.equal(of(full, circuit, batch), of(circuit, circuit, batch))


@pytest.mark.parametrize("name", ALONE)
def test_a_circuit_surer_of_the_right_answer_is_better(name: str) -> None:
    full, circuit, batch = case(name)
    targets = batch.targets.clamp(min=0)[..., None]
    surer = circuit.scatter_add(-1, targets, torch.full_like(circuit[..., :1], 5.0))
    change = MEASURES[name].values(full, surer, batch) - MEASURES[name].values(full, circuit, batch)
    sign = 1 if MEASURES[name].higher_is_better else -1
    assert (sign * change >= 0).all()
    assert (change != 0).any()


@pytest.mark.parametrize("name", measures_for())
def test_positions_that_are_not_scored_do_not_count(name: str) -> None:
    mask = BATCH.position_mask[..., None]
    full, circuit = torch.where(mask, FULL, -CIRCUIT), torch.where(mask, CIRCUIT, FULL.flip(-1))
    of = MEASURES[name].values
    assert torch.equal(of(full, circuit, BATCH), of(FULL, CIRCUIT, BATCH))


@pytest.mark.parametrize("name", measures_for())
def test_unknown_answers_beyond_the_scored_positions_change_nothing(name: str) -> None:
    mask = BATCH.position_mask
    batch = changed(
        BATCH,
        targets=torch.where(mask, BATCH.targets, IGNORE),
        distractors=torch.where(mask, BATCH.distractors, IGNORE),
        answers=torch.where(mask[..., None], BATCH.answers, IGNORE),
        wrong_answers=torch.where(mask[..., None], BATCH.wrong_answers, IGNORE),
    )
    of = MEASURES[name].values
    assert torch.equal(of(FULL, CIRCUIT, batch), of(FULL, CIRCUIT, BATCH))


# -------------------------------------------------------------------- not defined
@pytest.mark.parametrize("name", measures_for())
def test_without_a_wrong_answer_only_comparisons_with_it_are_nan(name: str) -> None:
    none = torch.full_like(BATCH.distractors, IGNORE)
    one_right = torch.where(torch.arange(BATCH.answers.shape[-1]) == 0, BATCH.answers, IGNORE)
    batch = changed(BATCH, distractors=none, wrong_answers=none[..., None], answers=one_right)
    values = MEASURES[name].values(FULL, CIRCUIT, batch)
    expected = name in (*NEEDS_WRONG, *NEEDS_WRONG_SET, *NEEDS_PAIR)
    assert values.isnan().tolist() == [expected] * ROWS


@pytest.mark.parametrize("name", measures_for())
def test_without_a_target_only_what_needs_it_is_nan(name: str) -> None:
    batch = changed(BATCH, targets=torch.full_like(BATCH.targets, IGNORE))
    values = MEASURES[name].values(FULL, CIRCUIT, batch)
    assert values.isnan().tolist() == [name in NEEDS_TARGET] * ROWS


@pytest.mark.parametrize("name", NEEDS_TWO_OUTPUTS)
def test_a_single_output_has_no_distribution_and_no_order(name: str) -> None:
    zero = torch.zeros(ROWS, POSITIONS, dtype=torch.long)
    batch = changed(BATCH, targets=zero, distractors=zero - 100, answers=None, wrong_answers=None)
    assert MEASURES[name].values(FULL[..., :1], CIRCUIT[..., :1], batch).isnan().all()


@pytest.mark.parametrize("name", ["kl_answers", "nll_answers", "kendall_tau", "logit_difference_sets"])
def test_a_position_without_enough_answers_is_left_out_of_the_mean(name: str) -> None:
    wrong, answers = BATCH.wrong_answers.clone(), BATCH.answers.clone()
    wrong[0, 1], answers[0, 1, 1:] = IGNORE, IGNORE
    mask = BATCH.position_mask.clone()
    mask[0, 1] = False
    of = MEASURES[name].values
    found = of(FULL, CIRCUIT, changed(BATCH, wrong_answers=wrong, answers=answers))
    torch.testing.assert_close(found, of(FULL, CIRCUIT, changed(BATCH, position_mask=mask)), rtol=1e-14, atol=0)


def test_the_cosine_of_nothing_is_nan() -> None:
    of = MEASURES["cosine_similarity"].values
    assert of(torch.zeros_like(FULL), CIRCUIT, BATCH).isnan().all()


# -------------------------------------------------------------------- figures over examples
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("cut", [1, 3])
def test_two_parts_merge_to_the_whole(name: str, cut: int) -> None:
    given = case(name)
    first, second = Faithfulness(name), Faithfulness(name)
    first.update(*part(given, slice(cut)))
    second.update(*part(given, slice(cut, None)))
    first.merge_state(second)
    # values of an example may differ in their last bits with the shape of the batch
    assert float(first.compute()) == pytest.approx(figure(name, given), rel=1e-12)
    assert figure(name, part(given, slice(cut)), part(given, slice(cut, None))) == float(first.compute())


@pytest.mark.parametrize("name", NEEDS_WRONG)
def test_examples_without_a_value_are_left_out(name: str) -> None:
    distractors = BATCH.distractors.clone()
    distractors[1] = IGNORE
    given = (FULL, CIRCUIT, changed(BATCH, distractors=distractors))
    rest = [part(given, slice(1)), part(given, slice(2, None))]
    assert figure(name, given) == pytest.approx(figure(name, *rest), rel=1e-12)
    assert math.isnan(figure(name, part(given, slice(1, 2))))


def test_an_example_without_a_weight_is_left_out_too() -> None:
    full = FULL.clone()
    full[1] = torch.nan
    rest = [part((FULL, CIRCUIT, BATCH), rows) for rows in (slice(1), slice(2, None))]
    found = figure("logit_difference_percent", (full, CIRCUIT, BATCH))
    assert found == pytest.approx(figure("logit_difference_percent", *rest), rel=1e-12)


def test_percent_of_means_and_mean_of_percents_by_hand() -> None:
    """Two examples: the full model's differences are 4 and 1, the circuit's 2 and 2."""
    full, circuit = torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)
    full[:, 0, 0], circuit[:, 0, 0] = torch.tensor([4.0, 1.0]), torch.tensor([2.0, 2.0])
    ids = torch.zeros(2, 1, dtype=torch.long)
    names = ("clean", "corrupted", "attention_mask", "positions")
    batch = PairBatch(
        **dict.fromkeys(names, ids),
        position_mask=ids == 0,
        targets=ids,
        distractors=ids + 1,
        index=torch.arange(2),
    )
    assert figure("logit_difference_percent", (full, circuit, batch)) == 100 * (2 + 2) / (4 + 1)
    assert figure("logit_difference_percent_per_example", (full, circuit, batch)) == (50 + 200) / 2


def test_examples_weigh_alike_whatever_their_number_of_positions() -> None:
    values = MEASURES["kl"].values(FULL, CIRCUIT, BATCH)
    assert figure("kl", (FULL, CIRCUIT, BATCH)) == pytest.approx(float(values.mean()))
    by_position = (values * torch.tensor(LENGTHS)).sum() / sum(LENGTHS)
    assert figure("kl", (FULL, CIRCUIT, BATCH)) != pytest.approx(float(by_position), rel=1e-3)


def test_a_collection_of_all_measures_gives_the_figure_of_each() -> None:
    metrics = faithfulness("test/", measures_for())
    metrics.update(FULL, CIRCUIT, BATCH)
    expected = {f"test/{name}": figure(name, (FULL, CIRCUIT, BATCH)) for name in measures_for()}
    assert {name: float(value) for name, value in metrics.compute().items()} == expected


def test_the_standard_collection_is_unchanged() -> None:
    assert set(faithfulness().keys()) == set(STANDARD) == {*MEASURES_OF_RUNS}


def test_a_metric_survives_pickling_and_knows_its_direction() -> None:
    metric = Faithfulness("nll")
    metric.update(FULL, CIRCUIT, BATCH)
    copy = pickle.loads(pickle.dumps(metric))
    assert float(copy.compute()) == float(metric.compute())
    assert (copy.higher_is_better, Faithfulness("accuracy").higher_is_better) == (False, True)
    assert Faithfulness("logit_difference_percent").higher_is_better is None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"measure must be one of kl, .*, got 'kld'"):
        Faithfulness("kld")


# -------------------------------------------------------------------- the page


def markdown_table() -> str:
    """All measures, one line each."""
    lines = [
        "| name | definition | range, worst to best | unit | better | where it comes from |",
        "|---|---|---|---|---|---|",
    ]
    for item in MEASURES.values():
        better = f"near {item.better}" if item.higher_is_better is None else item.better
        cells = (f"`{item.name}`", item.definition, item.range, item.unit or "-", better, item.source)
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


def test_names_and_headings_are_unique() -> None:
    assert len({measure.heading for measure in MEASURES.values()}) == len(MEASURES)
    assert all(name == measure.name for name, measure in MEASURES.items())


def test_measures_of_a_task_are_added_to_those_of_all() -> None:
    added = set(measures_for("greater_than")) - set(measures_for())
    assert added == {name for name, measure in MEASURES.items() if measure.task == "greater_than"}
    assert len(added) == 4


def test_the_page_has_the_table_of_the_registry() -> None:
    assert markdown_table() in PAGE.read_text(encoding="utf-8")
