"""Whether Muon gains over AdamW at equal tokens: the world of ``languages.py``, learning rates side by side, seeds.

    python benchmarks/muon.py --workdir DIR --seeds 1 2 3      # prints the table of docs/training.md

What is trained is said by two of that experiment's variants: joint, one large batch of all sites' text, and rounds of
FedAvg. From the same base, with the same order of text; only the inner optimizer differs. A run that is done stands
in DIR/muon.jsonl and is not done again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from languages_page import estimate
from languages_runs import Run
from languages_variants import VARIANTS
from languages_world import SHORT, Model, Scale, World

from consortium.canonical import Fact, decode, encode, replace
from consortium.ids import Language
from consortium.jobs import Muon, Train
from site_agent.trainer.ranks import Ranks, joined

RATES = (1e-3, 3e-3, 1e-2)  #: 3e-3 is what the experiment on languages uses
TRAINED = ("joint, large batch", "FedAvg, H 100")


class Done(Fact):
    """One run."""

    variant: str
    seed: int
    learning_rate: float
    is_muon: bool
    bits_per_byte: float  #: mean over the languages
    tokens: int
    seconds: float  #: of processor


class Otherwise(World):
    """The same world, but that its jobs have another optimizer. Bases are made before."""

    def __init__(self, folder: Path, scale: Scale, ranks: Ranks, learning_rate: float, is_muon: bool) -> None:
        super().__init__(folder, "alike", scale, ranks)
        self._rate, self._is_muon = learning_rate, is_muon

    def order(self, model: Model, languages: Sequence[Language], **changes: object) -> Train:
        order = super().order(model, languages, **changes)
        rule = replace(order.optimizer, learning_rate=self._rate)
        return replace(order, optimizer=replace(rule, muon=Muon()) if self._is_muon else rule)


def table(found: Sequence[Done]) -> str:
    """Rows by what is trained and the learning rate; differences are paired by seed."""
    lines = ["| trained | learning rate | AdamW | Muon | Muon less AdamW | seconds, AdamW / Muon |"]
    lines.append("|---" * 6 + "|")
    for variant, rate in dict.fromkeys((one.variant, one.learning_rate) for one in found):
        runs = [one for one in found if (one.variant, one.learning_rate) == (variant, rate)]
        by = {(one.is_muon, one.seed): one for one in runs}
        seeds = [seed for is_muon, seed in sorted(by) if is_muon and (False, seed) in by]
        pairs = [(by[False, seed], by[True, seed]) for seed in seeds]
        if not pairs:
            continue
        columns = [estimate([pair[side].bits_per_byte for pair in pairs]) for side in (0, 1)]
        less = estimate([muon.bits_per_byte - adamw.bits_per_byte for adamw, muon in pairs])
        took = [statistics.fmean(pair[side].seconds for pair in pairs) for side in (0, 1)]
        cells = [variant, f"{rate:g}", *(one.text(3) for one in columns), less.text(4, sign=True)]
        lines.append("| " + " | ".join([*cells, f"{took[0]:.0f} / {took[1]:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("muon-run"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--only", default="", help="only what is trained and whose name holds this")
    parser.add_argument("--short", action="store_true", help="seconds, to see that it works")
    options = parser.parse_args()
    scale = SHORT if options.short else Scale()
    workdir = options.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    results = workdir / "muon.jsonl"
    lines = results.read_bytes().splitlines() if results.exists() else []
    found = [decode(line, Done, f"{results}:{number}") for number, line in enumerate(lines, 1)]
    known = {(one.variant, one.seed, one.learning_rate, one.is_muon) for one in found}
    variants = [variant for variant in VARIANTS if variant.name in TRAINED and options.only in variant.name]
    wanted = [
        (variant, seed, rate, is_muon)
        for seed in options.seeds
        for variant in variants
        for rate in options.rates
        for is_muon in (False, True)
        if (variant.name, seed, rate, is_muon) not in known
    ]
    with joined("cpu", 1) as ranks:
        plain = World(workdir, "alike", scale, ranks)
        for number, (variant, seed, rate, is_muon) in enumerate(wanted, 1):
            plain.base(seed)
            world = Otherwise(workdir, scale, ranks, rate, is_muon)
            began = time.process_time()
            result = Run(world, variant, seed, workdir / "scratch", workdir / "shared").result()
            done = Done(
                variant=variant.name,
                seed=seed,
                learning_rate=rate,
                is_muon=is_muon,
                bits_per_byte=statistics.fmean(result.bits_per_byte.values()),
                tokens=result.tokens,
                seconds=time.process_time() - began,
            )
            found.append(done)
            with open(results, "ab") as file:
                file.write(encode(done) + b"\n")
            told = f"{number} of {len(wanted)}: {'Muon' if is_muon else 'AdamW'} {rate:g}, seed {seed}"
            print(f"{told}, {variant.name}: {done.bits_per_byte:.4f}", file=sys.stderr, flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
