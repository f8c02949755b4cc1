"""What a fit would take on a card, worked out without weights: memory by part, and what to change where it is too much.

The terms of memory are those of `edgeprune.memory`, for a model on the meta device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, final

import torch

from edgeprune.costs import CARDS, StepCost, step_cost
from edgeprune.errors import EdgepruneError
from edgeprune.graph import KVReaders, RoleSpec
from edgeprune.memory import (
    LIBRARIES,
    LOSS_LOGITS,
    BatchShape,
    MemoryPlan,
    activations_per_example,
    evaluation_terms,
    resident,
    spare_memory,
    training_terms,
)
from edgeprune.metrics.measure import TOKENS_AT_ONCE
from edgeprune.models.masked import MaskedModel
from edgeprune.models.meta import meta_model
from edgeprune.objectives import OBJECTIVES, Objective

CONTEXT = 600_000_000  # bytes of a card that CUDA's context, kernels and workspaces of products take, about
CPU = "cpu"
LARGEST_WORLD = 64  # cards that a model is sharded over, at most, where that is proposed


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run before it begins.

    Attributes:
        config: The model's Hugging Face config.
        dtype: Of the weights.
        kv_readers: As in `ModelOptions`.
        split_embedding: As in `ModelOptions`.
        attn_implementation: As in `ModelOptions`.
        objective: Of the faithfulness.
        batch: Training pairs per batch and process.
        accumulate: Batches per step.
        eval_batch: Pairs per batch of evaluations; None: as many as make it fastest.
        tokens: Of the longest prompt.
        positions: Scored ones.
        masks: Samples of the gates in a batch.
        roles: That edges are told apart by; 0: none.
        attention: Attention edges have gates too.
        kept: Bytes of reference runs that are kept in the memory of the process, at most.
        device: A name of `CARDS`, or `"cpu"`; None: some card.
        world: Cards.
        sharded: Weights are shared out over the cards; else each has all of them.
    """

    config: Any
    dtype: torch.dtype = torch.float32
    kv_readers: KVReaders = "group"
    split_embedding: bool = False
    attn_implementation: str | None = None
    objective: Objective = "kl"
    batch: int = 8
    accumulate: int = 1
    eval_batch: int | None = 32
    tokens: int = 16
    positions: int = 1
    masks: int = 1
    roles: int = 0
    attention: bool = False
    kept: int = 0
    device: str | None = None
    world: int = 1
    sharded: bool = False
    _known: dict[Any, Any] = field(default_factory=dict[Any, Any], repr=False, compare=False)  # of runs made from this

    @property
    def torch_device(self) -> torch.device:
        """Where products run."""
        return torch.device("cpu" if self.device == CPU else "cuda")

    @property
    def shape(self) -> BatchShape:
        """Of a training batch."""
        sizes = {"batch": self.batch, "seq": self.tokens, "positions": self.positions, "masks": self.masks}
        return BatchShape(**sizes, attention=self.attention and bool(self.roles))

    @property
    def evaluated(self) -> BatchShape:
        """Of a batch of evaluations: as `fit` makes them, several circuits at once where pairs are few."""
        widest = max(1, TOKENS_AT_ONCE // self.tokens)
        batch = widest if self.eval_batch is None else max(self.eval_batch, widest)
        return BatchShape(batch=batch, seq=self.tokens, positions=self.positions)

    @property
    def model(self) -> MaskedModel:
        """The model, without weights."""
        key = self.dtype, self.kv_readers
        if key not in self._known:
            self._known[key] = meta_model(
                self.config,
                self.dtype,
                kv_readers=self.kv_readers,
                split_embedding=self.split_embedding,
                attn_implementation=self.attn_implementation,
            )
            if self.roles:
                self._known[key].use_roles(RoleSpec(tuple(f"r{number}" for number in range(self.roles))))
        return self._known[key]

    @property
    def activations(self) -> int:
        """Bytes per example that autograd keeps; found out at one length, for shorter prompts in proportion, or more.

        More, since what a loss keeps does not depend on the length.
        """
        key = "activations", self.dtype, self.kv_readers
        if key not in self._known or self._known[key][0] < self.tokens:
            found = activations_per_example(self.model, replace(self.shape, batch=1), OBJECTIVES[self.objective])
            self._known[key] = self.tokens, found
        tokens, found = self._known[key]
        logits = int(LOSS_LOGITS * self.positions * self.model.num_outputs * 4)
        return (found * self.tokens + logits * (tokens - self.tokens)) // tokens

    # ---------------------------------------------------------------- what it takes
    @cached_property
    def training(self) -> MemoryPlan:
        """Memory of one card at the peak of a training step."""
        return self._plan(training_terms(self.model, self.shape, self.activations, self.torch_device))

    @cached_property
    def evaluation(self) -> MemoryPlan:
        """Memory of one card at the peak of an evaluation, after training steps."""
        trained = training_terms(self.model, self.shape, 0, self.torch_device)
        return self._plan(evaluation_terms(self.model, self.evaluated, trained, self.torch_device))

    @property
    def peak(self) -> MemoryPlan:
        """The larger of both."""
        return max(self.training, self.evaluation, key=lambda plan: plan.total)

    @property
    def cost(self) -> StepCost:
        """Of one batch of a training step."""
        return step_cost(self.model, self.shape, self.activations, self.torch_device)

    def _plan(self, terms: Mapping[str, int]) -> MemoryPlan:
        weights = sum(parameter.nbytes for parameter in self.model.hf.parameters())
        if self.device == CPU:
            spare = spare_memory()
            return MemoryPlan(weights, LIBRARIES, terms, self.kept, None if spare is None else resident() + spare)
        if self.sharded:
            layers = [sum(own.nbytes for own in block.module.parameters()) for block in self.model.blocks]
            gathered = max(layers) + weights - sum(layers)
            weights, terms = -(-weights // self.world), {"gathered weights": gathered, **terms}
        available = None if self.device is None else int(CARDS[self.device].memory_gb * 1e9)
        return MemoryPlan(weights, CONTEXT, terms, 0, available)


# -------------------------------------------------------------------- what to change
class Remedy(NamedTuple):
    """A change of a run.

    Attributes:
        change: In words, with the options' names.
        run: With it.
    """

    change: str
    run: Run


def shortfall(run: Run) -> str:
    """How much memory a run lacks, and what takes most, in one line; empty if it fits."""
    plan = run.peak
    if plan.fits:
        return ""
    assert plan.available is not None
    when = "a training step" if plan is run.training else "an evaluation"
    most = sorted(plan.parts.items(), key=lambda item: -item[1])[:3]
    largest = ", ".join(f"{name} {num_bytes / 1e9:.1f}" for name, num_bytes in most)
    lack = (plan.total - plan.available) / 1e9
    return (
        f"{when} needs {plan.total / 1e9:.1f} GB of {plan.available / 1e9:.0f}: {lack:.1f} too much; largest: {largest}"
    )


def remedies(run: Run) -> list[Remedy]:
    """Changes after which a run fits, each alone if that is enough, else together; none if it fits, or nothing helps.

    Shorter prompts and sharding come with the longest prompts, and the fewest cards, that fit.
    """
    if run.peak.fits:
        return []
    alone = [remedy for change in _CHANGES for remedy in change(run) if remedy.run.peak.fits]
    if alone:
        return alone
    words: list[str] = []  # one after the other, until it fits
    for change in _CHANGES:
        for remedy in change(run):
            if remedy.run.peak.total < run.peak.total:
                words.append(remedy.change)
                run = remedy.run
            if run.peak.fits:
                return [Remedy(", ".join(words), run)]
    return []


def _half(run: Run) -> Iterator[Remedy]:
    if run.dtype.itemsize > 2:
        yield Remedy("model.dtype: bfloat16", replace(run, dtype=torch.bfloat16))


def _group(run: Run) -> Iterator[Remedy]:
    heads = run.model.graph.arch
    if run.kv_readers == "head" and heads.num_kv_heads < heads.num_heads:
        yield Remedy("model.kv_readers: group", replace(run, kv_readers="group"))


def _evaluated(run: Run) -> Iterator[Remedy]:
    if run.eval_batch is not None and run.eval_batch > TOKENS_AT_ONCE // run.tokens:
        yield Remedy("data.eval_batch_size: auto", replace(run, eval_batch=None))


def _parts(run: Run) -> Iterator[Remedy]:
    """The batch in the fewest parts of equal size that fit, or in single pairs; a sample of the gates needs a pair."""
    sizes = [size for size in range(run.batch - 1, 0, -1) if run.batch % size == 0]
    made = [replace(run, batch=size, accumulate=run.accumulate * run.batch // size) for size in sizes]
    made = [replace(part, masks=min(part.masks, part.batch)) for part in made]
    both = [one for part in made for one in (part, *(remedy.run for remedy in _evaluated(part)))]
    if both:
        found = next((one for one in both if one.peak.fits), both[-1])
        words = f"data.batch_size: {found.batch} with trainer.accumulate_grad_batches: {found.accumulate}"
        yield Remedy(words + ", data.eval_batch_size: auto" * (found.eval_batch != run.eval_batch), found)


def _uncached(run: Run) -> Iterator[Remedy]:
    if run.device == CPU and run.kept:
        yield Remedy("model.cache_gb: 0", replace(run, kept=0))


def _shorter(run: Run) -> Iterator[Remedy]:
    fitting = [tokens for tokens in range(run.positions, run.tokens) if replace(run, tokens=tokens).peak.fits]
    if fitting:
        yield Remedy(f"prompts of {fitting[-1]} tokens or less", replace(run, tokens=fitting[-1]))


def _shards(run: Run) -> Iterator[Remedy]:
    if run.device == CPU or run.sharded:
        return
    worlds = {world for power in range(1, 10) if run.world < (world := 2**power) <= LARGEST_WORLD}
    made = [replace(run, world=world, sharded=True) for world in sorted(worlds | ({run.world} - {1}))]
    found = next((one for one in made if one.peak.fits), None)
    if found is not None:
        yield Remedy(f"weights sharded over {found.world} cards", found)


_CHANGES: tuple[Callable[[Run], Iterator[Remedy]], ...] = (
    *(_half, _group, _evaluated, _parts, _uncached, _shorter, _shards),
)


def check_device(name: str | None) -> None:
    """Refuse a device that there are no figures of."""
    if name is not None and name != CPU and name not in CARDS:
        raise EdgepruneError(f"no figures of device {name!r}; choose among {', '.join(CARDS)} and cpu")
