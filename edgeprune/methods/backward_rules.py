"""Backward rules: a run whose values are the model's own, and whose gradients follow rules of relevance propagation.

A rule gives a step a *stand-in*, another function of the same inputs, whose gradient is taken in place of the step's.
Runs inside `BackwardRules.on(model)` have them: blocks' `attend` and `feed_forward` say where the run is, and what
torch computes there is looked at function by function, so that no family needs code of its own.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from edgeprune.errors import EdgepruneError
from edgeprune.models.block import Block
from edgeprune.models.lean import activation_classes
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_functions import ScaleGradient

Norm = Literal["plain", "detach"]
Activation = Literal["plain", "secant"]
Product = Literal["plain", "half"]
Attention = Literal["plain", "detach", "lrp", "temperature"]
QUERY_KEY, VALUE = 0.25, 0.5  # of gradients, where both factors of a product get half: scores lie in two products


@final
@dataclass(frozen=True)
class BackwardRules:
    """What stands in for steps of the model in the backward; the forward is the model's.

    RelP (arXiv 2508.21258) is `norm: detach`, `activation: secant`, `product: half`; with `attention: detach` its rule
    for attention too, which is off by default there. `attention: lrp` beside the three is AttnLRP (arXiv 2402.05602).
    GIM (arXiv 2505.17630) is `norm: detach`, `product: half`, `attention: temperature`.

    Attributes:
        norm: `"detach"`: the scale of every norm is a constant (those of queries and keys, behind attention and MLP,
            and before the head too); a mean that it takes away is not.
        activation: `"secant"`: an MLP's activation f has the slope f(x) / x, 0 at x = 0 (published: x is moved by 1e-6
            away from 0, in the forward too).
        product: `"half"`: in MLPs, a product of two factors that both depend on what is read passes half its gradient
            on to each: gated products, and experts' outputs times what the router gives.
        attention: `"detach"`: attention weights are constants. `"lrp"`: likewise half to each factor of weights times
            values, and of queries times keys. `"temperature"`: the same, and the softmax has the slope of one at
            `temperature`, times the temperature. The model then runs with eager attention, whose values are those of
            its own kernel up to rounding; all other rules leave every bit.
        temperature: Above 0; 2 as published. 1 is `"lrp"`.
    """

    norm: Norm = "plain"
    activation: Activation = "plain"
    product: Product = "plain"
    attention: Attention = "plain"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        kinds = {"norm": Norm, "activation": Activation, "product": Product, "attention": Attention}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise EdgepruneError(
                    f"rule for {name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        if not self.temperature > 0:
            raise EdgepruneError(f"temperature must be above 0, got {self.temperature}; 2 is the published one")

    @property
    def all_plain(self) -> bool:
        """Nothing is swapped."""
        return "plain" == self.norm == self.activation == self.product == self.attention

    @contextmanager
    def on(self, model: MaskedModel) -> Generator[None]:
        """Runs of the model in here, and their backwards, follow the rules.

        Raises:
            EdgepruneError: A rule is not defined for this model.
        """
        if self.all_plain:
            yield
            return
        functions = _Functions(self)
        with ExitStack() as stack:
            config = model.hf.config
            if self.attention == "temperature":
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = "eager"
            stack.callback(setattr, model.projections, "detach_scale", False)
            model.projections.detach_scale = self.norm == "detach"
            functions.hook(model.hf, stack)
            for block in model.blocks:
                functions.swap(block, stack)
            stack.enter_context(functions)
            yield


class _StandIn(torch.autograd.Function):
    """Values `[...]` as they are; their gradient goes to the stand-in, of the same shape."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, stand_in: Tensor) -> Tensor:
        ctx.dtype = stand_in.dtype
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


def _with_gradient_of(values: Tensor, stand_in: Tensor) -> Tensor:
    return _StandIn.apply(values.detach(), stand_in)


def secant(inputs: Tensor, values: Tensor) -> Tensor:
    """Values `[...]` of an activation, as inputs times the constant values / inputs, or times 0 where inputs are 0."""
    inside = inputs.detach()
    slope = torch.where(inside == 0, 0, values.detach() / inside.where(inside != 0, 1))
    return _with_gradient_of(values, inputs * slope)


def layer_norm(
    inputs: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """LayerNorm of `[..., D]` with a scale that is a constant, in float32 at least."""
    exact, dims = inputs.to(torch.promote_types(inputs.dtype, torch.float32)), tuple(range(-len(shape), 0))
    centred = exact - exact.mean(dims, keepdim=True)
    out = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@final
class _Functions(TorchFunctionMode):
    """Looks at torch's functions while a model runs, and swaps those that a rule is for."""

    def __init__(self, rules: BackwardRules) -> None:
        super().__init__()
        self.rules = rules
        self._place: Literal["attention", "mlp"] | None = None
        self._activations = 0  # how many modules deep the run is in an activation
        self._sigmoids: list[Tensor] = []  # of this MLP

    # ---------------------------------------------------------------- where the run is
    def swap(self, block: Block, stack: ExitStack) -> None:
        """Let a block's attention and MLP say when they run, until the stack closes."""
        attend, feed_forward = block.attend, block.feed_forward

        def attend_by_rule(q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
            kind = self.rules.attention
            if kind == "detach":
                q, k = q.detach(), k.detach()
            elif kind != "plain":
                q, k = (ScaleGradient.apply(part, QUERY_KEY) for part in (q, k))
                v = ScaleGradient.apply(v, VALUE)
            with self._at("attention"):
                return attend(q, k, v, context)

        def feed_forward_by_rule(normed: Tensor) -> Tensor:
            with self._at("mlp"):
                return feed_forward(normed)

        for name, swapped in (("attend", attend_by_rule), ("feed_forward", feed_forward_by_rule)):
            setattr(block, name, swapped)  # of this object: hides the class's
            stack.callback(delattr, block, name)

    def hook(self, model: nn.Module, stack: ExitStack) -> None:
        """Let a model's activations say when they run, until the stack closes."""
        for module in model.modules():
            if isinstance(module, activation_classes()):
                for handle in (
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            elif callable(own := getattr(module, "act_fn", None)) and not isinstance(own, nn.Module):
                stack.callback(setattr, module, "act_fn", own)  # TransformerLens has functions there
                cast("Any", module).act_fn = partial(self._call, own)

    @contextmanager
    def _at(self, place: Literal["attention", "mlp"]) -> Generator[None]:
        self._place = place
        try:
            yield
        finally:
            self._place = None
            self._sigmoids.clear()

    def _call(self, function: Any, inputs: Tensor) -> Tensor:
        self._enter()
        return self._leave(None, (inputs,), function(inputs))

    def _enter(self, *_: Any) -> None:
        self._activations += 1

    def _leave(self, _: Any, inputs: tuple[Tensor, ...], values: Tensor) -> Tensor:
        self._activations -= 1
        rule = self.rules.activation == "secant" and self._place == "mlp" and values.requires_grad
        return secant(inputs[0], values) if rule else values

    # ---------------------------------------------------------------- what it computes
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What a function of torch gives, with another gradient if a rule says so."""
        kwargs = kwargs or {}
        out, name = func(*args, **kwargs), getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or not out.requires_grad or self._activations:
            return out
        rules = self.rules
        if rules.norm == "detach" and name in ("rsqrt", "sqrt"):
            return out.detach()
        if rules.norm == "detach" and name == "layer_norm":
            return _with_gradient_of(out, layer_norm(*args, **kwargs))
        if self._place == "attention" and rules.attention == "temperature" and name == "softmax":
            return _with_gradient_of(out, rules.temperature * func(args[0] / rules.temperature, *args[1:], **kwargs))
        if self._place == "mlp" and name == "sigmoid":
            self._sigmoids.append(out)
        if self._place == "mlp" and name == "mul":
            return self._product(out, *args)
        return out

    def _product(self, out: Tensor, left: Any, right: Any) -> Tensor:
        if not all(isinstance(part, Tensor) and part.requires_grad for part in (left, right)):
            return out
        for own, other in ((left, right), (right, left)):
            if own.shape == other.shape and any(other is found for found in self._sigmoids):
                return secant(own, out) if self.rules.activation == "secant" else out  # x sigmoid(c x), written out
        return ScaleGradient.apply(out, VALUE) if self.rules.product == "half" else out
