"""Ablations as text: what can be said, and what is refused."""

import pytest

from edgeprune.ablations import Ablation
from edgeprune.errors import EdgepruneError

TEXTS = {
    "interchange": Ablation("interchange"),
    "zero": Ablation("zero"),
    "resample": Ablation("resample"),
    "resample:corrupted": Ablation("resample", "corrupted"),
    "resample:corrupted:seed=12": Ablation("resample", "corrupted", seed=12),
    "mean": Ablation("mean"),
    "mean:positional": Ablation("mean", positional=True),
    "mean:corrupted": Ablation("mean", "corrupted"),
    "mean:both:positional": Ablation("mean", "both", positional=True),
    "optimal": Ablation("optimal"),
    "optimal:runs/c.safetensors": Ablation("optimal", path="runs/c.safetensors"),
    "optimal:C:\\c.safetensors": Ablation("optimal", path="C:\\c.safetensors"),
}


@pytest.mark.parametrize(("text", "ablation"), TEXTS.items(), ids=TEXTS)
def test_text_and_ablation_are_the_same_thing(text: str, ablation: Ablation) -> None:
    assert Ablation.parse(text) == ablation
    assert str(ablation) == text


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("mean:clean", "mean"),
        ("mean:positional:corrupted", "mean:corrupted:positional"),
        ("resample:seed=0:clean", "resample"),
        ("resample:seed=4:corrupted", "resample:corrupted:seed=4"),
    ],
)
def test_defaults_and_order_may_be_said_but_are_not_written(text: str, shortest: str) -> None:
    assert str(Ablation.parse(text)) == shortest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("noise", "must be one of interchange, zero, resample, mean, optimal, got 'noise'"),
        ("", "must be one of .*, got ''"),
        ("Mean", "got 'Mean'"),
        ("zero:positional", "'zero' knows no options, got 'positional'"),
        ("interchange:clean", "'interchange' knows no options, got 'clean'"),
        ("zero:clean", "'zero' knows no options, got 'clean'"),
        ("resample:both", "'resample' knows clean, corrupted, seed=N, got 'both'"),
        ("resample:positional", "got 'positional'"),
        ("resample:seed=-1", "got 'seed=-1'"),
        ("resample:seed=", "got 'seed='"),
        ("resample:seed=N", "got 'seed=N'"),
        ("mean:seed=1", "'mean' knows clean, corrupted, both, positional, got 'seed=1'"),
        ("mean:seed=0", "'mean' knows clean, corrupted, both, positional, got 'seed=0'"),
        ("mean:pooled", "got 'pooled'"),
        ("mean:", "got ''"),
        ("mean:clean:corrupted", "says its source twice"),
        ("mean:positional:positional", "says its positional twice"),
        ("optimal:", "takes no file ''"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(text: str, why: str) -> None:
    with pytest.raises(EdgepruneError, match=why):
        Ablation.parse(text)


@pytest.mark.parametrize("options", [{"path": "x"}, {"seed": 1}, {"source": "both"}, {"positional": True}])
def test_options_of_another_kind_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(EdgepruneError, match="zero"):
        Ablation("zero", **options)  # type: ignore[arg-type]
