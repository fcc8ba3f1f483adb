"""A random walk of a whole consortium through everything that can go wrong, as a function of one seed.

Sites lose, repeat and delay their Syncs, fail, refuse, forget and deliver garbage; the worker is slow and repeats
itself; the coordinator crashes; admins meddle; time jumps. No threads, no clock: ``python hostile_world.py SEED ...``
prints the hash of each seed's ledger. ``simulation.rules`` watches every event.
"""

import hashlib
import random
import sys
from dataclasses import dataclass, field

from consortium_in_facts import (
    GIVEN,
    OWN,
    SEED_ROUND,
    Coordinator,
    admitted,
    answer,
    campaign,
    d,
    decoded,
    enrolment,
    invitation,
    refused,
    sync,
)

from consortium.canonical import encode, replace
from consortium.capacity import Allocation, Usage, Window
from consortium.errors import BadInput, Refused
from consortium.flower.runs import FlowerOrder, FlowerRun, job_part
from consortium.ids import AttemptId, CampaignId, SiteName, job_named, job_of
from consortium.jobs import Outcome, Phase, Train
from consortium.manifests import FileRef
from coordinator.core import commands as cm
from coordinator.core.index import Index
from coordinator.core.orders import merge_inputs
from coordinator.core.owed import Inspect, Merge, Owed, owed
from coordinator.core.referenced import named
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import State
from coordinator.core.story import tell
from coordinator.core.view import view
from coordinator.core.waits import waits
from policies.campaign import Campaign, Quorum, Rivals, TrainPlan
from policies.keeping import Keep
from simulation.rules import Rules

FAULTY_STEPS = 150
CALM_STEPS = 600  #: within which every campaign must end
WAVES = 3  #: of a Flower run
FLOWER = CampaignId("flower")
#: Repeating these at once must change nothing.
IDEMPOTENT = (
    cm.SyncSite
    | cm.Tick
    | cm.ReportInspection
    | cm.ReportBase
    | cm.ReportMerge
    | cm.ReportVerdict
    | cm.SetSite
    | cm.LetGo
    | cm.OpenFlowerRun
    | cm.PushFlowerMessages
    | cm.CompleteFlowerRun
)
ENDINGS = (
    (14, Outcome.SUCCEEDED),
    (2, Outcome.FAILED),
    (2, Outcome.PREEMPTED),
    (1, Outcome.CORRUPT),
    (1, Outcome.CANCELLED),
    (1, Outcome.EXPIRED),  # no site may say so, but who knows
)


@dataclass
class Attempt:
    """What a site holds in its spool."""

    left: int  #: turns until it ends
    usage: Usage = field(default_factory=Usage)
    report: cm.Report | None = None  #: how it ended


@dataclass
class Agent:
    """One site: it reports what it has, and does what it is told, if it hears it."""

    name: SiteName
    slots: int
    draining: bool = False
    merges: bool = False
    gpus: int = 0
    allocations: tuple[Allocation, ...] = ()
    windows: tuple[Window, ...] = ()
    spool: dict[AttemptId, Attempt] = field(default_factory=dict)

    def message(self) -> cm.SyncSite:
        reports = (
            replace(
                attempt.report or cm.Report(attempt=name, phase=Phase.RUNNING),
                usage=attempt.usage,
                started=attempt.usage.seconds > 0,
            )
            for name, attempt in self.spool.items()
        )
        return sync(
            self.name,
            *reports,
            slots=self.slots,
            draining=self.draining,
            merges=self.merges,
            gpus=self.gpus,
            allocations=self.allocations,
            windows=self.windows,
            launcher="slurm" if self.gpus else "local",
        )


@dataclass
class ServerApp:
    """A Flower ServerApp of some waves: killed, it begins at its beginning, and asks again for what is there."""

    die: random.Random
    sites: tuple[SiteName, ...]
    run: CampaignId = FLOWER
    wave: int = 1

    def says(self, state: State, faults: bool) -> cm.Command:
        """What it asks next; whether the answer reaches it does not matter."""
        if faults and self.die.random() < 0.1:
            self.wave = 1
        if self.run not in state.flower_runs:
            hours = self.die.choice([None, 0.5, 1.0])
            spec = FlowerRun(
                run=self.run, app="app:client", lease_seconds=60.0, attempts_max=2, reply_hours=hours
            )
            return cm.OpenFlowerRun(run=spec)
        orders = tuple(self._order(state, site) for site in state.flower_runs[self.run].spec.sites)
        jobs = [state.jobs.get(job_named(self.run, job_part(order))) for order in orders]
        if not all(job is not None and job.is_final for job in jobs):
            return cm.PushFlowerMessages(run=self.run, orders=orders)
        self.wave += 1
        if self.wave <= WAVES:
            return self.says(state, faults=False)
        self.wave = 1
        return cm.CompleteFlowerRun(run=self.run, reason="all waves are over")

    def _order(self, state: State, site: SiteName) -> FlowerOrder:
        """The same whenever it is asked: from the replies of the wave before, as a Strategy's next model is."""
        before = sorted(
            (job.site or "", job.contribution.artifacts["letter"].digest if job.contribution else "")
            for job in state.jobs.values()
            if job.campaign == self.run and job.round == self.wave - 1
        )
        letter = FileRef(digest=d(f"wave {self.wave} after {before}"), size=9)
        return FlowerOrder(
            ordinal=self.wave,
            site=site,
            message_type="train",
            group=str(self.wave),
            letter=letter,
            inputs=(letter.digest,),
        )


class World:
    def __init__(self, seed: int) -> None:
        self.keeper = random.Random(f"{seed} keeper")
        self.die = random.Random(seed)
        self.faults = True
        self.coordinator = Coordinator(now=1_000_000.0)
        self.rules = Rules()
        self.delayed: list[cm.Command] = []  #: on its way for long, or sent twice
        sites = [SiteName(name) for name in OWN][: self.die.randint(2, 3)]
        self.agents = [Agent(name, self.die.randint(1, 3), merges=self.die.random() < 0.6) for name in sites]
        for agent in self.agents:
            self._limit(agent)
        self.specs = [self._campaign(name) for name in ("demo", "other")[: self.die.randint(1, 2)]]
        # dice of its own: what it does moves no other draw
        self.server_app = ServerApp(random.Random(f"flower {seed}"), tuple(sites)) if seed % 4 == 0 else None

    def _limit(self, agent: Agent) -> None:
        """Some sites have GPUs, allocations and windows."""
        die = self.die
        agent.gpus = die.choice([0, 4])
        grant = die.choice([0, 3.0, 30.0, 1e6])
        ends = die.choice([None, None, self.coordinator.now + 5000])
        agent.allocations = (Allocation(name="grant", gpu_hours=grant, until=ends),) if grant else ()
        nightly = Window(cron=f"{die.randint(0, 59)} * * * *", seconds=die.choice([600.0, 1800.0, 3500.0]))
        agent.windows = (nightly,) if die.random() < 0.3 else ()

    def _campaign(self, name: str) -> Campaign:
        die = self.die
        start = {} if die.random() < 0.5 else GIVEN
        deadline, expected = die.choice([0.5, 2.0]), die.randint(1, len(self.agents))
        minimum = die.randint(1, min(2, expected))
        return campaign(
            name,
            sites_expected=expected,
            rounds=die.randint(1, 3),
            attempts_max=die.randint(1, 3),
            quorum=Quorum(
                share=die.choice([0.5, 1.0]),
                minimum=minimum,
                deadline_hours=deadline,
                queue_hours_max=die.choice([None, 0.2]),
                grace_hours=die.choice([0.0, 0.0, 0.01]),
                late=die.choice(["refuse", "next_round"]),
                staleness_max=die.randint(1, 2),
            ),
            train=self._plan(),
            rivals=Rivals(public_only=die.random() < 0.5, specialists=die.random() < 0.5),
            seed_round=SEED_ROUND if die.random() < 0.5 else None,
            merge_at=die.choice(["coordinator", "site", "any"]),
            merge_sites=() if die.random() < 0.7 else (die.choice(self.agents).name,),
            **start,
        )

    def _plan(self) -> TrainPlan:
        pace = self.die.choice(["equal_steps", "finish_together"])
        return replace(campaign().train, pace=pace)

    # --- the walk ---

    def run(self) -> str:
        """Chaos, then calm. Returns the hash of the ledger."""
        beginnings = [cm.SubmitCampaign(campaign=spec) for spec in self.specs]
        self.delayed = [*beginnings, *(invitation(agent.name, 2e6) for agent in self.agents)]
        for _ in range(FAULTY_STEPS):
            self._faulty_step()
        self._calm()
        return hashlib.sha256(b"\n".join(data for data, _ in self.coordinator.ledger)).hexdigest()

    def _faulty_step(self) -> None:
        die = self.die
        self._keep(0.05)
        self.coordinator.now += die.choice([0, 1, 1, 1, 5, 5, 20])
        if self.server_app is not None and self.server_app.die.random() < 0.2:
            self._do(self.server_app.says(self.coordinator.state, faults=True))
        chance = die.random()
        if chance < 0.55:
            self._turn(die.choice(self.agents))
        elif chance < 0.75:
            self._worker_does_one()
        elif chance < 0.83 and self.delayed:
            self._do(self.delayed.pop(die.randrange(len(self.delayed))))
        elif chance < 0.91:
            self.coordinator.now += die.choice([0, 0, 70, 200]) if chance < 0.905 else 3000
            self._do(cm.Tick())
        elif chance < 0.98:
            self._do(self._meddling())
        else:
            self.coordinator.crash(from_snapshot=chance > 0.99)
            assert self.coordinator.state == self.rules.state

    def _calm(self) -> None:
        """Nothing fails any more: every campaign ends, and what is said of it is whole."""
        self.faults = False
        for command in [*(cm.SubmitCampaign(campaign=spec) for spec in self.specs), *self.delayed]:
            self._do(command)
        for agent in self.agents:
            agent.draining, agent.slots, agent.merges = False, max(1, agent.slots), True
            agent.allocations, agent.windows = (), ()
            self._do(invitation(agent.name, 2e9))
            self._do(enrolment(agent.name))
            self._do(cm.SetSite(site=agent.name, status="enrolled", reason="calm"))
        for _ in range(CALM_STEPS):
            self.coordinator.now += 5
            runs = self.coordinator.state.flower_runs.values()
            under_way = [*self.coordinator.state.campaigns.values(), *runs]
            if all(one.status != "open" for one in under_way) and (self.server_app is None or runs):
                break
            if self.server_app is not None:
                self._do(self.server_app.says(self.coordinator.state, faults=False))
            for agent in self.agents:
                self._turn(agent)
            for what in owed(self.coordinator.state):
                self._do(self._worker_says(what))
            self._do(cm.Tick())
            self._keep(0.1)
        self._keep(1.0)
        state = self.coordinator.state
        assert not [w.reason for w in waits(state)], "a campaign waits for ever"
        assert len(state.campaigns) == len(self.specs)
        assert owed(state) == ()
        assert state.snapshot() == self.coordinator.replayed().snapshot() == restore(keep(state)).snapshot()
        self._told()

    def _keep(self, chance: float) -> None:
        """Another rule each time; what it leaves is enough for all that can still be made."""
        if self.keeper.random() >= chance:
            return
        self._do(cm.LetGo(rule=_rule(self.keeper)))
        state = self.coordinator.state
        needed, gone = named(state)
        assert not needed.keys() & gone.keys()
        assert all(needed.keys() >= {*job.inputs} for job in state.open_jobs())
        for known in state.campaigns.values():
            for version in known.versions.values():
                if version.role == "candidate" and version.unprovable is None:
                    made_of = merge_inputs(state, known, known.rounds[version.round])
                    assert needed.keys() >= {*made_of}, f"{version.name} cannot be made again"

    def _told(self) -> None:
        """People can be told of anything."""
        events = [(n, at, decoded(data)) for n, (data, at) in enumerate(self.coordinator.ledger, 1)]
        state = self.coordinator.state
        for subject in self.die.choices([*state.jobs, *state.campaigns, *state.sites], k=5):
            assert tell(events, state, subject)
        encode(view(state, sequence=1, head="", now=self.coordinator.now, seen={}, sights={}))

    # --- who acts ---

    def _do(self, command: cm.Command) -> None:
        coordinator, rules = self.coordinator, self.rules
        try:
            happened = coordinator.events_of(command)
        except (Refused, BadInput):
            happened = ()
        for event in happened:
            rules.watch(event, coordinator.now, coordinator.renewed, coordinator.started_at)
        assert coordinator.state == rules.state, "the live state is not what its events tell"
        assert coordinator.state.index == Index(rules.state.jobs), "the index is not what the jobs are"
        waiting = [wait.reason for wait in waits(rules.state, coordinator.moment)]
        assert all(reason.strip(": ,") and not reason.endswith(": ") for reason in waiting)
        if happened and isinstance(command, IDEMPOTENT):
            try:
                assert coordinator.events_of(command) == (), "said twice, it did something twice"
            except (Refused, BadInput):
                pass  # its campaign ended, for example

    def _turn(self, agent: Agent) -> None:
        """An agent's turn: work a little, tell, and listen. Any message may be lost, late or doubled."""
        die = self.die
        if agent.name not in self.coordinator.state.sites:
            return self._do(enrolment(agent.name))
        if self.faults and die.random() < 0.02:
            agent.spool.clear()
        for name, attempt in agent.spool.items():
            attempt.left -= 1
            seconds = attempt.usage.seconds + die.choice([0.0, 100.0, 2000.0])
            attempt.usage = Usage(
                gpu_seconds=agent.gpus * seconds, seconds=seconds, queued_seconds=30.0 * attempt.left
            )
            if attempt.left <= 0 and attempt.report is None:
                attempt.report = self._ending(name)
        message = agent.message()
        if self.faults and die.random() < 0.1:
            message = replace(message, reports=(*message.reports, *self._nonsense(message)))
        if self.faults and die.random() < 0.1:
            self.delayed.append(message)
        if self.faults and die.random() < 0.1:
            return None
        self._do(message)
        if self.faults and die.random() < 0.1:
            return None
        self._listen(agent, message)
        return None

    def _nonsense(self, message: cm.SyncSite) -> list[cm.Report]:
        """Lines said twice, about other sites' attempts, about none."""
        known = [job.attempt for job in self.coordinator.state.jobs.values() if job.attempt]
        attempts = [*known, *(r.attempt for r in message.reports), AttemptId("demo_r9-train-nobody.a1")]
        return [self._ending(self.die.choice(attempts)) for _ in range(2)]

    def _listen(self, agent: Agent, message: cm.SyncSite) -> None:
        if self.coordinator.state.sites[agent.name].status == "suspended":
            return
        wanted = {job.attempt for job in self.coordinator.state.live(agent.name) if job.attempt}
        told = {report.attempt: report for report in message.reports}
        settled = {name for name, report in told.items() if report.phase is Phase.ENDED} - wanted
        self._all_is_charged(agent, [told[name] for name in sorted(settled & set(agent.spool))])
        agent.spool = {name: held for name, held in agent.spool.items() if name not in settled}
        for name in sorted(
            set(told) & set(agent.spool) - wanted
        ):  # stopped, and told of with the next message
            agent.spool[name].report = agent.spool[name].report or _end(name, Outcome.CANCELLED)
        for attempt in sorted(wanted - set(agent.spool)):
            agent.spool[attempt] = Attempt(left=self.die.randint(1, 5))
            if self.faults and self.die.random() < 0.05:
                agent.spool[attempt].report = _end(attempt, Outcome.REFUSED)

    def _all_is_charged(self, agent: Agent, last: list[cm.Report]) -> None:
        """What an attempt has used when its site drops it stands in the accounts."""
        for report in last:
            job = self.coordinator.state.jobs[job_of(report.attempt)]
            if report.usage is not None and job.tries[report.attempt].site == agent.name:
                assert job.tries[report.attempt].gpu_seconds == report.usage.gpu_seconds, "used for nothing"

    def _ending(self, attempt: AttemptId) -> cm.Report:
        outcomes = [outcome for weight, outcome in ENDINGS for _ in range(weight)]
        outcome = self.die.choice(outcomes) if self.faults else Outcome.SUCCEEDED
        return _end(attempt, outcome, whole=not self.faults or self.die.random() < 0.95)

    def _worker_does_one(self) -> None:
        """The worker is slow, and repeats itself: a report may come when it is no longer true."""
        if not (obligations := owed(self.coordinator.state)):
            return
        command = self._worker_says(self.die.choice(obligations))
        if self.die.random() < 0.2:
            self.delayed.append(command)
        if self.die.random() < 0.9:
            self._do(command)

    def _worker_says(self, what: Owed) -> cm.Command:
        die, state = self.die, self.coordinator.state
        match what:
            case Inspect():
                job = state.jobs[what.job]
                if self.faults and die.random() < 0.15:
                    return refused(job)
                partial = isinstance(job.work, Train) and self.faults and die.random() < 0.15
                return admitted(job, steps=die.randint(0, 9) if partial else None, state=state)
            case Merge() if self.faults and die.random() < 0.1:
                return cm.ReportMerge(
                    campaign=what.campaign, round=what.round, manifest=None, reason="no room"
                )
        return answer(what, state, promote=die.random() < 0.7)

    def _meddling(self) -> cm.Command:
        """What admins and operators do at the worst moment."""
        die = self.die
        agent = die.choice(self.agents)
        name = CampaignId(die.choice(self.specs).campaign)
        chance = die.random()
        if chance < 0.3:
            status = die.choice(["enrolled", "enrolled", "draining", "suspended"])
            return replace(cm.SetSite(site=agent.name, status="enrolled", reason="so"), status=status)
        if chance < 0.45:
            agent.slots, agent.draining = die.randint(0, 3), die.random() < 0.3
            agent.merges = die.random() < 0.7
            if die.random() < 0.5:
                self._limit(agent)
            return agent.message() if agent.name in self.coordinator.state.sites else cm.Tick()
        if chance < 0.55:
            return invitation(agent.name, self.coordinator.now + 10)
        if chance < 0.62 and agent.name in self.coordinator.state.sites:
            name_of = f"renewed at {self.coordinator.now}"
            return cm.RenewCertificate(
                site=agent.name,
                certificate=name_of,
                fingerprint=d(name_of),
                not_after=self.coordinator.now + 500,
            )
        if chance < 0.97:
            known = self.coordinator.state.campaigns.get(name)
            version = f"{name}/v{die.randint(0, len(known.versions) if known else 0)}"
            verb = die.choice(["promote", "roll_back"])
            move = cm.MoveHead(campaign=name, version=version, verb="promote", reason="I know better")
            return replace(move, verb=verb)
        return cm.StopCampaign(campaign=name, reason="no more money")


def _rule(die: random.Random) -> Keep:
    """Of days that are seconds long here."""
    days = die.choice([None, 1e-9, 1e-4, 1e-2])
    return Keep(
        contributions_versions=die.choice([None, 1, 1, 2]),
        contributions_days=days,
        outer_state_versions=die.choice([None, 1]),
        rejected_days=die.choice([None, 1e-9, 1e-3]),
    )


def _end(attempt: AttemptId, outcome: Outcome, whole: bool = True) -> cm.Report:
    envelope = d(f"envelope of {attempt}") if outcome is Outcome.SUCCEEDED and whole else None
    return cm.Report(attempt=attempt, phase=Phase.ENDED, outcome=outcome, reason="so", envelope=envelope)


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        print(seed, World(seed).run())
