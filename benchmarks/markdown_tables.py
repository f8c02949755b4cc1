"""What the pages and result files of several benchmarks are made of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON with one line per run."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
