"""What the documentation's site holds beside `docs/`: the API, the notebooks, the changelog; hooks of MkDocs.

Pages under `docs/` are written so that they also read well as files in a checkout. Here links that leave `docs/` go to
the page that the site has instead, and a list or a table may follow a line of text, as everywhere but in
Python-Markdown.
"""

import ast
import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages of the site that are files elsewhere: their place in the site, their place in the repository.
BROUGHT = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "references.md": "tests/references/README.md",
    **{f"examples/{path.stem}.md": f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.ipynb"))},
}
# Modules of `edgeprune` itself whose names are the ones to start from.
CORE = ("circuit", "graph", "graph_arch", "batch", "runs", "nodes", "roles", "costs", "errors")
WIDE = ("methods.md",)  # pages of one wide table, which needs the room of the columns beside it
NOT_API = ("cli", "_configs")
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
ITEM = re.compile(r"([-*]|\d+\.) ")
FENCE = re.compile(r" *```")


def packages() -> list[str]:
    """Dotted names of the packages that have an API page."""
    inside = sorted(path.parent.name for path in (ROOT / "edgeprune").glob("*/__init__.py"))
    return [*(f"edgeprune.{name}" for name in inside if name not in NOT_API), "lit_modules", "datamodules"]


def api_page(module: str) -> str:
    """Where the site describes a module or package: `edgeprune.metrics.functional` on `api/metrics.md`."""
    parts = module.split(".")
    if parts[0] != "edgeprune":
        return f"api/{parts[0]}.md"
    return f"api/{parts[1]}.md" if module in packages() or ".".join(parts[:2]) in packages() else "api/edgeprune.md"


def first_line(module: str) -> str:
    """The first line of a package's docstring."""
    source = ROOT.joinpath(*module.split("."), "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]


def api_pages() -> Iterator[tuple[str, str]]:
    """Every page of the API: its place and its text."""
    rows = [f"| [`{name}`]({Path(api_page(name)).name}) | {first_line(name)} |" for name in packages()]
    core = "| [`edgeprune`](edgeprune.md) | Circuits, graphs of edges, runs: the names to start from |"
    yield "api/index.md", "\n".join(["# API", "", "| Package | |", "|---|---|", core, *rows, ""])
    blocks = "\n\n".join(f"::: edgeprune.{name}" for name in CORE)
    yield "api/edgeprune.md", f"# edgeprune\n\n{blocks}\n"
    for name in packages():
        yield api_page(name), f"# {name}\n\n::: {name}\n"


def cell_text(cell: dict[str, Any]) -> Iterator[str]:
    """A notebook's cell as Markdown, its outputs included."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
        elif "image/svg+xml" in data:
            drawn = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
            yield f"![output](data:image/svg+xml;base64,{drawn})"
        else:
            text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            yield f"```text\n{text}\n```" if text else ""


def notebook(path: Path) -> str:
    """A notebook as a page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(text for cell in cells for text in cell_text(cell) if text)


def destination(path: Path) -> str | None:
    """The page of the site that shows a file or folder of the repository; None if it has none."""
    relative = path.relative_to(ROOT)
    for page, source in BROUGHT.items():
        if source == relative.as_posix():
            return page
    if relative.parts[0] == "docs":
        place = Path(*relative.parts[1:])
        return (place / "index.md").as_posix() if (path / "index.md").is_file() else place.as_posix()
    module = ".".join(relative.with_suffix("").parts)
    if relative.parts[0] in ("edgeprune", "lit_modules", "datamodules"):
        return f"{api_page(module)}#{module}"
    return None


def moved_link(target: str, source: Path, page: str) -> str:
    """A link of a file of the repository as it stands on the page of the site that shows the file."""
    path = Path(os.path.normpath(source.parent / target))
    if not path.is_relative_to(ROOT) or not path.exists():
        return target  # MkDocs says that it is broken
    found = destination(path)
    return target if found is None else os.path.relpath(found, Path(page).parent)


def with_blank_lines(text: str) -> str:
    """The text with an empty line in front of lists and tables that follow a line of a paragraph."""
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        item = ITEM.match(line) and before and not ITEM.match(before) and not before.startswith(" ")
        table = line.startswith("|") and before and not before.startswith("|")
        if not fenced and (item or table):
            lines.append("")
        lines.append(line)
        fenced ^= bool(FENCE.match(line))
    return "\n".join(lines)


def named(nav: list[Any]) -> Iterator[str]:
    """Every page and folder that a navigation names."""
    for item in nav:
        value = next(iter(item.values())) if isinstance(item, dict) else item
        yield from named(value) if isinstance(value, list) else [value]


def expanded(nav: list[Any], taken: set[str], pages: list[str]) -> list[Any]:
    """The navigation with each `folder/` replaced by those of its pages that stand nowhere else, by name."""
    found: list[Any] = []
    for item in nav:
        if isinstance(item, str) and item.endswith("/"):
            found += [page for page in pages if page.startswith(item) and page not in taken]
        elif isinstance(item, dict) and isinstance(value := next(iter(item.values())), list):
            found.append({next(iter(item)): expanded(value, taken, pages)})
        else:
            found.append(item)
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Folders of the navigation become their pages."""
    docs = Path(config.docs_dir)
    written = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md")]
    pages = sorted([*written, *BROUGHT, *(page for page, _ in api_pages() if page != "api/index.md")])
    config.nav = expanded(config.nav or [], set(named(config.nav or [])), pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that are not under `docs/` join the others."""
    for page, text in api_pages():
        files.append(File.generated(config, page, content=text))
    for page, source in BROUGHT.items():
        path = ROOT / source
        text = notebook(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site; lists and tables are told from paragraphs."""
    place = page.file.src_uri
    source = ROOT / BROUGHT.get(place, f"docs/{place}")
    if place in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    text = LINK.sub(lambda found: found[1] + moved_link(found[2], source, place) + found[3], markdown)
    return with_blank_lines(text)
