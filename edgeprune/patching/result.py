"""What patching measured: a tensor whose axes have names and labels, and the file that keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel
from edgeprune.patching.run import Direction
from edgeprune.sealed import SealedFile

FORMAT = "edgeprune-patching/1"
_TENSORS = ("values", "clean", "corrupted", "count")
_PLAIN = ("dims", "labels", "what", "metric", "direction", "model", "about")
_FILE = SealedFile(FORMAT, "result of patching")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PatchingResult:
    """The metric with one site patched at a time. All tensors have one axis per name in `dims`.

    Means are over the examples that have the site (position 9 of a prompt of 8 tokens does not exist), and so are the
    clean and the corrupted metric beside them.

    Attributes:
        values: Mean metric with the site patched, float64; NaN where no example has the site.
        clean: Mean metric of the clean run on the same examples.
        corrupted: Mean metric of the corrupted run on the same examples.
        count: How many examples have the site, long.
        dims: Names of the axes: `layer`, `head`, `position`, `role`, `sender`.
        labels: Names of the entries of each axis.
        what: What was patched: `residual`, `z`, ..., or the path.
        metric: `kl`, `logit_difference` or `squared_error`, in its own sign.
        direction: `noising`: the corrupted value in the clean run; `denoising`: the clean value in the corrupted run.
        model: Name of the model.
        about: Further plain values for the record.
    """

    values: Tensor
    clean: Tensor
    corrupted: Tensor
    count: Tensor
    dims: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    what: str
    metric: str
    direction: Direction
    model: str = ""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        shape = tuple(len(names) for names in self.labels)
        wrong = [name for name in _TENSORS if tuple(getattr(self, name).shape) != shape]
        if wrong or len(self.dims) != len(shape):
            raise EdgepruneError(f"labels name a result of shape {shape} over {self.dims}; {wrong or 'dims'} differ")

    @property
    def normalised(self) -> Tensor:
        """(m - m_corrupted) / (m_clean - m_corrupted), of the means: 1 is the clean run, 0 the corrupted one.

        NaN where both runs have the same metric, so that there is nothing to measure by.
        """
        span = self.clean - self.corrupted
        return (self.values - self.corrupted) / torch.where(span == 0, torch.nan, span)

    @property
    def effect(self) -> Tensor:
        """How far patching moved the normalised metric from the run it was done in; 0 is no effect.

        Noising: -1 where the site alone takes the model to the corrupted run. Denoising: 1 where it alone restores it.
        """
        return self.normalised - 1 if self.direction == "noising" else self.normalised

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per site: its labels, `value`, `normalised`, `effect` and `count`; made for a data frame."""
        columns = {
            "value": self.values.flatten().tolist(),
            "normalised": self.normalised.flatten().tolist(),
            "effect": self.effect.flatten().tolist(),
            "count": self.count.flatten().tolist(),
        }
        return [
            dict(zip(self.dims, names, strict=True)) | {key: column[number] for key, column in columns.items()}
            for number, names in enumerate(product(*self.labels))
        ]

    def at(self, **labels: str | int) -> int:
        """Flat index of a site by its labels: `values.flatten()[result.at(layer=3, head=1)]`."""
        if set(labels) != set(self.dims):
            raise EdgepruneError(f"a site of this result has {', '.join(self.dims)}, got {', '.join(labels)}")
        index = 0
        for dim, names in zip(self.dims, self.labels, strict=True):
            if str(labels[dim]) not in names:
                raise EdgepruneError(f"no {dim} {labels[dim]!r} in this result, it has {', '.join(names)}")
            index = index * len(names) + names.index(str(labels[dim]))
        return index

    # ---------------------------------------------------------------- files
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; labels and settings are JSON in its metadata."""
        header = {name: getattr(self, name) for name in _PLAIN} | {"about": dict(self.about)}
        return _FILE.write(path, {name: getattr(self, name) for name in _TENSORS}, header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote; refuse one that is missing, altered, without a seal or of another kind."""
        header, tensors = _FILE.read(path)
        plain = {name: header[name] for name in _PLAIN}
        plain["dims"], plain["labels"] = tuple(plain["dims"]), tuple(map(tuple, plain["labels"]))
        return cls(**tensors, **plain)


class Tally:
    """Sums over examples, site by site, that become a result; how examples are cut into batches does not matter."""

    def __init__(self, num_sites: int) -> None:
        self.sums = torch.zeros(3, num_sites, dtype=torch.float64)  # patched, clean, corrupted
        self.count = torch.zeros(num_sites, dtype=torch.long)

    def add(self, site: int, metrics: Sequence[Tensor], has: Tensor) -> None:
        """Add the patched, clean and corrupted metric of each example, `[batch]`, of those that have the site."""
        for row, metric in enumerate(metrics):
            self.sums[row, site] += metric[has].sum().cpu()
        self.count[site] += has.sum().cpu()

    def result(
        self,
        problem: Problem,
        dims: tuple[str, ...],
        labels: tuple[tuple[str, ...], ...],
        what: str,
        direction: Direction,
        about: Mapping[str, Any] | None = None,
    ) -> PatchingResult:
        """Means (NaN without examples) and counts as a result over these axes."""
        shape = [len(names) for names in labels]
        values, clean, corrupted = (self.sums / self.count).view(3, *shape)
        return PatchingResult(
            values=values,
            clean=clean,
            corrupted=corrupted,
            count=self.count.view(*shape),
            dims=dims,
            labels=labels,
            what=what,
            metric=problem.metric,
            direction=direction,
            model=name_of(problem.model),
            about={**(about or {}), "split": problem.split, "num_examples": problem.num_examples},
        )


def name_of(model: MaskedModel) -> str:
    """Name of a model for titles: that of the hub, of the folder its weights came from, or its type."""
    config = model.hf.config
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    return Path(name).name if Path(name).is_absolute() else name
