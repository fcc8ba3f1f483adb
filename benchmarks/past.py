"""A consortium's long past, made by its own core: events that sites and a worker would have caused, in their order.

    python benchmarks/past.py FOLDER --sites 40 --events 1000000

Founds a consortium below FOLDER and leads campaign after campaign through it: in every round each site takes its
job, tells what it uses, is sometimes preempted, delivers, and scores the candidate. The clock is invented, so years
pass in minutes. Blobs are named and never made. Ends in the middle of a round, with a snapshot as the coordinator
keeps it.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from consortium.canonical import digest_of_fact, replace
from consortium.capacity import Allocation, Usage
from consortium.identity import Credentials, identity_of, signing_request, token_hash
from consortium.ids import AttemptId, CampaignId, Digest, Language, SiteName, digest_of
from consortium.jobs import Evaluate, Optimizer, Outcome, Phase, Train
from consortium.manifests import Contribution, FileRef, Holding, Ingredient, Losses, VersionManifest
from consortium.signing import new_key, private_pem, sign_checkpoint
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.gate import GateVerdict
from coordinator.core.machine import handle
from coordinator.core.moment import Moment
from coordinator.core.owed import Inspect, Judge, MakeBase, Merge, Owed, owed
from coordinator.core.snapshot import keep
from coordinator.core.state import Job, RoundState
from coordinator.driver import replay
from coordinator.founding import Keys, found
from coordinator.ledger import Ledger
from policies.campaign import Campaign, ModelSource, Quorum, TokenizerSource, TrainPlan

LANGUAGES = tuple(
    Language(tag)
    for tag in "bg cs da de el en es et fi fr ga hr hu is it lt lv mk mt nl pl pt ro sk sl sq sv uk".split()
)
GPUS = 4
HOUR = 3600.0
ENTRIES = 8  #: of use, that a training job makes while it runs
PREEMPTED_SHARE = 0.1
STEPS = 1000


class Past:
    """State and ledger of a consortium that lives fast. All randomness from one seed."""

    def __init__(self, folder: Path, num_sites: int, began_at: float, seed: int = 1) -> None:
        config = CoordinatorConfig(
            consortium="past",
            home=str(folder / "home"),
            listen="127.0.0.1",
            names=("127.0.0.1",),
            port=0,
            enrolment_port=0,
        )
        self.keys: Keys = found(config, time.time())  # certificates are real, so of today
        self.config, self.now = config, began_at
        self.ledger = Ledger(Path(config.home) / "ledger.sqlite")
        self.state = replay(self.ledger)
        self.credentials: dict[SiteName, Credentials] = {}
        self._die = random.Random(seed)
        self._due: list[ev.AnyEvent] = []
        self._spent: dict[AttemptId, float] = {}
        self.sites = [SiteName(f"site-{number:04d}") for number in range(num_sites)]
        for name in self.sites:
            self._enrol(name)
        self._flush()

    @property
    def events(self) -> int:
        return self.ledger.head.seq + len(self._due)

    def do(self, command: cm.Command) -> None:
        moment = Moment(now=self.now, renewed={job.attempt: self.now for job in self.state.open_jobs()})  # type: ignore[misc]
        self._due += handle(self.state, command, moment).events

    def wait(self, seconds: float) -> None:
        """What happened until now happened at one time; then time passes."""
        self._flush()
        self.now += seconds
        self.do(cm.Tick())

    def close(self) -> None:
        """With a snapshot and a signed checkpoint of the end."""
        self._flush()
        head = self.ledger.head
        self.ledger.save_snapshot(keep(self.state), head)
        self.ledger.save_checkpoint(sign_checkpoint(self.keys.ledger, head.seq, head.hash))
        self.ledger.close()

    def _flush(self) -> None:
        if self._due:
            self.ledger.append(self._due, self.now)
            self._due = []

    # --- sites ---

    def _enrol(self, name: SiteName) -> None:
        key = new_key()
        certificate = self.keys.authority.site(signing_request(name, key), name, time.time(), days=3000)
        who = identity_of(certificate, "past")
        self.credentials[name] = Credentials(certificate, private_pem(key))
        invitation = token_hash(f"token of {name}")
        self.do(
            cm.IssueToken(
                site=name, organisation=f"University of {name}", country="FI", token_hash=invitation,
                valid_until=self.now + HOUR, membership="FI is a member state",
            )
        )  # fmt: skip
        self.do(
            cm.EnrolSite(
                site=name, token_hash=invitation, certificate=certificate.decode(),
                fingerprint=who.fingerprint, not_after=who.not_after,
            )
        )  # fmt: skip
        self.do(sync(name))

    def all_sync(self, report: Callable[[Job], cm.Report | None] = lambda job: None) -> None:
        """Every site says of every job it holds what ``report`` says."""
        for name in self.sites:
            told = [found for job in self.state.live(name) if (found := report(job)) is not None]
            self.do(sync(name, *told))

    def running(self, job: Job) -> cm.Report:
        assert job.attempt is not None
        spent = self._spent[job.attempt] = self._spent.get(job.attempt, 0.0) + HOUR
        return cm.Report(attempt=job.attempt, phase=Phase.RUNNING, usage=usage(spent), started=True)

    def finished(self, job: Job) -> cm.Report:
        assert job.attempt is not None
        spent = self._spent.pop(job.attempt, 0.0) + HOUR
        return cm.Report(
            attempt=job.attempt, phase=Phase.ENDED, outcome=Outcome.SUCCEEDED, usage=usage(spent),
            envelope=d(f"envelope of {job.attempt}"), started=True,
        )  # fmt: skip

    def sometimes_preempted(self, job: Job) -> cm.Report:
        if self._die.random() > PREEMPTED_SHARE:
            return self.running(job)
        assert job.attempt is not None
        spent = self._spent.pop(job.attempt, 0.0) + HOUR
        return cm.Report(
            attempt=job.attempt, phase=Phase.ENDED, outcome=Outcome.PREEMPTED, usage=usage(spent),
            reason="the queue took the nodes back", started=True,
        )  # fmt: skip

    # --- campaigns ---

    def submit(self, number: int, rounds: int) -> CampaignId:
        name = CampaignId(f"campaign-{number}")
        self.do(cm.SubmitCampaign(campaign=campaign(name, rounds, len(self.sites)), sender="admin"))
        self.work()
        return name

    def train(self, until_events: int | None = None) -> None:
        """Everybody's jobs of the open round, nearly to their end; or no farther than so many events."""
        self.all_sync()
        for entry in range(ENTRIES):
            self.wait(HOUR)
            self.all_sync(self.sometimes_preempted if entry == ENTRIES // 2 else self.running)
            if until_events is not None and self.events >= until_events:
                return

    def one_round(self, name: CampaignId) -> None:
        self.train()
        round_ = list(self.state.campaigns[name].rounds.values())[-1]
        while True:
            self.wait(HOUR)
            self.all_sync(self.finished)
            self.work()
            if round_.state is RoundState.CLOSED:
                return
            self.all_sync()  # who was preempted goes on; candidates are judged

    def work(self) -> None:
        """What the worker owes, until it owes nothing."""
        while duties := owed(self.state):
            for duty in duties:
                self.do(self._answer(duty))

    def _answer(self, duty: Owed) -> cm.Command:
        state = self.state
        match duty:
            case MakeBase():
                files = state.campaigns[duty.campaign].spec.model.files
                assert files is not None
                return cm.ReportBase(campaign=duty.campaign, manifest=VersionManifest(base=None, files=files))
            case Inspect():
                return inspected(state.jobs[duty.job])
            case Merge():
                round_ = state.campaigns[duty.campaign].rounds[duty.round]
                parts = [state.jobs[name].contribution for name in round_.collected]
                manifest = merged(round_.base, [part for part in parts if part is not None])
                reason = f"merged {len(parts)} contribution(s)"
                return cm.ReportMerge(
                    campaign=duty.campaign, round=duty.round, manifest=manifest, reason=reason
                )
            case Judge():
                verdict = GateVerdict(promote=True, reason="no language lost", languages=())
                return cm.ReportVerdict(campaign=duty.campaign, round=duty.round, verdict=verdict)


def live(
    folder: Path,
    num_sites: int,
    num_events: int,
    rounds: int = 50,
    say: Callable[[str], None] = lambda text: None,
) -> Past:
    """A past of about so many events; at its end the last campaign's round is being trained, at every site."""
    per_round = num_sites * (ENTRIES + 17)
    began_at = time.time() - (num_events / per_round + 2) * 30 * HOUR
    past = Past(folder, num_sites, began_at)
    number = 0
    while True:
        number += 1
        name = past.submit(number, rounds)
        while past.state.campaigns[name].status == "open":
            if past.events + per_round > num_events:
                past.now = max(past.now, time.time() - 10 * HOUR)
                past.train(until_events=num_events)
                assert list(past.state.campaigns[name].rounds.values())[-1].state is RoundState.TRAINING
                return past
            past.one_round(name)
        say(f"{past.events:,} events, {number} campaigns")


def campaign(name: CampaignId, rounds: int, num_sites: int) -> Campaign:
    return Campaign(
        campaign=name,
        languages=LANGUAGES,
        sites_expected=num_sites,
        model=ModelSource(
            files={
                "config.json": FileRef(digest=d("config"), size=700),
                "model.safetensors": FileRef(digest=d("weights"), size=6 << 30),
                "tokenizer.json": FileRef(digest=d("tokenizer"), size=2 << 20),
            }
        ),
        tokenizer=TokenizerSource(digest=d("tokenizer")),
        rounds=rounds,
        train=TrainPlan(
            steps=STEPS, batch_sequences=256, sequence_tokens=2048, optimizer=Optimizer(learning_rate=4e-4)
        ),
        quorum=Quorum(deadline_hours=1000.0, queue_hours_max=1000.0),
        lease_seconds=900.0,
        attempts_max=5,
    )


def sync(name: SiteName, *reports: cm.Report) -> cm.SyncSite:
    """What a site says; its own language follows from its number."""
    own = LANGUAGES[int(name[-4:]) % len(LANGUAGES)]
    holds = [
        _holding(own, "private", 1_000_000, 500),
        *(_holding(x, "public", 100_000, 0) for x in LANGUAGES),
    ]
    return cm.SyncSite(
        site=name,
        agent_version="0.1.0",
        slots=1,
        draining=False,
        holdings=tuple(sorted(holds, key=lambda one: (one.language, one.access == "public"))),
        allocations=(Allocation(name="project_465000001", gpu_hours=1e9),),
        gpus=GPUS,
        launcher="slurm",
        reports=reports,
    )  # fmt: skip


_HOLDINGS: dict[tuple[str, str], Holding] = {}


def _holding(language: Language, access: str, documents: int, heldout: int) -> Holding:
    found = _HOLDINGS.get((language, access))
    if found is None:
        found = _HOLDINGS[language, access] = Holding(
            language=language, access="public" if access == "public" else "private", documents=documents,
            bytes=documents * 4000, heldout_documents=heldout, licence="CC0-1.0", digest=d(f"{language}.{access}"),
        )  # fmt: skip
    return found


def usage(seconds: float) -> Usage:
    return Usage(
        gpu_seconds=seconds * GPUS,
        seconds=seconds,
        queued_seconds=1800.0,
        joules=seconds * 1600.0,
        source="sacct",
    )


def inspected(job: Job) -> cm.ReportInspection:
    """An honest contribution, admitted."""
    assert job.attempt is not None and job.site is not None
    scores: dict[str, dict[Language, ev.ScoreSummary]] = {}
    if isinstance(job.work, Evaluate):
        score = ev.ScoreSummary(nats=5e5, bytes=2_000_000, documents=500, heldout=d(f"heldout of {job.site}"))
        scores = {subject.name: dict.fromkeys(job.work.languages, score) for subject in job.work.subjects}
    return cm.ReportInspection(
        job=job.id,
        attempt=job.attempt,
        contribution=contribution(job, job.attempt, job.site),
        scores=scores,
        measures={"norm": 1.31, "base_norm": 85.2, "relative": 0.0154},
        reason="signature, base, shapes and norms are as they should be",
    )


def contribution(job: Job, attempt: AttemptId, site: SiteName) -> Contribution:
    scored = Contribution(
        job=job.id,
        attempt=attempt,
        campaign=job.campaign,
        site=site,
        assignment=digest_of_fact(job.assignment(attempt, site)),
        artifacts={"scores": FileRef(digest=d(f"scores of {attempt}"), size=40_000)},
        software={"sprachbund": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        seconds=ENTRIES * HOUR,
    )
    if not isinstance(job.work, Train):
        return scored
    tokens = job.work.steps * job.work.batch_sequences * job.work.sequence_tokens
    shared = {language: tokens // 2 // len(LANGUAGES) for language in LANGUAGES}
    return replace(
        scored,
        base=job.work.base,
        artifacts={"delta": FileRef(digest=d(f"delta of {attempt}"), size=3 << 30)},
        steps=job.work.steps,
        planned_steps=job.work.steps,
        tokens=shared | {job.work.languages[0]: tokens // 2},
        public_tokens=shared,
        losses=Losses(first=2.913421, last=2.711932, mean=2.784410),
        data={f"{language}.public": d(f"{language}.public") for language in LANGUAGES},
        joules=ENTRIES * HOUR * 1600.0,
    )


def merged(base: Digest, parts: list[Contribution]) -> VersionManifest:
    deltas = sorted(
        ((part.artifacts["delta"], sum(part.tokens.values())) for part in parts), key=lambda p: p[0].digest
    )
    return VersionManifest(
        base=base,
        files={
            "config.json": FileRef(digest=d("config"), size=700),
            "model.safetensors": FileRef(
                digest=d(f"{base} and {[ref.digest for ref, _ in deltas]}"), size=6 << 30
            ),
            "tokenizer.json": FileRef(digest=d("tokenizer"), size=2 << 20),
        },
        ingredients=tuple(Ingredient(delta=ref, weight=weight) for ref, weight in deltas),
    )


def d(text: str) -> Digest:
    return digest_of(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, default=40)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    began = time.perf_counter()
    past = live(
        arguments.folder, arguments.sites, arguments.events, say=lambda text: print(text, file=sys.stderr)
    )
    past.close()
    print(f"{past.events:,} events in {time.perf_counter() - began:.0f} s below {arguments.folder}")


if __name__ == "__main__":
    main()
