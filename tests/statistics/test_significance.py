"""Minimality as a test: ranks and corrections by hand, the paper's binomial tails, and random effects."""

import json

import pytest
import torch
from scipy.stats import binomtest

from edgeprune.errors import EdgepruneError
from edgeprune.statistics.significance import benjamini_hochberg, bonferroni, minimality_test

NAN = float("nan")


def test_ranks_among_random_edges() -> None:
    """Three references; a tie counts against the edge."""
    found = minimality_test(torch.tensor([5.0, 2.0, 0.5, NAN]), torch.tensor([1.0, 2.0, 3.0, NAN]))
    assert found.num_references == 3
    assert found.p_values[:3].tolist() == [1 / 4, 3 / 4, 4 / 4]
    assert found.p_values[3].isnan()
    assert found.test.n == 3


def test_superfluous_edges_are_those_of_the_paper() -> None:
    references = torch.arange(100.0)
    found = minimality_test(torch.tensor([200.0, 95.5, 70.5]), references, ["a", "b", "c"])
    expected = [binomtest(count, 100, 0.9, alternative="less").pvalue for count in (100, 96, 71)]
    assert found.superfluous_p_values.tolist() == pytest.approx(expected)
    assert found.test.p_value == pytest.approx(3 * expected[2])
    assert found.test.statistic == 0.71
    assert found.test.reading.startswith("rejected at 5 %: the circuit is not minimal")
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["superfluous"] == ["c"]
    assert [row["edge"] for row in plain["not_significant"]] == ["c", "b"]
    assert plain["not_significant"][1]["adjusted"] == pytest.approx(5 / 101 * 3 / 2)  # four of 100 are above it
    assert plain["num_significant"] == 1


def test_corrections_by_hand() -> None:
    p_values = torch.tensor([0.04, 0.01, 0.03, 0.5], dtype=torch.float64)
    assert bonferroni(p_values).tolist() == pytest.approx([0.16, 0.04, 0.12, 1.0])
    assert benjamini_hochberg(p_values).tolist() == pytest.approx([0.16 / 3, 0.04, 0.16 / 3, 0.5])
    assert benjamini_hochberg(p_values[:0]).tolist() == []


def test_a_minimal_circuit_and_one_of_random_edges() -> None:
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(999, generator=generator)
    good = minimality_test(10 + torch.randn(20, generator=generator), references, correction="bonferroni")
    assert good.significant.all()
    assert good.test.rejected is False
    assert good.to_dict()["not_significant"] == good.to_dict()["superfluous"] == []
    bad = minimality_test(torch.randn(20, generator=generator), references)
    assert bad.to_dict()["num_significant"] == 0
    assert bad.test.rejected is True
    assert len(bad.to_dict()["superfluous"]) > 10
    listed = [row["effect"] for row in bad.to_dict()["not_significant"]]
    assert listed == sorted(listed)
    assert len(listed) == 20


def test_few_references_show_nothing() -> None:
    found = minimality_test(torch.full((10,), 9.0), torch.zeros(20)).to_dict()
    assert found["least_p_value"] == 1 / 21
    assert found["num_significant"] == 10  # false discoveries: 1/21 for all alike
    assert (
        minimality_test(torch.full((10,), 9.0), torch.zeros(20), correction="bonferroni").to_dict()["num_significant"]
        == 0
    )


@pytest.mark.parametrize(
    ("effects", "references"),
    [(torch.zeros(0), torch.ones(3)), (torch.ones(2), torch.ones(0)), (torch.tensor([NAN]), torch.ones(3))],
)
def test_nothing_to_test(effects: torch.Tensor, references: torch.Tensor) -> None:
    found = minimality_test(effects, references)
    assert found.test.rejected is None
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["p_value"] is plain["statistic"] is None
    assert plain["not_significant"] == plain["superfluous"] == []


def test_what_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="correction must be one of benjamini_hochberg, bonferroni, got 'none'"):
        minimality_test(torch.ones(1), torch.ones(1), correction="none")  # type: ignore[arg-type]
    with pytest.raises(EdgepruneError, match="2 effects need as many names of edges, got 1"):
        minimality_test(torch.ones(2), torch.ones(1), ["a"])
    with pytest.raises(EdgepruneError, match="quantile must be between 0 and 1, got 0"):
        minimality_test(torch.ones(2), torch.ones(1), quantile=0)
