"""Tables and plot of a result file of `frontier.py`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from markdown_tables import markdown

Values = Mapping[str, Any]


def figures(own: Values, sparsity: str, name: str) -> list[float]:
    """A figure of a method's circuits at a sparsity, for each seed that has one."""
    return [seed["circuits"][sparsity][name] for seed in own["seeds"].values() if sparsity in seed["circuits"]]


def sparsities(result: Values) -> list[str]:
    """Those asked for, rising."""
    return sorted({name for *_, name, _ in _circuits(result) if name[0].isdigit()})


def _circuits(result: Values) -> Iterator[tuple[str, str, str, Values]]:
    """Label, seed, name and figures of every circuit."""
    for own in result["methods"].values():
        for number, seed in own["seeds"].items():
            for name, row in seed["circuits"].items():
                yield own["label"], number, name, row


def tables(result: Values) -> Iterator[str]:
    """KL and cost, KL of each seed, answers, differences, areas over sizes, and commands."""
    shown = sparsities(result)
    methods = {name: own for name, own in result["methods"].items() if any(figures(own, each, "kl") for each in shown)}
    percent = [f"{100 * float(sparsity):g} %" for sparsity in shown]
    yield markdown(
        ["KL", *percent, "seeds", "tries", "passes", "core-minutes", "GB"],
        [
            [own["label"], *_kl(methods, own, shown), str(len(own["seeds"])), str(own["tries"]), *_cost(own)]
            for own in methods.values()
        ],
    )
    yield markdown(
        ["KL of each seed", *percent],
        [
            [own["label"], *(", ".join(f"{kl:.3f}" for kl in figures(own, sparsity, "kl")) for sparsity in shown)]
            for own in methods.values()
            if len(own["seeds"]) > 1
        ],
    )
    yield markdown(
        ["logit diff., accuracy", *percent],
        [[own["label"], *(_answers(own, sparsity) for sparsity in shown)] for own in methods.values()],
    )
    found = {(each["method"], each["sparsity"]): each for each in result["differences"]}
    yield markdown(
        ["KL minus that of Edge Pruning", *percent],
        [
            [own["label"], *(_difference(found.get((name, sparsity))) for sparsity in shown)]
            for name, own in methods.items()
            if any((name, sparsity) in found for sparsity in shown)
        ],
    )
    yield from _merits(result["merits"], {name: own["label"] for name, own in result["methods"].items()})
    yield markdown(
        ["circuit of a size of its own", "seed", "edges", "sparsity", "KL", "logit diff., accuracy"],
        [
            [
                *(f"{label}, {name}", seed, f"{row['edges']:,}", f"{100 * row['sparsity']:.2f} %"),
                *(f"{row['kl']:.3f}", f"{row['logit_difference']:.2f}, {row['accuracy']:.3f}"),
            ]
            for label, seed, name, row in _circuits(result)
            if not name[0].isdigit()
        ],
    )
    yield "\n".join(f"- {own['label']}: `{own['command']}`" for own in methods.values())


def _kl(methods: Values, own: Values, shown: list[str]) -> Iterator[str]:
    """Means over seeds, the lowest of all methods in bold."""
    for sparsity in shown:
        values = figures(own, sparsity, "kl")
        lowest = min(mean(found) for other in methods.values() if (found := figures(other, sparsity, "kl")))
        text = f"{mean(values):.3f}" if values else ""
        yield f"**{text}**" if values and mean(values) == lowest else text


def _cost(own: Values) -> Iterator[str]:
    seeds = own["seeds"].values()
    yield "" if own["passes"] is None else f"{own['passes']:,}"
    yield f"{mean(seed['processor_minutes'] for seed in seeds):.1f}"
    yield f"{max(seed['peak_gb'] for seed in seeds):.1f}"


def _answers(own: Values, sparsity: str) -> str:
    both = [figures(own, sparsity, name) for name in ("logit_difference", "accuracy")]
    return f"{mean(both[0]):.2f}, {mean(both[1]):.3f}" if both[0] else ""


def _difference(found: Values | None) -> str:
    return "" if found is None else f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _merits(found: Values, labels: Mapping[str, str]) -> Iterator[str]:
    """Areas over sizes with nestedness, and areas minus those of Edge Pruning."""
    areas = {"cpr": "CPR", "cmd": "CMD", "accuracy_area": "accuracy over log size"}
    yield markdown(
        ["over all sizes", *areas.values(), "nested in the next larger", "by chance"],
        [
            [labels[name], *(_interval(own["areas"][area]) for area in areas), *_nested(own["nested"])]
            for name, own in found.items()
        ],
    )
    yield markdown(
        ["minus that of Edge Pruning", *areas.values()],
        [
            [labels[name], *(_difference(own["minus"][area]) for area in areas)]
            for name, own in found.items()
            if own["minus"]
        ],
    )


def _interval(found: Values) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _nested(seeds: Sequence[Values]) -> Iterator[str]:
    """Means over seeds, with the least and the most where there are several; empty for circuits of a single size."""
    shares = [seed["share"] for seed in seeds if seed["share"] is not None]
    spread = f" ({min(shares):.3f} to {max(shares):.3f})" if len(shares) > 1 else ""
    yield f"{mean(shares):.3f}{spread}" if shares else ""
    yield f"{mean(seed['expected'] for seed in seeds if seed['expected'] is not None):.3f}" if shares else ""


def plot(result: Values, path: Path) -> None:
    """KL against the share of edges kept: mean over seeds, their range as a band; both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    styles = ("o-", "s--", "^:")
    for number, own in enumerate(result["methods"].values()):  # those with circuits of sizes of their own draw nothing
        shown = [sparsity for sparsity in sparsities(result) if figures(own, sparsity, "kl")]
        shares = [100 * (1 - float(sparsity)) for sparsity in shown]
        kl = [figures(own, sparsity, "kl") for sparsity in shown]
        bold, colour = own["label"].startswith("Edge Pruning"), f"C{number % 10}"
        width = 2.5 if bold else 1
        axes.plot(shares, list(map(mean, kl)), styles[number % 3], label=own["label"], lw=width, color=colour)
        axes.fill_between(
            shares, [min(values) for values in kl], [max(values) for values in kl], color=colour, alpha=0.15
        )
    axes.set(xlabel="edges kept (%)", ylabel="KL(full || circuit), nats", xscale="log", yscale="log")
    heights = [0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 4]
    axes.set_yticks(heights, [f"{height:g}" for height in heights])
    ticks = [10, 5, 2, 1, 0.5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(result["problem"], fontsize=10)
    figure.savefig(path, dpi=130)
