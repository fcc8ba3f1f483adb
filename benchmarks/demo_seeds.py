"""The demo's tables for several seeds, and whether the same seed gives the same model twice.

    python benchmarks/demo_seeds.py --seeds 1 2 3 --out docs/demo-results.md

Runs ``sprachbund demo`` once for each seed and once more for the first, and writes what it measured. About four
minutes a run on two cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

Report = dict[str, Any]

INTRODUCTION = """\
# The demo, measured

Bits per byte on text that the sites held out; lower is better. Compare within a row, never between languages.
Written by `python benchmarks/demo_seeds.py --seeds {seeds}`; one run each. Machine: {machine}.

*alone* is one site training by itself with the compute it gives to the campaign; *public text only* is one
model trained on the public slice with the compute of all sites together. Both start from the same base, and
neither is merged.
"""

READING = """\
## Reading it

A merge of four sites is one model moved by an average of four deltas: it has taken as many steps one after the
other as a single site, while *public text only* has taken four times as many, in one place. With half a million
parameters and a few hundred steps, steps are what is scarce, so that rival is hard to beat here. A site alone
is ahead in its own two languages and behind in the other six; the promoted model is the one that serves all eight.

What the tables show is that the machinery loses nothing. Whether a consortium gains by it is a question of scale,
of the replay share, and of how unlike its private text is to what is public; the demo is too small to answer it.
"""


def run(seed: int, workdir: Path) -> Report:
    print(f"seed {seed} in {workdir}", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "console.main",
        "demo",
        "--workdir",
        workdir,
        "--seed",
        str(seed),
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    report: Report = json.loads(done.stdout)
    return report


def table(report: Report) -> list[str]:
    """One Markdown table: a row a language, the mean last."""
    columns = [("base", report["base"]), *((f"alone: {s['model']}", s) for s in report["specialists"])]
    columns += [("public text only", report["public_only"]), ("promoted", report["promoted"])]
    lines = [
        "| language | " + " | ".join(name for name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for language in sorted(report["base"]["bits_per_byte"]):
        values = " | ".join(f"{column['bits_per_byte'][language]:.3f}" for _, column in columns)
        lines.append(f"| {language} | {values} |")
    means = " | ".join(f"{column['mean']:.3f}" for _, column in columns)
    return [*lines, f"| **mean** | {means} |"]


def page(reports: list[Report], again: Report) -> str:
    programs = f"Python {platform.python_version()}, torch {version('torch')}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {programs}"
    seeds = " ".join(str(r["seed"]) for r in reports)
    lines = [INTRODUCTION.format(seeds=seeds, machine=machine)]
    for report in reports:
        beaten = "beats" if report["mean_beats_public_only"] else "does not beat"
        every = "in every language" if report["beats_base_in_every_language"] else "NOT in every language"
        alone = "beats every" if report["mean_beats_every_specialist"] else "does NOT beat every"
        lines += [
            f"## Seed {report['seed']}: {report['seconds']:.0f} s, version `{report['version'][:16]}…`",
            "",
            *table(report),
            "",
            f"The promoted model beats its base {every}; its mean {alone} site alone and {beaten} public text only.",
            "",
        ]
    same = "the same" if again["version"] == reports[0]["version"] else "ANOTHER"
    lines += [
        "## The same seed twice",
        "",
        f"Seed {again['seed']} run again gives {same} version:",
        "",
        f"- `{reports[0]['version']}`",
        f"- `{again['version']}`",
        "",
        READING,
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("docs/demo-results.md"))
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="sprachbund-seeds-"))
    reports = [run(seed, root / f"seed-{seed}") for seed in options.seeds]
    again = run(options.seeds[0], root / "again")
    options.out.write_text(page(reports, again))
    good = all(r["beats_base_in_every_language"] and r["mean_beats_every_specialist"] for r in reports)
    return 0 if good and again["version"] == reports[0]["version"] else 1


if __name__ == "__main__":
    sys.exit(main())
