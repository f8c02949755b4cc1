"""Argument names in Python docstrings: six heads of a four-layer attention-only transformer (`attn-only-4l`).

Two more heads of the account, a0.h2 (previous token) and a0.h4 (position), are not here: they do the same on every
prompt of the task, so patching cannot show them and the published edges leave them out. 24 edges, and 13 direct ones.
"""

from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.graph import ArchSpec

DOCSTRING = CanonicalCircuit(
    name="docstring",
    model="attn-only-4l",
    arch=ArchSpec(num_layers=4, num_heads=8, num_kv_heads=8, has_mlp=False),
    parts={
        "duplicate_token": Role(("a0.h5", "a1.h2"), "mark tokens by attending to themselves and to equal ones"),
        "induction_and_previous_token": Role(
            ("a1.h4",), "induction in the docstring, nearly the previous token in the definition"
        ),
        "previous_token": Role(("a2.h0",), "carry an argument on to the next one in the definition"),
        "argument_mover": Role(("a3.h0", "a3.h6"), "copy the argument that they attend to into the output"),
    },
    links=(
        Link(("embed",), ("a0.h5", "a1.h4", "argument_mover"), "v"),
        Link(("embed", "a0.h5"), ("a1.h2", "a2.h0"), "qk"),
        Link(("a0.h5",), ("a1.h4", "argument_mover"), "v"),
        Link(("a1.h4",), ("a2.h0",), "v"),
        Link(("a1.h4",), ("argument_mover",), "q"),
        Link(("a1.h2", "a2.h0"), ("argument_mover",), "k"),
        Link(("argument_mover",), ("logits",)),
    ),
    sources=(
        "Heimersheim and Janiak, A circuit for Python docstrings in a 4-layer attention-only transformer, 2023: roles",
        "Conmy et al., ACDC, arXiv 2304.14997, and its repository ArthurConmy/Automatic-Circuit-Discovery, "
        "acdc/docstring/utils.py: edges",
    ),
)
