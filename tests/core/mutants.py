"""Do the tests of the core notice when the core is broken? ``python tests/core/mutants.py`` tries.

Each mutant is one small, plausible mistake in a copy of the tree; ``tests/core`` must fail on it. Prints the
survivors and exits with their number. ``python tests/core/mutants.py fence resume`` tries those whose name has
one of the words.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutant import Mutant
from mutants_of_commands import MUTANTS as COMMANDS
from mutants_of_placement import MUTANTS as PLACEMENT
from mutants_of_planning import MUTANTS as PLANNING
from mutants_of_state import MUTANTS as STATE

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("consortium", "coordinator", "policies", "protos", "simulation", "site_agent", "pyproject.toml")


MUTANTS = (*COMMANDS, *PLANNING, *PLACEMENT, *STATE)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored) if source.is_dir() else shutil.copy(
                source, tree
            )
        shutil.copytree(ROOT / "tests" / "core", tree / "tests" / "core")
        assert _passes(tree), "the tests fail without any mutant"
        for mutant in chosen:
            caught = not _passes_with(mutant, tree)
            print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name}", flush=True)
            survivors += [] if caught else [mutant.name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught")
    return len(survivors)


def _passes_with(mutant: Mutant, tree: Path) -> bool:
    file = tree / "coordinator" / mutant.file
    text = file.read_text()
    assert text.count(mutant.right) == 1, (
        f"{mutant.name}: {mutant.right!r} is not exactly once in {mutant.file}"
    )
    file.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        return _passes(tree)
    finally:
        file.write_text(text)


def _passes(tree: Path) -> bool:
    """Stories first: they are quick, and most mutants end there."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/core"]
    return subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
