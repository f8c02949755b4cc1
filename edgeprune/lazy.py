"""Names that a package offers and loads on first use, so that importing it stays fast."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def on_first_use(package: str, defined_in: Mapping[str, str], modules: Sequence[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: Its name.
        defined_in: Of each name that it offers, the module that has it.
        modules: Modules and packages inside it that it offers as well.

    >>> on_first_use("edgeprune", {"EdgeGraph": "edgeprune.graph"})("EdgeGraph").__module__
    'edgeprune.graph'
    """

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in defined_in:
            return getattr(importlib.import_module(defined_in[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
