"""Gemma-3 in GGUF form becomes the ordinary folder: norms without the 1 that the file adds, and a tokenizer by merges.

Releases of transformers differ in what they make of the tokenizer, so ours is built from the vocabulary; the rule of
sentencepiece, spelled out here, is what it has to agree with.
"""

import dataclasses
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeprune import downloads
from edgeprune.console import ProgressReporter
from edgeprune.models.fetched import MODELS

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from tests.models.tiny_gguf import GEMMA_TOKENS, write_gemma_gguf

IDS = {token: position for position, token in enumerate(GEMMA_TOKENS)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The model, and the folder that its GGUF file was unpacked to."""
    root = tmp_path_factory.mktemp("gemma")
    expected = write_gemma_gguf(root / "tiny.gguf")
    model = dataclasses.replace(MODELS["gemma3-270m"], folder="tiny")
    downloads._dequantise(model, root / "tiny.gguf", root / "model", ProgressReporter(quiet=True))
    return expected, root / "model"


def test_weights_and_config_are_those_of_the_model(written: tuple[Any, Path]) -> None:
    expected, folder = written
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for flag in ("layer_types", "head_dim", "sliding_window", "query_pre_attn_scalar", "rope_parameters"):
        assert getattr(model.config, flag) == getattr(expected.config, flag), flag
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def pieces(text: str) -> list[int]:
    """Join the two neighbours whose token comes first in the vocabulary, the leftmost ones, until none can be."""
    parts = list(text.replace(" ", "\u2581"))
    while True:
        joins = [(IDS[left + right], at) for at, (left, right) in enumerate(pairwise(parts)) if left + right in IDS]
        if not joins:
            break
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        token
        for part in parts
        for token in ([IDS[part]] if part in IDS else [IDS[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


def test_text_is_cut_as_sentencepiece_does(written: tuple[Any, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written[1])
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("abc\u00e9") + draw.choice(["", "", " "]) for _ in range(draw.randint(1, 12)))
        assert tokenizer(text).input_ids == [IDS["<bos>"], *pieces(text)], text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("<b>a", ["<b>", "a"]),
        ("a<mark>b", ["a", "<mark>", "b"]),
        ("a  b   c", ["a", "\u2581\u2581", "b", "\u2581\u2581\u2581", "c"]),
        ("a < b", ["a", "\u2581", "<", "\u2581", "b"]),
    ],
)
def test_tokens_of_the_file_stay_whole(written: tuple[Any, Path], text: str, tokens: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written[1])
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == ["<bos>", *tokens]
    assert tokenizer.padding_side == "left"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert len(tokenizer) == len(GEMMA_TOKENS)
