"""What an edge graph depends on, and where the readers of a layer stand."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edgeprune.errors import EdgepruneError

KVReaders = Literal["group", "head"]


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """What the edge graph depends on: nothing about weights, dtype or device.

    Attributes:
        num_layers: Transformer layers.
        num_heads: Query heads per layer; each is one writer.
        num_kv_heads: Key/value heads per layer; equal to `num_heads` without grouped-query attention.
        split_embedding: Token and position embedding are two writers instead of one.
        kv_readers: `"group"`, one k and one v reader per key/value head (what the model computes), or `"head"`, one per
            query head (how MIB and EAP-IG count).
        parallel_blocks: Attention and MLP of a layer read the same stream (GPT-NeoX), so no head feeds its own MLP.
        has_mlp: False for attention-only models.
        coupled_heads: Heads of a layer share a norm, so what one of them reads moves what all of them write. It says
            which edges matter to which (`EdgeGraph.behind`), not which edges there are: graphs that differ in it alone
            are equal.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    split_embedding: bool = False
    kv_readers: KVReaders = "group"
    parallel_blocks: bool = False
    has_mlp: bool = True
    coupled_heads: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.num_layers, self.num_heads, self.num_kv_heads) < 1:
            raise EdgepruneError(f"a graph needs at least one layer and one head, got {self}")
        if self.num_heads % self.num_kv_heads:
            raise EdgepruneError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}: "
                "key/value heads must be shared evenly"
            )
        if self.kv_readers not in ("group", "head"):
            raise EdgepruneError(f"kv_readers must be 'group' or 'head', got {self.kv_readers!r}")

    @property
    def num_embeddings(self) -> int:
        """Embedding writers: 2 when token and position are apart, else 1."""
        return 2 if self.split_embedding else 1

    @property
    def num_kv_readers(self) -> int:
        """K (and equally v) readers per layer."""
        return self.num_kv_heads if self.kv_readers == "group" else self.num_heads

    @property
    def reader_counts(self) -> tuple[int, int, int]:
        """Q, k and v readers of one layer, in the order of their rows."""
        return self.num_heads, self.num_kv_readers, self.num_kv_readers

    @property
    def num_attention_readers(self) -> int:
        """Q, k and v readers of one layer together."""
        return sum(self.reader_counts)

    @property
    def heads_per_kv_reader(self) -> int:
        """Query heads that share a k (and a v) reader."""
        return self.num_heads // self.num_kv_readers

    @property
    def kv_readers_per_head(self) -> int:
        """K (and v) readers of one key/value head of the model: more than 1 where `kv_readers` is `"head"`."""
        return self.num_kv_readers // self.num_kv_heads

    def kv_reader_of(self, head: int) -> int:
        """Number of the k (and v) reader of a query head among those of its layer."""
        return head // self.heads_per_kv_reader

    @property
    def writers_per_layer(self) -> int:
        """Heads, plus the MLP if there is one."""
        return self.num_heads + self.has_mlp

    @property
    def readers_per_layer(self) -> int:
        """Q, k, v, plus the MLP if there is one."""
        return self.num_attention_readers + self.has_mlp


class LayerRows(NamedTuple):
    """Rows of one layer's readers.

    Attributes:
        q: One per query head.
        k: One per k reader.
        v: One per v reader.
        mlp: Of the MLP: one row, or none in an attention-only model.
    """

    q: slice
    k: slice
    v: slice
    mlp: slice

    @property
    def attention(self) -> slice:
        """All q, k and v."""
        return slice(self.q.start, self.v.stop)
