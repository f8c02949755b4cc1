"""Tables and plot of the result file of `methods.py`."""

from pathlib import Path
from typing import Any

from markdown_tables import markdown

SPARSITIES = (0.90, 0.95, 0.97, 0.98, 0.99)


def at(own: dict[str, Any], sparsity: float) -> dict[str, Any]:
    """The circuit of a sparsity: of those cut on the way and from the final gates the one with the lower KL."""
    rows = [own["circuits"].get(f"{kind}-{sparsity:.4f}") for kind in ("sparsity", "final")]
    return min((row for row in rows if row), key=lambda row: row["kl"])


def at_all(methods: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By method, the circuits of all sparsities; methods without them are left out."""
    named = {name: own for name, own in methods.items() if f"sparsity-{SPARSITIES[0]:.4f}" in own["circuits"]}
    return {name: [at(own, sparsity) for sparsity in SPARSITIES] for name, own in named.items()}


def cost_and_kl(methods: dict[str, Any]) -> str:
    """KL by method and sparsity, the lowest in bold, and what the run took."""
    rows = at_all(methods)
    best = [min(own[i]["kl"] for own in rows.values()) for i in range(len(SPARSITIES))]
    lines = [
        [
            methods[name]["label"],
            *(
                f"**{row['kl']:.3f}**" if row["kl"] == low else f"{row['kl']:.3f}"
                for row, low in zip(own, best, strict=True)
            ),
            *(f"{methods[name][key]:.1f}" for key in ("minutes", "processor_minutes", "peak_gb")),
        ]
        for name, own in rows.items()
    ]
    heads = ["KL", *(f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES), "minutes", "of one core", "GB"]
    return markdown(heads, lines)


def answers(methods: dict[str, Any]) -> str:
    """Logit difference and accuracy by method and sparsity."""
    lines = [
        [methods[name]["label"], *(f"{row['logit_difference']:.2f}, {row['accuracy']:.3f}" for row in own)]
        for name, own in at_all(methods).items()
    ]
    return markdown(["logit diff., accuracy", *(f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES)], lines)


def own_sizes(methods: dict[str, Any]) -> str:
    """Circuits whose size the method chose."""
    lines = [
        [
            *(f"{own['label']}, {name}", f"{row['edges']:,}", f"{100 * row['sparsity']:.2f} %"),
            *(f"{row['kl']:.3f}", f"{row['logit_difference']:.2f}", f"{row['accuracy']:.3f}"),
            f"{own['minutes']:.1f}",
            f"{own['processor_minutes']:.1f}",
        ]
        for own in methods.values()
        for name, row in own["circuits"].items()
        if name.startswith("tau")
    ]
    heads = ["circuit", "edges", "sparsity", "KL", "logit diff.", "accuracy", "minutes (whole run)", "of one core"]
    return markdown(heads, lines)


def signed(methods: dict[str, Any]) -> str:
    """KL, logit difference and accuracy of circuits of the highest signed scores."""
    rows = {
        name: [own["circuits"].get(f"signed-{sparsity:.4f}") for sparsity in SPARSITIES]
        for name, own in methods.items()
    }
    lines = [
        [methods[name]["label"]]
        + [f"{row['kl']:.3f}, {row['logit_difference']:.2f}, {row['accuracy']:.3f}" for row in own if row]
        for name, own in rows.items()
        if all(own)
    ]
    return markdown(["KL, logit diff., accuracy", *(f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES)], lines)


def plot(methods: dict[str, Any], path: Path) -> None:
    """KL against the share of edges kept, one line per method, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    lines = {methods[name]["label"]: own for name, own in at_all(methods).items()}
    acdc = [own["circuits"] for own in methods.values() if own["label"].startswith("ACDC")]
    lines |= {"ACDC": [row for circuits in acdc for row in circuits.values()]}
    styles = ("o-", "s--", "^:")
    for number, (label, rows) in enumerate(lines.items()):
        points = sorted((100 * row["edges"] / row["all_edges"], row["kl"]) for row in rows if row["edges"])
        if not points:  # nothing but dangling edges
            continue
        bold = label.startswith("Edge Pruning")
        axes.plot(
            *zip(*points, strict=True), styles[number % 3], label=label, lw=2.5 if bold else 1, color=f"C{number % 10}"
        )
    axes.set(xlabel="edges kept (%)", ylabel="KL(full || circuit), nats", xscale="log", yscale="log")
    heights = [0.15, 0.2, 0.3, 0.5, 1, 2, 4]
    axes.set_yticks(heights, [f"{height:g}" for height in heights])
    ticks = [10, 5, 3, 2, 1, 0.5, 0.2, 0.1, 0.05]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)
