"""Are the committed stubs and JSON Schemas what their sources generate? Run by `make check`."""

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    stale: list[str] = []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run([ROOT / "protos/generate.sh", out], check=True, env={**os.environ, "PATH": path})
        stale += _differing(out / "sprachbund/v1", ROOT / "protos/sprachbund/v1", "*_pb2*.py*", "make stubs")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run([sys.executable, "-m", "policies.schemas", out], check=True, cwd=ROOT)
        stale += _differing(out, ROOT / "policies/schemas", "*.json", "make schemas")
    print("\n".join(stale) or "generated files are fresh", file=sys.stderr if stale else sys.stdout)
    return 1 if stale else 0


def _differing(fresh: Path, committed: Path, pattern: str, remedy: str) -> list[str]:
    names = sorted({p.name for folder in (fresh, committed) for p in folder.glob(pattern)})
    _, changed, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    return [
        f"{committed / name}: not what its source generates; run `{remedy}`" for name in (*changed, *missing)
    ]


if __name__ == "__main__":
    sys.exit(main())
