"""What there is to learn on one GPU in nine minutes: is it right there, how fast is it, what makes it faster.

    python -m benchmarks.gpu                         # from the root of a checkout; nothing is fetched
    python -m benchmarks.gpu --model-folder FOLDER   # SmolLM2 or another small model with its tokenizer: 100 steps
    python -m benchmarks.gpu --device cpu --tiny     # every part on tiny shapes, in less than a minute

Parts, in this order: the environment, and what products and copies reach there; three families' conformance (open gates
equal the library bit for bit, closed ones the corrupted run, fractional ones explicit sums in float64); the operations
of a read on the device against float64 on the processor; the time of steps, with and without Triton and CUDA graphs; a
short training run. Each part has a process and a time of its own, so that one which fails, hangs or breaks the device
leaves the others be. What is known is written to --out after each. Exit status 1 if anything failed.

Packages to carry to a machine without an index are in `benchmarks/gpu_wheels.txt`; with PyTorch 2.11, Transformers 5.17
and Lightning 2.6 there they are all.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_conformance
from benchmarks.gpu_operations import operations
from benchmarks.gpu_steps import CASES, TINY, Card, Row, measured_card, one_line, steps
from benchmarks.markdown_tables import markdown
from edgeprune.cli import main as cli
from edgeprune.errors import EdgepruneError
from edgeprune.models.read_ops import checked_name
from lit_modules.metrics_log import FILE

FAMILIES = ("GPT2-gpt20", "Llama-llama1", "Gemma2-gemma20")


class Part(NamedTuple):
    """What is done, and for how long at most."""

    seconds: float
    work: Callable[[], Iterator[Row]]


def environment(device: str, tiny: bool) -> Iterator[Row]:
    """Versions, the card, and what it reaches."""
    for name in ("torch", "transformers", "lightning", "triton", "flash_attn"):
        try:
            yield {"what": name, "is": importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            yield {"what": name, "is": "not installed"}
    if device != "cpu":
        card = torch.cuda.get_device_properties(device)
        yield {"what": "card", "is": f"{card.name}, {card.total_memory / 1e9:.0f} GB, {card.multi_processor_count} SMs"}
        yield {"what": "CUDA", "is": f"{torch.version.cuda}, capability {card.major}.{card.minor}"}
        yield {"what": "TF32", "is": str(torch.backends.cuda.matmul.allow_tf32)}
    yield from measured_card(device, 256 if tiny else 8192)


def conformance(device: str, tiny: bool) -> Iterator[Row]:
    """Three families, one row for each check."""
    cases = {case.id: case for case in gpu_conformance.CASES}
    if tiny:
        gpu_conformance.DTYPES = (torch.float32, torch.bfloat16)
    for name in FAMILIES[: 1 if tiny else None]:
        checks: dict[str, Callable[[], None]] = {
            "exact": partial(gpu_conformance.exact, cases[name], device, True),
            "closed": partial(gpu_conformance.closed, cases[name], device),
            "slow": partial(gpu_conformance.slow, cases[name], device),
        }
        for check, work in checks.items():
            before, checked = len(gpu_conformance.ROWS), sum(gpu_conformance.COUNT.values())
            row: Row = {"model": name, "check": check}
            try:
                work()
            except Exception as error:
                row["error"] = one_line(error)
            failures = gpu_conformance.ROWS[before:]
            row |= {"checked": sum(gpu_conformance.COUNT.values()) - checked, "failures": len(failures)}
            if failures:
                row["error"] = f"worst {max(row[8] for row in failures)}; first {', '.join(failures[0])}"
            yield row


def training(device: str, tiny: bool, folder: Path | None) -> Iterator[Row]:
    """A short run of `edgeprune fit`, as a user has it."""
    with tempfile.TemporaryDirectory() as room:
        logs = ["--trainer.logger.init_args.save_dir", room]
        trainer = ["--trainer.accelerator", "cpu" if device == "cpu" else "gpu", "--trainer.devices", "1"]
        if folder is not None:
            count = 100
            config = ["configs/ioi_smollm2.yaml", "--model.name", str(folder)]
        elif tiny:
            count, config = 4, ["configs/quickstart.yaml"]
        else:
            yield {"what": "skipped: no --model-folder"}
            return
        steps = ["--trainer.max_steps", str(count), "--trainer.val_check_interval", str(count)]
        start = time.perf_counter()
        said = StringIO()
        try:
            with redirect_stdout(said):
                cli(["fit", "--config", *config, *steps, *trainer, *logs, "--progress.seconds", "1000"])
        except SystemExit as done:
            if done.code:
                print(said.getvalue()[-2000:])
                raise RuntimeError(f"edgeprune fit ended with status {done.code}") from None
        seconds = time.perf_counter() - start
        yield {"what": f"{count} steps, loading and evaluation", "seconds": seconds}
        (log,) = Path(room).rglob(FILE)
        yield {"what": "last line of metrics.csv", "is": log.read_text().splitlines()[-1][:300]}


def named_operations(device: str) -> tuple[list[str], list[Row]]:
    """The read operations that can be tried on this device, and why the others cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    try:
        if device == "cpu" and not interpreted:
            raise EdgepruneError("kernels run on a GPU, or with TRITON_INTERPRET=1")
        checked_name("triton")
    except EdgepruneError as error:
        return ["cuda"], [{"ops": "triton", "skipped": str(error)}]
    return ["cuda", "triton"], []


def parts(options: argparse.Namespace, card: Callable[[], Card | None]) -> dict[str, Part]:
    """All parts, in order."""
    device, tiny = options.device, options.tiny
    names, absent = named_operations(device)

    def read_operations() -> Iterator[Row]:
        yield from absent
        yield from operations(device, names, tiny)

    found = {
        "environment": Part(40, partial(environment, device, tiny)),
        "conformance": Part(100, partial(conformance, device, tiny)),
        "read operations": Part(70, read_operations),
    }
    rounds = 1 if tiny else 5
    for name, case in (TINY if tiny else CASES).items():
        found[f"step {name}"] = Part(
            case.seconds, lambda case=case: steps(case, device, ["host"] * (device == "cpu") + names, card(), rounds)
        )
    return found | {"training": Part(90, partial(training, device, tiny, options.model_folder))}


def in_child(work: Callable[[], Iterator[Row]], path: str) -> None:
    """Write rows to a file as they come, and what goes wrong as the last."""
    with Path(path).open("w") as file:
        try:
            for row in work():
                print(json.dumps(row), file=file, flush=True)
        except BaseException as error:
            traceback.print_exc()
            print(json.dumps({"error": one_line(error)}), file=file, flush=True)
    sys.stdout.flush()
    os._exit(0)  # without what a broken device would do at the end


def bounded(part: Part, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own: rows, status, seconds."""
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile() as file:
        # forked, so that nothing is imported again; this process has not touched the device
        process = multiprocessing.get_context("fork").Process(target=in_child, args=(part.work, file.name))
        process.start()
        process.join(seconds)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        rows = [json.loads(line) for line in Path(file.name).read_text().splitlines() if line.endswith("}")]
    status = "failed" if any("error" in row for row in rows) else "ok"
    if process.exitcode:
        status = f"stopped after {seconds:.0f} s" if late else f"died with status {process.exitcode}"
    return {"status": status, "seconds": time.perf_counter() - start, "rows": rows}


def shown(value: Any) -> str:
    """A cell."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def card_of(rows: list[Row]) -> Card | None:
    """The measured card, from the rows of the environment."""
    found = {key: row[key] for row in rows for key in ("operations a second", "bytes a second") if key in row}
    return Card(*found.values()) if len(found) == len(Card._fields) else None


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, one family")
    parser.add_argument("--model-folder", type=Path, help="a small model and its tokenizer, for the training run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.7, help="for all parts together")
    parser.add_argument("--only", nargs="+", help="names of parts, or their beginnings")
    options = parser.parse_args()
    start, results = time.perf_counter(), dict[str, Any]()
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def card() -> Card | None:
        return card_of(results.get("environment", {}).get("rows", []))

    for name, part in parts(options, card).items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        left = 60 * options.minutes - (time.perf_counter() - start)
        if left < 5:
            results[name] = {"status": "no time left", "seconds": 0.0, "rows": []}
        else:
            results[name] = bounded(part, min(part.seconds, left))
        options.out.write_text(json.dumps({"device": options.device, "tiny": options.tiny, "parts": results}, indent=1))
        print(f"\n## {name}: {results[name]['status']}, {results[name]['seconds']:.1f} s\n")
        if rows := results[name]["rows"]:
            heads = list(dict.fromkeys(key for row in rows for key in row))
            print(markdown(heads, ([shown(row.get(head)) for head in heads] for row in rows)), flush=True)
    failed = [name for name, result in results.items() if result["status"] != "ok"]
    print(f"\n{time.perf_counter() - start:.0f} s; not ok: {', '.join(failed) or 'none'}; written to {options.out}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU leaves it untouched
    main()
