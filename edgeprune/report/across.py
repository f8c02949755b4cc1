"""The page of `edgeprune across`: two circuits, side by side, from the command's JSON alone."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeprune.pages import page_template
from edgeprune.paths import write_whole_text
from edgeprune.report.blocks import Cell, Column, Facts, Row, Section, Table
from edgeprune.report.result import cell, entries, items, numbers, part
from edgeprune.report.text import chance, counted, finite, number, percent, words

Json = Mapping[str, Any]
SIDES = "AB"
IDLE = ("first token", "rest")  # what heads attend to that have nothing to do with the task's parts


def across_html(result: Json) -> str:
    """The page of the JSON that `edgeprune across` writes."""
    made = (_summary(result), _heads(result), _matches(result), _importance(result), _transfers(result))
    circuits = entries(result, "circuits")
    models = " and ".join(str(row.get("model")) for row in circuits)
    names = ("config", "split", "measure")
    about = Facts([(words(name), str(result[name])) for name in names if result.get(name)])
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        title=f"One task in {models}", about=about, sections=[section for section in made if section is not None]
    )


def write_across(result: Json, path: Path) -> None:
    """Write the page; folders above it are made."""
    write_whole_text(path, across_html(result))


# -------------------------------------------------------------------- sections
def _summary(result: Json) -> Section | None:
    """Size and performance of both, and random circuits of the same sizes."""
    found, rows = part(result, "performance"), list[Row]()
    sides = zip(SIDES, entries(result, "circuits"), strict=False)
    for place, (side, row) in enumerate(sides):
        sizes = [cell(str(row.get("model"))), cell(row.get("edges")), cell(row.get("sparsity"), percent)]
        sizes += [cell(str(row.get("ablation"))), cell(row.get("num_examples"))]
        values = [cell(items(found, name)[place]) for name in ("figures", "faithfulness")]
        rows.append(Row(side, [*sizes, *values], title=str(row.get("circuit"))))
        blank = [Cell("")] * len(sizes)
        random = [_over_seeds(items(result, name)[place]) for name in ("random_figures", "random_faithfulness")]
        rows.append(Row(f"random, size of {side}", [*blank, *random], "control"))
    columns = [Column.words("circuit"), Column.words("model"), Column("edges"), Column("sparsity")]
    columns += [Column.words("ablation"), Column("pairs"), Column(words(result.get("measure"))), Column("faithfulness")]
    correlations = [
        (f"{name} correlation over {counted(found.get('num_units'), str(found.get('unit')))}", _of_full(found, key))
        for name, key in (("Pearson", "pearson"), ("Spearman", "spearman"))
    ]
    intro = (
        "Each circuit in its own model. Faithfulness: 1 for the full model, 0 for the circuit without edges. Random "
        "circuits have as many edges; mean, and from the least to the largest."
    )
    return Section.of(
        "summary",
        "Two circuits",
        intro,
        [Table("Performance", columns, rows), Facts([*correlations, _overlap(result)])],
    )


def _heads(result: Json) -> Section | None:
    """What the heads of each circuit attend to at the scored position."""
    tables = [
        table
        for side, profile in zip(SIDES, entries(part(result, "roles"), "profiles"), strict=False)
        for table in _head_tables(side, profile)
    ]
    intro = (
        "Attention of the full model's heads at the scored position, for heads that have a kept edge, by the part of "
        "the prompt whose tokens get most of it, each. Heads of other parts are folded."
    )
    return Section.of("heads", "What heads attend to", intro, tables)


def _head_tables(side: str, profile: Json) -> Iterator[Table]:
    keys = [str(key) for key in items(profile, "keys")]
    heads = part(profile, "heads")
    rows = {
        name: Row(name, [cell(str(head.get("class"))), *(_attention(part(head, "attention").get(key)) for key in keys)])
        for name, head in heads.items()
    }
    columns = [Column.words("head"), Column.words("attends to"), *map(Column, keys)]
    idle = [name for name in heads if heads[name].get("class") in IDLE]
    busy = sorted((name for name in heads if name not in idle), key=lambda name: str(heads[name].get("class")))
    yield Table(f"Heads of {side} by part", columns, [rows[name] for name in busy])
    yield Table(
        f"{counted(len(idle), 'head')} of {side} for other tokens", columns, [rows[name] for name in idle], True
    )


def _attention(share: Any) -> Cell:
    return cell(share, heat=finite(share))


def _matches(result: Json) -> Section | None:
    """Pairs of heads, one to one."""
    found = part(result, "roles")
    classes = [
        {name: str(head.get("class")) for name, head in part(profile, "heads").items()}
        for profile in entries(found, "profiles")
    ]
    rows = [
        Row(first, [cell(classes[0][first]), cell(second), cell(classes[1][second]), cell(match.get("similarity"))])
        for match in entries(part(found, "one_to_one"), "matches")
        for first, second in [(str(match.get("first")), str(match.get("second")))]
    ]
    facts = [
        ("mean similarity", number(part(found, "one_to_one").get("mean_similarity"))),
        ("of random heads", _range(numbers(found, "random_one_to_one"))),
    ]
    columns = [Column.words("head of A"), Column.words("attends to"), Column.words("head of B")]
    columns += [Column.words("attends to"), Column("similarity")]
    intro = (
        "The matching with the largest sum of cosines of what heads attend to. Most heads of any model look at the "
        "first token: read the mean beside that of heads drawn from the whole models."
    )
    return Section.of(
        "matches", "Matched heads", intro, [Facts(facts if rows else []), Table("Pairs of heads", columns, rows, True)]
    )


def _importance(result: Json) -> Section | None:
    """Share of each part in the ends of kept edges."""
    found = part(result, "roles")
    shares = [part(profile, "importance") for profile in entries(found, "profiles")]
    names = dict.fromkeys(name for one in shares for name in one)
    top = max((known for one in shares for share in one.values() if (known := finite(share)) is not None), default=1.0)
    rows = [Row(str(name), [_share(one.get(name), top or 1.0) for one in shares]) for name in names]
    similar = part(found, "importance")
    facts = [
        (f"cosine of {what}", f"{number(similar.get(name))}, of random circuits {_range(numbers(similar, random))}")
        for what, name, random in (
            ("shares", "cosine", "random"),
            ("shares less those of the whole graph", "cosine_above_graph", "random_above_graph"),
        )
    ]
    intro = (
        "A head counts for the part that it attends to, an edge half for each of its ends. Edges of every transformer "
        "touch the same kinds of nodes, so the cosine less the whole graph's shares says more."
    )
    table = Table("Share of each part", [Column.words("part"), *map(Column, SIDES)], rows)
    return Section.of("importance", "Which parts matter", intro, [table, Facts(facts if rows else [])])


def _transfers(result: Json) -> Section | None:
    """Each circuit in each model, where the graphs are the same."""
    measure = str(result.get("measure"))
    keys = ("figures", "faithfulness", "original_faithfulness", "random_faithfulness")
    rows = [
        Row(
            str(one.get("circuit")), [cell(str(one.get("place"))), *(cell(part(one, key).get(measure)) for key in keys)]
        )
        for one in entries(result, "transfers")
    ]
    columns = [Column.words("circuit"), Column.words("model"), Column(words(measure)), Column("faithfulness")]
    columns += [Column("of the one found there"), Column("of random ones")]
    return Section.of("transfer", "Transfer", "Each circuit in each model.", [Table("Transfer", columns, rows)])


# -------------------------------------------------------------------- texts
def _over_seeds(values: Iterable[Any]) -> Cell:
    """Mean of the defined values, and their ends."""
    known = [value for one in values if (value := finite(one)) is not None]
    return cell(sum(known) / len(known), small=f"{number(min(known))} to {number(max(known))}") if known else cell(None)


def _range(values: Iterable[Any]) -> str:
    found = _over_seeds(values)
    return f"{found.text} ({found.small})" if found.small else found.text


def _of_full(found: Json, key: str) -> str:
    return f"{number(found.get(key))}, of the full models {number(found.get(f'{key}_full'))}"


def _overlap(result: Json) -> tuple[str, str]:
    found = part(result, "overlap")
    if not found:
        return "edges in common", "the graphs differ: edges are not compared, and no circuit is run in the other model"
    expected, p_value = number(found.get("expected")), chance(found.get("log10_p_value"))
    text = f"{number(found.get('both'))}, by chance {expected} (p = {p_value})"
    return "edges in common", f"{text}, Jaccard {number(found.get('jaccard'))}"


def _share(value: Any, top: float) -> Cell:
    known = finite(value)
    return cell(value, bar=None if known is None else known / top)
