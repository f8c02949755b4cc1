import hashlib
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import IOI, TokenPair
from datamodules.cache import (
    KeptPairs,
    cache_folder,
    cache_key,
    content_hash,
    load_or_build,
    load_pairs,
    save_pairs,
    tokenizer_identity,
)
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError
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


# -------------------------------------------------------------------- what may be in a pair
EQUAL = TokenPair((1, 2, 3), (1, 5, 3), (2,), (7,), (8,), ((7, 9),), ((8,),), {"io": (0, 2)})
RAGGED = TokenPair(
    (1, 2, 3),
    (1, 5, 3, 4, 6),
    (1, 2),
    (7, 9),
    (8, IGNORE),
    answers=((7, 9, 4, 5), (9,)),
    wrong_answers=((8,), ()),
    roles={"s": (0, 1), 'a "quoted: näme"': (1, 3)},
    alignment=(1, 3, 4),
)
SOME = TokenPair((1, 2), (3, 2), (1,), (7,), (8,), wrong_answers=((8, 9),), alignment=(0, 0))
EVERYTHING = [EQUAL, PAIRS[0], RAGGED, SOME, PAIRS[1]]


@pytest.mark.parametrize("pairs", [EVERYTHING, [EQUAL], [RAGGED], [SOME, SOME], EVERYTHING * 3, []])
def test_every_field_survives_the_disk(tmp_path: Path, pairs: list[TokenPair]) -> None:
    save_pairs(tmp_path / "pairs", pairs)
    kept = load_pairs(tmp_path / "pairs")
    assert kept is not None
    assert list(kept) == pairs
    assert content_hash(kept) == content_hash(pairs)


def test_kept_pairs_are_a_sequence(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs", EVERYTHING)
    kept = load_pairs(tmp_path / "pairs")
    assert kept is not None
    assert len(kept) == 5
    assert kept[-1] == EVERYTHING[-1]
    assert kept[np.int64(2)] == EVERYTHING[2]
    assert kept[1:4] == EVERYTHING[1:4]
    assert kept[::-2] == EVERYTHING[::-2]
    assert kept[3:100] == EVERYTHING[3:]
    assert kept == EVERYTHING
    assert kept != EVERYTHING[:4]
    assert kept != [*EVERYTHING[:4], EQUAL]
    assert kept != 5
    assert SOME in kept
    for wrong in (5, -6):
        with pytest.raises(IndexError, match=f"pair {wrong} of 5"):
            kept[wrong]


def test_kept_pairs_stay_on_disk_and_travel_as_a_path(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs", EVERYTHING * 1000)
    kept = load_pairs(tmp_path / "pairs")
    assert kept is not None
    assert not any(column.flags.owndata or column.flags.writeable for column in kept.columns.values())
    sent = pickle.dumps(kept)
    assert len(sent) < 500
    assert pickle.loads(sent) == kept
    (tmp_path / "pairs").unlink()
    assert kept[2] == RAGGED  # an open file outlives its name
    with pytest.raises(EdgepruneError, match=r"are gone .* start again"):
        pickle.loads(sent)


def test_pairs_that_were_just_built_are_read_from_the_file(tmp_path: Path) -> None:
    built = load_or_build(tmp_path, "key", lambda: {"train": EVERYTHING, "validation": [], "test": [SOME]})
    assert all(isinstance(pairs, KeptPairs) for pairs in built.values())
    assert built == {"train": EVERYTHING, "validation": [], "test": [SOME]}


def test_a_changed_or_cut_file_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pairs"
    save_pairs(path, EVERYTHING)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        kept = load_pairs(path)
        assert kept is None or kept == EVERYTHING, place  # white space that fills the header may change
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert load_pairs(path) is None, length


def test_two_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def write() -> None:
        start.wait()
        for _ in range(20):
            save_pairs(tmp_path / "pairs", EVERYTHING)
            assert load_pairs(tmp_path / "pairs") == EVERYTHING

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write) for _ in range(4)]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pairs(tmp_path / "pairs", PAIRS)

    def half(columns: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("datamodules.cache.save_file", half)
    with pytest.raises(OSError, match="no space"):
        save_pairs(tmp_path / "pairs", EVERYTHING)
    assert load_pairs(tmp_path / "pairs") == PAIRS
    assert len(list(tmp_path.iterdir())) == 1


# -------------------------------------------------------------------- hashes
def test_hash_of_plain_pairs_is_what_it_always_was() -> None:
    columns = {
        "num_tokens": [3, 1],
        "num_positions": [1, 2],
        "clean": [1, 2, 3, 4],
        "corrupted": [1, 5, 3, 6],
        "positions": [2, 0, 0],
        "targets": [7, 9, IGNORE],
        "distractors": [8, IGNORE, IGNORE],
    }
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(f"{name}:{len(values)}:".encode())
        digest.update(b"".join(value.to_bytes(8, "little", signed=True) for value in values))
    assert content_hash(PAIRS) == digest.hexdigest()


def test_hash_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content_hash(EVERYTHING)
    monkeypatch.setattr("datamodules.cache.HASH_BLOCK", 2)
    assert content_hash(EVERYTHING) == whole


def test_hash_sees_every_field() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"answers": ((7, 9, 4), (5, 9))},
        {"answers": ((7, 9, 4, 6), (9,))},
        {"answers": ()},
        {"wrong_answers": ((8,), (4,))},
        {"wrong_answers": ()},
        {"roles": {"s": (0, 1)}},
        {"roles": {"t": (0, 1), 'a "quoted: näme"': (1, 3)}},
        {"roles": {"s": (0, 2), 'a "quoted: näme"': (1, 3)}},
        {"roles": {}},
        {"alignment": (2, 3, 4)},
        {"corrupted": (1, 5, 3, 4, 7)},
        {"corrupted": (1, 5, 3, 4, 6, 6)},
    ]
    assert len({content_hash([SOME, replace(RAGGED, **change)]) for change in changes}) == len(changes)


def test_hash_does_not_see_the_order_of_roles() -> None:
    other = replace(RAGGED, roles=dict(reversed(RAGGED.roles.items())))
    assert content_hash([other]) == content_hash([RAGGED])


@pytest.mark.parametrize("module", ["encode", "answers", "align", "texts"])
def test_key_follows_the_code_that_makes_tokens(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    before, source = cache_key(IOI(), None, None), inspect.getsource
    monkeypatch.setattr(
        "inspect.getsource", lambda item: source(item) + "#" * (item.__name__ == f"datamodules.{module}")
    )
    assert cache_key(IOI(), None, None) not in (before, None)


def test_key_follows_what_is_done_about_lengths() -> None:
    keys = {cache_key(IOI(), None, None, choice) for choice in ("error", "end", "roles")}
    assert len(keys) == 3
    assert cache_key(IOI(), None, None) in keys
