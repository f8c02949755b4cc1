"""Folders with a fault: one line that names it, nothing filled in, no code run, no other line on the terminal."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaModel

from edgeprune.cli import main
from edgeprune.errors import EdgepruneError, NoTokenizerError
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.families.gpt_neox import GPTNeoX
from edgeprune.models.families.llama import Llama
from edgeprune.models.loading import load_model, load_tokenizer
from tests.datamodules.conftest import word_tokenizer

UP = "transformer.h.1.mlp.c_fc.weight"
IDS = torch.arange(6)[None]


class Evil:
    """What a pickle may do when it is read: here, leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whole")
    AutoModelForCausalLM.from_config(GPT2.tiny()[0]).save_pretrained(path)
    word_tokenizer(["Mary", "met"]).save_pretrained(path)
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(change_it: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A damage to the weights."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change_it(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def configure(**values: Any) -> Callable[[Path], None]:
    """A damage to the config; None takes a key away."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return damage


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def as_bin(content: Callable[[Path], bytes] | None = None) -> Callable[[Path], None]:
    """Weights as `pytorch_model.bin` alone: those of the folder, or something else."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        if content is not None:
            (folder / "pytorch_model.bin").write_bytes(content(folder))

    return damage


def evil_checkpoint(folder: Path) -> bytes:
    torch.save({UP: Evil(folder / "harmed")}, folder / "other")
    return (folder / "other").read_bytes()


def own_code(folder: Path) -> None:
    configure(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})(folder)
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(folder)!r}, 'harmed').touch()\n")


def in_shards(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def shards(damage: Callable[[Path, dict[str, Any]], object]) -> Callable[[Path], None]:
    """A damage to a folder with several files, or to their index."""

    def both(folder: Path) -> None:
        in_shards(folder)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        damage(folder, index)
        path.write_text(json.dumps(index))

    return both


def second(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def forget_second(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"] = {key: file for key, file in index["weight_map"].items() if file != second(folder).name}


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight is missing": (change(lambda w: w.pop(UP)), f"lacks the weights {UP}, which its config asks for"),
    "a layer is missing": (configure(n_layer=4), r"lacks the weights transformer.h.3.attn.\S+, \S+, \S+ and 9 more, "),
    "a layer too many": (configure(n_layer=2), r"holds the weights transformer.h.2\S+, \S+, \S+ and \d+ more, for "),
    "a weight too many": (
        change(lambda w: w.update({"transformer.h.1.mlp.gate.weight": torch.ones(3)})),
        "holds the weights transformer.h.1.mlp.gate.weight, for which its config has no place",
    ),
    "another shape": (
        change(lambda w: w.update({UP: torch.ones(3, 4)})),
        rf"{UP} is \[3, 4\] instead of \[32, 128\]; correct the config",
    ),
    "NaN": (
        change(lambda w: w[UP].__setitem__((0, 0), torch.nan)),
        f"has weights that are NaN or infinite in float32: {UP}; get the files again$",
    ),
    "infinite": (change(lambda w: w[UP].__setitem__((0, 0), -torch.inf)), f"NaN or infinite in float32: {UP}"),
    "weights cut off": (cut("model.safetensors"), "model.safetensors is damaged: get it again"),
    "weights empty": (put("model.safetensors", b""), "model.safetensors is damaged: get it again"),
    "weights are no weights": (put("model.safetensors", b"x" * 1000), "model.safetensors is damaged: get it again"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a pickle with code": (as_bin(evil_checkpoint), "a .bin file of it holds something else than tensors, and is not"),
    "a bare pickle with code": (
        as_bin(lambda folder: pickle.dumps(Evil(folder / "harmed"))),
        "a .bin file of it holds something else than tensors, and is not run",
    ),
    "an empty .bin": (as_bin(lambda folder: b""), "cannot load model .*is a file missing, damaged"),
    "a .bin cut off": (
        as_bin(lambda folder: (folder / "pytorch_model.bin").read_bytes()[:-2000]),
        "cannot load model .*is a file missing, damaged",
    ),
    "a list in the .bin": (as_bin(lambda folder: pickle.dumps([1], 2)), "cannot load model"),
    "the config is no JSON": (put("config.json", b"{"), "config.json is damaged: get it again"),
    "the config is no text": (put("config.json", b"\xff\xfe\x00"), "config.json is damaged: get it again"),
    "the config is a list": (put("config.json", b"[1]"), "cannot load model .*is a file missing, damaged"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no config.json that names a model_type"),
    "no model_type": (configure(model_type=None), "there is no config.json that names a model_type"),
    "model_type is a list": (configure(model_type=["gpt2"]), "there is no config.json that names a model_type"),
    "an unknown model_type": (configure(model_type="gpt9"), "no adapter for model_type 'gpt9'; known: .*gpt2"),
    "a value of another type": (configure(n_head="x"), "Field 'n_head' expected int, got str"),
    "a value that cannot be": (configure(n_head=5), "must be divisible by num_heads"),
    "a negative size": (configure(n_embd=-4), "negative dimension"),
    "an unknown activation": (configure(activation_function="nope"), "KeyError: 'nope'"),
    "quantised, and not to be read": (
        configure(quantization_config={"quant_method": "gptq", "bits": 4}),
        "give a copy that is not quantised",
    ),
    "code of its own": (own_code, "no adapter for model_type 'own'"),
    "a shard is missing": (shards(lambda folder, _: second(folder).unlink()), "model-00002-of-.*is a file missing"),
    "a shard is cut off": (shards(lambda folder, _: cut(second(folder).name)(folder)), "model-00002-of-.* is damaged"),
    "the index lacks a shard": (shards(forget_second), "lacks the weights transformer.h.*which its config asks for"),
    "the index is empty": (shards(lambda _, index: index.clear()), "KeyError: 'weight_map'"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_one_line_names_the_fault(
    folder: Path, damage: Callable[[Path], object], said: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    damage(folder)
    capfd.readouterr()
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    with pytest.raises(EdgepruneError, match=said) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    assert "model_type" in message or str(folder) in message
    assert capfd.readouterr() == ("", "")
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize("name", ["a weight is missing", "weights cut off", "NaN", "a pickle with code"])
def test_the_command_line_says_one_line_and_writes_nothing(
    folder: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, said = DAMAGED[name]
    damage(folder)
    capfd.readouterr()
    out = folder.parent / "out"
    arguments = ["--method", "EAPIG", "--data.task", "CompiledTask", "--data.task.program", "reverse"]
    assert main(["discover", "--model.name", str(folder), *arguments, "--out", str(out)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("edgeprune: error: ")
    assert re.search(said, line)
    assert not out.exists()


def test_weights_too_large_for_the_dtype_are_named(folder: Path) -> None:
    change(lambda weights: weights[UP].__setitem__((0, 0), 1e5))(folder)
    load_model(folder)
    with pytest.raises(EdgepruneError, match=rf"infinite in float16: {UP}; .* set dtype to bfloat16 or float32"):
        load_model(folder, dtype="float16")


def test_a_loaded_model_with_nan_is_refused() -> None:
    hf = AutoModelForCausalLM.from_config(Llama.tiny()[0])
    with torch.no_grad():
        hf.model.norm.weight[3] = torch.nan
    with pytest.raises(EdgepruneError, match=r"^the LlamaForCausalLM given has weights .*: model.norm.weight; "):
        load_model(hf)


def test_what_is_not_installed_is_named(folder: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"^cannot load model .*Flash.*; install what is missing, or choose"):
        load_model(folder, attn_implementation="flash_attention_2")
    with pytest.raises(EdgepruneError, match=r"^attn_implementation must be one of eager, sdpa, .*, got 'nope'$"):
        load_model(folder, attn_implementation="nope")


# -------------------------------------------------------------------- nothing that is right is refused
@pytest.mark.parametrize("config", [GPT2.tiny()[0], *Llama.tiny()[:2]], ids=["gpt2", "llama", "tied llama"])
def test_weights_that_files_need_not_hold(tmp_path: Path, config: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Tied weights once, computed buffers not at all, in one file or several, safe or not."""
    hf = AutoModelForCausalLM.from_config(config).eval()
    expected = hf(IDS).logits
    hf.save_pretrained(tmp_path / "one")
    hf.save_pretrained(tmp_path / "several", max_shard_size="30KB")
    shutil.copytree(tmp_path / "one", tmp_path / "bin")
    as_bin()(tmp_path / "bin")
    capfd.readouterr()
    for name in ("one", "several", "bin"):
        assert torch.equal(load_model(tmp_path / name).full(IDS), expected)
    assert capfd.readouterr() == ("", "")


def test_buffers_of_earlier_releases_are_let_be(folder: Path) -> None:
    old = {"attn.masked_bias": torch.tensor(-1e4), "attn.bias": torch.ones(1, 1, 32, 32)}
    expected = load_model(folder).full(IDS)
    change(lambda weights: weights.update({f"transformer.h.1.{key}": value for key, value in old.items()}))(folder)
    assert torch.equal(load_model(folder).full(IDS), expected)


def test_pythia_as_it_was_published(tmp_path: Path) -> None:
    """Its files have the head under an earlier name, and buffers that are computed by now."""
    hf = AutoModelForCausalLM.from_config(GPTNeoX.tiny()[0]).eval()
    hf.save_pretrained(tmp_path)
    old = {"bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8), "masked_bias": torch.tensor(-1e9)}
    old["rotary_emb.inv_freq"] = torch.ones(1)

    def as_published(weights: dict[str, torch.Tensor]) -> None:
        weights["embed_out.weight"] = weights.pop("lm_head.weight", weights.get("embed_out.weight"))
        weights.update({f"gpt_neox.layers.1.attention.{key}": value for key, value in old.items()})

    change(as_published)(tmp_path)
    assert torch.equal(load_model(tmp_path).full(IDS), hf(IDS).logits)


def test_the_head_of_another_task_is_left_out_and_said(folder: Path) -> None:
    expected = load_model(folder).full(IDS)
    change(lambda weights: weights.update({"score.weight": torch.ones(2, 32)}))(folder)
    with pytest.warns(UserWarning, match=r"a language model has no place for score.weight, left out"):
        assert torch.equal(load_model(folder).full(IDS), expected)


def test_a_body_without_its_head(tmp_path: Path) -> None:
    config = LlamaConfig(**{**Llama.tiny()[0].to_diff_dict(), "tie_word_embeddings": False})
    LlamaModel(config).save_pretrained(tmp_path)
    with pytest.raises(EdgepruneError, match=r"lacks the weights lm_head.weight, which its config asks for"):
        load_model(tmp_path)
    tied = LlamaModel(LlamaConfig(**{**config.to_diff_dict(), "tie_word_embeddings": True}))
    tied.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path).hf.lm_head.weight, tied.embed_tokens.weight)


# -------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "", "x" * 300, "no such model", "../no-such-runs"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_can_be_no_hub_id(load: Callable[[str], Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.models.pretrained.unreachable", None)  # not asked
    with pytest.raises(EdgepruneError, match=r"^there is no folder '[^']{0,80}', and no model on a hub can have this"):
        load(name)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_file_is_no_folder(load: Callable[[str], Any], folder: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"model.safetensors' is a file; give the folder that it lies in"):
        load(str(folder / "model.safetensors"))


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2)], ids=["None", "3", "Linear"])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(
        EdgepruneError, match=r"^a model is given by its name or as a PreTrainedModel or HookedTransformer, got \w+$"
    ):
        load_model(given)


# -------------------------------------------------------------------- tokenizers
BAD_TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (put("tokenizer.json", b"{"), "tokenizer.json is damaged: get it again"),
    "empty": (put("tokenizer.json", b""), "tokenizer.json is damaged: get it again"),
    "another format": (put("tokenizer.json", b"{}"), "is a file missing, damaged"),
    "its config is no JSON": (put("tokenizer_config.json", b"{"), "tokenizer_config.json is damaged: get it again"),
    "its config is a list": (put("tokenizer_config.json", b"[]"), "is a file missing, damaged"),
}


@pytest.mark.parametrize(("damage", "said"), BAD_TOKENIZERS.values(), ids=BAD_TOKENIZERS)
def test_a_damaged_tokenizer_is_one_line(
    folder: Path, damage: Callable[[Path], object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(EdgepruneError, match=rf"^no tokenizer at '[^']*model': [^\n]*; {said}[^\n]*$"):
        load_tokenizer(str(folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("config", [GPT2.tiny()[0], *Llama.tiny()[1:4]], ids=lambda config: config.model_type)
def test_a_model_without_a_tokenizer_has_none(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(NoTokenizerError, match=r"it has no files with a vocabulary, such as tokenizer.json; save one"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_of_its_own_code_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    own_code(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EdgepruneError, match=r"^no tokenizer at [^\n]*$"):
        load_tokenizer(str(folder))
    assert not (folder / "harmed").exists()
