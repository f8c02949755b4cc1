"""The page of families names every one that there is."""

import re
from pathlib import Path

from edgeprune.models.family import registry

ROOT = Path(__file__).parent.parent.parent


def test_every_model_type_has_its_line() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs/families.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named >= set(registry()) - {"hooked_transformer"}


def test_the_number_in_the_readme() -> None:
    found = re.search(r"(\d+) model types", (ROOT / "README.md").read_text())
    assert found is not None
    assert int(found.group(1)) == len(set(registry()) - {"hooked_transformer", "edgeprune_compiled"})
