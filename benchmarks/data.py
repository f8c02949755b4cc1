"""Time and memory from no data at all to one epoch of batches: generate, tokenise, write, open again, iterate.

    python benchmarks/data.py path/to/gpt2-tokenizer --pairs 100000

IOI pairs, `entities="shared"`, whose whole number goes into the training split. The cache is a temporary folder, so
nothing is found there at first. Memory is measured in a process of its own: before the kept pairs are opened, after,
and after one epoch; what is mapped from a file is told apart, for the system may take it back at any time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from datamodules import IOI, PairDataModule
from datamodules.cache import load_pairs, save_pairs
from datamodules.encode import encode_pairs, gc_paused

T = TypeVar("T")


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder of a tokenizer")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--opened", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opened:
        print(json.dumps(_memory(Path(options.opened))))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu = _seconds(options, folder)
        path = Path(folder) / "pairs.safetensors"
        megabytes = {"file": round(path.stat().st_size / 1e6, 1), **_elsewhere(path)}
        figures = {"seconds": seconds, "CPU seconds": cpu, "MB": megabytes}
        print(json.dumps({"options": vars(options), "cores": os.cpu_count(), **figures}, indent=1))


def _seconds(options: argparse.Namespace, folder: str) -> tuple[dict[str, float], dict[str, float]]:
    """Wall time of each part, and processor time of all threads, which other work on the cores changes less."""
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start, begin = time.perf_counter(), time.process_time()
        result = work()
        seconds[name], cpu[name] = round(time.perf_counter() - start, 2), round(time.process_time() - begin, 2)
        return result

    tokenizer: Any = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
    task = IOI(num_train=options.pairs, num_validation=0, num_test=0, entities="shared")
    path = Path(folder) / "pairs.safetensors"
    with gc_paused():  # as the data module does
        texts = timed("generate", lambda: task.splits(tokenizer)["train"])
        pairs = timed("tokenise", lambda: encode_pairs(texts, tokenizer, single_token_answers=True))
    timed("write", lambda: save_pairs(path, pairs))
    timed("open again", lambda: load_pairs(path))
    data = PairDataModule(task, options.tokenizer, eval_batch_size=options.batch_size, cache_dir=folder)
    data.num_workers = options.workers
    timed("all of these by the data module", lambda: data.pairs("train"))
    assert list(data.pairs("train")[:100]) == pairs[:100]
    timed("one epoch", lambda: sum(len(batch) for batch in data.ordered_dataloader("train")))
    return seconds, cpu


def _elsewhere(path: Path) -> dict[str, float]:
    """Memory of a process of its own that opens the pairs."""
    command = [sys.executable, __file__, "-", "--opened", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _memory(path: Path) -> dict[str, float]:
    def resident() -> tuple[float, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":") for line in lines if line.startswith(("RssAnon", "RssFile")))
        anonymous, mapped = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
        return anonymous, mapped

    before = resident()
    pairs = load_pairs(path)
    assert pairs is not None
    opened = resident()
    longest = max(len(pair.clean) for pair in pairs)
    read = resident()
    assert longest > 0
    return {
        name: round(after[column] - before[column], 1)
        for when, after in (("opened", opened), ("all pairs read", read))
        for column, name in enumerate((f"{when}, own", f"{when}, mapped"))
    }


if __name__ == "__main__":
    main()
