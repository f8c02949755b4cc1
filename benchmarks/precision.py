"""What half precision costs the slopes of gates, apart from what it costs activations.

    python -m benchmarks.precision MODEL --tokens 24 --batch 8
    python -m benchmarks.precision MODEL --dtype float16

MODEL is a folder or a name that `edgeprune fit` takes. Gates are random, most of them between 0 and 1; the loss is KL
to the full model on random tokens. The reference is the same model, its weights rounded alike, in float64. Rows of the
table: errors of the slopes' vector (relative to its length) and of the loss, root of the mean square over seeds.

- `gates and sums rounded`: float64 but for `1 - gate` and the slopes' sums, which are rounded to the dtype.
- `gates and sums as built`: float64 but for `1 - gate` in two terms, and sums in float32.
- `whole model`: all of it in the dtype, with gates and sums as built or rounded.
"""

import argparse
import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from edgeprune.models import reads
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import ReadOps
from edgeprune.objectives import kl_divergence


class Rounded(ReadOps):
    """Gates and slopes in the dtype of the model, or in the one given."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def _terms(self, closed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (closed.to(self.dtype).to(dtype),)

    def slopes(self, grad: Tensor, rows: Tensor, num_groups: int, sizes: Sequence[int] | None = None) -> Tensor:
        """Rounded."""
        found = super().slopes(grad, rows, num_groups, sizes)
        return found.to(self.dtype).to(found.dtype)


class AsBuilt(ReadOps):
    """Float64, with gates in the two terms that half precision takes, and slopes in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def _terms(self, closed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(term.to(dtype) for term in super()._terms(closed.float(), self.dtype))

    def slopes(self, grad: Tensor, rows: Tensor, num_groups: int, sizes: Sequence[int] | None = None) -> Tensor:
        """In float32."""
        return super().slopes(grad, rows, num_groups, sizes).float().double()


@contextmanager
def using(ops: ReadOps | None) -> Generator[None]:
    """Let reads use these operations; None: those of the device."""
    if ops is None:
        yield
        return
    with patch.object(reads, "ops_for", return_value=ops):
        yield


def slopes(model: MaskedModel, gates: Tensor, clean: Tensor, corrupted: Tensor, ops: ReadOps | None) -> Tensor:
    """The loss, and the slope of every gate, float64 `[1 + edges]`."""
    leaf = gates.clone().requires_grad_()
    last = torch.full((len(clean), 1), clean.shape[1] - 1)
    with using(ops):
        circuit = model(clean, leaf, model.record(corrupted), positions=last)
        with torch.no_grad():
            full = model.full(clean, positions=last)
        kept = full.float() if full.dtype != torch.float64 else full
        loss = kl_divergence(kept, circuit.to(kept.dtype)).mean()
        (found,) = torch.autograd.grad(loss, leaf)
    return torch.cat([loss.detach()[None].double(), found[model.graph.exists].double()])


def errors(half: MaskedModel, exact: MaskedModel, gates: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Of slopes and of the loss, `[2]`, by row of the table."""
    dtype, (clean, corrupted) = half.dtype, ids
    reference = slopes(exact, gates.double(), clean, corrupted, None)
    rows = {
        "gates and sums rounded": slopes(exact, gates.double(), clean, corrupted, Rounded(dtype)),
        "gates and sums as built": slopes(exact, gates.double(), clean, corrupted, AsBuilt(dtype)),
        "whole model, gates and sums rounded": slopes(half, gates, clean, corrupted, Rounded(dtype)),
        "whole model": slopes(half, gates, clean, corrupted, None),
    }
    return {
        label: torch.stack(
            [(found[1:] - reference[1:]).norm() / reference[1:].norm(), (found[0] / reference[0] - 1).abs()]
        ).float()
        for label, found in rows.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), nargs="*", default=["bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    print("| | slopes | loss |")
    print("|---|---:|---:|")
    for name in options.dtype:
        half = load_model(options.model, dtype=name)
        exact = MaskedModel(copy.deepcopy(half.hf).double())
        squares: dict[str, Tensor] = {}
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            ids = torch.randint(half.num_outputs, (2, options.batch, options.tokens))
            gates = torch.rand(half.graph.shape).mul(1.2).sub(0.1).clamp(0, 1)
            for label, error in errors(half, exact, gates, ids).items():
                squares[label] = squares.get(label, torch.zeros(2)) + error.square() / options.seeds
        for label, square in squares.items():
            of_slopes, of_loss = square.sqrt().tolist()
            print(f"| {label} ({name}) | {of_slopes:.2e} | {of_loss:.2e} |")


if __name__ == "__main__":
    main()
