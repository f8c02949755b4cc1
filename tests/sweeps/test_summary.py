"""The frontier over trials, from hand-made trials whose best circuits are known."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeprune.errors import EdgepruneError
from edgeprune.paths import save_figure
from edgeprune.sweeps.summary import (
    Found,
    best,
    circuits_of,
    frontier_figure,
    series,
    spread,
    summarise,
    summary_table,
    write_summary,
)
from edgeprune.sweeps.worker import work
from tests.sweeps.test_store import NEVER
from tests.sweeps.trials import make_store

pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")
ONE = Found(0, "Task on model", "EdgePruning", "lr=1", 0, 0.9, 0.9, 10, True, "kl", 0.5, 2.0, "a")


def test_best_is_the_least_error_at_each_level_and_problem() -> None:
    other = replace(ONE, problem="Other on model", error=0.7)
    nothing = replace(ONE, trial=3, error=math.nan)
    found = [nothing, ONE, replace(ONE, trial=1, error=0.4), replace(ONE, trial=2, level=0.95, error=0.9), other]
    assert [(item.problem, item.level, item.trial) for item in best(found)] == [
        ("Other on model", 0.9, 0),
        ("Task on model", 0.9, 1),
        ("Task on model", 0.95, 2),
    ]


def test_of_equal_errors_the_sparser_wins() -> None:
    sparser = replace(ONE, trial=5, sparsity=0.91)
    assert best([ONE, sparser]) == [sparser]


def test_a_series_differs_in_its_seed_alone() -> None:
    second = replace(ONE, trial=1, seed=1, error=0.7)
    found = [ONE, second, replace(ONE, settings="lr=2"), replace(ONE, method="UGS")]
    grouped = series(found)
    assert [len(items) for items in grouped.values()] == [2, 1, 1]
    assert spread(found[:2]) == {0.9: pytest.approx((0.5, 0.6, 0.7))}
    assert spread([ONE, second, replace(second, error=0.9)]) == spread([ONE, second])  # a trial counts once


def test_a_summary_names_files_and_writes_table_and_plot(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    work(store, NEVER)
    console = Console(record=True, width=200)
    summarise(store.folder, console)
    said = console.export_text()
    rows = list(csv.DictReader((store.folder / "summary.csv").read_text().splitlines()))
    assert len(rows) == 12  # two circuits of each trial
    # The stand-in's error is target ** 2 + seed / 100, and half of that for its final gates.
    assert f"sparsity 0.9: {store.trial_folder(0)}/run/circuits/sparsity-0.9000.safetensors" in said
    assert f"sparsity 0.85: {store.trial_folder(0)}/run/circuits/final.safetensors" in said
    assert "2: 0.0150 (0.0100 to 0.0200)" in said
    assert (store.folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_without_results(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(EdgepruneError, match="no trial has found circuits yet"):
        summarise(store.folder, Console())
    store.claim()
    with pytest.raises(EdgepruneError, match="1 running"):
        summarise(store.folder, Console())


def test_a_plot_of_several_problems_and_methods(tmp_path: Path) -> None:
    found = [
        replace(ONE, problem=problem, method=method, level=level, sparsity=level, error=1 - level)
        for problem in ("A on m", "B on m")
        for method in ("EdgePruning", "UGS")
        for level in (0.5, 0.9)
    ]
    save_figure(frontier_figure([*found, replace(ONE, level=1.0, sparsity=1.0, edges=0)]), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def legend(found: list[Found]) -> list[str]:
    shown = frontier_figure(found).axes[0].get_legend()
    assert shown is not None
    return [shown.get_title().get_text(), *(text.get_text() for text in shown.get_texts())]


def test_few_settings_of_one_method_are_told_apart() -> None:
    found = [
        replace(ONE, trial=trial, settings=f"model.recipe.lr={rate}, data.size=5", seed=seed, level=level, error=error)
        for trial, (rate, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0)])
        for level, error in ((0.8, 0.1), (0.9, 0.5))
    ]
    ends = ["best of each sparsity", "random, of its size: 2.00, above"]
    assert legend(found) == ["mean and range over seeds", "lr=0.1, size=5", "lr=0.2, size=5", *ends]
    many = [replace(ONE, settings=f"lr={rate}", seed=rate % 2) for rate in range(9)]
    assert legend(many) == ["", "EdgePruning", *ends]
    assert legend([*found, replace(ONE, method="UGS")])[1:3] == ["EdgePruning", "UGS"]


def test_random_circuits_are_drawn_where_they_do_not_dwarf_the_others() -> None:
    near = replace(ONE, random_error=0.6)
    assert legend([near])[-1] == "random, of its size"
    assert frontier_figure([near]).axes[0].get_ylim()[1] > 0.6
    far = [replace(ONE, random_error=4.0), replace(ONE, level=0.95, sparsity=0.95, random_error=4.1)]
    assert legend(far)[-1] == "random, of its size: 4.00 to 4.10, above"
    assert 0.5 < frontier_figure(far).axes[0].get_ylim()[1] < 0.6


def test_circuits_that_were_never_reached_are_hollow() -> None:
    assert "hollow: never reached, cut from the final gates" in legend([ONE, replace(ONE, level=0.95, reached=False)])


# -------------------------------------------------------------------- attention edges
def inside(found: Found, number: int, **more: Any) -> Found:
    return replace(found, attention_edges=number, attention_sparsity=1 - number / 208, **more)


def test_of_equal_errors_and_edges_the_one_with_fewer_attention_edges_wins() -> None:
    fewer = inside(ONE, 10, trial=5)
    assert best([ONE, inside(ONE, 100, trial=1), fewer]) == [fewer]


def test_table_and_csv_have_attention_edges_where_some_circuit_has(tmp_path: Path) -> None:
    found = [ONE, inside(ONE, 100, level=0.95, trial=1)]
    for circuits, cells in (([ONE], []), (found, ["all", "100 (0.5192)"])):
        table = summary_table("a", circuits)
        columns = {str(column.header): list(column.cells) for column in table.columns}
        assert columns.get("attention edges (sparsity)", []) == cells
        write_summary(tmp_path, circuits)
        rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
        assert [row.get("attention_edges") for row in rows] == ([None] if not cells else ["", "100"])


def test_where_edges_tie_attention_edges_are_plotted() -> None:
    found = [inside(ONE, number, level=level, trial=0) for level, number in ((0.5, 104), (0.9, 21), (1.0, 0))]
    axes = frontier_figure(found).axes[0]
    assert axes.get_xlabel() == "attention edges kept"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["104", "21"]
    assert frontier_figure([*found, replace(ONE, edges=11)]).axes[0].get_xlabel() == "edges kept (%)"


def test_final_gates_of_attention_edges_alone_have_their_level(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    work(store, NEVER)
    trial = store.trials()[0]
    run = store.trial_folder(trial.number) / "run"
    head = "asked,sparsity,edges,attention_edges,attention_sparsity,kl,random_kl,reached"
    rows = ["0.5,0.0,80,104,0.5,0.1,1.0,True", "final gates,0.0,80,23,0.889423,0.2,1.0,True"]
    (run / "frontier.csv").write_text("\n".join([head, *rows]) + "\n")
    config = json.loads((run / "config.yaml").read_text())
    for option, level in (("alone", 0.89), (True, 0.0)):
        config["model"]["recipe"]["init_args"] = {"attention_edges": option}
        (run / "config.yaml").write_text(json.dumps(config))
        found = circuits_of(store, trial)
        assert [item.level for item in found] == [0.5, level]
        assert [(item.attention_edges, item.attention_sparsity) for item in found] == [(104, 0.5), (23, 0.889423)]
