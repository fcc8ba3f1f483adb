"""Does docs/security.md name tests that are there, and give each threat its measure?"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_holds_a_threat_is_there() -> None:
    defined = set()
    for path in (ROOT / "tests").rglob("*.py"):
        defined |= set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 50
    assert named - defined == set()


def test_every_threat_has_its_measure_and_its_test() -> None:
    section = TEXT.partition("## Threats")[2].partition("\n## ")[0]
    rows = [
        line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| threat")
    ]
    assert len(rows) > 18
    for row in rows:
        threat, measure, tests, _ = (cell.strip() for cell in row.strip("|").split("|"))
        assert threat and measure and "`test_" in tests, row
