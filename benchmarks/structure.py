"""How the code is laid out: lines by package, long files, exported names, import circles, repeated lines, names twice.

    python -m benchmarks.structure                # this tree
    python -m benchmarks.structure OLDER_TREE .   # two trees side by side

Prints a Markdown table. Repeated lines need `pylint` (its checker for similar lines, six lines at least); circles need
`networkx`. Nothing is imported from the trees: everything is read from the source.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

PACKAGES = ("edgeprune", "lit_modules", "datamodules")
LONG = 350  # lines
SIMILAR = 6  # lines that two files share


def modules(tree: Path) -> dict[str, Path]:
    """All modules of the product by their full names."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*.py")):
            parts = path.relative_to(tree).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def wing(name: str) -> str:
    """The package that a module belongs to, one level below `edgeprune`."""
    parts = name.split(".")
    return parts[0] if parts[0] != "edgeprune" else ".".join(parts[:2]) if len(parts) > 2 else "edgeprune"


def num_lines(path: Path) -> int:
    """Lines of a file, blank ones and comments too."""
    return len(path.read_text().splitlines())


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the product that a module imports, those that only type checkers see too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in full if {name, node.module} & known.keys())


def circles(known: dict[str, Path]) -> list[set[str]]:
    """Groups of modules that import each other; what a package offers lazily for type checkers does not count."""
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    edges = ((name, other) for name, path in known.items() for other in imported(path, known))
    graph = nx.DiGraph((name, other) for name, other in edges if not {name, other} & packages and name != other)
    return [group for group in nx.strongly_connected_components(graph) if len(group) > 1]


def public_names(path: Path) -> Iterator[str]:
    """Classes and functions at the top of a module without an underscore before them."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def exported(path: Path) -> int:
    """Names that a package's `__init__` offers."""
    tree, names = ast.parse(path.read_text()), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.update(alias.asname for alias in node.names if alias.asname)
    return len(names)


def repeated(tree: Path) -> str:
    """Pairs of places with the same lines, as pylint counts them; a dash without pylint."""
    command = (sys.executable, "-m", "pylint", "--disable=all", "--enable=R0801", "--score=n", "--persistent=n")
    options = (f"--min-similarity-lines={SIMILAR}", "--ignore-imports=y", "--ignore-signatures=n")
    run = subprocess.run((*command, *options, *PACKAGES), cwd=tree, capture_output=True, text=True, check=False)
    if "No module named pylint" in run.stderr:
        return "-"
    return f"{len(re.findall('R0801', run.stdout)):,}"


def figures(tree: Path) -> dict[str, str]:
    """All figures of one tree, by name."""
    known = modules(tree)
    lines = Counter[str]()
    for name, path in known.items():
        lines[wing(name)] += num_lines(path)
    names = Counter(name for path in known.values() for name in public_names(path))
    files = Counter(path.name for path in known.values() if path.name != "__init__.py")
    return {
        "lines of product code": f"{lines.total():,}",
        **{f"lines of {name}": f"{count:,}" for name, count in sorted(lines.items())},
        "lines of tests": f"{sum(num_lines(path) for path in (tree / 'tests').rglob('*.py')):,}",
        f"files above {LONG} lines": f"{sum(num_lines(path) > LONG for path in known.values())}",
        "names exported by packages": f"{sum(exported(path) for path in known.values() if path.name == '__init__.py')}",
        "public classes and functions": f"{names.total():,}",
        "of them, names that stand twice or more": f"{sum(count > 1 for count in names.values())}",
        "file names that stand twice or more": f"{sum(count > 1 for count in files.values())}",
        "import circles": f"{len(circles(known))}",
        f"pairs of places that share {SIMILAR} lines": repeated(tree),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path()], help="folders; this one if none is given")
    parser.add_argument("--names", action="store_true", help="also list the names that stand twice and the circles")
    options = parser.parse_args()
    columns = [figures(tree.resolve()) for tree in options.trees]
    rows = list(dict.fromkeys(name for column in columns for name in column))
    print("| | " + " | ".join(str(tree) for tree in options.trees) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in rows:
        print(f"| {row} | " + " | ".join(column.get(row, "0") for column in columns) + " |")
    if options.names:
        known = modules(options.trees[-1].resolve())
        names = Counter(name for path in known.values() for name in public_names(path))
        print("\ntwice:", ", ".join(sorted(name for name, count in names.items() if count > 1)))
        print("circles:", circles(known))


if __name__ == "__main__":
    main()
