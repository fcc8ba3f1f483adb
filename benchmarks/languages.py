"""What a consortium gains and by which settings: many variants of one small campaign on real text, paired by seed.

    python benchmarks/languages.py --workdir DIR --seeds 1 2 3 --page docs/languages-results.md

All variants spend the same tokens from the same base; ``languages_variants.py`` says what each changes. Every run is
written to DIR/results.jsonl when it is done, and is not done again: a run that was cut off goes on, and several that
are started with the same DIR share the work. ``--page`` writes tables and picture of what is there; with
``--only-page`` nothing is run. What stands in the page from "Reading it" on is kept. ``--short`` is the same in
seconds, to see that it works, without ``--only`` of as few variants as have every setting: its figures mean nothing.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from languages_page import page, picture
from languages_runs import Result, Run
from languages_variants import VARIANTS, Variant, every_setting_once
from languages_world import SHORT, Scale, Words, World

from consortium.canonical import decode, digest_of_fact, encode, replace
from consortium.files import write_bytes_atomically
from consortium.ids import digest_of
from site_agent.trainer.ranks import Ranks, joined

Worlds = dict[tuple[Words, int], World]  #: by kind of public text and width of the model
READING = "## Reading it\n"  #: from here on a page is written by hand, and kept


def read_results(path: Path, scale: Scale) -> list[Result]:
    """What is done at this scale; the newest of two that are the same."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    found = [decode(line, Result, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    mine = digest_of_fact(scale)
    newest = {(one.variant, one.seed): one for one in found if one.scale == mine}
    return list(newest.values())


def keys_of(done: Sequence[Result]) -> set[tuple[str, int]]:
    return {(one.variant, one.seed) for one in done}


def due(
    variants: Sequence[Variant], seeds: Sequence[int], done: Sequence[Result]
) -> list[tuple[Variant, int]]:
    """What is to be run, in order: the first tier of all seeds, then the second."""
    known = keys_of(done)
    tiers = sorted({variant.tier for variant in variants})
    return [
        (variant, seed)
        for tier in tiers
        for seed in seeds
        for variant in variants
        if variant.tier == tier and (variant.name, seed) not in known
    ]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[bool]:
    """Whether ``what`` is this process's own meanwhile; a process that dies claims nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / digest_of(what.encode()), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def reading_of(path: Path) -> str:
    """What a person wrote below the tables of a page; nothing if there is none yet."""
    if not path.exists():
        return ""
    _, mark, said = path.read_text(encoding="utf-8").partition(READING)
    return mark + said


def run_all(
    workdir: Path,
    scale: Scale,
    wanted: Sequence[tuple[Variant, int]],
    ranks: Ranks,
) -> None:
    worlds: Worlds = {}
    began = time.monotonic()
    for number, (variant, seed) in enumerate(wanted, 1):
        with claimed(workdir / "claims", f"{digest_of_fact(scale)}/{variant.name}/{seed}") as is_mine:
            if not is_mine or (variant.name, seed) in keys_of(read_results(workdir / "results.jsonl", scale)):
                continue  # another process has it, or had it
            _run_one(workdir, scale, variant, seed, worlds, ranks)
            left = (time.monotonic() - began) / number * (len(wanted) - number)
            print(f"  {number} of {len(wanted)}, {left / 60:.0f} min left", file=sys.stderr, flush=True)


def _run_one(workdir: Path, scale: Scale, variant: Variant, seed: int, worlds: Worlds, ranks: Ranks) -> None:
    own = replace(scale, hidden=scale.hidden * variant.width)
    which = variant.text, variant.width
    with locked(workdir):  # what several processes need is made by one of them
        if which not in worlds:
            worlds[which] = World(workdir, variant.text, own, ranks)
        worlds[which].base(seed)
    kept = workdir / f"shared-{variant.text}-{digest_of_fact(own)[:8]}"
    result = Run(worlds[which], variant, seed, workdir / f"scratch-{os.getpid()}", kept).result()
    result = replace(
        result, scale=digest_of_fact(scale)
    )  # of the experiment, however wide the variant's model
    with open(workdir / "results.jsonl", "ab") as file:
        file.write(encode(result) + b"\n")  # one write: two processes' lines do not mix
    mean = sum(result.bits_per_byte.values()) / len(result.bits_per_byte)
    told = f"seed {seed} {variant.group}: {variant.name}: {mean:.4f} bits per byte"
    print(f"{told}, {result.cpu_seconds:.0f} s of processor", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("languages-run"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", default="", help="only variants whose name or group holds this")
    parser.add_argument("--short", action="store_true")
    parser.add_argument(
        "--scale", default="{}", help='JSON of what is to differ, as {"learning_rate": 0.003}'
    )
    parser.add_argument("--page", type=Path, help="Markdown file to write; its picture goes below pictures/")
    parser.add_argument("--only-page", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the results as JSON lines")
    options = parser.parse_args()
    scale = SHORT if options.short else decode(options.scale.encode(), Scale, "--scale")
    results = options.workdir / "results.jsonl"
    chosen = [one for one in VARIANTS if options.only in f"{one.group}: {one.name}"]
    if options.short and not options.only:
        chosen = every_setting_once(chosen)
    wanted = due(chosen, options.seeds, read_results(results, scale))
    if not options.only_page:
        with joined("cpu", 1) as ranks:
            run_all(options.workdir.resolve(), scale, wanted, ranks)
    found = read_results(results, scale)
    if options.json:
        for one in found:
            print(json.dumps(json.loads(encode(one))))
    if options.page:
        place = options.page.parent / "pictures" / "languages.svg"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(place, picture(found).encode())
        told = page(found, scale) + reading_of(options.page)
        write_bytes_atomically(options.page, told.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
