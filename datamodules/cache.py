"""Tokens on disk, so that a second run does not tokenise again: one safetensors file per split.

A file's name is the hash of all that its content depends on, so files are never updated; whatever is damaged
is rebuilt. Files are mapped into memory: a pair is read when it is asked for, and processes share the pages.
"""

import hashlib
import inspect
import json
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datamodules import align, answers, encode, texts
from datamodules.tasks.base import SPLITS, AbstractTask, TokenPair
from edgeprune.errors import EdgepruneError
from edgeprune.paths import cache_root, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # raise it when the layout of the files changes
HASH_BLOCK = 1 << 17  # values hashed at a time: 1 MiB as 64-bit integers
Splits = Mapping[str, Sequence[TokenPair]]
Column = NDArray[np.int32]

BASE_COLUMNS = ("num_tokens", "num_positions", "clean", "corrupted", "positions", "targets", "distractors")
SET_COLUMNS = ("answers", "wrong_answers")
ROLE = "role:"  # begins the name of a column of spans


# -------------------------------------------------------------------- which file
def cache_folder(cache_dir: str | None) -> Path:
    """Folder of the token files: under `cache_dir`, `$EDGEPRUNE_CACHE` or `~/.cache/edgeprune`."""
    return cache_root(cache_dir) / "tokens"


def cache_key(
    task: AbstractTask,
    tokenizer: "PreTrainedTokenizerBase | None",
    add_special_tokens: bool | None,
    unequal_lengths: str = "error",
) -> str | None:
    """Hash of everything that the tokens depend on; None where the code is not known."""
    fingerprint = task.fingerprint()
    try:
        encoding = [inspect.getsource(module) for module in (encode, answers, align, texts)]
    except OSError:  # installed without sources
        return None
    if fingerprint is None:
        return None
    parts = [
        FORMAT,
        task.description(),
        fingerprint,
        encoding,
        tokenizer_identity(tokenizer),
        add_special_tokens,
        unequal_lengths,
        task.single_token_answers,
    ]
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


# -------------------------------------------------------------------- writing and opening
def load_or_build(folder: Path, key: str, build: Callable[[], Splits]) -> Splits:
    """The splits kept under `key`, or else those that `build` makes, which are then kept."""
    paths = {split: folder / f"{key}-{split}.safetensors" for split in SPLITS}
    found = _load_all(paths)
    if found is not None:
        return found
    built = build()
    try:
        for split, path in paths.items():
            save_pairs(path, built[split])
    except (OSError, SafetensorError) as error:
        warnings.warn(f"tokens are not cached, {folder} cannot be written ({error}); set cache_dir", stacklevel=2)
        return built
    return _load_all(paths) or built


def _load_all(paths: Mapping[str, Path]) -> Splits | None:
    found: dict[str, Sequence[TokenPair]] = {}
    for split, path in paths.items():
        pairs = load_pairs(path)
        if pairs is None:
            return None
        found[split] = pairs
    return found


def save_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    """Write pairs to `path`; a reader sees the whole file or none."""
    columns = pack(pairs)
    with whole_file(path) as partial:
        save_file(columns, partial, metadata={"sha256": _hash(columns)})


def load_pairs(path: Path) -> "KeptPairs | None":
    """Pairs that `save_pairs` wrote to `path`; None if there are none or the file is damaged."""
    with suppress(OSError, SafetensorError, KeyError, ValueError):
        pairs = KeptPairs(path)
        return pairs if pairs.is_whole() else None
    return None


@final
class KeptPairs(Sequence[TokenPair]):
    """Pairs in a file that `save_pairs` wrote, each made when it is asked for.

    A copy that goes to another process is the path alone.

    Args:
        path: The file.

    Attributes:
        path: The file.
        sha256: `content_hash` of the pairs, as recorded when they were written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns, metadata = _map_columns(path)
        self.sha256 = metadata["sha256"]
        columns = self.columns
        tokens, positions = columns["num_tokens"], columns["num_positions"]
        self._clean = _Rows(columns["clean"], tokens)
        self._corrupted = _Rows(columns["corrupted"], columns.get("num_corrupted", tokens))
        self._scored = tuple(_Rows(columns[name], positions) for name in ("positions", "targets", "distractors"))
        self._sets = {
            name: (_Rows(columns[name], columns[f"num_{name}"]), _starts(columns[f"num_{name}_sets"]))
            for name in SET_COLUMNS
            if name in columns
        }
        self._alignment = _Rows(columns["alignment"], columns["num_alignment"]) if "alignment" in columns else None
        self._roles = {
            json.loads(name.removeprefix(ROLE)): values.reshape(-1, 2)
            for name, values in columns.items()
            if name.startswith(ROLE)
        }

    def is_whole(self) -> bool:
        """Whether the file holds what was written to it; reads all of it."""
        return _hash(self.columns) == self.sha256

    def __len__(self) -> int:
        return len(self.columns["num_tokens"])

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        """One pair, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self._pair(i) for i in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"pair {number} of {len(self)}")
        return self._pair(number % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path,)

    def _pair(self, i: int) -> TokenPair:
        positions, targets, distractors = (rows[i] for rows in self._scored)
        return TokenPair(
            clean=self._clean[i],
            corrupted=self._corrupted[i],
            positions=positions,
            targets=targets,
            distractors=distractors,
            answers=self._sets_of("answers", i),
            wrong_answers=self._sets_of("wrong_answers", i),
            roles={
                name: (int(spans[i, 0]), int(spans[i, 1])) for name, spans in self._roles.items() if spans[i, 0] >= 0
            },
            alignment=() if self._alignment is None else self._alignment[i],
        )

    def _sets_of(self, name: str, i: int) -> tuple[tuple[int, ...], ...]:
        if name not in self._sets:
            return ()
        rows, starts = self._sets[name]
        return tuple(rows[j] for j in range(starts[i], starts[i + 1]))


def _reopen(path: Path) -> KeptPairs:
    """The same pairs in another process; they were found whole when the data module opened them."""
    try:
        return KeptPairs(path)
    except (OSError, SafetensorError) as error:
        raise EdgepruneError(f"the cached tokens {path} are gone ({error}); start again, to make them anew") from None


@final
class _Rows:
    """Rows of different length, end to end."""

    def __init__(self, values: Column, lengths: Column) -> None:
        self.values, self.starts = values, _starts(lengths)

    def __getitem__(self, row: int) -> tuple[int, ...]:
        return tuple(self.values[self.starts[row] : self.starts[row + 1]].tolist())


def _starts(lengths: Column) -> NDArray[np.int64]:
    """Where each row begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _map_columns(path: Path) -> tuple[dict[str, Column], dict[str, str]]:
    """The tensors of a safetensors file as arrays that stay on disk, and its metadata."""
    with safe_open(path, framework="pt") as file:  # torch's tensors are mapped, those of numpy copied
        columns: dict[str, Column] = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        metadata: dict[str, str] = file.metadata() or {}
    for column in columns.values():
        column.flags.writeable = False
    return columns, metadata


# -------------------------------------------------------------------- columns and their hash
def content_hash(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 over everything that the pairs hold, in order.

    Answer sets, roles and alignments count only where there are any, so pairs without them keep the hash that they
    had before these were known.
    """
    return pairs.sha256 if isinstance(pairs, KeptPairs) else _hash(pack(pairs))


def _hash(columns: Mapping[str, Column]) -> str:
    digest = hashlib.sha256()
    for name in (*BASE_COLUMNS, *sorted(columns.keys() - set(BASE_COLUMNS))):
        values = columns[name]
        digest.update(f"{name}:{len(values)}:".encode())
        for start in range(0, len(values), HASH_BLOCK):
            digest.update(values[start : start + HASH_BLOCK].astype("<i8").tobytes())
    return digest.hexdigest()


def pack(pairs: Sequence[TokenPair]) -> dict[str, Column]:
    """All pairs end to end: the numbers of tokens, positions, ... of each give the borders.

    A pair's answer sets are cut twice, into sets (`num_answers_sets` per pair) and into tokens (`num_answers` per set).
    A role is one column of first token and the one after the last, -1 and -1 where a pair lacks it. What no pair has
    is left out.
    """
    columns = {
        "num_tokens": _flat([len(pair.clean)] for pair in pairs),
        "num_positions": _flat([len(pair.positions)] for pair in pairs),
        "clean": _flat(pair.clean for pair in pairs),
        "corrupted": _flat(pair.corrupted for pair in pairs),
        "positions": _flat(pair.positions for pair in pairs),
        "targets": _flat(pair.targets for pair in pairs),
        "distractors": _flat(pair.distractors for pair in pairs),
    }
    if any(pair.alignment for pair in pairs):
        columns["num_corrupted"] = _flat([len(pair.corrupted)] for pair in pairs)
        columns["num_alignment"] = _flat([len(pair.alignment)] for pair in pairs)
        columns["alignment"] = _flat(pair.alignment for pair in pairs)
    for name in SET_COLUMNS:
        sets: list[tuple[tuple[int, ...], ...]] = [getattr(pair, name) for pair in pairs]
        if any(sets):
            columns[f"num_{name}_sets"] = _flat([len(row)] for row in sets)
            columns[f"num_{name}"] = _flat([len(ids)] for row in sets for ids in row)
            columns[name] = _flat(ids for row in sets for ids in row)
    for role in {name for pair in pairs for name in pair.roles}:
        columns[ROLE + json.dumps(role)] = _flat(pair.roles.get(role, (-1, -1)) for pair in pairs)
    return columns


def _flat(rows: Iterable[Sequence[int]]) -> Column:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)
