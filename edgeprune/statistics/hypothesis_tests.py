"""Is it a circuit? The tests of "Hypothesis Testing the Circuit Hypothesis in LLMs" (Shi et al., arXiv 2410.13032).

Its ideal circuit does what the model does (equivalence), leaves nothing behind when it is removed (independence)
and has no edge too many (minimality: `edgeprune.statistics.significance`). Two weaker tests ask whether it does
better than random circuits of its size: alone (sufficiency), and in what is lost without it (partial necessity).

Each test has its null hypothesis in words, and what a rejection means; for equivalence, independence and minimality a
rejection speaks against the circuit, for the two others in its favour. A null hypothesis that is not rejected is not
shown to be true: on few examples nothing is rejected.

Deviations from the paper are named at each test. For all of them: removed edges carry the ablated value of the
evaluator, and faithfulness is any measure (the paper's own is the mean squared difference of scores).
`edgeprune.evaluation.hypothesis` runs them; here they are functions of numbers.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations as orders
from typing import Any, final

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_fields

EPSILON = 0.1  # arXiv 2410.13032, table 1
QUANTILE = 0.9  # q* in the paper's experiments
LEVEL = 0.05
PERMUTATIONS = 1000  # the paper's experiments
TIES = 1e-5  # of the largest score: what float32 logits that should be equal may differ by
MOST_EXAMPLES = 1000  # of independence, whose kernels take the square of it
ROUNDING = 1e-9  # relative; two orders with the same HSIC differ by less
RANK_TOLERANCE = 1e-13  # eigenvalues of a kernel below this share of the largest are rounding


# -------------------------------------------------------------------- results
@final
@dataclass(frozen=True)
class HypothesisTest:
    """One test.

    `to_dict` has a key for each attribute, `rejected` (None where nothing was tested) and `reading`, a sentence.

    Attributes:
        name: Of the test.
        null: The null hypothesis in words.
        statistic: Of the test; NaN where there is nothing to test.
        statistic_is: What it is.
        p_value: Of the null hypothesis; NaN likewise.
        n: What the test rests on: examples, edges or random circuits, as many as were defined.
        if_rejected: What a rejection says.
        if_not: What can be said otherwise.
        level: Below or at which p the null hypothesis is rejected.
        settings: Of the test.
        details: Further figures; `least_p_value`, where it is known, is the smallest that any outcome could have.
    """

    name: str
    null: str
    statistic: float
    statistic_is: str
    p_value: float
    n: int
    if_rejected: str
    if_not: str
    level: float = LEVEL
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    details: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def rejected(self) -> bool | None:
        """Whether the null hypothesis is rejected; None where nothing was tested."""
        return None if math.isnan(self.p_value) else self.p_value <= self.level

    @property
    def reading(self) -> str:
        """The outcome in words."""
        if self.rejected is None:
            return "not tested: nothing is defined that could be"
        share = f"{100 * self.level:g} %"
        if self.rejected:
            return f"rejected at {share}: {self.if_rejected}"
        least = self.details.get("least_p_value", 0.0)
        if least > self.level:
            return f"not rejected at {share}, and could not be: whatever the outcome, p is at least {least:.2g} here"
        return f"not rejected at {share}: {self.if_not}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json_fields(self, rejected=self.rejected, reading=self.reading)


# -------------------------------------------------------------------- equivalence
def equivalence(
    circuit: Tensor, model: Tensor, epsilon: float = EPSILON, level: float = LEVEL, ties: float = TIES
) -> HypothesisTest:
    """Do circuit and full model have the same chance to outperform each other on an example?

    The statistic is t = |share of examples on which the circuit's score is above the model's - 1/2|; p is the
    probability of a t as large where that share is 1/2 + epsilon, which is the null hypothesis at its worst: the sum
    over k with |k/n - 1/2| >= t of Binomial(k; n, 1/2 + epsilon), exact, in log space.

    Deviations: the authors' program has the mean difference of the scores where the paper, and we, have the share of
    examples. And the paper takes scores never to be equal. Here an example with equal scores counts half for either
    side, so a circuit that equals the model on most examples stays close to 1/2; where that matters p is too large
    rather than too small. (To drop them would ask about the few that are left, without the tolerance.)

    Args:
        circuit: Scores, `[example]`; NaN where not defined. Which way is good does not matter.
        model: The full model's, likewise.
        epsilon: Tolerance, in [0, 1/2).
        level: At which the null hypothesis is rejected.
        ties: Scores closer than this share of the model's largest absolute one are equal: they differ by rounding.
    """
    if not 0 <= epsilon < 0.5:
        raise EdgepruneError(f"epsilon must be at least 0 and below 1/2, got {epsilon}; the paper takes {EPSILON}")
    circuit, model = _both_defined(circuit, model)
    n = len(model)
    above, below = (int((by > ties * model.abs().max()).sum()) if n else 0 for by in (circuit - model, model - circuit))
    log_p, log_least = _equivalence_tail(n, above - below, epsilon), _equivalence_tail(n, n, epsilon)
    return HypothesisTest(
        "equivalence",
        f"on an example the circuit's score is above the full model's with a probability within {epsilon:g} of 1/2",
        abs(above - below) / (2 * n) if n else math.nan,
        "|share of examples with the circuit above the model - 1/2|",
        math.exp(log_p),
        n,
        "circuit and model are not equivalent, one of them is ahead on too many examples",
        "no sign that circuit or model is ahead of the other by more than the tolerance",
        level,
        {"epsilon": epsilon, "ties": ties},
        {
            "num_above": above,
            "num_below": below,
            "num_equal": n - above - below,
            "log10_p_value": log_p / math.log(10),
            "least_p_value": math.exp(log_least),
        },
    )


def _equivalence_tail(n: int, lead: int, epsilon: float) -> float:
    """Log of the probability of a lead (successes - failures) as large, either way; NaN without examples."""
    if not n or not lead:
        return 0.0 if n else math.nan
    successes = np.arange(n + 1)
    as_large = successes[abs(2 * successes - n) >= abs(lead)]
    return min(0.0, float(np.logaddexp.reduce(stats.binom.logpmf(as_large, n, 0.5 + epsilon))))


def _both_defined(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 scores `[example]` of the examples for which both are finite."""
    if first.shape != second.shape or first.dim() != 1:
        raise EdgepruneError(
            f"scores must be one per example for both, got {tuple(first.shape)}, {tuple(second.shape)}"
        )
    known = first.isfinite() & second.isfinite()
    return first[known].double(), second[known].double()


# -------------------------------------------------------------------- independence
def independence(
    complement: Tensor,
    model: Tensor,
    permutations: int = PERMUTATIONS,
    level: float = LEVEL,
    seed: int = 0,
    most_examples: int = MOST_EXAMPLES,
) -> HypothesisTest:
    """Does what is left without the circuit still know how well the model does on an example?

    The statistic is HSIC of the scores, tr(K H L H) / (n - 1)^2 with Gaussian kernels (Gretton et al., 2007). p is the
    share of orders of one of the scores that give at least as much: of all n! where these are at most `permutations`,
    else of random ones, the given one counted in.

    Deviations: every score has its own bandwidth, the median distance of its values (Gretton et al.), where the
    authors' program takes one for both; and the given order is counted, so p is never 0.

    Args:
        complement: Scores of the model without the circuit, `[example]`; NaN where not defined.
        model: The full model's, likewise.
        permutations: Random orders.
        level: At which the null hypothesis is rejected.
        seed: Of the orders.
        most_examples: Of more, the first ones are taken.
    """
    if permutations < 1:
        raise EdgepruneError(f"permutations must be at least 1, got {permutations}")
    left, right = (scores[:most_examples] for scores in _both_defined(complement, model))
    undefined = (math.nan, math.nan, 0, math.nan)
    statistic, p_value, tried, least = _permuted(left, right, permutations, seed) if len(left) > 1 else undefined
    return HypothesisTest(
        "independence",
        "with the circuit removed, the score of an example is independent of the full model's",
        statistic,
        "HSIC of the scores of the complement and of the model",
        p_value,
        len(left),
        "the complement still carries some of what decides how well the model does",
        "no sign that the complement carries anything of what decides how well the model does",
        level,
        {"permutations": permutations, "seed": seed, "most_examples": most_examples},
        {"num_orders": tried, "least_p_value": least},
    )


def _permuted(first: Tensor, second: Tensor, number: int, seed: int) -> tuple[float, float, int, float]:
    """HSIC (0 where a score does not vary), its p-value over orders of the second one, their number, the least p."""
    left, right, n = _features(first).T.contiguous(), _features(second), len(first)
    observed = float((left @ right).square().sum())
    every = n < 10 and math.factorial(n) <= number
    found = [float((left @ right[order]).square().sum()) for order in _orders(n, number, seed, every)]
    as_large = sum(other >= observed * (1 - ROUNDING) for other in found)
    given = 0 if every else 1  # all orders have the given one among them
    return observed / (n - 1) ** 2, (as_large + given) / (len(found) + given), len(found), 1 / (len(found) + given)


def _orders(n: int, number: int, seed: int, every: bool) -> Iterator[Tensor]:
    """All orders of n things, or random ones, long `[n]` each."""
    if every:
        yield from map(torch.tensor, orders(range(n)))
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        yield torch.randperm(n, generator=generator)


def _features(scores: Tensor) -> Tensor:
    """Centred features `[example, rank]` whose products are the centred Gaussian kernel of the scores.

    They are 0 for scores that are all equal. The kernel of one number per example has few eigenvalues above rounding,
    so orders cost little.
    """
    distances = (scores[:, None] - scores).abs()
    if distances.max() <= TIES * scores.abs().max():  # varies by rounding at most
        return scores.new_zeros(len(scores), 1)
    apart = distances[~torch.eye(len(scores), dtype=torch.bool)].median()
    bandwidth = apart if apart > 0 else distances[distances > 0].median()
    values, vectors = torch.linalg.eigh(torch.exp(-distances.square() / (2 * bandwidth**2)))
    kept = values > RANK_TOLERANCE * values[-1]
    features = vectors[:, kept] * values[kept].sqrt()
    return features - features.mean(0)


# -------------------------------------------------------------------- against random circuits
def sufficiency(loss: float, random: Tensor, quantile: float = QUANTILE, level: float = LEVEL) -> HypothesisTest:
    """Is the circuit more faithful than random circuits of its size?

    p is (1 + random circuits that are at least as faithful) / (1 + random circuits): its rank among them. The paper's
    own test is `quantile_p_value` under `details`: of the null hypothesis that the circuit is at least as faithful as a
    random one with a probability of at most `quantile`, by the binomial tail. Ties count against the circuit in its
    rank, and for it in the paper's test.

    Args:
        loss: Of the circuit, the lower the more faithful.
        random: Of random circuits, `[random circuit]`; those that are NaN are left out.
        quantile: q* of the paper.
        level: At which the null hypothesis is rejected.
    """
    return _against_random(
        "sufficiency",
        "the circuit is no more faithful than a random circuit of its size",
        "share of random circuits that are at least as faithful",
        "the circuit is more faithful than random circuits of its size",
        "random circuits of its size are as faithful, or too few were drawn",
        (-loss, -random),
        quantile,
        level,
    )


def partial_necessity(loss: float, random: Tensor, quantile: float = QUANTILE, level: float = LEVEL) -> HypothesisTest:
    """Is more lost without the circuit than without a random circuit of its size?

    As `sufficiency`, for the losses of the complements: the higher, the more is lost. Random circuits may share edges
    with the circuit, the default of the authors' program.
    """
    return _against_random(
        "partial_necessity",
        "removing the circuit damages the model no more than removing a random circuit of its size",
        "share of random circuits whose removal damages the model at least as much",
        "removing the circuit damages the model more than removing random circuits of its size",
        "removing random circuits of its size damages the model as much, or too few were drawn",
        (loss, random),
        quantile,
        level,
    )


def _against_random(
    name: str,
    null: str,
    statistic_is: str,
    if_rejected: str,
    if_not: str,
    merits: tuple[float, Tensor],
    quantile: float,
    level: float,
) -> HypothesisTest:
    """The rank of a merit among those of random circuits, the higher the better."""
    check_share("quantile", quantile)
    merit, others = merits[0], merits[1][~merits[1].isnan()].double()
    n, known = len(others), not math.isnan(merit) and len(others) > 0
    rivals, beaten = int((others >= merit).sum()), int((others <= merit).sum())
    tail = float(stats.binom.sf(beaten - 1, n, quantile)) if known else math.nan
    p_value = (1 + rivals) / (1 + n) if known else math.nan
    details = {"num_rivals": rivals, "quantile_p_value": tail, "least_p_value": 1 / (1 + n)} if known else {}
    share = rivals / n if known else math.nan
    return HypothesisTest(
        name, null, share, statistic_is, p_value, n, if_rejected, if_not, level, {"quantile": quantile}, details
    )


def check_share(name: str, value: float) -> None:
    """Refuse what is not between 0 and 1."""
    if not 0 < value < 1:
        raise EdgepruneError(f"{name} must be between 0 and 1, got {value}")
