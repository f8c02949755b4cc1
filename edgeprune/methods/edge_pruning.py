"""Edge Pruning (Bhaskar et al. 2024, arXiv 2406.16778): hard concrete gates on edges, trained by gradient descent."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor, nn

from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.gates.hard_concrete import STRETCH, TEMPERATURE
from edgeprune.graph import EdgeGraph
from edgeprune.methods.attention_gates import AttentionGates
from edgeprune.methods.base import AbstractRecipe, ErrorName, sample_stream
from edgeprune.methods.edge_pruning_options import AttentionOption, check_attention, check_numbers, optimizer_groups
from edgeprune.methods.flips import Flips, GatedError, WholeFlips
from edgeprune.methods.local_expectation import MeasuredEffects, check_estimator, check_one_process, local_expectation
from edgeprune.methods.node_gates import writer_of_edge
from edgeprune.methods.pacing import check_pace, paid_units, rate_for, steer, steps_to_close
from edgeprune.methods.regrow import Regrow, Regrowth, check_regrow
from edgeprune.methods.warm_start import Start, WarmStart
from edgeprune.objectives.pace import Motion, Pace
from edgeprune.objectives.ramp import RampPenalty
from edgeprune.objectives.sparsity import AbstractSparsityTerm

RATE = 0.03  # learning rate of runs that are long enough for it

OPEN = 1e4  # log-alpha of a gate that is 1 whatever the noise

PenaltyOn = Literal["expected", "sample"]
Estimator = Literal["pathwise", "local"]


@final
class EdgePruning(AbstractRecipe):
    """One hard concrete gate per existing edge, and optionally one per writer; in a graph with roles, at each of them.

    With node gates the edge (w, r) carries `z_wr * z_w`: gating a writer's output before it enters the stream, as the
    published code does, is the same product.

    Published values are those of `run_scripts/` of the authors' code for GPT-2 IOI.

    Args:
        sparsity_term: What pushes edges shut: `GeometricPenalty`, `Lagrangian` (published) or `Pace`. None: `Pace`,
            which needs no price and arrives at the highest sparsity asked for.
        penalty_on: What the sparsity term sees. `"expected"`: expected L0, as in arXiv 1712.01312 eq. 12. `"sample"`:
            the mean of the gates sampled for the forward pass (published).
        estimator: How the error's gradient reaches the gates. `"pathwise"` (published): through the sampled gates. It
            sees only slopes: where a model's output is flat in each gate and jumps (saturated attention, steep MLPs,
            as in compiled programs), a needed edge looks like an idle one. `"local"` (deviation): gates are
            rounded to 0 or 1, and the effect of flipping some is measured and remembered, see `local_expectation`; the
            penalty pushes only what was measured. Without backward. For up to thousands of edges.
        num_flips: Flips that are run per step with `estimator="local"`, as many as there are at most. Undecided gates
            and those not asked for long come first; flips that change nothing are found without a run.
        masks_per_batch: Samples of the gates in one step: the batch falls into that many groups, each with a sample of
            its own (published: 1, shared by the batch). A batch that does not divide is cut into fewer groups. It
            costs nothing, and the part of the gradient's noise that comes from the gates falls.
        antithetic: Draw the samples of a step in pairs, the second with noise 1 - u for the first's u (deviation:
            published code has one sample). Each sample's distribution stays, and so does the mean gradient; what is
            monotone in a gate's noise cancels in part. Needs an even `masks_per_batch`.
        learning_rate: Of the log-alphas (published: 0.8; deviation: 0.03, decision 24). A gate that starts open at
            `init_mean` takes at least `init_mean / learning_rate` steps to close. None: 0.03, or more in a short run,
            so that a gate can close within a ninth of it.
        betas: Of Adam, for the log-alphas (published: 0.9, 0.999). A low second one forgets the few large gradients
            that an idle edge gets while needed ones are uncertain, so that the penalty can close it afterwards.
        learning_rate_warmup: Share of the run in which the rate rises linearly from 0 (published: 200 of 3000 steps).
        learning_rate_decay: Let the rate fall linearly to 0 afterwards (published: yes).
        weight_decay: Decoupled, on the log-alphas. Published runs have AdamW's default of 0.01 without saying so, which
            pulls every log-alpha to 0, an expected gate of one half; deviation: 0.
        init_mean: Initial log-alpha (published: 10, where a gate is open with certainty and has almost no gradient).
        init_std: Its standard deviation (published: 0.01).
        temperature: Of the hard concrete distribution (published: 2/3).
        stretch: Of the hard concrete distribution (published: -0.1, 1.1).
        node_gates: Add one gate per writer (published: always, and trained by the KL even without a node loss).
        node_sparsity_term: Pushes node gates shut (published: off in the GPT-2 scripts, `--disable_node_loss`).
        node_learning_rate: Of the node gates (published: 0.8); None for `learning_rate`.
        warm_start: Start the edges' log-alphas from a circuit or score file, around `init_mean` or at a sparsity asked
            for in each layer (`layer_sparsity`), and close for good what it ranks low (`keep_below`). Frozen edges have
            gate 0, get no gradient, and count as closed edges.
        attention_edges: In a graph with roles, also learn which keys and values each head sees from which role: gates
            on attention edges, with a copy of `sparsity_term`. `"alone"`: these only; edges stay open, but for those
            that `keep_below` closes.
        attention_sparsity: Circuits have attention edges as sparse as was asked for, but never sparser than this, where
            `Pace` ends for them; None: as sparse as the edges.
        regrow: Open closed gates again while `Pace` stays at its last sparsity, for which it needs a `hold` well above
            the default. None: a gate that has closed stays closed.
    """

    def __init__(
        self,
        sparsity_term: AbstractSparsityTerm | None = None,
        *,
        penalty_on: PenaltyOn = "expected",
        estimator: Estimator = "pathwise",
        num_flips: int = 16,
        masks_per_batch: int = 1,
        antithetic: bool = False,
        learning_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        learning_rate_warmup: float = 0.0,
        learning_rate_decay: bool = False,
        weight_decay: float = 0.0,
        init_mean: float = 2.0,
        init_std: float = 0.0,
        temperature: float = TEMPERATURE,
        stretch: tuple[float, float] = STRETCH,
        node_gates: bool = False,
        node_sparsity_term: AbstractSparsityTerm | None = None,
        node_learning_rate: float | None = None,
        warm_start: WarmStart | None = None,
        attention_edges: AttentionOption = False,
        attention_sparsity: float | None = None,
        regrow: Regrow | None = None,
    ) -> None:
        super().__init__()
        rate = RATE if learning_rate is None else learning_rate
        check_numbers(rate, learning_rate_warmup, weight_decay, betas, init_std, node_learning_rate)
        term = Pace() if sparsity_term is None else sparsity_term
        check_pace(term, node_sparsity_term, penalty_on, node_gates)
        self.attention_edges: AttentionOption = attention_edges
        self.attention_sparsity = attention_sparsity
        self.sparsity_term = RampPenalty(0, 0, 0) if self.edges_open else term  # open edges cost nothing
        self._given = {"term": term}  # as the recipe trains only `sparsity_term`
        check_estimator(estimator, num_flips, penalty_on, node_gates, masks_per_batch, antithetic)
        check_attention(attention_edges, attention_sparsity, estimator, node_gates, warm_start)
        check_regrow(regrow, term, estimator, self.edges_open)
        self.regrow = regrow
        self.masks_per_batch = masks_per_batch
        self.antithetic = antithetic
        self.node_sparsity_term = node_sparsity_term
        self.penalty_on: PenaltyOn = penalty_on
        self.estimator: Estimator = estimator
        self.num_flips = num_flips
        self.learning_rate = rate
        self._free_rate = learning_rate is None
        self.betas = (float(betas[0]), float(betas[1]))
        self.learning_rate_warmup = learning_rate_warmup
        self.learning_rate_decay = learning_rate_decay
        self.weight_decay = weight_decay
        self.node_gates = node_gates
        self.node_learning_rate = node_learning_rate
        self._gate_options: dict[str, Any] = {"init_mean": init_mean, "init_std": init_std}
        self._gate_options |= {"temperature": temperature, "stretch": stretch}
        self.nodes: HardConcrete | None = None
        self.warm_start = warm_start
        self.start: Start | None = None
        self._units: Tensor | None = None  # of the step under way, for `Pace`

    def build(self, graph: EdgeGraph) -> None:
        """Make one gate per existing edge, and with `node_gates` one per writer."""
        self.graph = graph
        options: dict[str, Any] = self._gate_options | ({"init_mean": OPEN, "init_std": 0.0} if self.edges_open else {})
        self.edges = HardConcrete(graph.num_edges, **options).requires_grad_(not self.edges_open)
        if self.attention_edges:
            term, sampled = self._given["term"], self.penalty_on == "sample"
            self.attention = AttentionGates(graph, term, self.attention_sparsity, sampled, self._gate_options)
        if self.estimator == "local":
            self.measured = nn.ModuleDict({name: MeasuredEffects(graph.num_edges) for name in get_args(ErrorName)})
        if self.node_gates:
            self.nodes = HardConcrete(math.prod((*graph.shape[:-2], graph.shape[-1])), **self._gate_options)
        if self.warm_start is not None:
            self.start = Start(self.warm_start, graph, self.edges.temperature, self.edges.stretch)
            self.start.move(self.edges.log_alpha.data)
        if self.pace is not None:
            self.pace.build(graph.num_edges, graph.num_edges)
        if self.regrow is not None:
            self.regrowth = Regrowth(self.regrow, graph.num_edges)

    def check_started(self) -> None:
        """Refuse a warm start whose file is missing."""
        if self.start is not None:
            self.start.check_started()

    @property
    def edges_open(self) -> bool:
        """Whether edges stay open, as attention edges alone are learned."""
        return self.attention_edges == "alone"

    @property
    def pace(self) -> Pace | None:
        """The edges' term, if its price is steered."""
        return self.sparsity_term if isinstance(self.sparsity_term, Pace) else None

    def plan(self, steps: int) -> None:
        """Choose a learning rate at which gates can close in so many steps, unless one is set.

        Raises:
            EdgepruneError: The local estimator has several processes, whose memories of effects would differ.
        """
        if self.estimator == "local":
            check_one_process()
        calibrated = None if self.start is None else self.start.highest
        distance = self._gate_options["init_mean"] if calibrated is None else calibrated
        if self._free_rate:
            self.learning_rate = rate_for(steps, distance, least=RATE)
        if self.pace is not None:
            self.pace.plan(steps, steps_to_close(steps, distance, self.learning_rate))
        if self.attention is not None:
            self.attention.plan(steps, self.learning_rate)

    @property
    def _frozen(self) -> Tensor | None:
        """Bool `[num_edges]`: edges that are closed for good, if any."""
        return None if self.start is None else self.start.frozen

    def _closed(self, values: Tensor) -> Tensor:
        """One value per edge `[num_edges]`, 0 for frozen edges."""
        return values if self._frozen is None else values.masked_fill(self._frozen, 0)

    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`, one of the samples of a step: the edges', times their writers' if there are any."""
        first = number - number % 2 if self.antithetic else number

        def noise_of(gates: HardConcrete, nodes: bool) -> Tensor:
            noise = uniform_noise(seed, step, gates.num_gates, stream=sample_stream(first, nodes=nodes))
            return noise if number == first else 1 - noise

        gates = self.graph.to_matrix(self._closed(self.edges.sample(noise_of(self.edges, nodes=False))))
        if self.nodes is None:
            return gates
        nodes = self.nodes.sample(noise_of(self.nodes, nodes=True))
        return gates * nodes.view(*self.graph.shape[:-2], 1, -1)

    def expected_error(
        self, error_of: Callable[..., Tensor], seed: int, step: int, name: ErrorName = "error"
    ) -> tuple[Tensor, Tensor]:
        """Error of the step's samples, with the gradient that `estimator` says; and their mean `[reader, writer]`."""
        if self.attention is not None:
            inside = self.attention.samples(seed, step, self.masks_per_batch, self.antithetic)
            error_of = partial(error_of, attention_gates=inside)
        if self.regrowth is not None:
            error_of = self.regrowth.probed(error_of, self.graph)
        if self.estimator == "pathwise":
            return super().expected_error(error_of, seed, step, name)
        graph, gates, prob = self.graph, self.edges.num_gates, self._closed(self.edges.prob_above_half())

        def flips_of(sample: Tensor) -> Flips:
            found = error_of.flips(sample) if isinstance(error_of, GatedError) else None
            return found or WholeFlips(lambda values: error_of(graph.to_matrix(values)), sample)

        noise, order = (uniform_noise(seed, step, gates, stream=stream).to(prob.device) for stream in (0, 2))
        error, sample = local_expectation(flips_of, prob, noise, order, self._effects(name), self.num_flips)
        return error, graph.to_matrix(sample)

    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """The edge term, plus the node term if there is one.

        Deviation: with node gates the edge term counts an edge as open when it and its writer are (published: the
        edge's own gate alone, so that edges of a dead writer still count).
        """
        sampled = self.penalty_on == "sample"
        fraction = gates.sum() / self.graph.num_edges if sampled else self._priced().mean()
        self._units = paid_units(self.sparsity_term, fraction, self.edges.log_alpha, self.graph.num_edges)
        loss = self.sparsity_term(fraction, progress)
        if self.node_sparsity_term is not None and self.nodes is not None:
            loss = loss + self.node_sparsity_term(self.nodes.prob_open().mean(), progress)
        return loss if self.attention is None else loss + self.attention.penalty(progress)

    def _priced(self) -> Tensor:
        """The same as `_prob_open`, for the penalty: what it may push now has a gradient."""
        prob = self._prob_open()
        return self._effects("error").priced(prob) if self.estimator == "local" else prob

    def _effects(self, name: ErrorName) -> MeasuredEffects:
        return cast(MeasuredEffects, self.measured[name])

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        """Let `Pace` set the price of the next step."""
        slopes, rate = self.edges.log_alpha.grad, self.learning_rate * self.learning_rate_factor(progress)
        if self.attention is not None:
            self.attention.after_backward(rate, progress)
        if self.pace is not None and slopes is not None and self._units is not None:
            steer(self.pace, Motion(slopes, self._units, self.edges.scores(), rate, self._num_open), progress)
            if self.regrowth is not None:
                self.regrowth.step(self.edges.log_alpha, self.pace, progress, self._frozen)

    def _num_open(self, locations: Tensor) -> Tensor:
        """Edges (scalar) that are open where their log-alphas are `locations` `[num_edges]`."""
        return self._closed((locations > 0).float()).sum()

    def _prob_open(self) -> Tensor:
        """P(gate > 0) of every existing edge, `[num_edges]`; of rounded gates, P(gate > 1/2)."""
        if self.estimator == "local":
            return self._closed(self.edges.prob_above_half())
        edges = self._closed(self.edges.prob_open())
        return edges if self.nodes is None else edges * self.nodes.prob_open()[writer_of_edge(self.graph, edges.device)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gates descend, multipliers ascend without decay."""
        rates: list[tuple[HardConcrete, float]] = [] if self.edges_open else [(self.edges, self.learning_rate)]
        terms = [self.sparsity_term, self.node_sparsity_term]
        if self.attention is not None:
            rates.append((self.attention.gates, self.learning_rate))
            terms.append(self.attention.term)
        if self.nodes is not None:
            rates.append((self.nodes, self.node_learning_rate or self.learning_rate))
        return optimizer_groups(rates, terms, self.betas, self.weight_decay)

    def learning_rate_factor(self, progress: float) -> float:
        """Linear warm-up from 0, then constant or linear decay to 0, for every group (as published)."""
        warm = self.learning_rate_warmup
        if progress < warm:
            return progress / warm
        return (1 - progress) / (1 - warm) if self.learning_rate_decay else 1.0

    def scores(self) -> Tensor:
        """Log-alpha of each edge, `[reader, writer]`; with node gates the smaller of the edge's and its writer's.

        Frozen edges come after all others, below 0, in the order of the file that they start from.
        """
        return self.graph.to_matrix(self._edge_scores())

    def _edge_scores(self) -> Tensor:
        """The same, `[num_edges]`."""
        scores = self.edges.scores()
        if self.nodes is not None:
            scores = torch.minimum(scores, self.nodes.scores()[writer_of_edge(self.graph, scores.device)])
        return scores if self.start is None else self.start.ranked_last(scores, self.edges.scores())

    def num_open(self) -> int:
        """Edges whose own gate without noise, and their writer's if there are node gates, is above one half."""
        return int((self._edge_scores() > 0).sum())

    def target(self, progress: float) -> float | None:
        """Sparsity that the edge term aims at, if it aims; of attention edges alone, theirs."""
        alone = self.attention if self.edges_open else None
        return (self.sparsity_term if alone is None else alone.term).target(progress)

    def state(self, progress: float) -> dict[str, float]:
        """Multipliers or weights, and the share of edges expected to be open."""
        with torch.no_grad():
            expected = self._prob_open().mean().item()
        inside = {} if self.attention is None else self.attention.state(progress)
        return {**self.sparsity_term.state(progress), "expected_open": expected, **inside}

    def describe(self) -> dict[str, Any]:
        """Method and its main settings."""
        return {
            "method": "edge_pruning",
            "sparsity_term": type(self._given["term"]).__name__,
            **self._settings("penalty_on", "estimator", "masks_per_batch", "antithetic", "learning_rate", "betas"),
            **self._settings("weight_decay", "learning_rate_warmup", "learning_rate_decay", "node_gates"),
            **self._gate_options,
            **(self._settings("attention_edges", "attention_sparsity") if self.attention_edges else {}),
            **({} if self.start is None else {"warm_start": self.start.describe()}),
            **({} if self.regrowth is None else {"regrow": self.regrowth.describe()}),
        }
