"""Peak memory of a process that loads a model and makes a training step, whole and in shards.

    python benchmarks/sharded.py                        # a Llama of 16 layers with random float32 weights, 0.4 GB
    python benchmarks/sharded.py --processes 4 --layers 32

Each process takes one short pair, so that weights are nearly all that there is. `weights` is what it holds of them at
most; `resident` is the peak of its memory above what it held before it loaded the model. On a CPU, glibc keeps pieces
that were freed, as gathered layers are; with MALLOC_MMAP_THRESHOLD_=100000 it gives them back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, LlamaConfig

from edgeprune.memory import resident
from edgeprune.models.loading import load_model

WIDTH = 768


def save_model(folder: str, layers: int) -> None:
    """A model whose weights are in its layers for the most part."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="50MB")


def measure(folder: str, processes: int) -> None:
    """Load, make one step forward and backward, print what it took."""
    mesh = None
    if processes > 1:
        torch.distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (processes,))
    before = resident()
    model = load_model(folder, mesh=mesh)
    loaded = _peak() - before
    ids = torch.ones(1, 4, dtype=torch.long)
    gates = torch.full(model.graph.shape, 0.5, requires_grad=True)
    model(ids, gates, model.record(ids + 1)).square().mean().backward()
    figures = {"weights": model.sharding.num_bytes, "resident, loaded": loaded, "resident": _peak() - before}
    print(json.dumps(figures))


def _peak() -> int:
    """Of this process alone: `getrusage` begins with its parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main() -> None:
    """Run one process alone, then several together, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.processes)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, given.layers)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        print(f"files {size / 1e6:.0f} MB")
        for processes in (1, given.processes):
            words = [sys.executable, __file__, "--measure", folder, "--processes", str(processes)]
            hosts = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "WORLD_SIZE": str(processes)}
            runs = [
                subprocess.Popen(words, env=os.environ | hosts | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
                for rank in range(processes)
            ]
            for rank, run in enumerate(runs):
                figures = json.loads(run.communicate()[0].splitlines()[-1])
                listed = ", ".join(f"{name} {value / 1e6:.0f} MB" for name, value in figures.items())
                print(f"process {rank + 1} of {processes}: {listed}")


if __name__ == "__main__":
    main()
