"""Kill one process of a running consortium at a random moment; the same model must come out.

    python tests/chaos/kill_anything.py --kills 10            the demo's own campaign
    python tests/chaos/kill_anything.py --kills 3 --short     a campaign of a minute

First an undisturbed run gives the digest. Then, in as many fresh runs as there are kills, a random process
(coordinator, an agent, or a trainer) is sent SIGKILL at a random moment. What nothing else restarts (coordinator,
agents) is started again after a random pause. Every run must make the versions of the undisturbed one.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from console.demo import CAMPAIGN, consortium_at, prepare, start, views
from console.local import LocalConsortium
from consortium.errors import Unavailable
from consortium.ids import CampaignId
from consortium.views import ConsortiumView
from coordinator.driver import replay
from coordinator.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Blow:
    """Who is killed, and when."""

    victim: str  #: coordinator, agent or trainer
    share: float  #: of the undisturbed run's duration
    pause: float  #: seconds until what nobody else restarts is started again


@dataclass(frozen=True, slots=True)
class Outcome:
    version: str | None  #: the campaign's last promoted one
    seconds: float
    what: str
    versions: dict[str, str] = field(default_factory=dict)  #: of all, the rejected ones too: digests by name


UNDISTURBED = "undisturbed"

#: How a consortium and its campaign's file come to lie below a folder.
Layout = Callable[[Path], tuple[LocalConsortium, Path]]


def without_rivals(plan: dict[str, Any]) -> None:
    """They take two thirds of the time and none of them touches the versions."""
    plan["rivals"] = {"public_only": False, "specialists": False}


def shorten(plan: dict[str, Any]) -> None:
    """A campaign of about a minute: the same phases and processes, fewer and smaller steps."""
    without_rivals(plan)
    plan["rounds"] = 2
    plan["seed_round"]["steps"] = 24
    plan["train"] |= {"steps": 16, "checkpoint_steps": 4, "batch_sequences": 4, "sequence_tokens": 64}


def lay_out(here: LocalConsortium, seed: int, change: Callable[[dict[str, Any]], None]) -> Path:
    """The consortium's files, and the demo's campaign as changed; returns the campaign's."""
    here.workdir.mkdir(parents=True)
    campaign = prepare(here, seed)
    plan = yaml.safe_load(campaign.read_text())
    change(plan)
    campaign.write_text(yaml.safe_dump(plan, sort_keys=False))
    return campaign


def demo(seed: int, change: Callable[[dict[str, Any]], None]) -> Layout:
    """The demo's four sites and eight languages; ``change`` of its campaign, before it is submitted."""

    def laid(workdir: Path) -> tuple[LocalConsortium, Path]:
        here = consortium_at(workdir)
        return here, lay_out(here, seed, change)

    return laid


def versions_in(here: LocalConsortium) -> dict[str, str]:
    """Every version of the campaign, the rejected ones too, by name; digests."""
    with Ledger(here.home / "ledger.sqlite", read_only=True) as ledger:
        state = replay(ledger)
    campaign: Any = state.campaigns[CampaignId(CAMPAIGN)]
    assert campaign.status == "completed", campaign.reason
    return {version.name: version.digest for version in campaign.versions.values()}


def outcome_of(view: ConsortiumView, seconds: float, what: str) -> Outcome:
    """Of the last view. Raises AssertionError if the campaign was not completed, or left out a round."""
    state = next(c for c in view.campaigns if c.campaign == CAMPAIGN)
    if state.status != "completed":
        raise AssertionError(f"{what}: the campaign {state.status}: {state.reason}")
    if empty := [round_.reason for round_ in state.rounds if round_.candidate is None]:
        raise AssertionError(f"{what}: a round without a candidate: {empty[0]}")
    return Outcome(state.head, seconds, what)


def run(workdir: Path, seed: int, change: Callable[[dict[str, Any]], None] = lambda plan: None) -> Outcome:
    """The demo's campaign below ``workdir``, undisturbed; ``change`` of it, before it is submitted."""
    return through(*demo(seed, change)(workdir))


def through(here: LocalConsortium, campaign: Path, blow: Blow | None = None, after: float = 0.0) -> Outcome:
    """One whole campaign, with at most one blow ``after`` so many seconds."""
    began = time.monotonic()
    what = [UNDISTURBED]
    strike: threading.Thread | None = None
    over = threading.Event()
    try:
        start(here, campaign)
        if blow is not None:
            told = (here, blow, began + after, over, what)
            strike = threading.Thread(target=_strike, args=told, daemon=True)
            strike.start()
        view = _last(here, strike)
    finally:
        over.set()
        here.stop()
        if strike is not None:
            strike.join()
            here.stop()  # what the blow started again meanwhile
    outcome = outcome_of(view, time.monotonic() - began, what[0])
    return replace(outcome, versions=versions_in(here))


def struck(workdir: Path, layout: Layout, blow: Blow, seconds: float) -> Outcome:
    """A run in which the blow did fall: earlier in another run, if it came when nothing was left to hit."""
    for attempt in range(4):
        place = workdir if attempt == 0 else workdir.with_name(f"{workdir.name}-{attempt}")
        outcome = through(*layout(place), blow, blow.share * seconds)
        if outcome.what != UNDISTURBED:
            return outcome
        blow = replace(blow, share=0.7 * blow.share)
    raise AssertionError(f"no {blow.victim} could be hit")


def _last(here: LocalConsortium, strike: threading.Thread | None) -> ConsortiumView:
    """The last view; while a process is meant to be dead, nobody answers and that is no news."""
    while True:
        is_in_hand = strike is not None and strike.is_alive()
        try:
            for view in views(here):
                last = view
            return last
        except Exception:
            if not is_in_hand:
                raise
            time.sleep(0.5)


def _strike(here: LocalConsortium, blow: Blow, at: float, over: threading.Event, what: list[str]) -> None:
    is_too_late = over.wait(max(0.0, at - time.monotonic()))
    victim = None if is_too_late else _victim(here, blow)
    if victim is None:
        return
    name, pid, restart = victim
    process = here.processes.get(name)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended a moment ago: nothing was hit
        return
    what[0] = f"{name} (pid {pid}) killed at {blow.share:.0%}, back after {blow.pause:.1f} s"
    if restart is not None and process is not None:
        process.wait()
        time.sleep(blow.pause)
        with contextlib.suppress(Unavailable):  # whoever waits for its answers will say so
            restart()


def _victim(here: LocalConsortium, blow: Blow) -> tuple[str, int, Callable[[], None] | None] | None:
    """Name, pid, and how to start it again if nobody else does. None: the campaign ended first."""
    if blow.victim == "trainer":
        while here.processes:
            if trainers := list(here.trainers()):
                attempt, pid = trainers[int(blow.share * 1e6) % len(trainers)]
                return f"trainer of {attempt}", pid, None
            time.sleep(0.05)
        return None
    name = "coordinator"
    restart = here.start_coordinator
    if blow.victim == "agent":
        site = here.sites[int(blow.share * 1e6) % len(here.sites)].name
        name, restart = f"agent-{site}", lambda: here.start_agent(site)
    process = here.processes.get(name)
    return None if process is None else (name, process.pid, restart)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--dice", type=int, default=0, help="seed of victims and moments")
    parser.add_argument("--short", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--no-rivals", action="store_true", help="leave the comparison out")
    parser.add_argument("--keep", type=Path, help="keep the runs below this folder")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="sprachbund-chaos-"))
    dice = random.Random(options.dice)
    change = shorten if options.short else without_rivals if options.no_rivals else lambda plan: None
    layout = demo(options.seed, change)
    calm = through(*layout(root / "calm"))
    print(json.dumps({"run": "calm", "version": calm.version, "seconds": round(calm.seconds, 1)}), flush=True)
    failed = 0
    for number in range(1, options.kills + 1):
        victim = ("coordinator", "agent", "trainer")[(number - 1) % 3]
        blow = Blow(victim, dice.uniform(0.05, 0.95), dice.uniform(0.0, 5.0))
        try:
            outcome = struck(root / f"kill-{number}", layout, blow, calm.seconds)
            same = outcome.versions == calm.versions
            report = {"version": outcome.version, "seconds": round(outcome.seconds, 1), "what": outcome.what}
        except Exception as error:
            same, report = False, {"what": f"{blow}: {error}"}
        failed += not same
        print(json.dumps({"run": number, "same": same, **report}), flush=True)
    print(f"{options.kills - failed} passed, {failed} failed")
    if not options.keep and not failed:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
