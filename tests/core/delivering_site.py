"""A coordinator with a real ledger and store in a folder, and a site that signs what it delivers."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from consortium_in_facts import (
    DEMO,
    OPTIMIZER,
    campaign,
    d,
    holding,
    invitation,
    success,
    sync,
)
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import save

from consortium.canonical import digest_of_fact, encode, replace
from consortium.identity import Authority, identity_of, signing_request
from consortium.ids import Digest, JobId, Language, SiteName, digest_of
from consortium.jobs import Tokenizer, Train
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores, VersionManifest
from consortium.signing import CONTRIBUTION, new_key, new_ledger_key, seal
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.owed import Inspect, MakeBase, owed
from coordinator.core.state import Job
from coordinator.core.transitions import JobState
from coordinator.driver import Driver
from coordinator.ledger import Ledger
from coordinator.workshop import Workshop, do
from policies.campaign import Campaign, ModelSource, TokenizerSource, TrainPlan

NOW = 1_800_000_000.0
TRAIN, GATE, TOKENIZER = "demo_r1-train-north", "demo_r1-gate-north", "demo_tokenizer"
SHAPES = {"embed": (7, 3), "head": (5,)}
AUTHORITY = Authority.create("balkan", NOW)

Values = dict[str, np.ndarray]


def values(seed: int, scale: float = 1.0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in SHAPES.items()}


class House:
    """Two sites are enrolled; ``north`` delivers. Time stands still unless a test moves it."""

    def __init__(self, home: Path) -> None:
        self.now = NOW
        self.home = home
        self.key = new_ledger_key()
        self.ledger = Ledger(home / "ledger.sqlite")
        if not self.ledger.head.seq:
            self.ledger.append(
                [
                    ev.ConsortiumFounded(
                        consortium="balkan", ledger_key="", authority=AUTHORITY.pem.decode(), policies={}
                    )
                ],
                NOW,
            )
        self.driver = Driver(self.ledger, self.key, lambda: self.now)
        self.workshop = Workshop.at(home)
        self.store = self.workshop.store
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}

    def enrol(self, name: str, *, days: float = 90.0) -> None:
        """Invite a site, and enrol it with a certificate for a key of its own."""
        site = SiteName(name)
        self.driver.execute(invitation(name, self.now + 60))
        key = self.keys[name] = new_key()
        pem = AUTHORITY.site(signing_request(site, key), site, self.now, days)
        who = identity_of(pem, "balkan")
        self.driver.execute(
            cm.EnrolSite(
                site=site,
                token_hash=d(f"token of {name}"),
                certificate=pem.decode(),
                fingerprint=who.fingerprint,
                not_after=who.not_after,
            )
        )
        self.driver.execute(self.message(name))

    def renew(self, name: str, days: float) -> None:
        """A younger certificate for the same key."""
        site, key = SiteName(name), self.keys[name]
        pem = AUTHORITY.site(signing_request(site, key), site, self.now, days)
        who = identity_of(pem, "balkan")
        self.driver.execute(
            cm.RenewCertificate(
                site=site, certificate=pem.decode(), fingerprint=who.fingerprint, not_after=who.not_after
            )
        )

    def message(self, name: str, *reports: cm.Report) -> cm.SyncSite:
        own = {"north": "fi", "south": "hu"}[name]
        held = (holding(own), holding("fi", "public"), holding("hu", "public"))
        return sync(name, *reports, holdings=held)

    def submit(self, trains_tokenizer: bool = False) -> None:
        """A campaign of one round on a base of a few dozen weights; the worker makes what it owes."""
        self.driver.execute(cm.SubmitCampaign(campaign=self.campaign(trains_tokenizer)))
        self.work()
        self.driver.execute(self.message("north"))

    def campaign(self, trains_tokenizer: bool) -> Campaign:
        files = {
            "config.json": self.store.put_bytes(b'{"dtype": "float32", "model_type": "toy"}'),
            "model.safetensors": self.store.put_bytes(save(values(0), {"format": "pt"})),
        }
        tokenizer = TokenizerSource(vocabulary_size=300)
        if not trains_tokenizer:
            tokenizer = TokenizerSource(digest=self.store.put_bytes(b"{}").digest)
        plan = TrainPlan(
            steps=10, batch_sequences=2, sequence_tokens=8, optimizer=OPTIMIZER, delta_dtype="fp32"
        )
        return campaign(
            languages=(Language("fi"), Language("hu")),
            sites_expected=2,
            model=ModelSource(files=files),
            tokenizer=tokenizer,
            train=plan,
        )

    def work(self) -> None:
        """Bases and inspections; merges and verdicts are other tests' business."""
        for what in owed(self.driver.state):
            if isinstance(what, MakeBase | Inspect):
                self.driver.execute(do(what, self.driver.state, self.workshop))

    def job(self, name: str) -> Job:
        return self.driver.state.jobs[JobId(name)]

    def why(self, name: str) -> str:
        return "\n".join(line.text for line in asyncio.run(self.driver.why(name)))

    # --- what north makes ---

    def send(self, data: bytes, by: str = "north") -> FileRef:
        """Upload, as the artifact service would do it."""
        digest = digest_of(data)
        self.store.append(digest, by, 0, data)
        return self.store.finish(digest, by, len(data))

    def contribution(self, job: Job, artifact: FileRef | None = None) -> Contribution:
        """An honest manifest of the job's newest attempt."""
        assert job.attempt is not None and job.site is not None
        train = job.work if isinstance(job.work, Train) else None
        kind = "delta" if train else "tokenizer" if isinstance(job.work, Tokenizer) else "scores"
        return Contribution(
            job=job.id,
            attempt=job.attempt,
            campaign=job.campaign,
            site=job.site,
            assignment=digest_of_fact(job.assignment(job.attempt, job.site)),
            base=train.base if train else None,
            artifacts={kind: artifact or self.delta()},
            steps=10,
            planned_steps=10,
            tokens={Language("fi"): 160} if train else {},
        )

    def delta(
        self, change: Callable[[Values], object] = lambda tensors: None, scale: float = 0.01
    ) -> FileRef:
        """A delta in the store, after ``change``."""
        tensors = values(1, scale)
        change(tensors)
        return self.send(save(tensors, {"format": "pt"}))

    def scores(self, change: Callable[[Scores], Scores] = lambda scores: scores) -> FileRef:
        score = LanguageScore(heldout=d("held out"), nats=(50.0,) * 30, bytes=(100,) * 30)
        state = self.driver.state.campaigns[DEMO]
        subjects = [state.rounds[1].candidate, state.rounds[1].base]
        honest = Scores(site=SiteName("north"), subjects={str(s): {Language("fi"): score} for s in subjects})
        return self.send(encode(change(honest)))

    def seal(self, contribution: Contribution, by: str = "north") -> Digest:
        return self.send(seal(encode(contribution), CONTRIBUTION, self.keys[by])).digest

    def report(self, name: str, envelope: Digest) -> None:
        attempt = self.job(name).attempt
        assert attempt is not None
        self.driver.execute(self.message("north", replace(success(attempt), envelope=envelope)))

    def to_the_gate(self) -> None:
        """Both deltas are in, and a candidate that nobody computed waits for north's scores."""
        self.report(TRAIN, self.seal(self.contribution(self.job(TRAIN))))
        self.work()
        self.driver.execute(cm.Tick())
        self.now += 3 * 3600
        self.driver.execute(cm.Tick())  # the deadline: south is not waited for
        base = self.driver.state.campaigns[DEMO].rounds[1].base
        files = {"model.safetensors": self.store.put_bytes(save(values(2), {"format": "pt"}))}
        candidate = VersionManifest(base=base, files=files)
        self.driver.execute(cm.ReportMerge(campaign=DEMO, round=1, manifest=candidate, reason="merged"))
        self.driver.execute(self.message("north"))


def refusal(house: House, name: str, envelope: Digest) -> str:
    """Deliver; the worker refuses; the job waits for another try, and ``why`` says the reason returned."""
    house.report(name, envelope)
    attempt = house.job(name).attempt
    house.work()
    job = house.job(name)
    assert (job.state, job.failures, job.contribution) == (JobState.PLANNED, 1, None)
    assert f"{attempt} refused: {job.reason}" in house.why(name)
    return job.reason


def assert_says(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
