"""Templates of the pages that the project writes: what they fill in is escaped, and a missing name is an error."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


@cache
def page_template(path: Path) -> Template:
    """The template in a file; those beside it can be included by their names."""
    templates = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(path.name)
