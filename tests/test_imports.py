"""Imports run one way, and heavy libraries stay where they belong. Read from the source."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import edgeprune as ep

ROOT = Path(__file__).parent.parent
PACKAGES = ("edgeprune", "lit_modules", "datamodules")

# A package may import itself and packages of lower layers, not one of its own layer; the longest prefix counts, and
# `edgeprune.circuit` also covers `edgeprune.circuit_views`.
LAYERS = {
    "edgeprune.errors": 0,
    "edgeprune.batch": 0,
    "edgeprune.console": 0,
    "edgeprune.json_numbers": 0,
    "edgeprune.lazy": 0,
    "edgeprune.pages": 0,
    "edgeprune.tables": 0,
    "edgeprune.paths": 1,
    "edgeprune.parsing": 1,
    "edgeprune.graph": 1,
    "edgeprune.gates": 1,
    "edgeprune.objectives": 1,
    "edgeprune.sealed": 2,
    "edgeprune.checkpoint_files": 2,
    "edgeprune.nodes": 2,
    "edgeprune.roles": 2,
    "edgeprune.circuit": 3,
    "edgeprune.canonical": 4,
    "edgeprune.compiled": 4,
    "edgeprune.formats": 4,
    "edgeprune.runs": 4,
    "edgeprune.models": 5,
    "edgeprune.ablations": 6,
    "edgeprune.downloads": 6,
    "edgeprune.memory": 6,
    "edgeprune.model_options": 7,
    "edgeprune.reference": 7,
    "edgeprune.metrics": 7,
    "edgeprune.selfcheck": 7,
    "edgeprune.costs": 7,
    "edgeprune.methods": 8,
    "edgeprune.plan": 8,
    "edgeprune.statistics": 8,
    "edgeprune.evaluation": 9,
    "edgeprune.patching": 9,
    "edgeprune.reading": 10,
    "edgeprune.comparison": 11,
    "edgeprune.report": 12,
    "edgeprune.drawing": 13,
    "datamodules": 13,
    "lit_modules": 13,
    "edgeprune.sweeps": 13,
    "edgeprune.cli": 14,
    "edgeprune.__main__": 15,
}
# The package itself names the homes of the public names; it loads them on first use only.
FACADE = "edgeprune"

LIGHTNING = ("lit_modules", "datamodules", "edgeprune.cli", "edgeprune.__main__")
TRANSFORMERS = ("edgeprune.models", "edgeprune.compiled", "edgeprune.downloads")
MODELLING = ("edgeprune.models.families", "edgeprune.compiled")


class Import(NamedTuple):
    """One import statement: who, whom, and whether only type checkers see it."""

    module: str
    imported: str
    typing_only: bool
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """True if `name` is one of `packages`, or inside one; `edgeprune.cli` also covers `edgeprune.cli_*`."""
    return any(name == package or name.startswith((f"{package}.", f"{package}_")) for package in packages)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _targets(node: ast.AST, module: str) -> list[str]:
    """Modules that a statement imports, by their full names; `from package import module` is that module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno} imports relatively"
        assert node.module is not None
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if is_module(name) else node.module for name in full]
    return []


def _is_typing_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _walk(node: ast.AST, module: str, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for imported in _targets(child, module):
            yield Import(module, imported, typing_only, child.lineno)  # pyright: ignore[reportAttributeAccessIssue]
        yield from _walk(child, module, typing_only or _is_typing_guard(child))


def _read_imports() -> list[Import]:
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [found for path in files for found in _walk(ast.parse(path.read_text()), module_name(path), False)]


IMPORTS = _read_imports()


def package(name: str) -> str | None:
    """The package or module of `LAYERS` that a module belongs to; None outside the project."""
    known = [prefix for prefix in LAYERS if within(name, (prefix,))]
    return max(known, key=len) if known else None


def broken(imports: list[Import]) -> list[str]:
    """Imports that go up, or to another package of the same layer."""
    wrong: list[str] = []
    for item in imports:
        here, there = package(item.module), package(item.imported)
        if here is None or there is None or here == there:
            continue
        if LAYERS[there] >= LAYERS[here]:
            wrong.append(str(item))
    return wrong


def test_every_module_has_a_layer() -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = {module_name(path) for path in files}
    assert {name for name in names if package(name) is None} <= {FACADE}


def test_imports_run_one_way() -> None:
    assert broken(IMPORTS) == []


def test_the_package_is_not_imported_from_inside() -> None:
    """`from edgeprune import Circuit` within the library would go through the package and hide a layer."""
    users = [item for item in IMPORTS if item.imported == FACADE and item.module != FACADE]
    assert [str(item) for item in users if LAYERS.get(package(item.module) or "", 0) < LAYERS["lit_modules"]] == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("lightning", LIGHTNING),
        ("pytorch_lightning", ()),
        ("transformers", TRANSFORMERS),
    ],
)
def test_heavy_libraries_stay_in_their_places(library: str, allowed: tuple[str, ...]) -> None:
    for item in IMPORTS:
        if not within(item.imported, (library,)) or within(item.module, allowed):
            continue
        guarded = library == "transformers" and item.typing_only and within(item.module, ("datamodules",))
        assert guarded, str(item)


def test_only_families_know_modelling_code() -> None:
    names = ("transformers.models", "transformers.modeling", "transformers.masking")
    users = {item.module for item in IMPORTS if within(item.imported, names)}
    assert users, "the families do import modelling code"
    assert {name for name in users if not within(name, MODELLING)} == set()


def test_the_rule_notices_violations() -> None:
    up = Import("edgeprune.graph", "edgeprune.circuit", False, 1)
    across = Import("lit_modules.fit", "datamodules.pairs", False, 1)
    down = Import("edgeprune.methods.base", "edgeprune.circuit", False, 1)
    typing = Import("edgeprune.gates.base", "edgeprune.models.masked", True, 1)
    assert broken([up, across, down, typing]) == [str(up), str(across), str(typing)]


def test_the_reader_finds_imports_at_every_depth() -> None:
    source = """
import a.b
if TYPE_CHECKING:
    from c import d
def f():
    try:
        from edgeprune import graph
    except ImportError:
        pass
"""
    found = [(item.imported, item.typing_only) for item in _walk(ast.parse(source), "m", False)]
    assert found == [("a.b", False), ("c", True), ("edgeprune.graph", False)]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, edgeprune; "
        "print([name for name in ('torch', 'transformers', 'lightning', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_graph_and_circuits_load_without_heavy_libraries() -> None:
    code = (
        "import sys, edgeprune; edgeprune.Circuit, edgeprune.EdgeGraph, edgeprune.EdgepruneError; "
        "print([name for name in ('transformers', 'lightning', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_measures_load_without_heavy_libraries() -> None:
    code = "import sys, edgeprune; edgeprune.metrics, edgeprune.evaluation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["edgeprune", "edgeprune.metrics", "edgeprune.evaluation"])
def test_names_that_load_on_first_use_are_those_that_type_checkers_see(name: str) -> None:
    package = importlib.import_module(name)
    [guarded] = [node for node in ast.parse(Path(str(package.__file__)).read_text()).body if _is_typing_guard(node)]
    imports = [node for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert set(package.__all__) - {"__version__"} == set(seen) == set(dir(package)) - {"__version__"}
    for offered, home in seen.items():
        if is_module(home):
            assert getattr(package, offered) is importlib.import_module(home)
        else:
            assert getattr(package, offered) is getattr(importlib.import_module(home.rpartition(".")[0]), offered)


def test_public_packages_offer_what_they_are_for() -> None:
    assert ep.methods.EdgePruning.__name__ == "EdgePruning"
    assert ep.methods.Problem.__module__ == "edgeprune.methods.problem"
    assert ep.metrics.measure_named("kl") is ep.metrics.MEASURES["kl"]
    assert ep.evaluation.Evaluator is ep.Evaluator
    assert ep.objectives.kl_divergence.__module__ == "edgeprune.objectives.losses"
    assert ep.gates.HardConcrete(3, init_mean=2.0).log_alpha.shape == (3,)
    assert "reverse" in ep.compiled.programs()
    with pytest.raises(AttributeError, match=r"'edgeprune\.metrics' has no attribute 'kl'"):
        _ = ep.metrics.kl  # pyright: ignore[reportAttributeAccessIssue]
