"""`edgeprune selfcheck MODEL`: whether the masked model is right on this model and this machine; a minute."""

from pathlib import Path

from edgeprune.cli.arguments import Arguments, check_file, write_json
from edgeprune.errors import EdgepruneError


def run(arguments: list[str]) -> int:
    """Print one table; exit status 1 if a check fails."""
    parser = Arguments(prog="edgeprune selfcheck", description=__doc__)
    parser.add_argument("model", help="hub id, local folder, smollm2, gemma3-270m or compiled:NAME")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="dtypes (float32 bfloat16)")
    parser.add_argument("--attn", nargs="+", default=[], help="attention kernels (eager sdpa, as the family has them)")
    parser.add_argument("--device", default="cpu", help="where (cpu)")
    parser.add_argument("--kv-readers", default="group", help="group or head (group)")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args(arguments[1:])
    check_file(options.json, "--json")
    from edgeprune.console import ProgressReporter, print_report
    from edgeprune.models.loading import DTYPES
    from edgeprune.selfcheck import selfcheck, table_of

    for dtype in options.dtype:
        if dtype not in DTYPES or dtype == "auto":
            raise EdgepruneError(f"--dtype {dtype}: choose among {', '.join(set(DTYPES) - {'auto'})}")
    settings = {"device": options.device, "kv_readers": options.kv_readers, "revision": options.revision}
    with ProgressReporter(stderr=True) as bars:
        checks = list(
            selfcheck(options.model, tuple(options.dtype), tuple(options.attn), report=bars.report, **settings)
        )
    ok = all(check.ok for check in checks)
    print_report(table_of(checks, f"{options.model}: {'every check passes' if ok else 'some checks FAILED'}"))
    if options.json is not None:
        write_json(options.json, {"model": options.model, "ok": ok, "checks": [check.to_dict() for check in checks]})
    return 0 if ok else 1
