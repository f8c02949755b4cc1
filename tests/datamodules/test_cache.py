from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import IOI, TokenPair
from datamodules.cache import (
    cache_folder,
    cache_key,
    content_hash,
    load_or_build,
    load_pairs,
    save_pairs,
    tokenizer_identity,
)
from edgeprune.batch import IGNORE
from tests.datamodules.conftest import word_tokenizer

PAIRS = [
    TokenPair((1, 2, 3), (1, 5, 3), (2,), (7,), (8,)),
    TokenPair((4,), (6,), (0, 0), (9, IGNORE), (IGNORE, IGNORE)),
]
SPLITS = {"train": PAIRS, "validation": PAIRS[:1], "test": []}


def test_pairs_survive_the_disk(tmp_path: Path) -> None:
    for split, pairs in SPLITS.items():
        save_pairs(tmp_path / "deep" / split, pairs)
        assert load_pairs(tmp_path / "deep" / split) == pairs
    assert len(list((tmp_path / "deep").iterdir())) == 3  # no temporary file stays


def test_second_call_reads_the_files(tmp_path: Path) -> None:
    assert load_or_build(tmp_path, "key", lambda: SPLITS) == SPLITS
    assert load_or_build(tmp_path, "key", lambda: pytest.fail("built again")) == SPLITS


@pytest.mark.parametrize("damage", ["short", "text", "bit", "gone"])
def test_damaged_files_are_rebuilt(tmp_path: Path, damage: str) -> None:
    load_or_build(tmp_path, "key", lambda: SPLITS)
    path = tmp_path / "key-train.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= damage == "bit"
        path.write_bytes({"short": data[:-9], "text": b"not a token file", "bit": data}[damage])
    assert load_pairs(path) is None
    built: list[int] = []
    load_or_build(tmp_path, "key", lambda: built.append(1) or SPLITS)
    assert built == [1]
    assert load_pairs(path) == PAIRS


def test_folder_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="tokens are not cached.*set cache_dir"):
        assert load_or_build(tmp_path / "file", "key", lambda: SPLITS) == SPLITS


def test_key_follows_task_tokenizer_and_option() -> None:
    names = ["Mary", "John"]
    tokenizers = [word_tokenizer(names), word_tokenizer(names[::-1]), word_tokenizer(names, bos=True), None]
    keys = [cache_key(IOI(), tokenizer, None) for tokenizer in tokenizers]
    keys += [cache_key(IOI(seed=1), None, None), cache_key(IOI(), None, add_special_tokens=True)]
    assert len(set(keys)) == 6
    assert cache_key(IOI(), word_tokenizer(names), None) == keys[0]


def test_identity_does_not_depend_on_earlier_calls(words: PreTrainedTokenizerBase) -> None:
    before = tokenizer_identity(words)
    words(["Mary", "Mary and"], padding=True, truncation=True, max_length=1)
    assert tokenizer_identity(words) == before


def test_folder_is_given_by_argument_then_environment_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", "/from/env")
    assert cache_folder("/given") == Path("/given/tokens")
    assert cache_folder(None) == Path("/from/env/tokens")
    monkeypatch.delenv("EDGEPRUNE_CACHE")
    assert cache_folder(None) == Path.home() / ".cache/edgeprune/tokens"


def test_hash_sees_every_token_and_every_border() -> None:
    cut = [TokenPair((1, 2), (3, 4), (0,), (5,), (6,)), TokenPair((1,), (3,), (0,), (5,), (6,))]
    moved = [TokenPair((1,), (3,), (0,), (5,), (6,)), TokenPair((2, 1), (4, 3), (0,), (5,), (6,))]
    assert len({content_hash(pairs) for pairs in (PAIRS, PAIRS[:1], PAIRS[::-1], [], cut, moved)}) == 6
