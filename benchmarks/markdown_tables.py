"""What the pages and result files of several benchmarks are made of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON with one line per run."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a page, each between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        EdgepruneError: A table has no place in it; the page is as it was.
    """
    text = page.read_text()
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise EdgepruneError(
                f"{page} has no place for the table {name}: write <!-- {name} --> and {end}, each on a line"
            )
        text = f"{before}{begin}{content}\n{end}{after}"
    page.write_text(text)
