"""Pairs from a Hugging Face data set: a folder that `save_to_disk` wrote, a folder of data files, or a hub name.

Which column holds what is said by a path: `prompt` is a column, `counterfactual.prompt` a field inside one,
`choices.0` the first entry of a list, and `choices.{answerKey}` the entry whose number (or field whose name) another
column holds, with a path of its own between the braces.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

from datamodules.tasks import files
from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair
from datamodules.tasks.files import check_fractions, draw, warn_of_shared_prompts
from edgeprune.errors import EdgepruneError
from edgeprune.models.hub import unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = Iterable[Mapping[str, Any]]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STEP = re.compile(r"{(?P<path>[^{}]+)}|(?P<name>[^.{}]+)")


@final
@dataclass(frozen=True)
class HFDatasetTask(AbstractTask):
    """Pairs from the rows of a data set, read by the library `datasets`.

    Attributes:
        path: Folder, or name on the hub.
        clean: Path of the clean prompt in a row.
        corrupted: Path of the corrupted prompt.
        answer: Path of the right continuation: a text, or a whole number that is written out.
        distractor: Path of the wrong continuation; None if there is none.
        corrupted_answer: Path of the right continuation of the corrupted prompt; None if it is not known.
        answer_prefix: What goes before every answer, such as a space where the data set holds bare words.
        config: Which of the data set's configurations to read, if it has several.
        revision: Commit or tag on the hub; with a full commit hash the tokens are cached.
        train_split: Name in the data set of the split to train on.
        validation_split: Likewise to validate on; None: `validation_fraction` of the training rows.
        test_split: Likewise to test on; None: `test_fraction` of the training rows.
        validation_fraction: Used where there is no `validation_split`.
        test_fraction: Used where there is no `test_split`.
        limit: Read only the first so many rows of each split; None for all.
        skip_incomplete: Leave out rows in which a prompt or an answer is null, instead of refusing them.
        seed: Fixes which rows are drawn.
    """

    sources: ClassVar[tuple[ModuleType, ...]] = (files,)

    path: str
    clean: str = "clean"
    corrupted: str = "corrupted"
    answer: str = "answer"
    distractor: str | None = None
    corrupted_answer: str | None = None
    answer_prefix: str = ""
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str | None = "test"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    limit: int | None = None
    skip_incomplete: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.path and Path(self.path).is_dir()) and not _HUB_NAME.fullmatch(self.path):
            raise EdgepruneError(
                f"no folder at {self.path!r}, and it is no hub name such as 'mib-bench/ioi'; give one of the two"
            )
        for name, path in self._columns().items():
            if ".".join(step.group() for step in _STEP.finditer(path)) != path or not path:
                raise EdgepruneError(
                    f"{name} must be a path such as 'prompt', 'choices.0' or 'choices.{{answerKey}}', got {path!r}"
                )
        if self.limit is not None and self.limit < 1:
            raise EdgepruneError(f"limit must be at least 1, or null for all rows, got {self.limit}")
        check_fractions(self.validation_fraction, self.test_fraction)

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[PromptPair]]:
        """Pairs of each split, in the order of the data set where it has that split."""
        del tokenizer  # the same text for every model
        content = self._load()
        names = dict(zip(SPLITS, (self.train_split, self.validation_split, self.test_split), strict=True))
        parts = {split: self._pairs(content, name) for split, name in names.items() if name is not None}
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        drawn = draw(parts["train"], {name: part for name, part in fractions.items() if name not in parts}, self.seed)
        splits = {**parts, **drawn} if len(parts) < len(SPLITS) else parts
        warn_of_shared_prompts(splits, self.path)
        return splits

    def fingerprint(self) -> str | None:
        """None for what may change on the hub."""
        fixed = Path(self.path).is_dir() or re.fullmatch("[0-9a-f]{40}", self.revision or "")
        return super().fingerprint() if fixed else None

    def input_files(self) -> list[Path]:
        """All files of the folder, if it is one."""
        return sorted(file for file in Path(self.path).rglob("*") if file.is_file())

    def _columns(self) -> dict[str, str]:
        names = ("clean", "corrupted", "answer", "distractor", "corrupted_answer")
        return {name: path for name in names if (path := getattr(self, name)) is not None}

    # ---------------------------------------------------------------- reading
    def _load(self) -> Mapping[str, Rows]:
        """The rows of each split of the data set."""
        try:
            import datasets
        except ImportError:
            raise EdgepruneError(
                f"{self.path} is read with the library datasets, which is missing: pip install 'edgeprune[data]'"
            ) from None
        folder = Path(self.path)
        try:
            if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                content = datasets.load_from_disk(self.path)
            else:
                # Data files are read as they are, without a second copy in the library's own cache.
                with self._reach(cast("Any", datasets).config):
                    content = datasets.load_dataset(
                        self.path, self.config, revision=self.revision, streaming=folder.is_dir()
                    )
        except Exception as error:  # the library lets out those of its parsers and of the network
            raise self._unreadable(error) from None
        return cast("Mapping[str, Rows]", content if isinstance(content, Mapping) else {"train": content})

    @contextmanager
    def _reach(self, settings: Any) -> Generator[None]:
        """Where the hub cannot be reached, let `datasets` look into its cache alone, and not try six times first."""
        why = None if Path(self.path).is_dir() else unreachable(self.path, "README.md", "dataset", self.revision)
        before = settings.HF_HUB_OFFLINE
        settings.HF_HUB_OFFLINE = before or why is not None
        try:
            yield
        except ConnectionError as error:
            raise ConnectionError(f"{error}: {why}" if why else str(error)) from None
        finally:
            settings.HF_HUB_OFFLINE = before

    def _pairs(self, content: Mapping[str, Rows], name: str) -> list[PromptPair]:
        if name not in content:
            raise EdgepruneError(
                f"{self.path} has no split {name!r}, it has {', '.join(content)}; name one of these, or set "
                "validation_split or test_split to null to draw from the training rows"
            )
        pairs: list[PromptPair] = []
        for number, row in enumerate(islice(self._rows(content[name]), self.limit)):
            source = f"{self.path} {name}[{number}]"
            found = {what: _find(row, path, source) for what, path in self._columns().items()}
            if self.skip_incomplete and None in found.values():
                continue
            pairs.append(self._pair({what: _text(found[what], what, source) for what in found}, source))
        if not pairs:
            raise EdgepruneError(f"{self.path}: split {name!r} holds no usable rows; fill it or name another")
        return pairs

    def _rows(self, rows: Rows) -> Iterator[Mapping[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # a damaged data file shows only when it is read
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> EdgepruneError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kind = "data set folder" if Path(self.path).is_dir() else "folder here, and no data set of the hub within reach"
        return EdgepruneError(f"{self.path} is no readable {kind} ({reason}); check the path and its files")

    def _pair(self, texts: Mapping[str, str], source: str) -> PromptPair:
        def answer(what: str) -> str | None:
            return self.answer_prefix + texts[what] if what in texts else None

        return PromptPair(
            clean=texts["clean"],
            corrupted=texts["corrupted"],
            answer=self.answer_prefix + texts["answer"],
            distractor=answer("distractor"),
            corrupted_answer=answer("corrupted_answer"),
            source=source,
        )


def _find(row: Mapping[str, Any], path: str, source: str) -> Any:
    """The value at `path`; None where it, or something on the way to it, is null.

    Raises:
        EdgepruneError: The row has nothing of that name.
    """
    value: Any = row
    for step in _STEP.finditer(path):
        key = step["name"] if step["path"] is None else _find(row, step["path"], source)
        if value is None or key is None:
            return None
        value = _enter(value, key, f"{source}: path {path!r}")
    return value


def _enter(value: Any, key: Any, what: str) -> Any:
    if isinstance(value, Mapping):
        if key in value:
            return cast("Mapping[Any, Any]", value)[key]
        raise EdgepruneError(f"{what}: there is no {key!r}, only {', '.join(map(str, value))}; correct the path")
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        if re.fullmatch("[0-9]+", str(key)) and int(key) < len(entries):
            return entries[int(key)]
        raise EdgepruneError(f"{what}: {key!r} is no entry of a list of {len(entries)}; give a number from 0")
    raise EdgepruneError(f"{what}: {key!r} cannot be looked up in {value!r}; correct the path")


def _text(value: Any, what: str, source: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and what not in ("clean", "corrupted"):
        return str(value)
    if isinstance(value, str):
        return value
    remedy = "set skip_incomplete to true to leave such rows out" if value is None else "correct its path"
    raise EdgepruneError(f"{source}: {what} must be text, got {value!r}; {remedy}")
