"""Tracr's program that reverses a list (four layers, one head each), under zero ablation.

Heads a1.h0, a2.h0 and the MLP m3 write nothing. 11 edges, token and position embedding apart, and 4 direct ones. Under
interchange with inputs of one length only `tok_embed->a3.h0.v` and `a3.h0->logits` matter: another circuit.
"""

from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.graph import ArchSpec

TRACR_REVERSE = CanonicalCircuit(
    name="tracr_reverse",
    model="tracr reverse",
    arch=ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1, split_embedding=True),
    parts={
        "length": Role(("a0.h0", "m0"), "the length of the list"),
        "opposite_index": Role(("m1", "m2"), "length minus index, then as the position to attend to"),
        "output": Role(("a3.h0",), "copy the token at that position"),
    },
    links=(
        Link(("tok_embed",), ("a0.h0", "a3.h0"), "v"),
        Link(("tok_embed",), ("m0", "m1")),
        Link(("pos_embed",), ("m1",)),
        Link(("pos_embed",), ("a3.h0",), "k"),
        Link(("a0.h0",), ("m0",)),
        Link(("m0",), ("m1",)),
        Link(("m1",), ("m2",)),
        Link(("m2",), ("a3.h0",), "q"),
        Link(("a3.h0",), ("logits",)),
    ),
    sources=(
        "Lindner et al., Tracr, arXiv 2301.05062: the compiler",
        "Conmy et al., ACDC, arXiv 2304.14997, and its repository ArthurConmy/Automatic-Circuit-Discovery, "
        "acdc/tracr_task/utils.py: edges",
    ),
)
