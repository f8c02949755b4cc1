"""Submissions to MIB's circuit track: a folder with one folder `{task}_{model}` for every pair.

Each of these holds one .json or .pt file of EAP-IG's with scores (importances), or nine with membership alone, of at
most 0.1, 0.2, 0.5, 1, 2, 5, 10, 20 and 50 % of the edges. (MIB's page lists a tenth share, 0, and says nine.) There
must be two models and two tasks. Sizes are counted as MIB does: one embedding, k and v readers of every query head.
"""

import math
import re
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import AbstractFormat, ExportOptions, Imported, Loaded
from edgeprune.formats.eap_ig import EapIgFile, to_file
from edgeprune.formats.eap_ig_json import EapIgJson
from edgeprune.formats.eap_ig_pt import EapIgPt
from edgeprune.formats.plain_values import load_values
from edgeprune.gates.base import top_k
from edgeprune.graph import EdgeGraph

SHARES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # percent of all edges
TASKS = ("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge")
MAX_BYTES = 50 * 10**6  # the leaderboard skips larger files


class Shape(NamedTuple):
    """What MIB's graphs of a model say in `cfg`."""

    n_layers: int
    n_heads: int
    d_model: int


# GPT-2 small, Qwen2.5-0.5B, Gemma-2-2B, Llama-3.1-8B; InterpBench's model is checked against nothing
MODELS: dict[str, Shape | None] = {
    "gpt2": Shape(12, 12, 768),
    "qwen2.5": Shape(24, 14, 896),
    "gemma2": Shape(26, 8, 2304),
    "llama3": Shape(32, 32, 4096),
    "interpbench": None,
}
_FOLDER = re.compile(r"([^_]+)_([^_]+)")


# -------------------------------------------------------------------- writing
class _AbstractSubmission(AbstractFormat):
    suffixes: ClassVar[tuple[str, ...]] = ()
    folder: ClassVar[bool] = True

    def recognises(self, loaded: Loaded) -> bool:
        """Never: files of a submission are EAP-IG's."""
        return False

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """Refuse: the files in a folder are EAP-IG's."""
        raise EdgepruneError(f"{self.name} is a folder; name one of its files, which are eap-ig-json or eap-ig-pt")

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write a new folder `{task}_{model}`."""
        if circuit.scores is None:
            raise EdgepruneError("a submission needs scores of edges, this circuit has none; use the file of scores")
        if not circuit.graph.to_vector(circuit.scores).isfinite().all():
            raise EdgepruneError("scores of existing edges must be finite: NaN or infinity cannot be ranked")
        content, notes = to_file(circuit, ExportOptions(options.d_model))
        _write_folder(path, self.contents(circuit, content))
        return [*self.notes(notes), *_name_problems(path.name)]

    @abstractmethod
    def contents(self, circuit: Circuit, content: EapIgFile) -> dict[str, EapIgFile]:
        """The files of a folder, by name.

        Args:
            circuit: A circuit with finite scores.
            content: All of it, scores included.
        """

    def notes(self, notes: list[str]) -> list[str]:
        """Sentences on what the files do not hold, from those on `content`."""
        return notes


@final
class MibImportances(_AbstractSubmission):
    """One folder of a submission with one file of scores."""

    name: ClassVar[str] = "mib"
    holds: ClassVar[str] = "MIB submission: folder TASK_MODEL with one file of scores"

    def contents(self, circuit: Circuit, content: EapIgFile) -> dict[str, EapIgFile]:
        """The scores."""
        return {"importances.pt": content}


@final
class MibCircuits(_AbstractSubmission):
    """One folder of a submission with nine files of membership."""

    name: ClassVar[str] = "mib-circuits"
    holds: ClassVar[str] = "MIB submission: folder TASK_MODEL with nine circuits, best edges by score"

    def contents(self, circuit: Circuit, content: EapIgFile) -> dict[str, EapIgFile]:
        """The best edges by score, as many as each share allows."""
        ranked = Circuit(circuit.graph, circuit.keep, circuit.ranking)
        ranking = to_file(ranked, ExportOptions(1))[0].scores
        assert ranking is not None  # it was just checked that there are scores
        return {f"circuit_{share:g}.pt": _best_edges(content, ranking, share) for share in SHARES}

    def notes(self, notes: list[str]) -> list[str]:
        """Without dangling edges, of which nothing is known, but on what is written instead of the circuit."""
        kept = [note for note in notes if "dangling" not in note]
        return [
            *kept,
            "scores left out: nine circuits of the best edges by score are written, whichever edges the circuit keeps",
        ]


def edge_budget(share: float, num_edges: int) -> int:
    """The most edges that a circuit of `share` percent may have.

    >>> edge_budget(0.1, 32491)
    32
    """
    return math.floor(share * num_edges / 100 + 1e-9)


def _best_edges(content: EapIgFile, ranking: torch.Tensor, share: float) -> EapIgFile:
    graph = content.graph
    keep = torch.zeros(graph.shape, dtype=torch.bool)
    keep[graph.exists] = top_k(graph.to_vector(ranking), edge_budget(share, graph.num_edges))
    return to_file(Circuit(graph, keep), ExportOptions(content.d_model))[0]


def _write_folder(path: Path, files: dict[str, EapIgFile]) -> None:
    """A new folder, with all files or not at all."""
    if not _FOLDER.fullmatch(path.name):
        raise EdgepruneError(f"{path.name!r} is not TASK_MODEL, such as ioi_gpt2; name the folder so")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise EdgepruneError(f"{path} exists; a submission is written into a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as partial:
        inner = Path(partial) / path.name
        inner.mkdir()
        for name, content in files.items():
            EapIgPt().save(content, inner / name)
        inner.replace(path)


# -------------------------------------------------------------------- validating
def validate(folder: Path) -> list[str]:
    """Every problem of a submission, one sentence each; none if there are none.

    Raises:
        EdgepruneError: There is no such folder.
    """
    if not folder.is_dir():
        raise EdgepruneError(f"no folder at {folder}; a submission is a folder of folders TASK_MODEL")
    problems = [f"{item.name}: a file beside the folders; remove it" for item in _visible(folder) if not item.is_dir()]
    folders = [item for item in _visible(folder) if item.is_dir()]
    for item in folders:
        problems += [f"{item.name}: {problem}" for problem in (*_name_problems(item.name), *_folder_problems(item))]
    pairs = [match.groups() for item in folders if (match := _FOLDER.fullmatch(item.name))]
    for index, what in enumerate(("tasks", "models")):
        named = sorted({pair[index] for pair in pairs})
        if len(named) < 2:
            problems.append(f"{len(named)} {what} ({', '.join(named) or 'none'}); a submission needs two or more")
    return problems


def _visible(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def _name_problems(name: str) -> list[str]:
    match = _FOLDER.fullmatch(name)
    if match is None:
        return ["the name is not TASK_MODEL with one underscore, such as arc-easy_llama3"]
    problems: list[str] = []
    if match[1] not in TASKS:
        problems.append(f"MIB has no task {match[1]!r}; it has {', '.join(TASKS)}")
    if match[2] not in MODELS:
        problems.append(f"MIB has no model {match[2]!r}; it has {', '.join(MODELS)}")
    return problems


def _folder_problems(folder: Path) -> Iterator[str]:
    items = _visible(folder)
    files = [item for item in items if item.is_file() and item.suffix in (".json", ".pt")]
    yield from (f"{item.name} is no .json or .pt file; remove it" for item in items if item not in files)
    if len(files) not in (1, len(SHARES)):
        yield f"{len(files)} files; expected 1 with scores, or {len(SHARES)} with membership"
    contents: dict[str, EapIgFile] = {}
    for file in files:
        try:
            contents[file.name] = _parse(file)
        except EdgepruneError as error:
            yield str(error).removeprefix(f"{folder}/")
        if file.stat().st_size > MAX_BYTES:
            yield f"{file.name} has {file.stat().st_size / 1e6:.0f} MB; the leaderboard skips files above 50 MB"
    for name, content in contents.items():
        yield from (f"{name}: {problem}" for problem in _shape_problems(content, folder.name.rpartition("_")[2]))
    check: Callable[[dict[str, EapIgFile]], Iterator[str]] = _score_problems if len(files) == 1 else _size_problems
    yield from check(contents)


def _parse(file: Path) -> EapIgFile:
    loaded = load_values(file)
    try:
        return (EapIgJson() if loaded.kind == "json" else EapIgPt()).parse(loaded)
    except EdgepruneError as error:
        raise EdgepruneError(f"{file}: {error}") from None


def _shape_problems(content: EapIgFile, model: str) -> Iterator[str]:
    expected, cfg = MODELS.get(model), content.cfg
    if expected is not None:
        for name, value in expected._asdict().items():
            if cfg[name] != value and not (name == "d_model" and cfg[name] == 0):
                yield f"cfg has {name}={cfg[name]}, {model} has {value}"
    strange = int((content.in_graph & ~content.graph.exists).sum())
    if strange:
        yield f"{strange:,} cells that are no edge are in the graph"


def _score_problems(contents: dict[str, EapIgFile]) -> Iterator[str]:
    """Of the one file of a folder: scores of edges or of nodes, all finite, not only 0 and 1."""
    for name, content in contents.items():
        values = None
        if content.has_edges and content.is_scored and content.scores is not None:
            values = content.graph.to_vector(content.scores)
        elif content.nodes_scores is not None:
            values = content.nodes_scores
        if values is None:
            yield f"{name} has no scores; a single file must have them"
        elif not values.isfinite().all():
            yield f"{name}: {int((~values.isfinite()).sum()):,} scores are not finite numbers"
        elif bool(((values == 0) | (values == 1)).all()):
            yield f"{name} has only scores of 0 and 1; a single file must have importances, not membership"


def _size_problems(contents: dict[str, EapIgFile]) -> Iterator[str]:
    """Of the nine files of a folder: no scores, and the smallest fits the smallest share, and so on."""
    for name, content in contents.items():
        if content.is_scored:
            yield f"{name} has scores; files beside others must have membership alone"
    if len(contents) != len(SHARES):
        return
    ordered = sorted(contents.items(), key=lambda item: _size(item[1]))
    for share, (name, content) in zip(SHARES, ordered, strict=True):
        size, most = _size(content), edge_budget(share, content.graph.num_edges)
        if size > most:
            of_all = f"{most:,} of {content.graph.num_edges:,}"
            yield f"{name} has {size:,.6g} edges; the circuit of {share:g} % may have {of_all}"


def _size(content: EapIgFile) -> float:
    """Edges, or the edges between nodes of a file with nodes alone, weighted by neurons."""
    if content.has_edges:
        return content.weighted_edge_count
    graph = content.graph
    column = {name: index for index, name in enumerate(graph.writers)}
    is_in = [name == "logits" or bool(content.nodes[column[name.rpartition(".")[0] or name]]) for name in graph.readers]
    between = torch.tensor(is_in)[:, None] & content.nodes & graph.exists
    return EapIgFile(graph, content.d_model, between, None, content.nodes, neurons=content.neurons).weighted_edge_count
