"""How many tests each family passed, from a run of the suite: the counts of docs/families.md.

pytest tests/models/test_conformance.py --junitxml families.xml && python benchmarks/families.py families.xml

Methods, patching, ablations and reading count too where they were run (EDGEPRUNE_ALL_FAMILIES=1 for all families).
"""

import argparse
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from edgeprune.models.family import registry

CONFORMANCE = "tests.models.test_conformance"


def counted(path: Path) -> dict[str, Counter[str]]:
    """By family, tests that passed: in the conformance suite, in others, and those that did not."""
    names = {family.__name__ for family in registry().values()}
    found: dict[str, Counter[str]] = {name: Counter() for name in sorted(names)}
    for case in ElementTree.parse(path).iter("testcase"):
        ids = re.search(r"\[(.*)\]$", case.get("name") or "")
        family = next((part for part in re.split(r"[-\[]", ids.group(1)) if part in names), None) if ids else None
        if family is not None:
            failed = any(case.find(kind) is not None for kind in ("failure", "error"))
            where = "conformance" if case.get("classname") == CONFORMANCE else "others"
            found[family]["failed" if failed else where] += case.find("skipped") is None
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("xml", type=Path, help="what pytest wrote")
    options = parser.parse_args()
    print("| family | conformance | methods, patching, reading, ... | failed |")
    print("|---|---|---|---|")
    for family, count in counted(options.xml).items():
        print(f"| {family} | {count['conformance']} | {count['others']} | {count['failed']} |")


if __name__ == "__main__":
    main()
