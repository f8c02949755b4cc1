"""Circuits that people found and published, to hold found ones against. One file each."""

from edgeprune.canonical.docstring import DOCSTRING
from edgeprune.canonical.greater_than import GREATER_THAN
from edgeprune.canonical.ioi import IOI
from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.canonical.tracr_reverse import TRACR_REVERSE
from edgeprune.canonical.tracr_xproportion import TRACR_XPROPORTION
from edgeprune.errors import EdgepruneError

__all__ = ["CanonicalCircuit", "Link", "Role", "load", "names"]

_KNOWN = {known.name: known for known in (IOI, GREATER_THAN, DOCSTRING, TRACR_REVERSE, TRACR_XPROPORTION)}


def names() -> tuple[str, ...]:
    """Names of the published circuits."""
    return tuple(_KNOWN)


def load(name: str) -> CanonicalCircuit:
    """A published circuit; `name` as in `names()`.

    >>> ioi = load("ioi")
    >>> ioi.circuit().num_edges, len(ioi.direct)
    (963, 78)
    >>> ioi.roles["name_mover"]
    ('a9.h6', 'a9.h9', 'a10.h0')
    """
    if name not in _KNOWN:
        raise EdgepruneError(f"no published circuit named {name!r}; the known ones are: {', '.join(_KNOWN)}")
    return _KNOWN[name]
