"""Which blobs the consortium's past and its open work name: everything else in the store nobody needs.

Whatever stands in the ledger is named: bases and versions with their files, what jobs were given and what came of
them. Not named are uploads that were refused, given up or never reported, and what a lost merge left behind.
"""

from collections.abc import Iterator

from consortium.ids import Digest
from consortium.jobs import Merge
from coordinator.core.state import CampaignState, Job, State


def referenced(state: State) -> dict[Digest, str]:
    """Every blob that an audit, a merge, a gate or an open job may read, and for what, in words."""
    found: dict[Digest, str] = {}
    for name, campaign in sorted(state.campaigns.items()):
        found |= {digest: f"campaign {name}" for digest in _of_campaign(campaign)}
    for job_id in sorted(state.jobs):
        found.update((digest, f"job {job_id}") for digest in _of_job(state.jobs.glance(job_id)))
    return found


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
        yield from (ref.digest for ref in version.manifest.files.values())
        yield from (ref.digest for ref in version.manifest.outer_state.values())


def _of_job(job: Job) -> Iterator[Digest]:
    yield from job.inputs
    yield from (digest for digest in (job.tokenizer, job.envelope) if digest is not None)
    if isinstance(job.work, Merge):
        yield from (ref.digest for ref in job.work.files)
    if job.contribution is not None:
        yield from (ref.digest for ref in job.contribution.artifacts.values())
