"""Tokens on disk, so that a second run does not tokenise again: one safetensors file per split.

A file's name is the hash of all that its content depends on, so files are never updated; whatever is damaged
is rebuilt.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datamodules.tasks.base import SPLITS, AbstractTask, TokenPair
from edgeprune.paths import cache_root

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # raise it when encoding or file layout change
Splits = Mapping[str, Sequence[TokenPair]]


def cache_folder(cache_dir: str | None) -> Path:
    """Folder of the token files: under `cache_dir`, `$EDGEPRUNE_CACHE` or `~/.cache/edgeprune`."""
    return cache_root(cache_dir) / "tokens"


def cache_key(
    task: AbstractTask, tokenizer: "PreTrainedTokenizerBase | None", add_special_tokens: bool | None
) -> str | None:
    """Hash of everything that the tokens depend on; None if the task cannot tell."""
    fingerprint = task.fingerprint()
    if fingerprint is None:
        return None
    parts = [FORMAT, task.description(), fingerprint, tokenizer_identity(tokenizer), add_special_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """Hash of what the tokenizer does to a text, whatever its name; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("padding", "truncation"):  # set by the latest call, not part of the tokenizer
        rules.pop(passing, None)
    parts = [
        type(tokenizer).__name__,
        rules,
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_or_build(folder: Path, key: str, build: Callable[[], Splits]) -> Splits:
    """The splits kept under `key`, or else those that `build` makes, which are then kept."""
    paths = {split: folder / f"{key}-{split}.safetensors" for split in SPLITS}
    kept = {split: load_pairs(path) for split, path in paths.items()}
    found = {split: pairs for split, pairs in kept.items() if pairs is not None}
    if len(found) == len(SPLITS):
        return found
    built = build()
    try:
        for split, path in paths.items():
            save_pairs(path, built[split])
    except OSError as error:
        warnings.warn(f"tokens are not cached, {folder} cannot be written ({error}); set cache_dir", stacklevel=2)
    return built


def save_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    """Write pairs to `path`; a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    part = Path(name)
    try:
        save_file(_pack(pairs), part, metadata={"sha256": content_hash(pairs)})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_pairs(path: Path) -> list[TokenPair] | None:
    """Pairs that `save_pairs` wrote to `path`; None if there are none or the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            pairs = _unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
            recorded = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return pairs if recorded == content_hash(pairs) else None


def content_hash(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 over all tokens, positions and answers of the pairs, in order."""
    digest = hashlib.sha256()
    for name, values in _pack(pairs).items():
        digest.update(f"{name}:{len(values)}:".encode() + values.astype("<i8").tobytes())
    return digest.hexdigest()


def _pack(pairs: Sequence[TokenPair]) -> dict[str, NDArray[np.int64]]:
    """All pairs end to end: tokens per pair and positions per pair say where to cut."""
    columns = {
        "num_tokens": [len(pair.clean) for pair in pairs],
        "num_positions": [len(pair.positions) for pair in pairs],
        "clean": [token for pair in pairs for token in pair.clean],
        "corrupted": [token for pair in pairs for token in pair.corrupted],
        "positions": [position for pair in pairs for position in pair.positions],
        "targets": [token for pair in pairs for token in pair.targets],
        "distractors": [token for pair in pairs for token in pair.distractors],
    }
    return {name: np.array(values, dtype=np.int64) for name, values in columns.items()}


def _unpack(columns: Mapping[str, NDArray[np.int64]]) -> list[TokenPair]:
    tokens, positions = columns["num_tokens"].tolist(), columns["num_positions"].tolist()
    return [
        TokenPair(*row)
        for row in zip(
            _cut(columns["clean"], tokens),
            _cut(columns["corrupted"], tokens),
            _cut(columns["positions"], positions),
            _cut(columns["targets"], positions),
            _cut(columns["distractors"], positions),
            strict=True,
        )
    ]


def _cut(values: NDArray[np.int64], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    flat: list[int] = values.tolist()
    return [tuple(flat[start:end]) for start, end in pairwise(accumulate(lengths, initial=0))]
