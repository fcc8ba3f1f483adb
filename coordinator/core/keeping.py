"""What may be let go now, by the coordinator's rule of keeping, and why: a function of state, rule and time alone.

A rule lets go of what is large and over. Whatever it says, these stay: promoted models, the contributions of the round
that made a campaign's head and of all rounds since, the outer optimizer's state of the head and of the base of every
version that can still be made again, and all that is small: manifests, signatures, scores, tokenizers, letters. What
is let go is an event first, and bytes that are deleted later: see ``referenced`` and ``coordinator.cleaning``.
"""

from collections.abc import Iterator

from consortium.ids import Digest, JobId
from consortium.jobs import Purpose
from coordinator.core import events as ev
from coordinator.core.resting import Brief
from coordinator.core.state import CampaignState, FlowerRunState, LetGo, State, Version
from policies.keeping import Keep

DAY = 86_400.0
_TOGETHER = 500  # contributions of one event: an entry stays below 64 KiB
_DELTAS = (Purpose.SEED, Purpose.ROUND, Purpose.RIVAL)


def due(state: State, rule: Keep, now: float) -> list[ev.AnyEvent]:
    """What the rule no longer asks for at ``now``, campaign by campaign; nothing twice."""
    if not rule.lets_go:
        return []
    briefs: dict[str, dict[JobId, Brief]] = {}
    for one in state.jobs.briefs():
        if one.is_final and one.contributor is not None:
            briefs.setdefault(one.campaign, {})[one.id] = one
    found: list[ev.AnyEvent] = []
    for name, campaign in sorted(state.campaigns.items()):
        found += _of_campaign(campaign, rule, now, briefs.get(name, {}))
    for name, run in sorted(state.flower_runs.items()):
        found += _of_run(run, rule, now, briefs.get(name, {}))
    return found


def beyond_its_rule(event: ev.ArtifactsLetGo, state: State, at: float) -> tuple[str, ...]:
    """What an event lets go that its own rule keeps, sorted. For whoever does not trust who wrote it.

    state  before the event
    """
    allowed: set[str] = set()
    for one in due(state, event.rule, at):
        assert isinstance(one, ev.ArtifactsLetGo)
        if one.campaign == event.campaign:
            allowed |= {*one.contributions, *(f"weights of {x}" for x in one.weights)}
            allowed |= {f"outer state of {x}" for x in one.outer_states}
    said = {*event.contributions, *(f"weights of {x}" for x in event.weights)}
    return tuple(sorted((said | {f"outer state of {x}" for x in event.outer_states}) - allowed))


def in_words(mark: LetGo) -> str:
    """For people: ``let go on 2026-11-22 by keep: contributions_versions 3``."""
    return f"let go on {day(mark.at)} by {mark.rule}"


def day(at: float) -> str:
    """Seconds since the epoch as a date in UTC; source: Hinnant, "chrono-compatible low-level date algorithms"."""
    days = int(at // DAY) + 719_468
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return f"{year + era * 400 + (month <= 2):04d}-{month:02d}-{of_year - (153 * shifted + 2) // 5 + 1:02d}"


def why_gone(state: State, digest: Digest) -> str | None:
    """When and by which rule a blob was let go, and of what it was; None: it was not.

    Looks through all that was let go, so it is for when a blob is asked for and not there.
    """
    for campaign in state.campaigns.values():
        for version in campaign.versions.values():
            for mark, refs in (
                (version.weights_let_go, version.manifest.files),
                (version.outer_state_let_go, version.manifest.outer_state),
            ):
                if mark is not None and any(ref.digest == digest for ref in refs.values()):
                    return f"a file of {version.name}, {in_words(mark)}"
    for marks in [one.let_go for one in state.campaigns.values()] + [
        one.let_go for one in state.flower_runs.values()
    ]:
        for name, mark in marks.items():
            contribution = state.jobs.glance(name).contribution
            if contribution and any(ref.digest == digest for ref in contribution.artifacts.values()):
                return f"of the contribution of {name}, {in_words(mark)}"
    return None


# --- campaigns -------------------------------------------------------------------------------------


def _of_campaign(
    campaign: CampaignState, rule: Keep, now: float, briefs: dict[JobId, Brief]
) -> Iterator[ev.AnyEvent]:
    if campaign.head is None:
        return
    promoted = [v for v in campaign.versions.values() if v.status == "promoted"]
    promoted.sort(key=lambda version: version.number)
    head = campaign.versions[campaign.head]
    since = min(v.round for v in (head, *promoted[-(rule.contributions_versions or 1) :]))
    going = tuple(sorted(_contributions(campaign, rule, now, briefs, since)))
    gone = campaign.let_go.keys() | set(going)
    weights = tuple(v.digest for v in _in_order(campaign) if _weights_go(campaign, v, rule, now))
    outer = tuple(_outer_states(campaign, rule, promoted, gone, set(weights)))
    for start in range(0, max(len(going), 1), _TOGETHER):
        part = going[start : start + _TOGETHER]
        if not part and (start or (not weights and not outer)):
            return
        said = [f"{len(part)} contribution(s) of rounds before {since}"] if part else []
        first = not start
        said += (
            [f"the weights of {len(weights)} model(s) that were not promoted"] if first and weights else []
        )
        said += [f"the outer optimizer's state of {len(outer)} version(s)"] if first and outer else []
        yield ev.ArtifactsLetGo(
            campaign=campaign.spec.campaign,
            rule=rule,
            contributions=part,
            weights=weights if first else (),
            outer_states=outer if first else (),
            unprovable=tuple(_unprovable(campaign, set(part))),
            reason=f"{', '.join(said)}: nobody needs them any more, by {rule.words}",
        )


def _contributions(
    campaign: CampaignState, rule: Keep, now: float, briefs: dict[JobId, Brief], since: int
) -> Iterator[JobId]:
    """Of rounds before ``since``, old enough, and not let go before."""
    if rule.contributions_versions is None and rule.contributions_days is None:
        return
    used = dict.fromkeys(campaign.rivals, since)  # who is over is told below
    for number, round_ in sorted(campaign.rounds.items()):
        used |= dict.fromkeys((*round_.jobs, *round_.late, *round_.left, *round_.collected), number)
    for name, number in used.items():
        one = briefs.get(name)
        if one is None or one.purpose not in _DELTAS or name in campaign.let_go:
            continue
        if rule.contributions_days is not None and now < one.admitted_at + rule.contributions_days * DAY:
            continue
        if one.purpose is Purpose.RIVAL:
            if campaign.status != "open" and rule.contributions_days is not None:
                yield name
        elif number < since:
            yield name


def _weights_go(campaign: CampaignState, version: Version, rule: Keep, now: float) -> bool:
    if rule.rejected_days is None or version.weights_let_go is not None or version.status == "promoted":
        return False
    is_over = version.status == "rejected" or campaign.status != "open"
    return is_over and now >= campaign.rounds[version.round].candidate_at + rule.rejected_days * DAY


def _outer_states(
    campaign: CampaignState, rule: Keep, promoted: list[Version], gone: set[JobId], weights: set[Digest]
) -> Iterator[Digest]:
    """With the weights of a model that was not promoted; of promoted ones those that nothing can begin from again."""
    keep = {v.digest for v in promoted[-(rule.outer_state_versions or len(promoted)) :]} | {campaign.head}
    keep |= {v.manifest.base for v in campaign.versions.values() if _is_provable(campaign, v, gone)}
    for version in _in_order(campaign):
        if not version.manifest.outer_state or version.outer_state_let_go is not None:
            continue
        is_old = rule.outer_state_versions is not None and version.status == "promoted"
        if version.digest not in keep and (is_old or version.digest in weights):
            yield version.digest


def _unprovable(campaign: CampaignState, going: set[JobId]) -> Iterator[Digest]:
    for version in _in_order(campaign):
        if version.unprovable is None and version.role == "candidate":
            if not going.isdisjoint(campaign.rounds[version.round].collected):
                yield version.digest


def _is_provable(campaign: CampaignState, version: Version, gone: set[JobId]) -> bool:
    if version.role == "initial" or version.unprovable is not None:
        return False
    return gone.isdisjoint(campaign.rounds[version.round].collected)


def _in_order(campaign: CampaignState) -> list[Version]:
    return sorted(campaign.versions.values(), key=lambda version: version.number)


# --- Flower runs -----------------------------------------------------------------------------------


def _of_run(run: FlowerRunState, rule: Keep, now: float, briefs: dict[JobId, Brief]) -> Iterator[ev.AnyEvent]:
    """Replies of runs that are over: a ServerApp that is started again needs those of an open one."""
    if run.status == "open" or rule.contributions_days is None:
        return
    age = rule.contributions_days * DAY
    going = sorted(x.id for x in briefs.values() if x.id not in run.let_go and now >= x.admitted_at + age)
    for start in range(0, len(going), _TOGETHER):
        part = tuple(going[start : start + _TOGETHER])
        yield ev.ArtifactsLetGo(
            campaign=run.spec.run,
            rule=rule,
            contributions=part,
            reason=f"{len(part)} message(s) of a run that is over: nobody needs them any more, by {rule.words}",
        )
