"""A thousand faults on real processes; not one may change a model, lose an event, or need a person.

    python tests/chaos/storm.py --faults 1000 --ledger sqlite --seed 7
    python tests/chaos/storm.py --faults 200 --ledger postgres --seed 7 --hours 1

An undisturbed consortium runs a few small campaigns and gives their digests. Then fresh consortia run the same ones,
one after the other, while one hand for each daemon throws faults at it (tests/chaos/faults.py), kinds and lengths
drawn from the seed; the moments are the machine's. Nobody helps but a supervisor that starts again what has ended,
as a service manager does. Of each consortium it is asked at the end:

- whether every campaign was completed with the undisturbed run's versions, digest for digest,
- whether every event that was ever read from the ledger is still there with the same hash,
- whether `verify` finds ledger and store whole, merges and verdicts made again,
- whether an agent ended in a way that its service manager would not start again.

Prints a line of JSON for each fault and each campaign; exits with 1 if anything was not so.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from arena import COORDINATOR, Arena, Violation
from faults import Fault, Missed, faults_for
from free_ports import free_port
from postgres_server import Server

from console.client import Coordinator, ask
from consortium.errors import Unavailable
from consortium.views import CampaignView
from coordinator.reading import view_of
from coordinator.verification import verify
from policies.reading import load_campaign

PATIENCE_SECONDS = 1200.0  #: in which a campaign that takes one minute has to end, whatever falls
Versions = tuple[tuple[str, str], ...]


@dataclass
class Storm:
    """How hard it blows, and what has fallen so far."""

    seed: int
    faults: int  #: after so many no campaign is begun; the last one is ended under more of them
    #: between two faults on one agent, on average; of the coordinator, three times
    pause_seconds: float = 6.0
    fallen: Counter[str] = field(default_factory=Counter)
    spoiled: int = 0  #: faults that could not be made, through no fault of the consortium's
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    say: Callable[[dict[str, Any]], None] = lambda line: print(json.dumps(line), flush=True)

    @property
    def total(self) -> int:
        return sum(self.fallen.values())


def plan(seed: int, rounds: int = 2) -> dict[str, Any]:
    """A campaign of three sites that real processes end in a minute."""
    learning = {"learning_rate": 0.006, "warmup_steps": 2, "decay": "cosine", "final_share": 0.3}
    return {
        "campaign": f"storm-{seed}",
        "languages": ["el", "fi", "ga"],
        "sites_expected": 3,
        "seed": seed,
        "model": {
            "seed": seed,
            "config": {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
            },
        },
        "tokenizer": {"train": {"vocabulary_size": 512, "bytes_per_language": 20000}},
        "seed_round": {"steps": 8, "optimizer": learning},
        "rounds": rounds,
        "train": {
            "steps": 16,
            "batch_sequences": 4,
            "sequence_tokens": 64,
            "replay_share": 0.5,
            "checkpoint_steps": 4,
            "epochs_max": 8,
            "optimizer": learning,
        },
        "merge": {
            "preset": "diloco",
            "outer": {"learning_rate": 0.9, "momentum": 0.5},
            "shard_bytes": 1 << 20,
        },
        "gate": {"preset": "standard", "documents_min": 10},
        "admission": {"preset": "standard", "norm_max": 4.0},
        "quorum": {"minimum": 3, "deadline_hours": 48},
        "attempts_max": 100,  # a job that a storm hits a hundred times is still wanted
        "lease_seconds": 60,
    }


def complete(arena: Arena, seed: int, rounds: int, patience: float = PATIENCE_SECONDS) -> CampaignView:
    """Submit one campaign and wait until it has ended; nobody answering for a while is no news."""
    path = arena.workdir / f"campaign-{seed}.yaml"
    path.write_text(json.dumps(plan(seed, rounds)))  # JSON is YAML
    campaign = load_campaign(path).campaign
    until, submitted, view = time.monotonic() + patience, False, None
    while time.monotonic() < until:
        with contextlib.suppress(Unavailable):
            view = ask(arena.admin, Coordinator.view)
            known = next((one for one in view.campaigns if one.campaign == campaign.campaign), None)
            submitted = known is not None
            if known is not None and known.status != "open":
                return known
            if not submitted:
                ask(arena.admin, lambda coordinator: coordinator.submit(campaign))
        time.sleep(1.0)
    waits = [(job.job, job.state, job.reason) for job in view.jobs if job.state != "done"] if view else []
    raise Violation(f"{campaign.campaign} has not ended in {patience:.0f} s; it waits for {waits}")


def versions_of(view: CampaignView) -> Versions:
    """Raises Violation if the campaign was not completed, or a round had no candidate."""
    if view.status != "completed" or any(round_.candidate is None for round_ in view.rounds):
        raise Violation(f"{view.campaign} {view.status}: {view.reason}; {[r.reason for r in view.rounds]}")
    return tuple(sorted((one.name, one.digest) for one in view.versions))


@contextlib.contextmanager
def consortium(workdir: Path, ledger: str | None = None, hostile: bool = True) -> Iterator[Arena]:
    arena = Arena(workdir, ledger, hostile)
    try:
        arena.lay_out()
        yield arena
    finally:
        arena.close()


def undisturbed(workdir: Path, seeds: list[int], rounds: int = 2) -> dict[int, Versions]:
    """What each campaign makes when nothing falls."""
    with consortium(workdir, hostile=False) as arena:
        return {seed: versions_of(complete(arena, seed, rounds)) for seed in seeds}


def of_earlier(workdir: Path, seeds: list[int]) -> dict[int, Versions]:
    """The same, of an undisturbed consortium that was kept."""
    view = view_of(workdir / "coordinator")
    return {
        seed: versions_of(next(c for c in view.campaigns if c.campaign == f"storm-{seed}")) for seed in seeds
    }


@contextlib.contextmanager
def blowing(arena: Arena, storm: Storm, name: str) -> Iterator[None]:
    """As long as the block lasts faults fall, one hand for each daemon; every one has healed when it ends."""
    calm = threading.Event()
    hands = [
        threading.Thread(target=_throw, args=(arena, storm, daemon, name, calm), daemon=True)
        for daemon in arena.homes
    ]
    for hand in hands:
        hand.start()
    try:
        yield
    finally:
        calm.set()
        for hand in hands:
            hand.join(180)


def _throw(arena: Arena, storm: Storm, daemon: str, name: str, calm: threading.Event) -> None:
    dice = random.Random(f"{storm.seed}/{name}/{daemon}")
    kinds = faults_for(daemon)[0]
    deck: list[Fault] = []
    pause = storm.pause_seconds * (3 if daemon == COORDINATOR else 1)  # what it makes takes it that long
    while not calm.wait(dice.expovariate(1.0 / pause)):
        deck = deck or dice.sample(kinds, len(kinds))  # every kind falls before one falls twice
        fault, began = deck.pop(), time.time()
        try:
            what = fault(arena, daemon, dice)
        except Missed:
            continue
        except Violation as violation:
            with storm.lock:
                storm.failed.append(f"{name}: {fault.__name__} on {daemon}: {violation}")
            continue
        except Exception as error:  # says nothing of the consortium, but somebody should know
            with storm.lock:
                storm.spoiled += 1
                storm.say({"spoiled": f"{fault.__name__} on {daemon}: {type(error).__name__}: {error}"})
            continue
        with storm.lock:
            kind = COORDINATOR if daemon == COORDINATOR else "agent"
            storm.fallen[f"{fault.__name__} {kind}"] += 1
            storm.say(
                {
                    "fault": storm.total,
                    "kind": fault.__name__,
                    "on": daemon,
                    "what": what,
                    "at": round(began, 1),
                    "seconds": round(time.time() - began, 1),
                }
            )


def through(
    storm: Storm, workdir: Path, wanted: dict[int, Versions], ledger: str | None = None, rounds: int = 2
) -> bool:
    """One consortium, all campaigns, under faults. Returns whether all was as in the undisturbed one."""
    before = len(storm.failed)
    with consortium(workdir, ledger) as arena:
        for seed, versions in wanted.items():
            if storm.total >= storm.faults:
                break
            began, first = time.monotonic(), storm.total
            with blowing(arena, storm, f"{workdir.name}/{seed}"):
                try:
                    found = versions_of(complete(arena, seed, rounds))
                    if found != versions:
                        raise Violation(f"{found} instead of {versions}")
                except Violation as violation:
                    storm.failed.append(f"{workdir.name}, campaign {seed}: {violation}")
            report = {
                "campaign": f"{workdir.name}/{seed}",
                "faults": storm.total - first,
                "seconds": round(time.monotonic() - began),
                "load": round(os.getloadavg()[0], 1),
            }
            storm.say(report | {"same": len(storm.failed) == before})
            if len(storm.failed) > before:
                break
        events = arena.wait_until_recorded()
        for line in arena.lines.values():
            line.heal()
        arena.stop()
        report_ = verify(arena.workdir / "coordinator.yaml")
        storm.failed += [f"{workdir.name}: verify: {problem}" for problem in report_.problems]
        storm.failed += [f"{workdir.name}: {problem}" for problem in arena.problems]
        storm.say({"consortium": workdir.name, "events": events, "restarts": dict(arena.restarts)})
    return len(storm.failed) == before


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--ledger", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0, help="after which no campaign is begun")
    parser.add_argument("--campaigns", type=int, default=4, help="that one consortium runs")
    parser.add_argument(
        "--pause",
        type=float,
        default=6.0,
        help="seconds between faults on one agent; on the coordinator, three times",
    )
    parser.add_argument(
        "--calm", type=Path, help="undisturbed consortium that an earlier run kept: KEEP/calm"
    )
    parser.add_argument("--keep", type=Path, help="keep everything below this folder")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="sprachbund-storm-"))
    storm = Storm(options.seed, options.faults, options.pause)
    began = time.monotonic()
    storm.say({"left out": faults_for(COORDINATOR)[1] | faults_for("agent-north")[1]})
    seeds = list(range(1, options.campaigns + 1))
    wanted = of_earlier(options.calm, seeds) if options.calm else undisturbed(root / "calm", seeds)
    storm.say({"undisturbed": {f"storm-{n}": v[-1][1][:16] for n, v in wanted.items()}})
    server = Server(free_port()) if options.ledger == "postgres" else None
    try:
        number = 0
        while storm.total < storm.faults and time.monotonic() - began < 3600 * options.hours:
            number += 1
            place = root / f"storm-{number}"
            if not through(storm, place, wanted, server.new_ledger() if server else None):
                break
            shutil.rmtree(place, ignore_errors=True)
    finally:
        if server:
            server.close()
    minutes = round((time.monotonic() - began) / 60, 1)
    storm.say({"faults": storm.total, "minutes": minutes, "by kind": dict(sorted(storm.fallen.items()))})
    storm.say({"failed": storm.failed, "spoiled": storm.spoiled})
    if not options.keep and not storm.failed:
        shutil.rmtree(root)
    return 1 if storm.failed else 0


if __name__ == "__main__":
    sys.exit(main())
