"""Colours and line widths, the same in every kind of drawing."""

import math

# Reader kinds, then what a difference of two circuits is made of; each for a light and for a dark ground.
LIGHT = {
    "q": "#1f6fb4",
    "k": "#c8500a",
    "v": "#157f5b",
    "mlp": "#8e4a9e",
    "logits": "#6b7077",
    "first": "#c8500a",
    "second": "#1f6fb4",
    "both": "#8b9097",
    "ground": "#fdfdfc",
    "raised": "#f4f4f1",
    "ink": "#1d2024",
    "quiet": "#5c636b",
    "line": "#d9dad6",
    "link": "#1b5a9c",
}
DARK = {
    "q": "#6cb2ee",
    "k": "#f0925a",
    "v": "#55c79d",
    "mlp": "#c893d6",
    "logits": "#a9afb6",
    "first": "#f0925a",
    "second": "#6cb2ee",
    "both": "#80868e",
    "ground": "#16181b",
    "raised": "#1f2226",
    "ink": "#e3e5e7",
    "quiet": "#9aa1a9",
    "line": "#363a40",
    "link": "#86b7ee",
}
WEAKEST, STRONGEST = 0.5, 3.4  # line widths, units of the layout


def line_width(strength: float) -> float:
    """Width of an edge; its strength is 0 for the weakest score that is drawn, or 0 itself, and 1 for the strongest."""
    return WEAKEST + (STRONGEST - WEAKEST) * math.sqrt(max(strength, 0.0))


def opacity(strength: float, num_edges: int) -> float:
    """How much of an edge covers what is below it: less where there are many, and for weak ones among them."""
    crowd = min(16.0 / math.sqrt(max(num_edges, 1)), 0.9)
    return crowd * (0.45 + 0.55 * max(strength, 0.0))
