"""Names to models: what loads, what is refused, and the one line that says why."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.loading import fingerprint, load_model, load_tokenizer


def tiny(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(GPT2.tiny()[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    tiny().save_pretrained(path)
    return path


def test_a_compiled_program_loads_with_its_embeddings_apart() -> None:
    model = load_model("compiled:reverse")
    assert model.graph.writers[:2] == ("tok_embed", "pos_embed")
    assert load_model("compiled:reverse", split_embedding=False).graph.writers[0] == "embed"
    assert load_tokenizer("compiled:reverse") is None


def test_a_saved_folder_loads_as_it_was(folder: Path) -> None:
    ids = torch.arange(6)[None]
    model = load_model(str(folder))
    assert torch.equal(model.full(ids), tiny().eval()(ids).logits)
    assert load_model(folder).graph == model.graph  # a path does as well as its text


def test_a_loaded_model_is_taken_as_it_is() -> None:
    hf = tiny()
    assert load_model(hf).hf is hf
    assert not any(parameter.requires_grad for parameter in hf.parameters())


def test_dtype_is_that_of_the_frozen_weights(folder: Path) -> None:
    assert load_model(str(folder)).dtype == torch.float32
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16


def test_the_fingerprint_is_of_the_weights_not_of_the_dtype(folder: Path) -> None:
    mark = fingerprint(load_model(str(folder)))
    assert fingerprint(load_model(str(folder), dtype="bfloat16")) == mark
    assert fingerprint(load_model(tiny(seed=1))) != mark


def refused(name: Any, error: type[EdgepruneError] = EdgepruneError, **options: Any) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(error) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_wrong_dtype_names_the_right_ones() -> None:
    assert "bfloat16" in refused("compiled:reverse", dtype="int8")


def test_an_unknown_program_names_the_known_ones() -> None:
    assert "reverse" in refused("compiled:nope")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(str(tmp_path))


def test_an_unknown_name_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("no-such-model-anywhere")
    assert "'no-such-model-anywhere'" in message
    assert "local folder" in message


def test_a_family_without_an_adapter_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    assert "'bert'" in refused(str(tmp_path), UnsupportedFamilyError)


@pytest.mark.parametrize(("name", "size"), [("smollm2", 93), ("gemma3-270m", 238)])
def test_a_model_of_ours_has_to_be_fetched_first(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    assert f"edgeprune get {name}" in refused(name)
    message = rf"^{name} is not at [^;]*; run `edgeprune get {name}` once \(about {size} MB\)$"
    with pytest.raises(EdgepruneError, match=message):
        load_tokenizer(name)
