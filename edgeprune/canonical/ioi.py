"""Indirect object identification in GPT-2 small: 26 heads in seven roles.

The paper names heads, and which roles read which; MLPs are not part of its account. The edges are those that ACDC
compares with, by this rule: embedding, MLPs and logits are joined freely, MLPs and the 26 heads as well, but from the
embedding to a head, from head to head and from a head to the logits only what the paper describes.
963 edges, and 78 direct ones: the 1,041 of ACDC's count.
"""

from edgeprune.canonical.known import CanonicalCircuit, Link, Role
from edgeprune.graph import ArchSpec

_LATE = ("name_mover", "backup_name_mover", "negative_name_mover")

IOI = CanonicalCircuit(
    name="ioi",
    model="gpt2",
    arch=ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12),
    parts={
        "previous_token": Role(("a2.h2", "a4.h11"), "copy the token before, so that the one after S1 knows S1"),
        "duplicate_token": Role(("a0.h1", "a0.h10", "a3.h0"), "attend from the second subject to the first"),
        "induction": Role(("a5.h5", "a5.h8", "a5.h9", "a6.h9"), "say at S2 that the subject stood before"),
        "s_inhibition": Role(("a7.h3", "a7.h9", "a8.h6", "a8.h10"), "keep the name movers off the subject"),
        "name_mover": Role(("a9.h6", "a9.h9", "a10.h0"), "copy the name that they attend to into the output"),
        "backup_name_mover": Role(
            ("a9.h0", "a9.h7", "a10.h1", "a10.h2", "a10.h6", "a10.h10", "a11.h2", "a11.h9"),
            "copy names as well, more so where name movers are taken away",
        ),
        "negative_name_mover": Role(("a10.h7", "a11.h10"), "write against the name that they attend to"),
    },
    links=(
        Link(("embed", "mlps"), ("mlps", "logits")),
        Link(("mlps",), ("heads",)),
        Link(("heads",), ("mlps",)),
        Link(("embed",), ("previous_token", "duplicate_token")),
        Link(("embed",), ("s_inhibition",), "q"),
        Link(("embed",), _LATE, "kv"),
        Link(("previous_token",), ("induction",), "kv"),
        Link(("induction", "duplicate_token"), ("s_inhibition",), "kv"),
        Link(("s_inhibition",), _LATE, "q"),
        Link(_LATE, ("logits",)),
    ),
    sources=(
        "Wang et al., Interpretability in the Wild, arXiv 2211.00593: heads and roles",
        "Conmy et al., ACDC, arXiv 2304.14997, and its repository ArthurConmy/Automatic-Circuit-Discovery, "
        "acdc/ioi/utils.py: edges",
    ),
)
