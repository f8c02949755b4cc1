"""Section on what a circuit does on some prompts: attention of its heads, what writers add, where edges count."""

from collections.abc import Sequence
from typing import Any

from edgeprune.report.blocks import Block, Cell, Column, Facts, Maps, Row, Section, Table
from edgeprune.report.heatmaps import draw_heatmaps
from edgeprune.report.result import Json, Result, cell, circuits_with, entries, items, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, words

_NUM_ROWS = 20  # writers and edges that are not folded away
_LEAST = 0.05  # weights that the table of attention has
_NOTHING = 1e-4  # share of a table's largest number below which one is written as 0
_ALL = "all positions"
_DIRECTIONS = {"logit_difference": "logit difference", "target": "right answer's logit", "given": "given direction"}


def reading(result: Result) -> Section | None:
    """Every circuit that was read, one after the other."""
    found = circuits_with(result, "reading")
    several = len(found) > 1
    blocks = [block for name, about in found for block in _blocks(result, f"{name}: " if several else "", about)]
    pairs = result.pairs(found).removeprefix(", ")
    intro = (
        f"On the {pairs or 'pairs'}. Attention is that of the circuit's run, with closed edges as the ablation has "
        "them, beside the full model's; rows attend to columns. Direct attribution adds up to the answer, the "
        "final norm's scale being that of the run. An effect is how much worse the circuit gets when the edge is "
        "closed at the positions of one role; blue is worse without, red is better without."
    )
    return Section.of("reading", "What the circuit does", intro, blocks)


def _blocks(result: Result, name: str, about: Json) -> list[Block]:
    return [
        *_patterns(name, about),
        *_by_role(name, about),
        *_direct(name, part(about, "direct")),
        *_effects(result, name, part(about, "effects")),
        Facts([(f"{name}Not shown", str(note)) for note in items(about, "notes")]),
    ]


# -------------------------------------------------------------------- attention
def _patterns(name: str, about: Json) -> list[Block]:
    """Heat maps of each prompt, and their numbers in one folded table."""
    attention = part(about, "attention")
    heads, prompts = [str(head) for head in items(attention, "heads")], entries(attention, "prompts")
    if not heads or not prompts:
        return []
    total = finite(about.get("num_heads"))
    which = f"{len(heads)} of {counted(int(total), 'head')}" if total else counted(len(heads), "head")
    chosen = f"those {about['chosen']}" if about.get("chosen") else "of the circuit"
    blocks: list[Block] = []
    for prompt in prompts:
        labels = _labels(prompt)
        weights = [(text, items(prompt, run)) for run, text in (("circuit", "circuit"), ("full", "full model"))]
        drawn = [
            draw_heatmaps(head, [(text, _line(found, place)) for text, found in weights], labels)
            for place, head in enumerate(heads)
        ]
        blocks.append(Maps(f"{name}Attention on pair {number(prompt.get('index'))}; {which}, {chosen}", drawn))
    columns = [Column.words("head"), Column("pair"), Column.words("from"), Column.words("to")]
    columns += [Column("circuit"), Column("full model")]
    rows = [row for prompt in prompts for place, head in enumerate(heads) for row in _weights(head, place, prompt)]
    return [*blocks, Table(f"{name}Attention as numbers, weights of at least {_LEAST}", columns, rows, folded=True)]


def _labels(prompt: Json) -> list[str]:
    """Tokens with their roles."""
    tokens, roles = [str(token) for token in items(prompt, "tokens")], part(prompt, "roles")
    for role in roles:
        first, end = (int(finite(place) or 0) for place in items(roles, role))
        tokens[first:end] = [f"{token} {role}" for token in tokens[first:end]]
    return tokens


def _weights(head: str, place: int, prompt: Json) -> list[Row]:
    labels = _labels(prompt)
    circuit, full = (_line(items(prompt, run), place) for run in ("circuit", "full"))
    found: list[Row] = []
    for query, line in enumerate(zip(circuit, full, strict=False)):
        for key, both in enumerate(zip(*line, strict=False)):
            weights = [finite(value) or 0.0 for value in both]
            if max(weights) >= _LEAST:
                tokens = (Cell(f"{at} {labels[at]}", sort=float(at)) for at in (query, key))
                values = (cell(value, "{:.2f}".format) for value in weights)
                found.append(Row(head, [cell(prompt.get("index")), *tokens, *values]))
    return found


def _line(found: Sequence[Any], place: int) -> list[Any]:
    """One entry of a list of lists; empty where there is none."""
    return list(found[place]) if place < len(found) else []


def _by_role(name: str, about: Json) -> list[Table]:
    """From the scored position in the open, from all parts folded."""
    found = part(about, "by_role")
    queries, keys = ([str(one) for one in items(found, axis)] for axis in ("queries", "keys"))
    heads = part(found, "heads")
    if not queries or not heads:
        return []
    count = counted(int(finite(about.get("num_examples")) or 0), "pair")
    columns = [Column.words("head"), *map(Column, keys)]
    scored = [Row(head, _shares(part(heads, head), 0, keys)) for head in heads]
    every = [
        Row(head, [cell(query), *_shares(part(heads, head), place, keys)])
        for head in heads
        for place, query in enumerate(queries)
    ]
    from_ = [columns[0], Column.words("from"), *columns[1:]]
    return [
        Table(f"{name}Attention from the {queries[0]}, circuit (below: full model), mean of {count}", columns, scored),
        Table(f"{name}Attention between all parts of the prompts, mean of {count}", from_, every, folded=True),
    ]


def _shares(weights: Json, query: int, keys: Sequence[str]) -> list[Cell]:
    circuit, full = (_line(items(weights, run), query) for run in ("circuit", "full"))
    cells: list[Cell] = []
    for key, value, other in zip(keys, circuit, full, strict=False):
        known, whole = finite(value), finite(other)
        title = f"to {key}: {number(value)} in the circuit, {number(other)} in the full model"
        text = UNDEFINED if known is None else f"{known:.2f}"
        cells.append(Cell(text, "" if whole is None else f"{whole:.2f}", title, known, heat=known))
    return cells


# -------------------------------------------------------------------- direct attribution
def _direct(name: str, found: Json) -> list[Table]:
    """Bars of the largest rows, all others folded."""
    rows = entries(found, "rows")
    if not rows:
        return []
    what = _DIRECTIONS.get(str(found.get("direction")), words(found.get("direction")))
    sums = " + ".join(
        f"{number(found.get(key))} by {text}" for key, text in (("own", "open edges and biases"), ("ablated", "closed"))
    )
    caption = f"{name}Direct attribution to the {what}: {number(found.get('logits'))} = {sums}"
    caption += f"; full model {number(found.get('full_logits'))}"
    columns = [
        Column.words("writer"),
        Column("adds in the circuit", title="Mean over pairs, of its output or, closed, of what its edge carries"),
        Column("deviation", title="Standard deviation over pairs"),
        Column.words("edge into logits"),
        Column("adds in the full model"),
    ]
    values = [finite(row.get(key)) for row in rows for key in ("own", "ablated", "full")]
    most = max((abs(value) for value in values if value is not None), default=0.0)
    lines = [_writer(row, most) for row in rows]
    others = f"{name}Direct attribution, the {len(lines) - _NUM_ROWS} others"
    return [
        Table(caption, columns, lines[:_NUM_ROWS]),
        Table(others, columns, lines[_NUM_ROWS:], folded=True),
    ]


def _writer(row: Json, most: float) -> Row:
    bias, kept = row.get("kind") == "bias", bool(row.get("kept"))
    value, full = finite(row.get("own" if kept else "ablated")), finite(row.get("full"))
    return Row(
        str(row.get("writer")),
        [
            Cell(_signed(value, most), sort=value, bar=_bar(value, most)),
            cell(row.get("deviation")),
            Cell("no owner" if bias else "open" if kept else "closed: ablated value"),
            Cell(_signed(full, most), sort=full, bar=_bar(full, most)),
        ],
        "circuit" if kept else "control",
    )


def _bar(value: float | None, most: float) -> float | None:
    return None if value is None or not most else value / most


# -------------------------------------------------------------------- effects by role
def _effects(result: Result, name: str, found: Json) -> list[Table]:
    """Exact effects of the largest edges, then first-order ones of more, folded."""
    rows, parts = entries(found, "edges"), [*(str(one) for one in items(found, "parts")), _ALL]
    if not rows:
        return []
    heading = result.heading(found.get("measure"))
    of = f"{number(found.get('num_edges'))} edges"
    columns = [Column.words("edge"), *map(Column, parts)]
    exact = [row for row in rows if part(row, "exact")]
    what = f"{name}Effect on {heading} by role"
    caption = f"{what}, exact (below: first order); {len(exact)} of {of}, the largest to first order"
    linear = f"{what}, to first order, {len(rows)} of {of}"
    return [
        Table(caption, columns, _effect_rows(exact, parts, "exact")),
        Table(linear, columns, _effect_rows(rows, parts, "first_order"), folded=bool(exact)),
    ]


def _effect_rows(rows: Sequence[Json], parts: Sequence[str], which: str) -> list[Row]:
    known = [finite(part(row, which).get(one)) for row in rows for one in parts]
    most = max((abs(value) for value in known if value is not None), default=0.0)
    return [Row(str(row.get("edge")), [_effect(row, one, which, most) for one in parts]) for row in rows]


def _effect(row: Json, one: str, which: str, most: float) -> Cell:
    value, linear = (finite(part(row, key).get(one)) for key in (which, "first_order"))
    error = finite(part(row, "standard_error").get(one)) if which == "exact" else None
    title = f"{one}: {number(value)}{'' if error is None else f', standard error {number(error)}'}"
    small = _signed(linear, most) if which == "exact" else ""
    heat = None if value is None or not most else (abs(value) / most) ** 0.5 * (1 if value >= 0 else -1)
    return Cell(_signed(value, most), small, title, value, heat=heat)


def _signed(value: float | None, most: float) -> str:
    """A number with its sign; 0 where it is nothing beside the largest of the table."""
    if value is not None and abs(value) < _NOTHING * most:
        value = 0.0
    return number(value) if value is None or value <= 0 else f"+{number(value)}"
