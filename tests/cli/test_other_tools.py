"""`evaluate` and `compare` on files of EAP-IG's: what they hold, and a position embedding that it never ablates."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.formats import read_circuit
from edgeprune.models.loading import load_model
from lit_modules.compare import CompareToReference
from tests.references.tiny_models import FILES, FOLDER, model, numbers

QUICK = ("--seeds", "1", "--draws", "5", "--measures", "logit_difference")
PRUNED, EMPTY = str(FILES / "gpt2_topn_60_abs_pruned.json"), str(FILES / "gpt2_topn_0_abs_raw.json")
TESTED = 14  # pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with a tokenizer, a word for each id, and the 16 pairs as a table, most of them to test on."""
    folder = tmp_path_factory.mktemp("other_tools")
    shutil.copytree(FOLDER / "tiny_gpt2", folder / "model")
    backend = Tokenizer(WordLevel({f"t{number}": number for number in range(200)}, unk_token="t0"))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0").save_pretrained(folder / "model")
    pairs = numbers("pairs")
    rows = zip(*(pairs[key] for key in ("clean", "corr", "right", "wrong")), strict=True)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clean", "corrupted", "correct_idx", "incorrect_idx", "split"])
        for (*prompts, right, wrong), split in zip(rows, ["test"] * TESTED + ["validation", "train"], strict=True):
            texts = (" ".join(f"t{number}" for number in ids) for ids in prompts)
            writer.writerow([*texts, right, wrong, split])
    task = {"class_path": "EAPCSVTask", "init_args": {"path": str(folder / "pairs.csv")}}
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"data": {"task": task, "eval_batch_size": 16, "cache_dir": str(folder)}})
    )
    return folder


def said(capsys: pytest.CaptureFixture[str], kind: str) -> list[str]:
    """Lines of one kind, beside the progress of loading."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"edgeprune: {kind}: ")]


def evaluate(folder: Path, out: Path, *files: str, more: tuple[str, ...]) -> list[dict[str, Any]]:
    common = ("--config", str(folder / "data.yaml"), "--model", str(folder / "model"), *QUICK, "--json", str(out))
    assert main(["evaluate", *files, *common, *more]) == 0
    return json.loads(out.read_text(), parse_constant=pytest.fail)["circuits"]


def test_circuits_are_those_of_eap_ig(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--ablation", "zero", "--holds", "circuit", "--split-embedding")
    rows = evaluate(folder, tmp_path / "a.json", PRUNED, EMPTY, more=more)
    assert not said(capsys, "warning")
    for row, name in zip(rows, ("topn_60_abs", "topn_0_abs"), strict=True):
        expected = -torch.tensor(numbers("eap_ig_evaluate")["values"][f"gpt2_{name}/zero"][0][:TESTED]).mean().item()
        found = row["ablations"]["zero"]["measures"]["logit_difference"]["value"]
        assert found == pytest.approx(expected, abs=1e-4)  # the model is float32 here


def test_ablating_positions_is_warned_of(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(folder, tmp_path / "a.json", PRUNED, more=("--ablation", "zero"))
    (line,) = said(capsys, "warning")
    assert "position embedding stays" in line
    assert "--split-embedding" in line
    evaluate(folder, tmp_path / "b.json", PRUNED, more=("--ablation", "interchange"))
    assert not said(capsys, "warning")


def test_a_converted_file_is_warned_of_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_circuit(PRUNED, load_model(str(folder / "model")).graph).circuit.save(tmp_path / "ours.safetensors")
    common = ["--config", str(folder / "data.yaml"), "--model", str(folder / "model"), "--ablation", "mean"]
    files = [str(tmp_path / "ours.safetensors"), str(tmp_path / "all.safetensors")]
    graph = Circuit.load(files[0]).graph
    Circuit(graph, graph.exists, None, {"source_format": "eap-ig-json"}).save(files[1])  # closes nothing
    assert main(["compare", *files, *common]) == 0
    (line,) = said(capsys, "warning")
    assert "ours.safetensors is EAP-IG's" in line
    assert main(["compare", *files, *common, "--split-embedding"]) == 2
    (line,) = said(capsys, "error")
    assert "split_embedding=False" in line


@pytest.mark.parametrize(("ablation", "number"), [("zero", 1), ("mean", 1), ("mean:positional", 0), ("interchange", 0)])
@pytest.mark.parametrize("split", [False, True])
def test_a_reference_is_warned_of_too(
    split: bool, ablation: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = SimpleNamespace(masked=model("gpt2", split=split), ablation=ablation, global_rank=0)
    (circuit,) = CompareToReference(PRUNED)._read(module)
    assert circuit.graph == module.masked.graph
    lines = said(capsys, "warning")
    assert len(lines) == (0 if split else number)
    assert all("set model.split_embedding to true" in line for line in lines)


def test_scores_or_an_empty_circuit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    common = ["--config", str(folder / "data.yaml"), "--model", str(folder / "model"), *QUICK, "--json", str(out)]
    assert main(["evaluate", EMPTY, *common]) == 2
    (line,) = said(capsys, "error")
    assert EMPTY in line
    assert "--holds scores or --holds circuit" in line
    assert not out.exists()
    (row,) = evaluate(folder, out, EMPTY, more=("--holds", "circuit"))
    assert row["edges"] == 0
    capsys.readouterr()
    assert main(["compare", EMPTY, PRUNED, "--model", str(folder / "model"), "--holds", "circuit"]) == 0
    assert "56" in capsys.readouterr().out
