"""Optimal ablation: for every writer the one constant that hurts least in place of its output (arXiv 2409.09951)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgeprune.ablations.means import mean_of_pairs
from edgeprune.batch import PairBatch
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.models.block import Edits, walk
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.objectives import OBJECTIVES, Objective


@final
@dataclass(frozen=True)
class LearningOptions:
    """How constants are learned: Adam, from the means on, each writer on its own and all of them in one go.

    Attributes:
        objective: What the loss is, against the full model at the scored positions; None: `"kl"`, or `"squared_error"`
            for models with a single output, whose softmax is constant.
        learning_rate: Of Adam.
        max_steps: Steps at most. In each, every writer that still learns is replaced in one example.
        check_every: Steps between two looks at the loss over the same examples.
        checked: How many examples that are.
        patience: A writer stops after so many looks in which its loss did not fall below its best by `tolerance`.
        tolerance: Share of the loss.
        batch_size: Examples per forward pass; it does not change the result.
        seed: Chooses examples.
    """

    objective: Objective | None = None
    learning_rate: float = 1e-3
    max_steps: int = 1000
    check_every: int = 10
    checked: int = 16
    patience: int = 3
    tolerance: float = 1e-3
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "check_every", "checked", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise EdgepruneError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.objective not in (None, *OBJECTIVES):
            raise EdgepruneError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")


@final
@dataclass(frozen=True, eq=False)
class LearnedConstants:
    """Learned constants.

    Attributes:
        states: One constant per writer, `[..., 1, 1, ...]`.
        mean_losses: Loss with each writer alone replaced by its mean, over the checked examples, `[writer]`.
        losses: The same with its constant; nowhere above `mean_losses`.
        steps: Steps until each writer stopped, long `[writer]`.
    """

    states: WriterStates
    mean_losses: Tensor
    losses: Tensor
    steps: Tensor


def learn_constants(
    model: MaskedModel,
    batches: Iterable[PairBatch],
    options: LearningOptions | None = None,
    report: Progress = no_progress,
) -> LearnedConstants:
    """Learn one constant per writer; only clean prompts enter.

    The loss of a constant is that of the model in which this writer alone, at every token, is replaced by it. No loss
    depends on two constants, so one run learns all of them: an example per writer in each step. Deviations from the
    published procedure: the loss compares with the full model instead of the next token; a writer stops by its own loss
    over fixed examples; the constants that are kept are the best ones seen, so no loss is above that of the mean.

    Args:
        model: The model; it is not changed.
        batches: Training pairs. How they are batched or ordered does not matter.
        options: How to learn.
        report: Gets the steps done.

    Raises:
        EdgepruneError: There are no pairs.
    """
    model.require_sums("ablation 'optimal'")
    batches = list(batches)
    start = mean_of_pairs(model, batches)
    options = options or LearningOptions()
    with torch.inference_mode(False), torch.enable_grad():
        return _Learning(model, _examples(batches), options, start).run(report)


class _Example(NamedTuple):
    clean: Tensor  # long [seq]
    positions: Tensor  # long [number of scored positions]


def _examples(batches: Sequence[PairBatch]) -> list[_Example]:
    """Clean prompts without padding, in the order of their numbers."""
    found: dict[int, _Example] = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            real = batch.attention_mask[row].bool()
            positions = batch.positions[row, batch.position_mask[row]] - int(real.long().argmax())
            found[index] = _Example(batch.clean[row, real].clone(), positions)
    return [found[index] for index in sorted(found)]


@final
class _Learning:
    """Constants on the way to their best values."""

    def __init__(
        self, model: MaskedModel, examples: list[_Example], options: LearningOptions, start: WriterStates
    ) -> None:
        self.model, self.examples, self.options = model, examples, options
        self.generator = torch.Generator().manual_seed(options.seed)
        checked = torch.randperm(len(examples), generator=self.generator)[: options.checked]
        every_writer = torch.arange(len(model.graph.writers))
        self.check = every_writer.repeat_interleave(len(checked)), checked.repeat(len(every_writer))
        dtype = torch.promote_types(start.heads.dtype, torch.float32)
        self.values = start.map(lambda field: field.to(dtype).clone().requires_grad_())
        fields = [self.values.embeddings, self.values.heads, self.values.mlps]
        self.optimizer = torch.optim.Adam([field for field in fields if field is not None], options.learning_rate)
        single = getattr(model.hf.config, "d_out", None) == 1
        self.objective = options.objective or ("squared_error" if single else "kl")

    def run(self, report: Progress) -> LearnedConstants:
        """Learn until every writer has stopped."""
        options, num_writers = self.options, len(self.model.graph.writers)
        best = self.values.map(lambda field: field.detach().clone())
        best_losses = self._check(torch.ones(num_writers, dtype=torch.bool))
        mean_losses, waited = best_losses.clone(), torch.zeros(num_writers, dtype=torch.long)
        steps = torch.zeros(num_writers, dtype=torch.long)
        for done in range(1, options.max_steps + 1):
            learning = waited < options.patience
            self._step(learning)
            steps[learning] = done
            report("learning constants", done, options.max_steps)
            if done % options.check_every and done != options.max_steps:
                continue
            losses = self._check(learning)
            better = learning & (losses < best_losses * (1 - options.tolerance))
            best, best_losses = self._keep(best, better), torch.where(better, losses, best_losses)
            waited = torch.where(better, 0, waited + 1)
            if bool((waited >= options.patience).all()):
                break
        report("learning constants", options.max_steps, options.max_steps)
        dtype = self.model.dtype
        return LearnedConstants(best.map(lambda field: field.to(dtype)), mean_losses, best_losses, steps)

    def _step(self, learning: Tensor) -> None:
        """One step of Adam: every writer that still learns is replaced in one example."""
        drawn = torch.randint(len(self.examples), learning.shape, generator=self.generator)
        self.optimizer.zero_grad()
        for writers, examples in self._chunks(learning.nonzero()[:, 0], drawn[learning]):
            self._losses(writers, examples).sum().backward()
        self.optimizer.step()

    @torch.no_grad()
    def _check(self, learning: Tensor) -> Tensor:
        """Mean loss of each writer over the checked examples, `[writer]`; infinite for those that have stopped."""
        writers, examples = (part[learning[self.check[0]]] for part in self.check)
        losses = torch.cat([self._losses(*chunk).double().cpu() for chunk in self._chunks(writers, examples)])
        found = torch.full(learning.shape, torch.inf, dtype=torch.float64)
        found[learning] = losses.view(int(learning.sum()), -1).mean(1)
        return found

    def _chunks(self, *columns: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """Writers and examples that share a forward pass: neighbours, so that few layers need gradients."""
        return zip(*(column.split(self.options.batch_size) for column in columns), strict=True)

    def _losses(self, writers: Tensor, examples: Tensor) -> Tensor:
        """Loss of each example `[n]` with the writer beside it replaced."""
        rows = [self.examples[number] for number in examples.tolist()]
        device = self.model.device
        ids, lengths, positions, counts = (part.to(device) for part in _stacked(rows))
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        with torch.no_grad():
            full = self.model.full(ids, mask, positions).float()
        stream = replaced_run(self.model, self.values, writers, ids, mask)
        circuit = self.model.logits(stream, positions).float()
        values = OBJECTIVES[self.objective](full, circuit)
        scored = torch.arange(positions.shape[1], device=device) < counts[:, None]
        return (values * scored).sum(1) / counts

    @torch.no_grad()
    def _keep(self, best: WriterStates, better: Tensor) -> WriterStates:
        """The constants now of the writers that are `better` `[writer]`, and of the others those of `best`."""

        def choose(own: Tensor, kept: Tensor, flags: Tensor) -> Tensor:
            return torch.where(flags.view(len(flags), 1, 1, *flags.shape[1:], 1).to(own.device), own, kept)

        embeddings, heads, mlps = _of_fields(self.model.graph, better)
        return self.values.combine(choose, best, WriterStates(embeddings=embeddings, heads=heads, mlps=mlps))


def _of_fields(graph: EdgeGraph, flags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flags `[..., writer]` of embeddings `[..., item]`, heads `[..., layer, head]` and MLPs `[..., layer]`."""
    arch = graph.arch
    layers = flags[..., arch.num_embeddings :].unflatten(-1, (arch.num_layers, arch.num_heads + arch.has_mlp))
    return flags[..., : arch.num_embeddings], layers[..., : arch.num_heads], layers[..., -1]


def _stacked(rows: Sequence[_Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids padded on the right, their lengths, scored positions, and how many of these are real."""
    ids = pad_sequence([row.clean for row in rows], batch_first=True)
    positions = pad_sequence([row.positions for row in rows], batch_first=True)
    lengths, counts = (torch.tensor([len(row[part]) for row in rows]) for part in (0, 1))
    return ids, lengths, positions, counts


def replaced_run(
    model: MaskedModel, values: WriterStates, writers: Tensor, ids: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The final stream of a run in which one writer per example carries its value at every token.

    Its output is replaced on the residual stream itself, as if every edge out of it were closed. Gradients reach the
    values.

    Args:
        model: The model.
        values: One constant per writer, `[..., 1, 1, ...]`.
        writers: Long `[batch]`, the writer that is replaced in each example.
        ids: Tokens, long `[batch, seq]`.
        mask: 1 for a token, 0 for padding.
    """
    one_of = torch.nn.functional.one_hot(writers.cpu(), len(model.graph.writers)).bool()
    embeddings, heads, mlps = _of_fields(model.graph, one_of)

    def put(own: Tensor, chosen: Tensor, value: Tensor) -> Tensor:
        """`value` in place of `own` `[batch, seq, ...]` where `chosen` `[batch]` or `[batch, head]` says so."""
        if not chosen.any():
            return own
        where = chosen.view(len(chosen), 1, *chosen.shape[1:], 1).to(own.device)
        return torch.where(where, value.to(own.dtype), own)

    def put_mlp(layer: int, own: Tensor) -> Tensor:
        return own if values.mlps is None else put(own, mlps[:, layer], values.mlps[layer])

    edits: Edits = {
        "head_out": lambda layer, own: put(own, heads[:, layer], values.heads[layer]),
        "mlp_out": put_mlp,
    }
    parts, stream, context = model.start(ids, mask)
    stream = torch.stack(
        [put(own, embeddings[:, item], values.embeddings[item]) for item, own in enumerate(parts)]
    ).sum(0)
    with model.sharding.keeping():
        return walk(model.blocks, stream, context, edits)
