"""From the JSON of an evaluation to the page.

The page is one file: style and script are in it, plots are SVG in the text, and a content security policy forbids it to
load anything. It is made from the JSON alone, so it can be made again at any time.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeprune.pages import page_template
from edgeprune.paths import write_whole_text
from edgeprune.report import analyses, behaviour, criteria, overview, structure, variations, weights
from edgeprune.report.blocks import Section
from edgeprune.report.glossary import glossary
from edgeprune.report.result import Result

# In the order of the page. Each gives None where its data are not in the JSON.
SECTIONS: tuple[Callable[[Result], Section | None], ...] = (
    overview.summary,
    overview.frontier,
    variations.seeds,
    variations.ablations,
    variations.controls,
    structure.layers,
    behaviour.reading,
    criteria.completeness,
    criteria.minimality,
    analyses.suffix,
    analyses.hypothesis,
    weights.functional,
    weights.weights,
    analyses.mib,
    analyses.runs,
    structure.known,
    structure.overlap,
    variations.breakdown,
)


def report_html(result: Mapping[str, Any]) -> str:
    """The page of a result.

    Args:
        result: The JSON of `edgeprune evaluate`, schema `edgeprune-evaluation/1`. Keys may be absent: their sections
            are left out. None and numbers that are not finite read as not defined.

    Raises:
        EdgepruneError: The result is of another schema.
    """
    read = Result(result)
    sections = [section for make in SECTIONS if (section := make(read)) is not None]
    last = glossary(read, sections)
    title = " on ".join(str(read.about[name]) for name in ("model", "task") if isinstance(read.about.get(name), str))
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        title=f"Circuits of {title}" if title else "Circuits",
        about=overview.about(read),
        sections=[*sections, *([last] if last else [])],
    )


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of a result; folders above it are made.

    Args:
        result: As for `report_html`.
        path: The HTML file.
    """
    page = report_html(result)
    write_whole_text(path, page)
