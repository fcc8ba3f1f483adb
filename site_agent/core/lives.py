"""Whether an attempt gets another life, and what a living one is asked for.

A life that the world ended (walltime, preemption, a dead node) is followed by another. What counts against the
attempt is a life that got no further: no newer training checkpoint, no more text prepared. ``lives_max`` of them in a
row end it, and so do ``lives_total_max`` lives in all. A life that the agent itself sent away for a pause counts only
in the latter.
"""

from consortium.jobs import Outcome
from site_agent.core.facts import (
    Act,
    Action,
    AttemptFiles,
    Cause,
    Launch,
    Limits,
    Meant,
    Observation,
    Seen,
    Sighting,
)

_WORDS = {
    Cause.STOPPED: "stopped with a training checkpoint",
    Cause.TIMED_OUT: "reached its walltime",
    Cause.PREEMPTED: "was preempted",
    Cause.NODE_FAILED: "lost its node",
    Cause.CANCELLED: "was cancelled",
}


def ask_of_the_living(
    files: AttemptFiles, sighting: Sighting, observed: Observation, limits: Limits
) -> Action | None:
    """What a life that is wanted, and in the queue or running, is asked for; None: nothing."""
    attempt = files.attempt
    waits_in_queue = sighting.seen is Seen.PENDING
    if waits_in_queue and sighting.cause is Cause.NEVER:
        why = f"the batch system will never start it: {sighting.detail or 'it gives no reason'}"
        return Action(act=Act.KILL, attempt=attempt, reason=why, meant="refuse")
    if waits_in_queue and sighting.cause is Cause.SPENT and files.has_partial:  # else it may as well wait
        why = f"the account at the batch system is used up: {sighting.detail}"
        return Action(act=Act.KILL, attempt=attempt, reason=why, meant="refuse")
    if waits_in_queue and (why := observed.closing or (observed.pause_running and observed.waits) or ""):
        return Action(act=Act.KILL, attempt=attempt, reason=why, meant="pause")
    if observed.closing and not files.can_finish:  # what it would spend is lost in any case
        return _leave_in_time(files, sighting, observed.closing, limits)
    if observed.closing and not files.finishing:
        return Action(act=Act.FINISH, attempt=attempt, reason=observed.closing)
    if sighting.seen is Seen.RUNNING and (why := _stalled(files, limits)):
        return _send_away(files, why, "again", limits.stop_seconds)
    if observed.waits and observed.pause_running and not observed.closing:
        return _leave_in_time(files, sighting, observed.waits, limits)
    return None


def after_a_life(
    files: AttemptFiles, sighting: Sighting, observed: Observation, limits: Limits
) -> Action | None:
    """What follows when inputs are in place and no life is left, the first one included; None: wait."""
    if files.lives == 0:
        if why := observed.closing or observed.refusals.get(files.attempt, ""):
            return _end(files, Outcome.REFUSED, why)
        return None if observed.waits else _launch(files, "its inputs are here")
    newest = _newest(files)
    if newest.meant == "refuse" and sighting.cause in (None, Cause.CANCELLED, Cause.NEVER):
        return _with_what_there_is(files, newest.asked)
    if sighting.cause is Cause.CANCELLED and not newest.asked:
        return _end(files, Outcome.REFUSED, _with("an operator cancelled it", sighting.detail))
    if sighting.cause is Cause.OUT_OF_MEMORY:
        how = _with(f"life {files.lives} ran out of memory", sighting.detail)
        return _end(files, Outcome.FAILED, f"{how}; it needs a machine, or a site profile, with more")
    if why := observed.closing or observed.refusals.get(files.attempt, ""):
        return _with_what_there_is(files, why)
    how = _how(files, sighting, newest)
    fruitless = fruitless_lives(files)
    if fruitless >= limits.lives_max:
        why = f"{how}, the last of {fruitless} in a row without a newer training checkpoint or more text"
        return _end(files, Outcome.FAILED, f"{why}; the job's log at the site says more")
    if files.lives >= limits.lives_total_max:
        why = f"{how}, the last of lives_total_max: {limits.lives_total_max}"
        return _end(files, Outcome.FAILED, f"{why}; raise it in the site's config, or make the job shorter")
    return None if observed.waits else _launch(files, f"{how}; it goes on where it was")


def no_more_lives(files: AttemptFiles, observed: Observation) -> bool:
    """Whether the site, and not the job, is why no life may start any more."""
    is_refused = files.attempt in observed.refusals or (files.lives > 0 and _newest(files).meant == "refuse")
    return bool(observed.closing) or is_refused


def fruitless_lives(files: AttemptFiles) -> int:
    """How many lives, counted back from the newest, got no further. Pauses do not count."""
    launches = {launch.life: launch for launch in files.launches}
    count = 0
    for life in range(files.lives, 0, -1):
        launch = launches.get(life)  # missing: an older agent's, and nothing speaks for it
        if launch is not None and (launch.step < files.checkpoint or launch.text_bytes < files.text_bytes):
            break
        if launch is None or launch.meant != "pause":
            count += 1
    return count


def _stalled(files: AttemptFiles, limits: Limits) -> str:
    quiet = files.quiet_seconds
    if limits.stall_seconds is None or quiet is None or quiet < limits.stall_seconds:
        return ""
    step = files.progress.step if files.progress else 0
    return f"life {files.lives} wrote no progress for {limits.stall_seconds / 60:g} minutes, at step {step}"


def _leave_in_time(files: AttemptFiles, sighting: Sighting, why: str, limits: Limits) -> Action | None:
    """With time to save; what cannot be seen is asked, never killed."""
    if sighting.seen is Seen.RUNNING or files.stopping_seconds is None:
        return _send_away(files, why, "pause", limits.save_seconds)
    return None


def _send_away(files: AttemptFiles, why: str, meant: Meant, seconds: float) -> Action | None:
    """First asked, then killed. None: it has been asked, and has some time left."""
    act = Act.STOP if files.stopping_seconds is None else Act.KILL
    if act is Act.KILL and (files.stopping_seconds or 0.0) <= seconds:
        return None
    return Action(act=act, attempt=files.attempt, reason=why, meant=meant)


def _how(files: AttemptFiles, sighting: Sighting, newest: Launch) -> str:
    words = _WORDS.get(sighting.cause) if sighting.cause else None
    return _with(f"life {files.lives} {words or 'ended without a result'}", newest.asked or sighting.detail)


def _newest(files: AttemptFiles) -> Launch:
    for launch in files.launches:
        if launch.life == files.lives:
            return launch
    return Launch(life=files.lives)


def _with(sentence: str, detail: str) -> str:
    return f"{sentence} ({detail})" if detail else sentence


def _launch(files: AttemptFiles, why: str) -> Action:
    return Action(act=Act.LAUNCH, attempt=files.attempt, life=files.lives + 1, reason=why)


def _with_what_there_is(files: AttemptFiles, why: str) -> Action:
    """No life may start any more: a partial result if there is a training checkpoint, else it is refused."""
    if files.has_partial:
        partial = f"{why}; a partial result is made from step {files.checkpoint}"
        return Action(act=Act.SALVAGE, attempt=files.attempt, reason=partial)
    return _end(files, Outcome.REFUSED, why)


def _end(files: AttemptFiles, outcome: Outcome, reason: str) -> Action:
    return Action(act=Act.END, attempt=files.attempt, outcome=outcome, reason=reason)
