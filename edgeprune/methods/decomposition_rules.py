"""How a step of a model splits into a relevant and an irrelevant part: the rules of contextual decomposition.

Relevant + irrelevant = activation, so one of both is enough beside the activation itself ("total"), which is the
model's own. Rows of a batch are the total, then the parts of S sources, `[(1 + S) * B, ...]`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from edgeprune.models.block import NormSpec
from edgeprune.models.projections import no_autocast

Biases = Literal["split", "irrelevant"]
Part = Literal["relevant", "irrelevant"]


def relevant_share(relevant: Tensor, irrelevant: Tensor) -> Tensor:
    """|relevant| / (|relevant| + |irrelevant|), elementwise `[...]`; 0 where both are 0, so that nothing becomes it."""
    size = relevant.abs()
    whole = size + irrelevant.abs()
    return torch.where(whole > 0, size / whole.where(whole > 0, 1.0), 0.0)


def larger_takes_all(relevant: Tensor, irrelevant: Tensor) -> Tensor:
    """The relevant part `[...]` if, where signs oppose, the larger of both becomes the sum and the other 0."""
    opposed = relevant * irrelevant < 0
    sums = torch.where(relevant.abs() > irrelevant.abs(), relevant + irrelevant, 0.0)
    return torch.where(opposed, sums, relevant)


def norm_part(spec: NormSpec, total: Tensor, relevant: Tensor, biases: Biases) -> Tensor:
    """Relevant part of a norm's output, `[S, ..., D]`: linear, with the variance of the total; float32 at least inside.

    Args:
        spec: The norm as numbers.
        total: What it takes in, `[..., D]`.
        relevant: The relevant part of that, `[S, ..., D]`.
        biases: `"split"`: the bias goes by sizes of the inputs' parts. `"irrelevant"`: all of it is irrelevant.
    """
    if spec.eps is None:
        return relevant
    with no_autocast(total):
        exact = torch.promote_types(total.dtype, torch.float32)
        whole, part = total.to(exact), relevant.to(exact)
        share = relevant_share(part, whole - part) if spec.bias is not None and biases == "split" else None
        if spec.centred:
            whole, part = (own - own.mean(-1, keepdim=True) for own in (whole, part))
        out = part * (whole.square().mean(-1, keepdim=True) + spec.eps).rsqrt()
        out = out if spec.gain is None else out * spec.gain
        if share is not None:
            assert spec.bias is not None
            out = out + share * spec.bias
    return out.to(relevant.dtype)


@final
class SplitLinear(TorchFunctionMode):
    """While it is active, linear layers over stacked rows split their biases between the parts.

    The model's own code runs on the rows `[(1 + S) * B, ...]`; what follows a linear layer (activations, products of
    two of them) acts on each row, so that on rows of irrelevant parts it follows the activation rule, f(R + I) - f(I).
    Linear layers that see other numbers of rows, as experts do, are part of such a function.

    Args:
        part: What the rows behind the total are.
        num_sources: S.
        tokens: Rows times tokens of all that are to be split.
        biases: See `norm_part`; here sizes are those of the outputs' parts.
        larger: `larger_takes_all` on what comes out.
    """

    def __init__(self, part: Part, num_sources: int, tokens: int, biases: Biases, *, larger: bool = False) -> None:
        super().__init__()
        self.part: Part = part
        self.num_rows, self.tokens, self.biases, self.larger = 1 + num_sources, tokens, biases, larger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Linear layers of `torch.nn` and of GPT-2 over `[..., D]`; everything else as it is."""
        if func is linear and kwargs is not None and "bias" in kwargs:
            args, kwargs = (*args, kwargs["bias"]), None
        if func is linear and not kwargs and self._is_split(args[0]):
            bias = args[2] if len(args) > 2 else None
            return self._split(linear(args[0], args[1]), bias)
        if func is torch.addmm and not kwargs and args[0].ndim == 1 and self._is_split(args[1]):
            return self._split(args[1] @ args[2], args[0])
        return func(*args, **(kwargs or {}))

    def _is_split(self, inputs: Tensor) -> bool:
        return math.prod(inputs.shape[:-1]) == self.tokens

    def _split(self, out: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None and not self.larger:
            return out
        rows = out.view(self.num_rows, -1, out.shape[-1])
        total, part = rows[0], rows[1:]
        other = total - part
        if bias is not None:
            bias = bias.to(out.dtype)
            total = total + bias
            if self.biases == "irrelevant":
                part = part + bias * (self.part == "irrelevant")
            elif self.part == "relevant":
                part = part + bias * relevant_share(part, other)
            else:
                part = part + bias * (1 - relevant_share(other, part))
        if self.larger and self.part == "relevant":
            part = larger_takes_all(part, total - part)
        elif self.larger:
            part = total - larger_takes_all(total - part, part)
        return torch.cat([total[None], part]).view(out.shape)


Step = Callable[[Tensor], Tensor]


def through_linear(step: Step, total: Tensor, relevant: Tensor, biases: Biases) -> Tensor:
    """Relevant part of the outputs of a linear step, `[S, B, ...]`.

    Args:
        step: Projects `[rows, tokens, D]`, with biases.
        total: `[B, tokens, D]`.
        relevant: `[S, B, tokens, D]`.
        biases: See `norm_part`.
    """
    rows = torch.cat([total[None], relevant]).flatten(0, 1)
    with SplitLinear("relevant", len(relevant), _tokens(rows), biases):
        out = step(rows)
    return out.unflatten(0, (1 + len(relevant), -1))[1:]


def through_function(
    step: Step, total: Tensor, relevant: Tensor, biases: Biases, *, larger: bool = False
) -> tuple[Tensor, Tensor]:
    """Total and irrelevant part of the outputs of a step that is not linear: `[B, ...]` and `[S, B, ...]`.

    Args:
        step: Takes `[rows, tokens, D]`: linear layers, and what acts on each token between them.
        total: `[B, tokens, D]`.
        relevant: `[S, B, tokens, D]`.
        biases: See `norm_part`.
        larger: See `SplitLinear`.
    """
    rows = torch.cat([total[None], total - relevant]).flatten(0, 1)
    with SplitLinear("irrelevant", len(relevant), _tokens(rows), biases, larger=larger):
        out = step(rows).unflatten(0, (1 + len(relevant), -1))
    return out[0], out[1:]


def relevant_of(total: Tensor, irrelevant: Tensor, relevant_input: Tensor) -> Tensor:
    """Total minus irrelevant part, `[S, B, tokens, D]`; exactly 0 at tokens where the input has no relevant part."""
    heard = (relevant_input != 0).any(-1, keepdim=True)
    return torch.where(heard, total - irrelevant, 0.0)


def _tokens(rows: Tensor) -> int:
    return math.prod(rows.shape[:-1])


def spec_or_none(norm: nn.Module | None, spec_of: Callable[[nn.Module], NormSpec]) -> NormSpec:
    """A norm as numbers, or that there is none."""
    return NormSpec(None) if norm is None else spec_of(norm)
