"""What a site does next, and what it tells the coordinator.

    STAGING ──stage──▶ QUEUED ──launch──▶ RUNNING ──deliver──▶ UPLOADING ──upload──▶ ENDED
                          ▲ ◀────lose────────┘                                         ▲
                          └────────────────────deliver (seen late)──▶ UPLOADING        │
    STAGING, QUEUED, RUNNING, UPLOADING ──end (failed, refused, cancelled)─────────────┘

The phase is never stored: it follows from the attempt's directory and from what the launcher sees, so an
agent that starts anew is where the old one was. A life that is gone and left neither result nor failure is
started again in the same directory, from its training checkpoint: ``lives`` says how often. A new life
starts only when the launcher is sure that the last one is gone; unknown is never gone.

While the site waits (outside its windows, paused) nothing is launched. Once its allocation is over no life starts
any more: what runs is asked to deliver what it has, what has stopped is made into a partial result from its
training checkpoint, and the rest is refused.

Only the coordinator ends an attempt for good: what it settled is dropped, what it no longer wants is
stopped, reported and then settled. Not hearing it changes nothing: what is held goes on. Silence about an
attempt that it had not been told of means nothing either: another agent of this site may have begun it since.
"""

from consortium.ids import AttemptId
from consortium.jobs import Outcome, Phase
from site_agent.config import Consent
from site_agent.core.consent import refusal
from site_agent.core.facts import (
    Act,
    Action,
    AttemptFiles,
    Ended,
    Limits,
    Observation,
    Offer,
    Plan,
    Report,
    Seen,
    Sighting,
)
from site_agent.core.lives import after_a_life, ask_of_the_living, no_more_lives

TRANSITIONS = {
    (Phase.STAGING, "stage"): Phase.QUEUED,
    (Phase.STAGING, "end"): Phase.ENDED,
    (Phase.QUEUED, "launch"): Phase.RUNNING,
    (Phase.QUEUED, "deliver"): Phase.UPLOADING,
    (Phase.QUEUED, "salvage"): Phase.UPLOADING,
    (Phase.QUEUED, "end"): Phase.ENDED,
    (Phase.RUNNING, "lose"): Phase.QUEUED,
    (Phase.RUNNING, "deliver"): Phase.UPLOADING,
    (Phase.RUNNING, "end"): Phase.ENDED,
    (Phase.UPLOADING, "upload"): Phase.ENDED,
    (Phase.UPLOADING, "end"): Phase.ENDED,
}

_MOVES = {Act.STAGE, Act.LAUNCH, Act.SALVAGE, Act.UPLOAD, Act.END}  # the others ask the world, or leave
_NO_LIFE = Sighting(seen=Seen.GONE)
_UNKNOWN = Sighting(seen=Seen.UNKNOWN)


def reconcile(observed: Observation, limits: Limits, consent: Consent) -> Plan:
    """The actions that bring the site nearer to what is wanted, each with its reason, and the reports due.

    Actions come in the order to begin them in. Doing one twice does no harm, nor does doing none.
    """
    offers = {offer.attempt: offer for offer in observed.wanted or ()}
    held = {files.attempt: files for files in observed.held}
    actions: list[Action] = []
    reports: list[Report] = []
    salvages = False
    free = limits.slots - sum(is_alive(files, _sighting(files, observed)) for files in held.values())
    for files in sorted(
        held.values(), key=lambda files: (files.lives == 0, files.attempt)
    ):  # begun ones first
        sighting = _sighting(files, observed)
        action = _decide(files, sighting, offers.get(files.attempt), observed, limits, consent)
        reports.append(_report(files, sighting, observed))
        if action is None or (action.act is Act.LAUNCH and free <= 0):
            continue
        if action.act is Act.LAUNCH:
            free -= 1
        if action.act is Act.SALVAGE:  # one after the other: it runs beside the agent
            if salvages:
                continue
            salvages = True
        phase = phase_of(files, sighting)
        assert action.act not in _MOVES or (phase, action.act.value) in TRANSITIONS, (files, action)
        actions.append(action)
    for attempt, offer in sorted(offers.items()):
        if attempt in held or attempt in observed.settled:
            continue
        refused = _refused(offer, consent, limits) or observed.closing
        if refused:
            ended = Ended(outcome=Outcome.REFUSED, reason=refused)
            reports.append(Report(attempt=attempt, phase=Phase.ENDED, ended=ended))
        else:
            actions.append(Action(act=Act.STAGE, attempt=attempt, reason="the coordinator wants it"))
            reports.append(Report(attempt=attempt, phase=Phase.STAGING))
    return Plan(actions=tuple(actions), reports=tuple(sorted(reports, key=lambda report: report.attempt)))


def phase_of(files: AttemptFiles, sighting: Sighting) -> Phase:
    """Where an attempt stands. A result or an end in its directory outweighs whatever the launcher says."""
    if files.ended:
        return Phase.ENDED
    if files.has_result:
        return Phase.UPLOADING
    if not files.staged:
        return Phase.STAGING
    if files.lives == 0 or sighting.seen in (Seen.GONE, Seen.PENDING):
        return Phase.QUEUED
    return Phase.RUNNING


def is_alive(files: AttemptFiles, sighting: Sighting) -> bool:
    """Whether a life of the attempt may still write into its directory or hold a slot."""
    return files.lives > 0 and sighting.seen is not Seen.GONE


def _decide(
    files: AttemptFiles,
    sighting: Sighting,
    offer: Offer | None,
    observed: Observation,
    limits: Limits,
    consent: Consent,
) -> Action | None:
    """The one next action of an attempt that the spool holds; None: wait."""
    attempt = files.attempt
    if attempt in observed.settled:
        why = "the coordinator has settled it"
        if leaving := _leave(files, sighting, limits, why):
            return leaving
        if observed.told.get(attempt, files.usage) != files.usage:
            return None  # the last of what it used was known only when it was gone, and is told first
        return Action(act=Act.DROP, attempt=attempt, reason=why)
    if files.ended:
        return _leave(files, sighting, limits, f"it has ended: {files.ended.outcome}")
    if offer is None and attempt in observed.answered:
        why = "the coordinator no longer wants it"
        return _leave(files, sighting, limits, why) or _end(attempt, Outcome.CANCELLED, why)
    if files.has_result:
        if attempt in observed.problems:
            return _end(attempt, Outcome.FAILED, observed.problems[attempt])
        return Action(act=Act.UPLOAD, attempt=attempt, reason="the trainer left a result")
    if files.failure:
        return _end(attempt, Outcome.FAILED, files.failure)
    if is_alive(files, sighting):
        return ask_of_the_living(files, sighting, observed, limits)
    if files.lives == 0 and offer is not None and (refused := _refused(offer, consent, limits)):
        return _end(attempt, Outcome.REFUSED, refused)
    if (
        attempt in observed.problems
    ):  # where no life may start, what cannot be saved is refused as the rest is
        outcome = Outcome.REFUSED if no_more_lives(files, observed) else Outcome.FAILED
        return _end(attempt, outcome, observed.problems[attempt])
    if not files.staged and not observed.closing:
        return Action(act=Act.STAGE, attempt=attempt, reason="its inputs are not all here")
    return after_a_life(files, sighting, observed, limits)


def _leave(files: AttemptFiles, sighting: Sighting, limits: Limits, why: str) -> Action | None:
    """What makes a living trainer go: first asked, then killed. None if it is gone."""
    if not is_alive(files, sighting):
        return None
    late = files.stopping_seconds is not None and files.stopping_seconds > limits.stop_seconds
    if late or sighting.seen is Seen.PENDING:  # what waits in a queue reads no STOP
        return Action(act=Act.KILL, attempt=files.attempt, reason=why)
    return Action(act=Act.STOP, attempt=files.attempt, reason=why)


def _end(attempt: AttemptId, outcome: Outcome, reason: str) -> Action:
    return Action(act=Act.END, attempt=attempt, outcome=outcome, reason=reason)


def _refused(offer: Offer, consent: Consent, limits: Limits) -> str:
    if offer.assignment is None:
        return offer.problem
    return refusal(offer.assignment, consent, limits.gpus, limits.public, limits.apps)


def _sighting(files: AttemptFiles, observed: Observation) -> Sighting:
    if files.lives == 0:
        return _NO_LIFE
    return observed.sightings.get(files.attempt, _UNKNOWN)


def _report(files: AttemptFiles, sighting: Sighting, observed: Observation) -> Report:
    phase = phase_of(files, sighting)
    detail = ""
    if is_alive(files, sighting):
        detail = sighting.detail
    elif phase is Phase.QUEUED:
        detail = observed.closing or observed.waits
    began = sighting.seen is Seen.RUNNING or files.progress is not None or files.checkpoint > 0
    return Report(
        attempt=files.attempt,
        phase=phase,
        ended=files.ended,
        native_id=files.native_id,
        progress=files.progress,
        usage=files.usage,
        detail=detail,
        started=began or files.has_result or (files.usage is not None and files.usage.seconds > 0),
    )
