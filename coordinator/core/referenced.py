"""Which blobs the consortium's past and its open work name: everything else in the store nobody needs.

Whatever stands in the ledger is named: bases and versions with their files, what jobs were given and what came of
them; less what the ledger says was let go and nothing else needs. Not named are uploads that were refused, given up
or never reported, and what a lost merge left behind.
"""

from collections.abc import Iterator

from consortium.flower.letters import LETTER
from consortium.ids import Digest
from consortium.jobs import Merge, Purpose
from coordinator.core.state import CampaignState, Job, State

_LARGE = ("delta", "token_counts")  #: artifacts of a contribution that is let go


def referenced(state: State) -> dict[Digest, str]:
    """Every blob that an audit, a merge, a gate or an open job may read, and for what, in words."""
    return named(state)[0]


def let_go(state: State) -> dict[Digest, str]:
    """Every blob that the ledger says may be deleted and that nothing else needs, and of what it is."""
    return named(state)[1]


def named(state: State) -> tuple[dict[Digest, str], dict[Digest, str]]:
    """Both, ``referenced`` and ``let_go``: each looks at every job there ever was."""
    needed: dict[Digest, str] = {}
    gone: dict[Digest, str] = {}
    given: dict[Digest, str] = {}  # to jobs that are over: kept, unless it was let go
    for name, campaign in sorted(state.campaigns.items()):
        needed |= {digest: f"campaign {name}" for digest in _of_campaign(campaign)}
        gone |= _let_go_by(campaign)
    for job_id in sorted(state.jobs):
        job, what = state.jobs.glance(job_id), f"job {job_id}"
        is_let_go = job_id in state.programme(job.campaign).let_go
        for digest in _of_job(job):
            (given if job.is_final else needed).setdefault(digest, what)
        for kind, digest in _made_by(job):
            if is_let_go and (kind in _LARGE or (job.purpose is Purpose.FLOWER and kind != LETTER)):
                gone.setdefault(digest, what)
            elif job.purpose is Purpose.MERGE and job.is_final:
                given.setdefault(digest, what)  # files of a version, which goes or stays as such
            else:
                needed.setdefault(digest, what)
        if is_let_go and job.purpose is Purpose.FLOWER:
            gone |= {digest: what for digest in job.inputs if digest not in gone}
    needed |= {digest: what for digest, what in given.items() if digest not in gone and digest not in needed}
    return needed, {digest: what for digest, what in gone.items() if digest not in needed}


def open_since(state: State) -> float | None:
    """When the oldest open job was planned, or the oldest open Flower run opened: what was stored since may be for it,
    reported or not; None: there is none. A ServerApp brings a message's arrays before it says whom they are for.
    """
    began = [job.planned_at for job in state.open_jobs()]
    began += [run.opened_at for run in state.flower_runs.values() if run.status == "open"]
    return min(began, default=None)


def _of_campaign(campaign: CampaignState) -> Iterator[Digest]:
    spec = campaign.spec
    yield from (ref.digest for ref in (spec.model.files or {}).values())
    yield from (digest for digest in (spec.tokenizer.digest, campaign.tokenizer) if digest is not None)
    for digest, version in campaign.versions.items():
        yield digest
        if version.weights_let_go is None:
            yield from (ref.digest for ref in version.manifest.files.values())
        if version.outer_state_let_go is None:
            yield from (ref.digest for ref in version.manifest.outer_state.values())


def _let_go_by(campaign: CampaignState) -> dict[Digest, str]:
    found: dict[Digest, str] = {}
    for version in campaign.versions.values():
        if version.weights_let_go is not None:
            found |= {ref.digest: version.name for ref in version.manifest.files.values()}
        if version.outer_state_let_go is not None:
            found |= {ref.digest: version.name for ref in version.manifest.outer_state.values()}
    return found


def _of_job(job: Job) -> Iterator[Digest]:
    """What it was given."""
    yield from job.inputs
    if job.tokenizer is not None:
        yield job.tokenizer
    if isinstance(job.work, Merge):
        yield from (ref.digest for ref in job.work.files)


def _made_by(job: Job) -> Iterator[tuple[str, Digest]]:
    """What came of it: the artifact's kind, or ``envelope``."""
    if job.envelope is not None:
        yield "envelope", job.envelope
    if job.contribution is not None:
        yield from ((kind, ref.digest) for kind, ref in job.contribution.artifacts.items())
