"""Tracr's program for the fraction of x so far (two layers, one head each), under zero ablation.

7 edges, token and position embedding apart, and 3 direct ones. Two of them, from the token embedding to the query and
the key of a1.h0, matter only on inputs that do not begin with BOS, such as those it was published with; with BOS,
closing them changes nothing.
"""

from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.graph import ArchSpec

TRACR_XPROPORTION = CanonicalCircuit(
    name="tracr_xproportion",
    model="tracr xproportion",
    arch=ArchSpec(num_layers=2, num_heads=1, num_kv_heads=1, split_embedding=True),
    parts={
        "is_x": Role(("m0",), "whether the token is x"),
        "fraction": Role(("a1.h0",), "the average of that over the positions so far"),
    },
    links=(
        Link(("tok_embed",), ("m0",)),
        Link(("m0",), ("a1.h0",), "v"),
        Link(("tok_embed", "pos_embed"), ("a1.h0",), "qk"),
        Link(("a1.h0",), ("logits",)),
    ),
    sources=(
        "Lindner et al., Tracr, arXiv 2301.05062: the compiler",
        "Conmy et al., ACDC, arXiv 2304.14997, and its repository ArthurConmy/Automatic-Circuit-Discovery, "
        "acdc/tracr_task/utils.py: edges",
    ),
)
