"""How fast and how small our merges are, beside a copy that computes nothing and beside mergekit.

    python benchmarks/merging.py --workdir DIR --mergekit-python PYTHON --markdown docs/merging-results.md

Whole processes in turn (A B C A B C ...), medians. Models are made once and used again (8 GB of disk, 26 GB with
the memory part). What was measured is kept in DIR/runs.json, so that a run that was cut off goes on where it was;
``--redo`` measures rows again, which a change of the code calls for.
"""

import argparse
import fnmatch
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml
from merging_page import MEMORY_COUNTS, MEMORY_METHODS, MEMORY_SIZES, METHODS, Method, page
from processes import Run, measure
from sample_models import SIZES, base_folder, make_models, make_momentum, model_folders, warm

from consortium.files import write_bytes_atomically
from consortium.tensors import SINGLE_FILE

PARTS = ("speed", "mergekit", "memory", "startup")
FLOOR = Path(__file__).with_name("merging_floor.py")
MERGE = (sys.executable, "-m", "console.main", "merge")
OUR_FLAGS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")
MERGEKIT_FLAGS = ("--lazy-unpickle", *OUR_FLAGS)
HELP_REPEATS = 7
LIST_MODULES = """\
import atexit, os, pathlib, sys
atexit.register(lambda: pathlib.Path(os.environ["MODULES"]).write_text("\\n".join(sorted(sys.modules))))
from console.main import main
main()
"""
IMPORT_MODULES = """\
import contextlib, importlib, pathlib, sys, time
for name in pathlib.Path(sys.argv[1]).read_text().split():
    with contextlib.suppress(ImportError):  # those that a package makes by itself, without a file
        importlib.import_module(name)
time.sleep(0.1)  # so that whoever watches our memory sees it
"""


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    command: Sequence[str | Path]
    inputs: Sequence[Path] = ()  #: files to have in the page cache
    environment: Mapping[str, str] | None = None


class Kept:
    """What has been measured, in a file."""

    def __init__(self, path: Path, redo: Sequence[str]) -> None:
        self._path = path
        self.runs: dict[str, list[Run]] = {}
        self.imports: dict[str, int] = {}
        if path.exists():
            found = json.loads(path.read_text())
            self.imports = found["imports"]
            for name, runs in found["runs"].items():
                if not any(fnmatch.fnmatch(name, pattern) for pattern in redo):
                    self.runs[name] = [Run(**run) for run in runs]

    def add(self, name: str, run: Run) -> None:
        self.runs.setdefault(name, []).append(run)
        self.save()

    def save(self) -> None:
        runs = {name: [asdict(run) for run in runs] for name, runs in self.runs.items()}
        text = json.dumps({"imports": self.imports, "runs": runs}, indent=1) + "\n"
        write_bytes_atomically(self._path, text.encode())


class Bench:
    """One work folder with models of one size."""

    def __init__(self, workdir: Path, size: str, kept: Kept) -> None:
        self._workdir, self._size, self._kept = workdir, size, kept
        self._out = workdir / f"out-{os.getpid()}"  # never there before a run, never after it
        make_models(workdir, size, 4)
        self._momentum = make_momentum(workdir, size)

    def speed(self, methods: Sequence[Method], repeats: int) -> None:
        """Ours and the floors."""
        floors = {method.floor: method for method in methods}
        jobs = [self._floor(method) for method in floors.values()]
        self._in_turn([*jobs, *(self._merge(method) for method in methods)], repeats)

    def mergekit(self, methods: Sequence[Method], python: Path, repeats: int) -> None:
        """The same recipes, ties last because it takes minutes."""
        self._in_turn(
            [
                Job(
                    f"{self._size} mergekit {method.name}",
                    (
                        python,
                        "-m",
                        "mergekit.scripts.run_yaml",
                        self._recipe(method),
                        self._out,
                        *MERGEKIT_FLAGS,
                    ),
                    self._inputs(method),
                    {"HF_HUB_OFFLINE": "1"},
                )
                for method in sorted(methods, key=lambda one: one.name == "ties")
                if method.mergekit
            ],
            repeats,
        )

    def memory(self) -> None:
        """Few and many contributions, small and large, beside the same imports that do nothing."""
        bare = (sys.executable, "-c", IMPORT_MODULES, self._modules("merge"))
        self._in_turn([Job("bare interpreter", bare)], 3)
        for size in MEMORY_SIZES:
            make_models(self._workdir, size, max(MEMORY_COUNTS))
            for count in MEMORY_COUNTS:
                for method in METHODS:
                    if method.name in MEMORY_METHODS:
                        recipe = self._recipe(method, size, count)
                        command = (*MERGE, recipe, self._out, *OUR_FLAGS)
                        self._in_turn([Job(f"memory {size} {count} {method.name}", command)], 1)

    def startup(self) -> None:
        self._in_turn([Job("help", (*MERGE, "--help"))], HELP_REPEATS)
        helping, merging = (self._modules(what).read_text().split() for what in ("help", "merge"))
        self._kept.imports = {
            "help": len(helping),
            "merge": len(merging),
            "torch": int("torch" in merging or "torch" in helping),
        }
        self._kept.save()

    def _modules(self, what: str) -> Path:
        """A file with the names of all modules that the command imports: for its help, or to merge."""
        make_models(self._workdir, "tiny", 4)
        recipe, file = self._recipe(METHODS[0], "tiny"), self._workdir / f"modules-{what}.txt"
        arguments = ["--help"] if what == "help" else [recipe, self._out, *OUR_FLAGS]
        command = [sys.executable, "-c", LIST_MODULES, "merge", *arguments]
        environment = {**os.environ, "MODULES": str(file)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(self._out, ignore_errors=True)
        return file

    def _floor(self, method: Method) -> Job:
        inputs = self._inputs(method)
        sizes = [inputs[0].stat().st_size, *([self._momentum.stat().st_size] if method.outer else [])]
        options = ("--reads", str(method.reads), "--write", *(str(size) for size in sizes))
        return Job(
            f"{self._size} {method.floor}", (sys.executable, FLOOR, self._out, *inputs, *options), inputs
        )

    def _merge(self, method: Method) -> Job:
        state = ("--outer-state", self._momentum) if method.outer else ()
        command = (*MERGE, self._recipe(method), self._out, *state, *OUR_FLAGS)
        return Job(f"{self._size} {method.name}", command, self._inputs(method))

    def _recipe(self, method: Method, size: str | None = None, count: int | None = None) -> Path:
        size, count = size or self._size, count or method.models
        recipe = method.recipe(base_folder(self._workdir, size), model_folders(self._workdir, size, count))
        path = self._workdir / f"{size}-{count}-{method.name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def _inputs(self, method: Method) -> list[Path]:
        folders = [base_folder(self._workdir, self._size)] if method.base else []
        folders += model_folders(self._workdir, self._size, method.models)
        return [folder / SINGLE_FILE for folder in folders] + ([self._momentum] if method.outer else [])

    def _in_turn(self, jobs: Sequence[Job], repeats: int) -> None:
        """Run each job once, then each a second time, and so on; less what is already measured."""
        for repeat in range(repeats):
            for job in jobs:
                if len(self._kept.runs.get(job.name, ())) > repeat:
                    continue
                for path in job.inputs:
                    warm(path)
                try:
                    run = measure(job.command, job.environment)
                finally:
                    shutil.rmtree(self._out, ignore_errors=True)
                self._kept.add(job.name, run)
                told = f"{run.wall_seconds:.2f} s wall, {run.cpu_seconds:.2f} s CPU"
                told += (
                    f", {run.anonymous_bytes / 1e6:.0f} MB anonymous; others used {run.other_cores:.2f} cores"
                )
                print(f"{job.name}: {told}", file=sys.stderr, flush=True)


def machine(mergekit_python: Path | None) -> dict[str, str]:
    """What the figures depend on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    programs = (
        f"Python {platform.python_version()}, numpy {version('numpy')}, sprachbund {version('sprachbund')}"
    )
    if mergekit_python:
        names = ("mergekit", "torch", "transformers")
        ask = f"from importlib.metadata import version; print(*('%s %s' % (n, version(n)) for n in {names}), sep=', ')"
        said = subprocess.run([mergekit_python, "-c", ask], check=True, capture_output=True, text=True)
        programs += f", {said.stdout.strip()}"
    return {
        "Date": datetime.now(UTC).date().isoformat(),
        "machine": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, Linux {platform.release()}",
        "programs": programs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="for models and outputs")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", metavar="METHOD", choices=[method.name for method in METHODS])
    parser.add_argument("--repeats", type=int, default=3, help="of ours and the floors")
    parser.add_argument(
        "--mergekit-python", type=Path, help="interpreter of an environment with mergekit 0.1.5"
    )
    parser.add_argument("--mergekit-repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="what is kept; runs.json in the work folder")
    parser.add_argument(
        "--redo",
        nargs="+",
        default=(),
        metavar="NAME",
        help="rows to measure again: 'full ties', 'full [!m]*'",
    )
    parser.add_argument("--markdown", type=Path, help="write the page")
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.json or workdir / "runs.json", options.redo)
    methods = [method for method in METHODS if not options.only or method.name in options.only]
    bench = Bench(workdir, options.size, kept)
    if "speed" in options.parts:
        bench.speed(methods, options.repeats)
    if "mergekit" in options.parts and options.mergekit_python:
        bench.mergekit(methods, options.mergekit_python, options.mergekit_repeats)
    if "memory" in options.parts:
        bench.memory()
    if "startup" in options.parts:
        bench.startup()
    command = "python benchmarks/merging.py --workdir DIR --mergekit-python PYTHON --markdown FILE"
    text = page(options.size, kept.runs, machine(options.mergekit_python), kept.imports, command)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
