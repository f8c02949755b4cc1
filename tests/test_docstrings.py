"""Public functions of the core say the shapes of their tensors in one form, and their types without `Any`."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest

PACKAGES = ("edgeprune.models", "edgeprune.methods", "edgeprune.metrics")
WITH_TRITON = ("edgeprune.models.triton_ops", "edgeprune.models.triton_kernels")  # they load only where it is installed
SHAPE = re.compile(r"`\[[^`]*\]`|\bscalar\b")  # `[batch, seq]`, or (scalar)
TENSOR, ANY = re.compile(r"\bTensor\b"), re.compile(r"\bAny\b")


class Public(NamedTuple):
    """A public function or method: its full name, the class that it belongs to, and itself."""

    name: str
    owner: type | None
    function: Any

    @property
    def annotations(self) -> dict[str, str]:
        """By parameter and `return`, as they are written."""
        return {name: str(value) for name, value in inspect.get_annotations(self.function).items()}

    @property
    def docstrings(self) -> str:
        """Its own, or that of what it overrides, and its class's."""
        name = self.name.rpartition(".")[2]
        own = inspect.getdoc(self.function if self.owner is None else inspect.getattr_static(self.owner, name))
        inherited = [getattr(base.__dict__.get(name), "__doc__", None) for base in getattr(self.owner, "__mro__", ())]
        return "\n".join(filter(None, [own, *inherited, self.owner and inspect.getdoc(self.owner)]))


def modules() -> Iterator[ModuleType]:
    for package in map(importlib.import_module, PACKAGES):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name in WITH_TRITON and importlib.util.find_spec("triton") is None:
                continue
            yield importlib.import_module(found.name)


def is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def plain(member: Any) -> Any:
    """The function behind a property, a class method or a static method."""
    for attribute in ("fget", "func", "__func__"):
        member = getattr(member, attribute, member)
    return inspect.unwrap(member) if callable(member) else member


def found() -> Iterator[Public]:
    for module in modules():
        for name, value in vars(module).items():
            if not is_public(name) or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    if is_public(attribute) and inspect.isfunction(function := plain(member)):
                        yield Public(f"{module.__name__}.{name}.{attribute}", value, function)
            elif inspect.isfunction(function := plain(value)):
                yield Public(f"{module.__name__}.{name}", None, function)


PUBLIC = list(found())
# Modules of functions that all have one shape, which the module's docstring says once.
OF_ONE_SHAPE = ("edgeprune.metrics.functional", "edgeprune.metrics.greater_than")
PLAIN = re.compile(r"\b(dict|Mapping)\[str, (typing\.)?Any\]")  # values that JSON holds, or keyword arguments
# Parameters, and functions by what they return, for which another library, or each family anew, has the type.
ALLOWED = {
    "attention": "the library's attention module, a class of each model",
    "body": "the library's model without its head, likewise",
    "config": "a config of the library, a class of each model",
    "context": "what the layers of a family share: masks, rotary tables",
    "ctx": "autograd's context, which has no public type",
    "found": "what the library says of loading: names, or names with shapes",
    "from_transformer_lens": "a model of another library, which is not imported",
    "hf": "the library's model, a class of each type",
    "kernel": "the library's attention kernel",
    "model": "the same, or a model of a library that is not imported",
    "module": "the library's layer, a class of each model",
    "name": "the name of a model, or any model that is loaded already",
    "norm": "the library's norm, a class of each model",
    "output": "the library's output projection, likewise",
    "read_empty": "the library's model",
    "read_gguf_tokenizer": "a tokenizer of the library, which is imported on use",
    "read_model": "the library's model",
    "read_tokenizer": "a tokenizer of the library",
    "rotary": "tables that a family adds to",
    "start": "the stream with the family's context",
    "tiny": "configs of the library",
}


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(PUBLIC) > 300
    names = {item.name for item in PUBLIC}
    assert {"edgeprune.models.masked.MaskedModel.forward", "edgeprune.metrics.functional.kl"} <= names


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_say_the_shapes_of_tensors(package: str) -> None:
    lacking = [
        item.name
        for item in PUBLIC
        if item.name.startswith(package)
        and not item.name.startswith(OF_ONE_SHAPE)
        and any(map(TENSOR.search, item.annotations.values()))
        and not SHAPE.search(item.docstrings)
    ]
    assert lacking == []


def test_modules_of_functions_of_one_shape_say_it() -> None:
    assert all(SHAPE.search(importlib.import_module(name).__doc__ or "") for name in OF_ONE_SHAPE)


def test_any_stands_only_where_another_library_has_the_type() -> None:
    used, wrong = set[str](), list[str]()
    for item in PUBLIC:
        for parameter, annotation in item.annotations.items():
            if not ANY.search(PLAIN.sub("", annotation)):
                continue
            name = item.name.rpartition(".")[2] if parameter == "return" else parameter
            used.add(name)
            wrong += [f"{item.name}: {parameter}"] * (name not in ALLOWED)
    assert wrong == []
    assert used == set(ALLOWED), "the list names what is used, and no more"
