"""Examples in docstrings (`>>> ...`) as blocks of code on the pages of the API; an extension of griffe."""

from typing import Any

import griffe


def with_fences(text: str) -> str:
    """The text with a fence around each run of lines that begins with `>>>` and ends with a blank line."""
    lines: list[str] = []
    inside = False
    for line in [*text.split("\n"), ""]:
        if line.startswith(">>>") and not inside:
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join(lines[:-1])


class FencedExamples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute, once it is read."""
        if obj.docstring is not None:
            obj.docstring.value = with_fences(obj.docstring.value)
