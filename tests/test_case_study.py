"""What the case study holds circuits of two ways of asking against: controls of equal size, sorts of heads, tables."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

GRAPH = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=4))


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    """The scripts import one another by name, as in their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield


def of(name: str, script: str = "case_study_compare") -> Any:
    return getattr(importlib.import_module(script), name)


def circuit(seed: int, num_edges: int = 60) -> Circuit:
    scores = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit.from_scores(GRAPH, scores, num_edges=num_edges)


def test_controls_are_as_large_as_what_they_stand_beside() -> None:
    own, other = [circuit(seed) for seed in range(3)], [circuit(seed) for seed in range(3, 6)]
    found = of("groups")(own, other, 2)
    sizes = {name: [one.num_edges for one in circuits] for name, circuits in found.items()}
    for way, circuits in (("instruction", own), ("few_shot", other)):
        assert sizes[f"{way}, cut to the intersection"] == sizes["intersection"]
        assert sizes[f"{way}, grown to the union"] == sizes["union"]
        for cut, grown, whole in zip(
            found[f"{way}, cut to the intersection"], found[f"{way}, grown to the union"], circuits, strict=True
        ):
            assert (cut - whole).num_edges == 0
            assert (whole - grown).num_edges == 0
        assert len(found[f"{way}, union of two seeds"]) == 3
    assert sizes["random, as large as a circuit"] == [60, 60]
    assert sizes["random, as large as the union"][0] == round(sum(sizes["union"]) / 3)
    assert [a + b for a, b in zip(sizes["intersection"], sizes["union"], strict=True)] == [120] * 3


def test_a_circuit_grows_by_its_best_other_edges() -> None:
    whole = circuit(0, 90)
    assert whole.scores is not None
    part = Circuit(GRAPH, circuit(0, 40).keep, whole.scores)
    assert (of("grown_to")(part, 90).keep == whole.keep).all()
    with pytest.raises(EdgepruneError, match="no scores"):
        of("grown_to")(Circuit(GRAPH, part.keep), 90)


def test_overlaps_are_sorted_by_what_differs() -> None:
    rows = list(of("overlaps")([[circuit(0), circuit(1)], [circuit(2), circuit(0)]]))
    assert [row["kind"] for row in rows] == ["instruction", *["between"] * 4, "few_shot"]
    same = next(row for row in rows if row["kind"] == "between" and row["seeds"] == [0, 1])
    assert (same["jaccard"], same["both"]) == (1.0, 60)


def test_differences_are_of_means_over_circuits() -> None:
    figures = torch.tensor([[[1.0], [3.0], [10.0], [20.0]]])  # [draw, circuit, measure]
    assert of("mean_of")([2, 3])(figures).tolist() == [[15.0]]
    assert of("difference_of")([2, 3], [0, 1])(figures).tolist() == [[13.0]]


@pytest.mark.parametrize(
    ("first", "second", "sort"),
    [(2, 3, "shared"), (3, 0, "instruction"), (0, 2, "few_shot"), (3, 1, "undecided"), (1, 1, "undecided")],
)
def test_a_head_is_one_ways_if_it_matters_in_none_of_the_others_circuits(first: int, second: int, sort: str) -> None:
    assert of("kind")({"instruction": first, "few_shot": second}, 3) == sort


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n")
    of("fill", "markdown_tables")(page, {"two": "| 2 |", "one": "| 1 |"})
    assert page.read_text() == "a\n<!-- one -->\n| 1 |\n<!-- end -->\nb\n<!-- two -->\n| 2 |\n<!-- end -->\n"


@pytest.mark.parametrize("text", ["a\n", "a\n<!-- one -->\nno end\n"])
def test_a_page_without_a_mark_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(EdgepruneError, match=r"page\.md has no place for the table one: write <!-- one -->"):
        of("fill", "markdown_tables")(page, {"one": "| 1 |"})
    assert page.read_text() == text
