"""What of a simulated run is told afterwards: spans and moments for the picture, sums for the table."""

import contextlib
from typing import Any

from google.protobuf.message import DecodeError
from sprachbund.v1 import site_pb2

from consortium.ids import JobId, Language, SiteName
from coordinator.core import events as ev
from coordinator.core.state import CampaignState, State
from simulation.outcome import Ending, Happening, Made

_SPANS: dict[int, str] = {
    site_pb2.ATTEMPT_PHASE_STAGING: "staging",
    site_pb2.ATTEMPT_PHASE_UPLOADING: "uploading",
}
_SYNC = "/sprachbund.v1.SiteService/Sync"


class Diary:
    """happenings  in the order in which they were noted; sorted by time when they are told"""

    def __init__(self) -> None:
        self.happenings: list[Happening] = []
        self.attempts: dict[str, int] = {}  #: by site
        self._phases: dict[str, tuple[int, float]] = {}
        self._rounds: dict[tuple[str, int], float] = {}

    def note(self, happening: Happening) -> None:
        self.happenings.append(happening)

    def told(self) -> tuple[Happening, ...]:
        return tuple(sorted(self.happenings, key=lambda one: (one.at, one.place, one.kind, one.subject)))

    def event(self, event: ev.AnyEvent, at: float) -> None:
        """An entry of the ledger."""
        match event:
            case ev.JobLeased():
                self.attempts[event.site] = self.attempts.get(event.site, 0) + 1
            case ev.RoundOpened():
                self._rounds[event.campaign, event.round] = at
            case ev.RoundFailed():
                self._round_over(event.campaign, event.round, at, event.reason)
            case ev.VersionPromoted() | ev.VersionRejected():
                kind = "promoted" if isinstance(event, ev.VersionPromoted) else "rejected"
                self._moment(at, kind, event.version, event.reason)
                for (campaign, number), _ in sorted(self._rounds.items()):
                    if campaign == event.campaign:
                        self._round_over(campaign, number, at, kind)
            case ev.AttemptEnded():
                self._moment(at, event.outcome.value, event.attempt, event.reason)
            case ev.ContributionRefused():
                self._moment(at, "refused", event.attempt, event.reason)
            case ev.ArtifactsLetGo():
                self._moment(at, "let go", event.campaign, event.reason)
            case ev.CampaignEnded():
                self._moment(at, "campaign ended", event.campaign, f"{event.status}: {event.reason}")
            case _:
                pass

    def reported(self, place: str, method: str, request: Any, at: float) -> None:
        """What a site says of its attempts' phases, as it reaches the coordinator: an answer may be hours later."""
        if method != _SYNC or not request:
            return
        with contextlib.suppress(DecodeError):  # whoever it is meant for says so
            request = site_pb2.SyncRequest.FromString(request) if isinstance(request, bytes) else request
            self._phased(place, request, at)

    def _phased(self, place: str, request: site_pb2.SyncRequest, at: float) -> None:
        for line in request.attempts:
            phase, since = self._phases.get(line.attempt, (line.phase, at))
            if line.phase != phase and phase in _SPANS:
                self.note(
                    Happening(at=since, place=place, kind=_SPANS[phase], subject=line.attempt, until=at)
                )
            if line.phase != phase or line.attempt not in self._phases:
                self._phases[line.attempt] = (line.phase, at)

    def _round_over(self, campaign: str, number: int, at: float, detail: str) -> None:
        began = self._rounds.pop((campaign, number), None)
        if began is not None:
            self.note(
                Happening(
                    at=began,
                    place="coordinator",
                    kind="round",
                    subject=f"{campaign}/{number}",
                    detail=detail,
                    until=at,
                )
            )

    def _moment(self, at: float, kind: str, subject: str, detail: str) -> None:
        self.note(Happening(at=at, place="coordinator", kind=kind, subject=subject, detail=detail))


def endings(state: State) -> tuple[Ending, ...]:
    return tuple(
        Ending(
            campaign=name,
            status=campaign.status,
            reason=campaign.reason if campaign.status != "open" else "the simulation's time was over",
            rounds=sum(round_.state.value == "closed" for round_ in campaign.rounds.values()),
            promoted=sum(
                version.status == "promoted" and version.role == "candidate"
                for version in campaign.versions.values()
            ),
        )
        for name, campaign in sorted(state.campaigns.items())
    )


def versions_of(state: State) -> tuple[Made, ...]:
    return tuple(
        Made(name=version.name, digest=version.digest, status=version.status, round=version.round)
        for _, campaign in sorted(state.campaigns.items())
        for version in sorted(campaign.versions.values(), key=lambda version: version.number)
    )


def merged_tokens(state: State) -> dict[SiteName, dict[Language, int]]:
    """In contributions that went into a merge, by site and language."""
    found: dict[SiteName, dict[Language, int]] = {}
    for _, campaign in sorted(state.campaigns.items()):
        for job in _collected(campaign):
            done = state.jobs[job].contribution
            assert done is not None
            mine = found.setdefault(done.site, {})
            for language, count in done.tokens.items():
                mine[language] = mine.get(language, 0) + count
    return {site: dict(sorted(found[site].items())) for site in sorted(found)}


def _collected(campaign: CampaignState) -> list[JobId]:
    return [job for _, round_ in sorted(campaign.rounds.items()) for job in round_.collected]
