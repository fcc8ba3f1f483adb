"""The shortest story that still breaks a promise: ``python -m simulation.shrink PLAN.yaml --seed 7 --weather storm``.

A run that violates an invariant is made smaller, again and again, as long as the same promise is broken: whole kinds of
faults go, then sites, rounds and habits of sites, then single faults (Zeller and Hildebrandt 2002, "Simplifying and
isolating failure-inducing input"). What remains is told in words and kept in a file that ``--replay`` runs again.
"""

import argparse
import contextlib
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from coordinator.core import events as ev
from coordinator.core.story import sentence
from simulation.plan import Habits, Plan, SitePlan
from simulation.reading import load_plan
from simulation.run import forget
from simulation.weather import Weather, weather_of
from simulation.world import World

RUNS_MAX = 150
_LINES_MAX = 60  # of a story; what comes first is left out
_RATES = (
    *(
        "crashes_per_day",
        "partitions_per_day",
        "disk_full_per_day",
        "torn_writes_per_day",
        "clock_jumps_per_day",
        "coordinator_disk_full_per_day",
        "coordinator_clock_jumps_per_day",
        "second_agents_per_day",
        "meddling_per_day",
        "cleanings_per_day",
        "homes_cleaned_per_day",
    ),
    *("loss", "repeat", "reorder", "delay_seconds", "site_faults"),
    *(
        "lies_per_day",
        "falsehoods",
        "refusals",
        "failures",
        "echoes",
        "whims",
        "harms",
        "replays",
        "lent",
        "drains_per_day",
    ),
)
_HABITS = (
    *("outages", "windows", "allocation", "agent_kill_per_day", "preempt_per_day", "node_loss_per_day"),
    *("clock_skew_seconds", "merges", "slots", "queue_sigma"),
)


class Case(Fact):
    """What is run: all that a failure needs to happen again, at the commit that it was seen at."""

    plan: Plan
    seed: int
    weather: Weather


class Ran(Fact):
    """What came of it."""

    violation: str = ""  #: the first; "": all promises were kept
    hours: float = 0.0  #: simulated, until then
    fallen: tuple[str, ...] = ()  #: faults by name, in the order of their kinds and places
    story: tuple[str, ...] = ()


class _Seen(Exception):
    """A promise was broken; no need to go on."""


def run(case: Case) -> Ran:
    """Run it until the first violation, or to its end."""
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="sprachbund-shrink-") as folder:
            return _watched(case, Path(folder))
    finally:
        forget()
        gc.enable()


def _watched(case: Case, folder: Path) -> Ran:
    world = World(case.plan, case.seed, case.weather, folder)
    lines: list[tuple[float, str]] = []

    def heard(event: ev.AnyEvent, at: float) -> None:
        lines.append((at, f"ledger: {sentence(event)}"))

    def moved(hours: float, most: float) -> None:
        if world.referee.violations:
            raise _Seen

    world.referee.events.append(heard)
    world.referee.blamed = world.give_up
    with contextlib.suppress(_Seen):
        world.run(True, moved)
    fallen = [*world.faults.fallen]
    for _, wire in sorted(world.network.wires.items()):
        fallen += wire.fallen
    for site in world.sites:
        fallen += site.cluster.fallen
    for one in world.diary.told():
        if one.place != "coordinator" or one.kind in ("crash", "down"):
            length = "" if one.until is None else f" for {(one.until - one.at) / 60.0:.0f} min"
            lines.append((one.at, f"{one.place}: {one.kind} {one.subject}{length} {one.detail}".rstrip()))
    began = case.plan.started_at
    return Ran(
        violation=world.referee.violations[0] if world.referee.violations else "",
        hours=world.loop.time() / 3600.0,
        fallen=tuple(fallen),
        story=tuple(f"{(at - began) / 3600.0:9.3f} h  {line}" for at, line in sorted(lines)),
    )


def promise(violation: str) -> str:
    """Which promise a violation breaks: the sentence without steps, entries and names."""
    text = re.sub(r"^step [0-9]+: ", "", violation)
    text = re.sub(r"entry [0-9]+, ", "", text)
    kept = [word for word in text.split() if not re.search(r"[0-9_/]", word.strip("s,.:;()'"))]
    return " ".join(kept[:14])


def shrink(
    case: Case, runs_max: int = RUNS_MAX, tell: Callable[[str], None] = lambda sentence: None
) -> tuple[Case, Ran]:
    """The smallest case found that breaks the same promise. Raises BadInput if ``case`` breaks none."""
    return _Shrinking(case, runs_max, tell).done()


class _Shrinking:
    def __init__(self, case: Case, runs_max: int, tell: Callable[[str], None]) -> None:
        self._case, self._left, self._tell = case, runs_max, tell
        self._ran = run(case)
        if not self._ran.violation:
            raise BadInput(
                f"seed {case.seed} in {case.weather.name} weather breaks no promise; give one that does"
            )
        self._promise = promise(self._ran.violation)
        tell(f"after {self._ran.hours:.1f} h: {self._ran.violation}")

    def done(self) -> tuple[Case, Ran]:
        self._sooner()
        self._all_of(_without_kinds)
        self._all_of(_with_less)
        self._all_of(_without_habits)
        self._single_faults()
        self._all_of(_without_kinds)
        return self._case, self._ran

    def _still(self, case: Case, what: str) -> bool:
        """Whether the smaller case breaks the same promise; then it is the one to go on with."""
        if self._left <= 0:
            return False
        self._left -= 1
        ran = run(case)
        if not ran.violation or promise(ran.violation) != self._promise:
            return False
        self._case, self._ran = case, ran
        self._tell(f"without {what}: the same after {ran.hours:.1f} h")
        return True

    def _sooner(self) -> None:
        """No later than it was seen."""
        self._case = replace(
            self._case, plan=replace(self._case.plan, hours_max=max(2.0, 2.5 * self._ran.hours))
        )

    def _all_of(self, smaller: Callable[[Case], Iterator[tuple[str, Case]]]) -> None:
        """Each smaller case once more whenever one of them was taken, until none is."""
        tried: set[str] = set()
        while True:
            for what, case in smaller(self._case):
                if what not in tried:
                    tried.add(what)
                    if self._still(case, what):
                        break
            else:
                return

    def _single_faults(self) -> None:
        names = self._ran.fallen
        if not self._still(self._only(names), "faults that did not fall"):
            return
        parts = 2
        while len(names) >= 1 and self._left > 0:
            size = max(1, len(names) // parts)
            chunks = [names[at : at + size] for at in range(0, len(names), size)]
            for chunk in chunks:
                rest = tuple(name for name in names if name not in chunk)
                if self._still(self._only(rest), f"{len(chunk)} of {len(names)} faults"):
                    names, parts = rest, max(2, parts - 1)
                    break
            else:
                if size == 1:
                    return
                parts = min(len(names), 2 * parts)

    def _only(self, names: Sequence[str]) -> Case:
        return replace(self._case, weather=replace(self._case.weather, only=tuple(names)))


def _without_kinds(case: Case) -> Iterator[tuple[str, Case]]:
    some = {rate: 0.0 for rate in _RATES if getattr(case.weather, rate)}
    if len(some) > 1:  # often enough nothing of the weather matters
        yield "any weather", replace(case, weather=replace(case.weather, **some))
    for rate in some:
        if getattr(case.weather, rate):
            yield rate, replace(case, weather=replace(case.weather, **{rate: 0.0}))


def _with_less(case: Case) -> Iterator[tuple[str, Case]]:
    """Fewer sites, with what nobody knows then; fewer rounds."""
    plan = case.plan
    campaign = plan.campaign
    for site in plan.sites if len(plan.sites) > 1 else ():
        rest = tuple(one for one in plan.sites if one is not site)
        held = {tag for one in rest for tag in one.languages}
        languages = tuple(tag for tag in campaign.languages if tag in held)
        if languages:
            fewer = replace(
                campaign,
                languages=languages,
                sites=tuple(name for name in campaign.sites if name != site.name),
                merge_sites=tuple(name for name in campaign.merge_sites if name != site.name),
                sites_expected=min(campaign.sites_expected, len(rest)),
                quorum=replace(campaign.quorum, minimum=min(campaign.quorum.minimum, len(rest))),
                gate=replace(campaign.gate, protected=()),
            )
            yield f"site {site.name}", _planned(case, replace(plan, sites=rest, campaign=fewer))
    for rounds in sorted({1, campaign.rounds // 2, campaign.rounds - 1}):
        if 1 <= rounds < campaign.rounds:
            yield (
                f"rounds but {rounds}",
                _planned(case, replace(plan, campaign=replace(campaign, rounds=rounds))),
            )
    if campaign.seed_round is not None:
        yield "the seed round", _planned(case, replace(plan, campaign=replace(campaign, seed_round=None)))


def _without_habits(case: Case) -> Iterator[tuple[str, Case]]:
    defaults = Habits()
    for habit in _HABITS:
        for index, site in enumerate(case.plan.sites):
            if getattr(site, habit) != getattr(defaults, habit):
                plainer: SitePlan = replace(site, **{habit: getattr(defaults, habit)})
                sites = (*case.plan.sites[:index], plainer, *case.plan.sites[index + 1 :])
                yield f"{habit} of {site.name}", _planned(case, replace(case.plan, sites=sites))


def _planned(case: Case, plan: Plan) -> Case:
    return replace(case, plan=plan)


def _told(case: Case, ran: Ran) -> str:
    plan = case.plan
    faults = ", ".join(ran.fallen) or "none"
    left_out = len(ran.story) - _LINES_MAX
    return "\n".join(
        [
            f"{len(plan.sites)} site(s), {plan.campaign.rounds} round(s), seed {case.seed}; faults: {faults}",
            *([f"          ... {left_out} lines before"] if left_out > 0 else []),
            *ran.story[-_LINES_MAX:],
            f"then: {ran.violation or 'nothing is wrong'}",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation.shrink", description=__doc__)
    parser.add_argument("plan", nargs="?", help="the plan whose run broke a promise")
    parser.add_argument("--sites", type=int, help="as of `sprachbund simulate`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weather", default="storm")
    parser.add_argument("--runs", type=int, default=RUNS_MAX, help="how many runs it may take")
    parser.add_argument(
        "--out", type=Path, default=Path("story.json"), help="where the smallest case is kept"
    )
    parser.add_argument("--replay", type=Path, metavar="STORY.json", help="run a case that was kept")
    asked = parser.parse_args(words)
    if asked.replay is not None:
        case = decode(asked.replay.read_bytes(), Case, str(asked.replay))
        ran = run(case)
    else:
        if asked.plan is None:
            parser.error("give a plan, or --replay")
        plan = load_plan(asked.plan, asked.sites).plan
        case = Case(plan=plan, seed=asked.seed, weather=weather_of(asked.weather))
        case, ran = shrink(case, asked.runs, lambda sentence: print(sentence, file=sys.stderr, flush=True))
        write_bytes_atomically(asked.out, encode(case) + b"\n")
        print(f"to see it again: python -m simulation.shrink --replay {asked.out}", file=sys.stderr)
    print(_told(case, ran))
    return 7 if ran.violation else 0


if __name__ == "__main__":
    sys.exit(main())
