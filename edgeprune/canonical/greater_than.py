"""Greater-than in GPT-2 small: years after a start year, five types of components.

The queries of the year heads are left alone in the paper. Here, as in ACDC's list, that is a path of MLPs: MLPs 0 to 8
are joined, and write to the queries of all later year heads; so MLPs 4 to 7 are nodes without a role.
235 edges, and 27 direct ones.
"""

from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.graph import ArchSpec

_QUERY_PATH = tuple(f"m{layer}" for layer in range(9))

GREATER_THAN = CanonicalCircuit(
    name="greater_than",
    model="gpt2",
    arch=ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12),
    parts={
        "early_heads": Role(("a0.h3", "a0.h5"), "read the start year for the year heads"),
        "early_head_of_mlps": Role(("a0.h1",), "read the start year for the early MLPs and the year heads"),
        "early_mlps": Role(("m0", "m1", "m2", "m3"), "work on the start year at its place"),
        "year_heads": Role(
            ("a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"), "carry the start year to the last position"
        ),
        "late_mlps": Role(("m8", "m9", "m10", "m11"), "raise the years after it"),
    },
    links=(
        Link(("embed",), ("early_heads", "early_head_of_mlps", "early_mlps")),
        Link(("early_head_of_mlps",), ("early_mlps", "year_heads")),
        Link(("early_heads", "early_mlps"), ("year_heads",)),
        Link(_QUERY_PATH, _QUERY_PATH),
        Link(_QUERY_PATH, ("year_heads",), "q"),
        Link(("year_heads", "late_mlps"), ("late_mlps", "logits")),
    ),
    sources=(
        "Hanna et al., How does GPT-2 compute greater-than?, arXiv 2305.00586: components",
        "Conmy et al., ACDC, arXiv 2304.14997, and its repository ArthurConmy/Automatic-Circuit-Discovery, "
        "acdc/greaterthan/utils.py: types of components and edges",
    ),
)
