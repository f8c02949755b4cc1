"""Whether the masked model is right on one's own model and machine, and what a training step costs there.

Five checks, on random tokens, for each dtype and attention kernel:

- with every gate open the logits are those of the library, bit for bit, with and without padding on either side;
- with every gate closed they are those of the corrupted prompts;
- what the writers write adds up to the stream that the logits read;
- the gates' gradient is the slope that central differences find along it (in half precision: it is near the gradient
  of the same model in float32, if that was checked too);
- a training step and a plain one, forward and backward, are timed in turns, and what they need beyond the model noted.
"""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from rich.table import Table
from torch import Tensor

from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.outputs import output_biases, writer_outputs
from edgeprune.models.places import position_ids
from edgeprune.selfcheck_costs import gates_at, peak_bytes, ratio, steps, timed
from edgeprune.tables import Numbers, table

HALF = (torch.bfloat16, torch.float16)
# Largest error that passes: of logits and stream relative to their largest value, of gradients to their length.
LIMITS = {
    torch.float64: {"closed": 1e-9, "writers": 1e-9, "gradient": 1e-4},
    torch.float32: {"closed": 1e-3, "writers": 1e-4, "gradient": 2e-2},
    torch.bfloat16: {"closed": 0.15, "writers": 0.05, "gradient": 0.3},
    torch.float16: {"closed": 0.03, "writers": 0.01, "gradient": 0.1},
}
BATCH, SEQ = 4, 16
STEP = 1e-2  # of central differences, in gates


@dataclass(frozen=True, kw_only=True)
class Open:
    """Open gates against the library on one batch.

    Attributes:
        padding: `"none"`, `"left"` or `"right"`.
        differing: Logits that are not equal, bit for bit.
        total: Logits compared; those of padding are not.
        largest: Largest absolute difference.
    """

    padding: str
    differing: int
    total: int
    largest: float


@final
@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What was found for one dtype and one attention kernel.

    Attributes:
        dtype: Of the model.
        attention: Attention implementation.
        opened: Open gates against the library.
        errors: `closed`, `writers` and `gradient`, by name; None: not checked.
        limits: The largest that pass.
        seconds: Median time of a `step` and of a `plain` one.
        ratio: Median over rounds of the former over the latter.
        bytes: Memory beyond the model's weights that each took at its peak; None where it cannot be measured.
    """

    dtype: str
    attention: str
    opened: tuple[Open, ...]
    errors: dict[str, float | None]
    limits: dict[str, float]
    seconds: dict[str, float]
    ratio: float
    bytes: dict[str, int | None] = field(default_factory=dict[str, "int | None"])

    @property
    def exact(self) -> bool:
        """Open gates leave every logit as it was."""
        return not any(item.differing for item in self.opened)

    def passes(self, name: str) -> bool:
        """Whether an error is within its limit; one that was not looked at is."""
        error = self.errors[name]
        return error is None or error <= self.limits[name]

    @property
    def ok(self) -> bool:
        """All checks pass."""
        return self.exact and all(map(self.passes, self.errors))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ok": self.ok}


def selfcheck(
    name: Any,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    attention: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    report: Progress = no_progress,
    **options: Any,
) -> Iterator[SelfCheck]:
    """Check a model, one dtype and attention kernel after the other.

    Args:
        name: As `load_model` takes it.
        dtypes: Dtypes to load it in, one after the other.
        attention: Attention implementations; empty: eager and SDPA as far as the family has them.
        device: Where.
        report: Called with what is being done, how many of it are done, and how many there are.
        options: Further arguments of `load_model`.

    Raises:
        UnsupportedFamilyError: No adapter fits; the message lists those that there are.
    """
    target: Tensor | None = None
    exact_gradient: Tensor | None = None
    for number, dtype in enumerate(sorted(dtypes, key=lambda item: getattr(torch, item).itemsize, reverse=True)):
        report("loading", number, len(dtypes))
        model = load_model(name, dtype=dtype, device=device, **options)
        known = type(model.family).attention_implementations
        kernels = attention or tuple(kernel for kernel in ("eager", "sdpa") if kernel in known)
        for kernel in kernels:
            if kernel not in known:
                raise EdgepruneError(f"this family has no attention {kernel!r}; choose among {', '.join(known)}")
            report(f"{dtype}, {kernel}", 0, 5)
            model.hf.set_attn_implementation(kernel)
            arch = model.graph.arch
            kinds: dict[str, Any] = {"split_embedding": arch.split_embedding, "kv_readers": arch.kv_readers}
            model = MaskedModel(model.hf, **kinds, read_ops=model.read_ops)
            clean, corrupted = _tokens(model)
            target = _target(model, clean) if target is None else target
            found, gradient = _check(model, dtype, (clean, corrupted, target), exact_gradient, report)
            exact_gradient = gradient if exact_gradient is None and model.dtype not in HALF else exact_gradient
            yield found
    report("loading", len(dtypes), len(dtypes))


def _check(
    model: MaskedModel,
    dtype: str,
    tokens: tuple[Tensor, Tensor, Tensor],
    exact: Tensor | None,
    report: Progress,
) -> tuple[SelfCheck, Tensor]:
    """All checks of one loaded model on clean, corrupted and next tokens, and its gates' gradient."""
    (clean, corrupted, target), kernel = tokens, str(model.hf.config._attn_implementation)
    what = f"{dtype}, {kernel}"
    opened = tuple(_opened(model, clean, padding) for padding in ("none", "left", "right"))
    report(what, 1, 5)
    ablated = model.record(corrupted)
    with torch.no_grad():
        expected = _library(model, corrupted)
        closed = _relative(model(clean, gates_at(model, 0.0), ablated), expected)
        total = torch.stack(list(writer_outputs(model, model.record(clean)))).double().sum(0)
        total = total + output_biases(model).double().sum(0)
        writers = _relative(total, model.run(clean).double())
    report(what, 2, 5)
    gradient, slope_error = _gradient(model, clean, ablated, target)
    if model.dtype in HALF:
        slope_error = None if exact is None else float((gradient - exact).norm() / exact.norm())
    report(what, 3, 5)
    tasks = steps(model, clean, corrupted)
    peaks = {name: peak_bytes(task, model.device) for name, task in tasks.items()}
    times = timed(tasks)
    report(what, 4, 5)
    found = SelfCheck(
        dtype=dtype,
        attention=kernel,
        opened=opened,
        errors={"closed": closed, "writers": writers, "gradient": slope_error},
        limits=LIMITS[model.dtype],
        seconds={name: statistics.median(values) for name, values in times.items()},
        ratio=ratio(times, "step"),
        bytes=peaks,
    )
    report(what, 5, 5)
    return found, gradient


def _tokens(model: MaskedModel) -> tuple[Tensor, Tensor]:
    """Clean and corrupted tokens `[BATCH, SEQ]`, or as long as the model takes them."""
    limit = type(model.family).num_positions(model.hf.config) or SEQ
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.hf.get_input_embeddings().weight.shape[0]
    both = torch.randint(0, vocabulary, (2, BATCH, min(SEQ, limit)), generator=generator)
    return both[0].to(model.device), both[1].to(model.device)


@torch.no_grad()
def _target(model: MaskedModel, clean: Tensor) -> Tensor:
    """What the model says next after the last token, `[BATCH, 1, 1]`: the same for all dtypes."""
    return model.full(clean)[:, -1:].argmax(-1, keepdim=True)


def _library(model: MaskedModel, ids: Tensor, **options: Tensor) -> Tensor:
    return model.hf(ids, **options).logits


@torch.no_grad()
def _opened(model: MaskedModel, clean: Tensor, padding: str) -> Open:
    batch, seq = clean.shape
    mask, options = None, dict[str, Tensor]()
    if padding != "none":
        real = torch.arange(seq) >= (torch.arange(batch)[:, None] * 5 % seq)
        mask = (real if padding == "left" else real.flip(1)).long().to(model.device)
        options = {"attention_mask": mask, "position_ids": position_ids(clean, mask)}
    found = model(clean, gates_at(model, 1.0), model.record(clean, mask), mask)
    expected = _library(model, clean, **options)
    if mask is not None:
        found, expected = found[mask.bool()], expected[mask.bool()]
    differing = int((found != expected).sum())
    largest = float((found.double() - expected.double()).abs().max())
    return Open(padding=padding, differing=differing, total=found.numel(), largest=largest)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _gradient(model: MaskedModel, clean: Tensor, ablated: Any, target: Tensor) -> tuple[Tensor, float]:
    """The gates' gradient of a loss at gates of .8, `[reader, writer]`, and how far central differences are off.

    Along the gradient itself, relative to its length; one step and half a step are extrapolated to none.
    """
    exact = torch.promote_types(model.dtype, torch.float32)
    positions = torch.full((len(clean), 1), clean.shape[1] - 1, device=clean.device)

    def loss(gates: Tensor) -> Tensor:
        logits = model(clean, gates, ablated, positions=positions).to(exact)
        return -logits.log_softmax(-1).gather(-1, target).mean()

    gates = torch.full(model.graph.shape, 0.8, dtype=exact, device=model.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(gates), gates)
    length = gradient.norm()
    direction = gradient / length
    with torch.no_grad():
        whole, half = (
            (loss(gates + step * direction) - loss(gates - step * direction)) / (2 * step) for step in (STEP, STEP / 2)
        )
    return gradient.cpu().float(), float(((4 * half - whole) / 3 - length).abs() / length)


def table_of(checks: list[SelfCheck], title: str) -> Table:
    """One row for each dtype and attention kernel; what fails is marked."""
    costs = [Numbers("step, s"), Numbers("times plain", 2), Numbers("memory, MB", 0), Numbers("plain, MB", 0)]
    rows = [
        [
            *(check.dtype, check.attention, _shown_open(check)),
            *(_shown(check, name) for name in ("closed", "writers", "gradient")),
            *(check.seconds["step"], check.ratio),
            *(None if size is None else size / 1e6 for size in (check.bytes["step"], check.bytes["plain"])),
        ]
        for check in checks
    ]
    return table(title, ["dtype", "attention", "open = library", "closed", "writers", "gradient", *costs], rows)


def _shown(check: SelfCheck, name: str) -> str:
    error = check.errors[name]
    if error is None:
        return "-"
    return f"{error:.0e}" if check.passes(name) else f"FAILED {error:.0e} > {check.limits[name]:.0e}"


def _shown_open(check: SelfCheck) -> str:
    if check.exact:
        return "bit for bit"
    worst = max(check.opened, key=lambda item: item.largest)
    padding = "no padding" if worst.padding == "none" else f"padding {worst.padding}"
    return f"FAILED {worst.differing:,} of {worst.total:,} differ, by {worst.largest:.0e} ({padding})"
