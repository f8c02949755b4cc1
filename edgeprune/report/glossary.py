"""The last section: every measure and every other word of the page."""

from collections.abc import Sequence

from edgeprune.report.blocks import Cell, Column, Facts, Row, Section, Table
from edgeprune.report.result import Result, part
from edgeprune.report.text import UNDEFINED

# Each term with the section that uses it; terms of sections that the page does not have are left out.
_TERMS = (
    ("summary", "edge", "From the output of an embedding, head or MLP (writer) to an input of a later one (reader)."),
    ("summary", "closed edge", "Carries what the ablation puts in place of this run's value."),
    ("summary", "interchange", "The ablation in which a closed edge carries its value on the corrupted prompt."),
    ("summary", "full model", "Every edge open: the model itself."),
    ("summary", "empty circuit", "Every edge closed."),
    ("summary", "sparsity", "Closed edges / existing edges."),
    ("summary", "dangling edge", "A kept edge on no path of kept edges from an embedding to the logits."),
    ("summary", "interval", "Of a figure over samples of the examples: how far others would move it."),
    (
        "ablations",
        "normalised faithfulness",
        "(m(circuit) - m(empty)) / (m(full) - m(empty)), m a measure; not clipped.",
    ),
    (
        "completeness",
        "completeness score",
        r"|F(C \ K) - F(M \ K)|: K out of circuit C and model M (arXiv 2211.00593).",
    ),
    ("minimality", "redundant edge", "One whose effect, when it alone is closed, is at most the tolerance."),
    (
        "minimality",
        "random edge",
        "An edge of a random path that was added to the circuit, closed alone (arXiv 2410.13032).",
    ),
    ("reading", "direct attribution", "What a writer adds to the answer itself, past all later heads and MLPs."),
    ("reading", "first order", "Of an effect: the slope of the measure in the edge's gate, at the circuit."),
    ("reading", "rest", "All positions of a prompt on which no role lies."),
    ("mib", "CPR", "Area below normalised faithfulness by share of edges; higher is better (arXiv 2504.13151)."),
    ("mib", "CMD", "Area between that curve and 1; lower is better (arXiv 2504.13151)."),
    (
        "mib",
        "accuracy area",
        "Area below accuracy by the logarithm of the share, over the length of that axis (arXiv 2609.25518).",
    ),
    ("runs", "nested", "|S and L| / |S| of a circuit S and a larger one L: 1 where L has all edges of S."),
    ("known", "pessimistic AUC", "Area of the staircase below a ROC curve: between two points, the lower one."),
    (
        "known",
        "MIB AUROC",
        "Area below the ROC curve of ten circuits grown from the logits; a random order is not at 0.5.",
    ),
    ("overlap", "Jaccard", "Things in both sets / things in either: 0 for none in common, 1 for the same sets."),
)
_BETTER = {"low": "lower", "high": "higher", "100": "near 100"}


def glossary(result: Result, sections: Sequence[Section]) -> Section | None:
    """Definitions of the measures in the JSON, and of the words that these sections use."""
    rows = [_measure(result, name) for name in result.measures]
    used = {one.name for one in sections}
    terms = [(term, text) for name, term, text in _TERMS if name in used]
    columns = [Column.words(head) for head in ("measure", "name", "definition", "unit", "better", "source")]
    blocks = [Table("Measures", columns, rows), Facts(terms)]
    return Section.of("glossary", "Glossary", "What every word on this page means.", blocks)


def _measure(result: Result, name: str) -> Row:
    about = part(result.measures, name)
    better = str(about.get("better") or "")
    texts = [name, about.get("definition"), about.get("unit"), _BETTER.get(better, better), about.get("source")]
    return Row(result.heading(name), [Cell(str(text or UNDEFINED), sort=str(text or "")) for text in texts])
