"""What a rule of keeping may never let go of, whatever it says: the referee's own words, beside ``core/keeping.py``."""

from collections.abc import Iterable

from consortium.ids import Digest, JobId
from coordinator.core import events as ev
from coordinator.core.orders import merge_order
from coordinator.core.state import CampaignState, RoundState, State


def let_go(event: ev.ArtifactsLetGo, state: State) -> None:
    """AssertionError for what somebody may still need. ``state``: before the event."""
    programme = state.programme(event.campaign)
    for name in event.contributions:
        assert name not in programme.let_go, f"{name} is let go twice"
        assert state.jobs.is_over(name), f"{name} is open"
        assert state.jobs.glance(name).contribution is not None, f"nothing ever came of {name}"
    if not isinstance(programme, CampaignState):
        assert programme.status != "open", "a ServerApp may be started again"
        return
    _campaign(event, state, programme)


def _campaign(event: ev.ArtifactsLetGo, state: State, campaign: CampaignState) -> None:
    going, head = set(event.contributions), campaign.head
    assert head is not None, "there is nothing to keep by"
    made = campaign.versions[head]
    if made.role != "initial":
        assert going.isdisjoint(campaign.rounds[made.round].collected), "the head could not be made again"
    assert made.unprovable is None and head not in event.outer_states
    for round_ in campaign.rounds.values():
        if campaign.status == "open" and round_.state is not RoundState.CLOSED:
            assert going.isdisjoint((*round_.jobs, *round_.late, *round_.collected)), "of an open round"
            assert round_.base not in event.outer_states and round_.candidate not in event.weights
    newest = campaign.rounds[max(campaign.rounds)] if campaign.rounds else None
    if newest is not None and campaign.status == "open":
        assert going.isdisjoint(newest.left), "the next round may merge it"
    for digest in event.weights:
        assert campaign.versions[digest].status != "promoted", "a promoted model would be lost"
    _said_what_it_costs(event, state, campaign)


def _said_what_it_costs(event: ev.ArtifactsLetGo, state: State, campaign: CampaignState) -> None:
    """Every version that nobody can make again from now on is named."""
    gone = campaign.let_go.keys() | set(event.contributions)
    bytes_ = _artifacts(state, campaign, gone)
    bytes_ -= _artifacts(
        state, campaign, {job for job in state.jobs if job not in gone}
    )  # shared with what stays
    for digest in event.outer_states:
        bytes_ |= {ref.digest for ref in campaign.versions[digest].manifest.outer_state.values()}
    for version in campaign.versions.values():
        if version.role == "candidate" and version.unprovable is None:
            order = merge_order(state, campaign, campaign.rounds[version.round])
            if not bytes_.isdisjoint(ref.digest for ref in order.files):
                assert version.digest in event.unprovable, f"{version.name} can no longer be made again"


def _artifacts(state: State, campaign: CampaignState, jobs: Iterable[JobId]) -> set[Digest]:
    found = (state.jobs.glance(name) for name in jobs)
    return {
        ref.digest
        for job in found
        if job.campaign == campaign.spec.campaign and job.contribution is not None
        for ref in job.contribution.artifacts.values()
    }
