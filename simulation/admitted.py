"""Is a result that was admitted the one that was ordered, whole, and signed by whose it is? Invariants 1 and 7.

Looked at with the store's bytes, the certificates and the lease's own words; the product's inspection is not asked.
"""

import hashlib
from fractions import Fraction

from consortium.blobs import Blobs
from consortium.canonical import decode, encode
from consortium.errors import SprachbundError
from consortium.ids import AttemptId, Digest, SiteName
from consortium.jobs import Evaluate, Merge, Train
from consortium.manifests import Contribution, VersionManifest
from consortium.signing import CONTRIBUTION, key_of_certificate, open_envelope
from coordinator.core import events as ev
from coordinator.core.state import CampaignState, Job, Round, Site, State

_BYTES_MAX = 1 << 30


class Admitted:
    """store: the coordinator's; None: nothing can be looked at"""

    def __init__(self) -> None:
        self.store: Blobs | None = None
        self._sent: set[tuple[SiteName, str]] = set()
        self._orders: dict[AttemptId, Digest] = {}

    def took(self, place: str, digest: str) -> None:
        """A site has sent these bytes, or begun to."""
        self._sent.add((SiteName(place), digest))

    def watch(self, event: ev.AnyEvent, state: State) -> None:
        """Raises AssertionError for what should not have been let in. ``state``: before the event."""
        match event:
            case ev.JobLeased():
                self._orders[event.attempt] = event.assignment
            case ev.ContributionAdmitted() if event.job in state.jobs:
                job = state.jobs[event.job]
                if job.campaign in state.campaigns and self.store is not None:
                    self._look(event, job, state.sites[job.site or SiteName("")], self.store)
            case ev.VersionMade() if event.role == "candidate":
                campaign = state.campaigns[event.campaign]
                _weighed(event.manifest, state, campaign, campaign.rounds[event.round])
            case _:
                pass

    def _look(self, event: ev.ContributionAdmitted, job: Job, site: Site, store: Blobs) -> None:
        said, work = event.contribution, job.work
        assert (said.job, said.campaign, said.site) == (job.id, job.campaign, site.name), "another's work"
        assert said.attempt == event.attempt == job.attempt, "of another attempt"
        assert said.assignment == self._orders[event.attempt], "another order was done"
        assert said.base == (work.base if isinstance(work, Train | Merge) else None), "from another base"
        assert job.envelope is not None and (site.name, job.envelope) in self._sent, "it sent no envelope"
        assert self._signed(job, site, store) == said, "signed was something else"
        for name, ref in sorted(said.artifacts.items()):
            data = store.read_bytes(ref.digest, _BYTES_MAX)
            assert hashlib.sha256(data).hexdigest() == ref.digest and len(data) == ref.size, "other bytes"
            handed_on = isinstance(work, Merge) and ref.digest in job.inputs
            assert handed_on or (site.name, ref.digest) in self._sent, f"{name} is another's work"
        if isinstance(work, Train):
            most = said.steps * work.batch_sequences * work.sequence_tokens
            assert said.planned_steps == work.steps and 0 <= said.steps <= work.steps, "steps are invented"
            assert 0 <= sum(said.tokens.values()) <= most, "tokens are invented"
        if isinstance(work, Evaluate):
            assert set(event.scores) == {subject.name for subject in work.subjects}, "not all were scored"
            for languages in event.scores.values():
                assert set(languages) <= set(work.languages), "languages that nobody asked for"

    def _signed(self, job: Job, site: Site, store: Blobs) -> Contribution | None:
        assert job.envelope is not None
        envelope = store.read_bytes(job.envelope, _BYTES_MAX)
        for _, pem in sorted(site.certificates.items()):
            try:
                payload = open_envelope(envelope, CONTRIBUTION, key_of_certificate(pem.encode()))
            except SprachbundError:
                continue
            found = decode(payload, Contribution, "what was signed")
            assert encode(found) == payload
            return found
        return None


def _weighed(made: VersionManifest, state: State, campaign: CampaignState, round_: Round) -> None:
    """By tokens or evenly, and the less the staler: each weight over what it should be is one number."""
    quorum, ratios = campaign.spec.quorum, set()
    given = {part.delta.digest: part.weight for part in made.ingredients}
    for name in round_.collected:
        job = state.jobs[name]
        assert job.contribution is not None
        by_tokens = round_.number == 0 or campaign.spec.merge.weights == "tokens"
        tokens = sum(job.contribution.tokens.values()) if by_tokens else 1
        should = tokens * Fraction(quorum.stale_percent, 100) ** (round_.number - job.round)
        weight = given[job.contribution.artifacts["delta"].digest]
        ratios.add(Fraction(weight) / should if should else weight)
    assert len(ratios) == 1, "weights are not those of tokens and staleness"
