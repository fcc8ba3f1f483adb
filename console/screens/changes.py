"""What is different between two views, a line each: for logs, and for terminals that cannot be drawn on."""

from console.screens.parts import plain
from consortium.canonical import replace
from consortium.views import ConsortiumView


def changes(before: ConsortiumView | None, after: ConsortiumView) -> tuple[str, ...]:
    """A line for each thing in ``after`` that is new or stands otherwise than ``before``; None: all is new."""
    known = _standing(before) if before else {}
    return tuple(
        plain(f"{subject} {stands}")
        for subject, stands in _standing(after).items()
        if known.get(subject) != stands
    )


def without_clock(view: ConsortiumView) -> ConsortiumView:
    """The view less what differs at every look: equal if nothing happened."""
    sites = tuple(replace(site, seen_seconds_ago=None) for site in view.sites)
    return replace(view, now=0.0, sites=sites)


def _standing(view: ConsortiumView) -> dict[str, str]:
    """Every subject of a view and how it stands; progress in steps is left out, it changes all the time."""
    found: dict[str, str] = {}
    for site in view.sites:
        found[f"site {site.site}"] = site.status
    for campaign in view.campaigns:
        found[f"campaign {campaign.campaign}"] = _worded(campaign.status, campaign.reason)
        for one in campaign.rounds:
            found[f"round {campaign.campaign}/r{one.round}"] = _worded(one.state, one.reason)
    for job in view.jobs:
        found[f"job {job.job}"] = _worded(job.state, job.reason)
    for attempt in view.attempts:
        found[f"attempt {attempt.attempt}"] = attempt.phase
    for campaign in view.campaigns:
        for version in campaign.versions:
            found[f"version {version.name}"] = _worded(version.status, version.reason)
    return found


def _worded(state: str, reason: str) -> str:
    return f"{state}: {reason}" if reason else state
