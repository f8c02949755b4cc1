"""`edgeprune across` on tiny models of two families that read the same prompts with other tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.comparison.overlap import compare_circuits
from edgeprune.models.loading import load_model
from tests.files import outside

WORDS = ["[UNK]", "[PAD]", *"abcdefgh"]
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1}
LLAMA = {
    **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16},
    **{"intermediate_size": 8, "bos_token_id": 1, "eos_token_id": 1},
}
MODELS: dict[str, Any] = {
    "gpt2": lambda **more: GPT2Config(**{**GPT2, **more}),
    "tuned": lambda **more: GPT2Config(**{**GPT2, **more}),
    "llama": lambda **more: LlamaConfig(**{**LLAMA, **more}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with tokenizers of other numberings, a circuit of each, and pairs with roles."""
    folder = tmp_path_factory.mktemp("across")
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config(vocab_size=len(WORDS))).save_pretrained(folder / name)
        words = WORDS if name != "llama" else [*WORDS[:2], *reversed(WORDS[2:])]
        backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
        backend.pre_tokenizer = Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
        tokenizer.save_pretrained(folder / name)
        graph = load_model(str(folder / name)).graph
        circuit = Circuit.random(graph, 15, seed)
        circuit.header.update(model=str(folder / name), ablation="zero" if name == "llama" else "interchange")
        circuit.save(folder / f"{name}.safetensors")
    letters = WORDS[2:]
    prompts = [
        {
            "clean": f"{one} {two} c {two}",
            "corrupt": f"{two} {one} c {two}",
            "answers": [f" {one}"],
            "wrong_answers": [f" {two}"],
        }
        for one in letters[:5]
        for two in letters[5:]
    ]
    content = {"word_idxs": {"IO": 0, "S1": 1, "end": 3}, "prompts": prompts}
    (folder / "pairs.json").write_text(json.dumps(content))
    task = {
        "class_path": "AutoCircuitTask",
        "init_args": {"path": str(folder / "pairs.json"), "test_fraction": 0.5, "validation_fraction": 0.2},
    }
    data = {"task": task, "tokenizer": str(folder / "gpt2"), "cache_dir": str(folder)}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line beside the progress of loading."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
    assert line.startswith("edgeprune: error: ")
    return line


def across(folder: Path, first: str, second: str, *more: str) -> int:
    files = [str(folder / f"{name}.safetensors") for name in (first, second)]
    return main(["across", *files, "--config", str(folder / "data.yaml"), "--seeds", "2", *more])


def test_models_of_two_families(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    page = tmp_path / "page.html"
    assert across(folder, "gpt2", "llama", "--json", str(out), "--report", str(page)) == 0
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [row["model"] for row in result["circuits"]] == [str(folder / "gpt2"), str(folder / "llama")]
    assert [row["ablation"] for row in result["circuits"]] == ["interchange", "zero"]
    assert (result["overlap"], result["transfers"]) == (None, [])
    matches = result["roles"]["one_to_one"]["matches"]
    assert 0 < len(matches) <= 4
    assert len(result["roles"]["importance"]["random"]) == 2
    performance = result["performance"]
    assert (performance["unit"], performance["num_units"]) == ("example", result["circuits"][0]["num_examples"])
    shown = capsys.readouterr().out
    for text in ("Heads matched by what they attend to", "Share of each role", "mean similarity", "the graphs differ"):
        assert text in shown
    for value in (*performance["figures"], *performance["faithfulness"], performance["pearson"]):
        assert f"{value:.3f}" in shown
    assert "Transfer" not in shown
    text = page.read_text()
    for heading in ("Two circuits", "What heads attend to", "Matched heads", "Which parts matter"):
        assert f'-title">{heading}</h2>' in text
    assert '<h2 id="transfer-title">' not in text
    for name in (*result["roles"]["profiles"][0]["heads"], *result["roles"]["profiles"][1]["heads"]):
        assert f'data-sort="{name}"' in text


def test_random_circuits_run_beside(folder: Path, tmp_path: Path) -> None:
    """Random circuits of the same size are run in each model; their faithfulness is normalised as the circuits' is."""
    out, evaluated = tmp_path / "out.json", tmp_path / "evaluated.json"
    assert across(folder, "gpt2", "llama", "--json", str(out), "--limit", "5") == 0
    result = json.loads(out.read_text())
    first = Circuit.load(folder / "gpt2.safetensors")
    files = [tmp_path / f"random{seed}.safetensors" for seed in range(2)]
    for seed, file in enumerate(files):
        drawn = Circuit.random(first.graph, first.num_edges, seed)
        drawn.header.update(model=first.header["model"])
        drawn.save(file)
    common = ["--config", str(folder / "data.yaml"), "--limit", "5", "--seeds", "1", "--draws", "5"]
    assert main(["evaluate", *map(str, files), *common, "--json", str(evaluated)]) == 0
    measured = json.loads(evaluated.read_text())

    def value(measures: Any) -> float:
        return measures["logit_difference"]["value"]

    figures = [value(one["ablations"]["interchange"]["measures"]) for one in measured["circuits"]]
    assert result["random_figures"][0] == pytest.approx(figures, rel=1e-5)
    full, empty = (value(measured["ends"]["interchange"][end]) for end in ("full", "empty"))
    shares = [(figure - empty) / (full - empty) for figure in figures]
    assert result["random_faithfulness"][0] == pytest.approx(shares, rel=1e-4)


def test_pages_are_called_pages(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert across(folder, "gpt2", "llama", "--report", str(tmp_path / "page.txt")) == 2
    assert "a page ends in .html or .htm" in error_line(capsys)


def test_models_of_one_graph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of a circuit where it was found are those of `evaluate`; edges are compared, and circuits exchanged."""
    out, evaluated = tmp_path / "out.json", tmp_path / "evaluated.json"
    assert across(folder, "gpt2", "tuned", "--json", str(out), "--limit", "5") == 0
    shown = capsys.readouterr().out
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    pair = [Circuit.load(folder / f"{name}.safetensors") for name in ("gpt2", "tuned")]
    assert result["overlap"] == compare_circuits(*pair)
    assert [(one["circuit"], one["place"]) for one in result["transfers"]] == [
        (circuit, place) for place in "AB" for circuit in "AB"
    ]
    for text in ("edges in common", "Transfer: each circuit in each model"):
        assert text in shown
    common = ["--config", str(folder / "data.yaml"), "--limit", "5", "--seeds", "1", "--draws", "5"]
    assert main(["evaluate", str(folder / "gpt2.safetensors"), *common, "--json", str(evaluated)]) == 0
    measures = json.loads(evaluated.read_text())["circuits"][0]["ablations"]["interchange"]["measures"]
    figure = measures["logit_difference"]["value"]
    assert result["performance"]["figures"][0] == pytest.approx(figure, rel=1e-5)
    assert result["transfers"][0]["figures"]["logit_difference"] == pytest.approx(figure, rel=1e-5)
    moved = result["transfers"][1]
    assert moved["original"] == result["transfers"][0]["figures"]
    assert moved["figures"]["logit_difference"] != pytest.approx(figure, rel=1e-5)


def test_prompts_that_depend_on_the_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greater-than takes other years for other tokenizers: examples are refused, labels are compared."""
    for name in ("gpt2", "pythia"):
        tokenizer = AutoTokenizer.from_pretrained(outside(f"tokenizers/{name}"))
        tokenizer.save_pretrained(tmp_path / name)
        config = GPT2Config(**{**GPT2, "n_positions": 40}, vocab_size=len(tokenizer))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        circuit = Circuit.random(load_model(str(tmp_path / name)).graph, 30)
        circuit.header.update(model=str(tmp_path / name))
        circuit.save(tmp_path / f"{name}.safetensors")
    sizes = {"num_train": 4, "num_validation": 4, "num_test": 12}
    task = {"class_path": "GreaterThan", "init_args": sizes}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": {"task": task, "cache": False}}))
    capsys.readouterr()
    assert across(tmp_path, "gpt2", "pythia") == 2
    assert (
        "are not the same, so examples cannot be compared one by one; give --labels, of noun, verb, century, year"
        in (capsys.readouterr().err.splitlines()[-1])
    )
    assert across(tmp_path, "gpt2", "pythia", "--labels", "century,nothing") == 2
    assert "--labels nothing: the pairs' labels are noun, verb, century, year" in error_line(capsys)
    out = tmp_path / "out.json"
    assert across(tmp_path, "gpt2", "pythia", "--labels", "century, verb", "--json", str(out)) == 0
    assert json.loads(out.read_text())["performance"]["unit"] == "label"
    assert "labels: Pearson" in capsys.readouterr().out


MISTAKES = {
    "no file": (["NONE.safetensors"], "no circuit file at NONE.safetensors"),
    "damaged file": (["BROKEN"], "BROKEN"),
    "no seeds": (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    "no pairs": (["--limit", "0"], "--limit must be at least 1, got 0"),
    "no such measure": (["--measure", "beauty"], "'beauty'"),
    "no such ablation": (["--ablation", "beauty"], "'beauty'"),
    "no such model": (["--models", "nowhere/a", "nowhere/b"], "nowhere/a"),
    "another model": (["--models", "LLAMA", "LLAMA"], "num_layers=2"),
    "no labels": (["--labels", "template"], "--labels template: the pairs' labels are none"),
    "no config": (["--config", "missing.yaml"], "missing.yaml"),
    "no folder": (["--json", "missing/out.json"], "there is no folder missing"),
}


@pytest.mark.parametrize(("more", "named"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    good = str(folder / "gpt2.safetensors")
    broken = tmp_path / "BROKEN.safetensors"
    broken.write_bytes(Path(good).read_bytes()[:100])
    more = [{"LLAMA": str(folder / "llama"), "BROKEN": str(broken)}.get(word, word) for word in more]
    second = [] if not more[0].endswith(".safetensors") else [more.pop(0)]
    files = [good, *(second or [good])]
    capsys.readouterr()
    assert main(["across", *files, "--config", str(folder / "data.yaml"), *more]) == 2
    assert named in error_line(capsys)


def test_two_files_are_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["across", str(folder / "gpt2.safetensors"), "--config", str(folder / "data.yaml")]) == 2
    assert "required: B" in error_line(capsys)
