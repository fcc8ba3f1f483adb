"""Which mistakes the simulation has to see: those of the core's own table, and more in what else decides.

All of the table of ``tests/core`` but for what ``LEFT_OUT`` names, each with the reason: no mistake is chosen, or left
out, for being easy or hard.
"""

import sys
from pathlib import Path

from broken import Mistake

sys.path.append(str(Path(__file__).parents[1] / "core"))
from mutants import MUTANTS

#: No mistake at all: with it every case has to hold.
NOTHING = Mistake("nothing", "coordinator.core.decide", "", "")

_ENROLMENT = "honest sites enrol here, each once; tests/identity and tests/security have the others"
_COURIER = "no simulated site is served by courier"
_TASTE = "another order of work, or another estimate, breaks no promise"
_SHOWN = "of what is shown, not of what is decided"
_SCORES = "scores of odd form are fuzzed in tests/security, and in tests/core"
_EXPIRY = "certificates are renewed here long before they expire"

#: Of the core's table, and why they are not tried by simulation.
LEFT_OUT = {
    "suspended site may sync": "changes nothing by itself: the guard has refused the call before",
    "token of another site": _ENROLMENT,
    "token never expires": _ENROLMENT,
    "stop cancels other campaigns' jobs": "a simulated consortium has one campaign",
    "courier: its windows are the coordinator's": _COURIER,
    "the snapshot of another release is trusted": "there is one release",
    "same version made again": "changes nothing: a merge that gives a known version needs the deltas of an earlier "
    "round, and those are refused; in its place: a candidate takes a name that is taken",
    "merge: the coordinator does a site's": "changes nothing by itself: its worker is owed no such merge",
    "rivals first": _TASTE,
    "merge: last in the queue": _TASTE,
    "place: the slow site gets it": _TASTE,
    "account: a long job in a short window": _TASTE,
    "account: every heartbeat is an event": "more entries, all of them true; its budget is tested in tests/core",
    "index: the oldest measurements": _TASTE,
    "comparison is late from the start": _TASTE,
    "merge: offers are for ever": "no simulated site changes its config",
    "versions by digest": _SHOWN,
    "expired certificates sign": _EXPIRY,
    "the first certificate decides": _EXPIRY,
    "unequal lengths are scores": _SCORES,
    "any number is a score": _SCORES,
    "nothing held out is a score": _SCORES,
    "two lay out one model at once": "there is one thread",
    "an impossible base is tried for ever": "every simulated base can be made",
    "merge: momentum is forgotten": "no simulated recipe has an outer optimizer that keeps one",
    "account: an ended allocation pays": "decides nothing: what has ended ends before any job would, which `_too_late` "
    "refuses at all three places that ask, and `payable_seconds` comes to nothing; only a sentence differs",
}

_MORE_OF_THE_CORE = (
    Mistake(
        "a candidate takes a name that is taken",
        "coordinator.core.decide",
        "name=version_name(name, len(campaign.versions)),",
        "name=version_name(name, len(campaign.versions) - 1),",
    ),
    Mistake(
        "a second base replaces the first",
        "coordinator.core.decide",
        "    if campaign.head is not None:\n        return []  # a second worker was slower\n",
        "",
    ),
    Mistake(
        "a result without bytes is a result",
        "coordinator.core.reports",
        "if report.outcome is Outcome.SUCCEEDED and report.envelope is not None:",
        "if report.outcome is Outcome.SUCCEEDED:",
    ),
    Mistake(
        "a site's first description is its last",
        "coordinator.core.decide",
        "if is_new and allows(site, DESCRIBED, moment.now):",
        "if is_new and not site.agent_version and allows(site, DESCRIBED, moment.now):",
    ),
    Mistake(
        "nobody is woken for a job that is free",
        "coordinator.core.concerned",
        "if free > 0 and unable(state, site, job, free, moment, prospects) is None:",
        "if False:",
    ),
    Mistake(
        "nobody is woken when its attempt is gone",
        "coordinator.core.concerned",
        "found = {name for name, before in waiting.items() if standing(state, name) != before}",
        "found = set()",
    ),
    Mistake(
        "checks: a delta is merged before it is checked",
        "coordinator.core.plan",
        "if reason is None or not all(is_checked(state, job) for job in jobs):",
        "if reason is None:",
    ),
    Mistake(
        "checks: whoever trained it judges it, too",
        "coordinator.core.checks",
        "return others or able",
        "return able",
    ),
    Mistake(
        "merge: a part is left out",
        "coordinator.core.orders",
        "parts=tuple(sorted(parts, key=lambda part: (part.delta.digest, part.weight))),",
        "parts=tuple(sorted(parts, key=lambda part: (part.delta.digest, part.weight)))[-2:],",
    ),
    Mistake(
        "merge: parts in the order of their arrival",
        "coordinator.core.orders",
        "parts=tuple(sorted(parts, key=lambda part: (part.delta.digest, part.weight))),",
        "parts=tuple(sorted(parts, key=lambda part: (part.weight, part.delta.digest), reverse=True)),",
    ),
    Mistake(
        "an order names no inputs",
        "coordinator.core.orders",
        "return tuple(sorted({version, *(ref.digest for ref in manifest.files.values())}))",
        "return (version,)",
    ),
    Mistake(
        "an order names an older base",
        "coordinator.core.rounds",
        "campaign.head,\n        number,\n        site.name,\n        own_languages",
        "min(campaign.versions),\n        number,\n        site.name,\n        own_languages",
    ),
    Mistake(
        "a round opens on the newest version, promoted or not",
        "coordinator.core.rounds",
        "        round=number,\n        base=campaign.head,",
        "        round=number,\n        base=list(campaign.versions)[-1],",
    ),
    Mistake(
        "late: what has failed is taken over",
        "coordinator.core.late",
        "if state.jobs[name].state not in (JobState.FAILED, JobState.CANCELLED)",
        "if True",
    ),
    Mistake(
        "late: what never began goes on",
        "coordinator.core.late",
        "is_at_it = job.state in (JobState.LEASED, JobState.DELIVERED)",
        "is_at_it = True",
    ),
    Mistake(
        "history: a delta of an earlier round is new",
        "coordinator.core.history",
        "if 1 <= number < job.round:",
        "if False:",
    ),
    Mistake(
        "gate: what regressed does not block",
        "coordinator.core.gate",
        'blocks=protected and status in ("regressed", "unproven"),',
        "blocks=False,",
    ),
    Mistake(
        "gate: what is unscored does not block",
        "coordinator.core.gate",
        'blocks=protected and gate.unscored == "reject",',
        "blocks=False,",
    ),
    Mistake(
        "gate: worse is better",
        "coordinator.core.gate",
        "    if lower > gate.tolerance:\n",
        "    if upper < -gate.tolerance:\n",
    ),
    Mistake(
        "tokenizer: the job is planned again",
        "coordinator.core.fold",
        "campaign.tokenizer_job = event.job",
        "campaign.tokenizer_job = None",
    ),
    Mistake(
        "account: what is resumed is not held back",
        "coordinator.core.fold",
        "    if event.attempt in job.tries:\n        _hold(state, job, event.attempt)",
        "    if event.attempt in job.tries and event.attempt is None:\n        _hold(state, job, event.attempt)",
    ),
    Mistake(
        "account: a lapsed attempt costs nothing any more",
        "coordinator.core.fold",
        "if event.outcome is not Outcome.EXPIRED:  # which",
        "if True:  # which",
    ),
    Mistake(
        "account: another's start counts",
        "coordinator.core.accounting",
        "if report.started and not known.started:",
        "if report.started:",
    ),
    Mistake(
        "a refused site is not remembered",
        "coordinator.core.fold",
        "job.refused_by = tuple(sorted({*job.refused_by, job.site}))",
        "job.refused_by = (job.site,)",
    ),
    Mistake(
        "index: a lease that is over stays the site's",
        "coordinator.core.index",
        "if before is not None and before != holder:",
        "if before is not None and holder is not None and before != holder:",
    ),
    Mistake(
        "access: people may do what sites do",
        "coordinator.core.access",
        "site = state.sites.get(SiteName(name))\n    if site is None:",
        "site = state.sites.get(SiteName(name))\n    if False:",
    ),
    Mistake(
        "access: sites may stop campaigns",
        "coordinator.core.access",
        '"/sprachbund.v1.AdminService/StopCampaign": {Role.ADMIN},',
        '"/sprachbund.v1.AdminService/StopCampaign": {Role.ADMIN, Role.SITE},',
    ),
)

# Not among them: that what one answer settles is not begun (``or attempt in observed.settled``). It decides nothing:
# an answer settles only what it does not want. tests/agent has it, for a coordinator that contradicts itself.
_OF_THE_SHELLS = (
    Mistake(
        "driver: events are told and not written",
        "coordinator.driver",
        "self._ledger.append(decision.events, now) if decision.events else []",
        "self._ledger.append(decision.events[:-1], now) if decision.events[1:] else []",
    ),
    Mistake(
        "driver: they are told before they are written",
        "coordinator.services.site",
        "        driver.execute(command)\n        return self._response(site, request)",
        "        response = self._response(site, request)\n        driver.execute(command)\n        return response",
    ),
    Mistake(
        "driver: a replay skips an event",
        "coordinator.driver",
        "for recorded in ledger.read(seq + 1):",
        "for recorded in ledger.read(seq + 2):",
    ),
    Mistake(
        "driver: a snapshot is empty",
        "coordinator.driver",
        "self._ledger.save_snapshot(keep(self.state), self._ledger.head)",
        "self._ledger.save_snapshot(keep(State()), self._ledger.head)",
    ),
    Mistake(
        "driver: a restart is long ago",
        "coordinator.driver",
        "self.started_at = self.clock()",
        "self.started_at = 0.0",
    ),
    Mistake(
        "driver: what is heard stays for ever",
        "coordinator.driver",
        "for attempt in self.renewed.keys() - live:",
        "for attempt in self.renewed.keys() & live:",
    ),
    Mistake(
        "driver: two agents of one site are one",
        "coordinator.driver",
        "if incarnation in known[:-1]:",
        "if False:",
    ),
    Mistake(
        "driver: anybody renews a lease",
        "coordinator.services.site",
        "if report.attempt in held:",
        "if True:",
    ),
    Mistake(
        "driver: what runs is settled",
        "coordinator.services.site",
        "if line.attempt not in names and line.phase == site_pb2.ATTEMPT_PHASE_ENDED",
        "if line.phase == site_pb2.ATTEMPT_PHASE_ENDED",
    ),
    Mistake(
        "agent: what is settled stays",
        "site_agent.core.reconcile",
        "    if attempt in observed.settled:\n        why",
        "    if False:\n        why",
    ),
    Mistake(
        "agent: silence ends an attempt",
        "site_agent.core.reconcile",
        "if offer is None and attempt in observed.answered:",
        "if offer is None:",
    ),
    Mistake(
        "agent: unknown is gone",
        "site_agent.core.reconcile",
        "return files.lives > 0 and sighting.seen is not Seen.GONE",
        "return files.lives > 0 and sighting.seen in (Seen.RUNNING, Seen.PENDING)",
    ),
    Mistake(
        "agent: what waits in the queue is gone",
        "site_agent.core.reconcile",
        "return files.lives > 0 and sighting.seen is not Seen.GONE",
        "return files.lives > 0 and sighting.seen is Seen.RUNNING",
    ),
    Mistake(
        "agent: whatever is not wanted goes on",
        "site_agent.core.reconcile",
        "if offer is None and attempt in observed.answered:",
        "if False:",
    ),
    Mistake(
        "agent: a failed trainer is never told",
        "site_agent.core.reconcile",
        "    if files.failure:\n",
        "    if False:\n",
    ),
    Mistake(
        "agent: a result is not sent",
        "site_agent.core.reconcile",
        "    if files.has_result:\n        if attempt",
        "    if False:\n        if attempt",
    ),
    Mistake(
        "agent: more jobs than slots",
        "site_agent.core.reconcile",
        "if action is None or (action.act is Act.LAUNCH and free <= 0):",
        "if action is None:",
    ),
    Mistake(
        "agent: what is settled is dropped while it lives",
        "site_agent.core.reconcile",
        "        if leaving := _leave(files, sighting, limits, why):\n",
        "        if False and (leaving := _leave(files, sighting, limits, why)):\n",
    ),
    Mistake(
        "agent: a life is enough",
        "site_agent.core.lives",
        'return None if observed.waits else _launch(files, f"{how}; it goes on where it was")',
        "return None",
    ),
    Mistake(
        "agent: lives are numbered anew",
        "site_agent.core.lives",
        "life=files.lives + 1, reason=why",
        "life=max(1, files.lives), reason=why",
    ),
    Mistake(
        "agent: it launches in closed windows",
        "site_agent.core.lives",
        'return None if observed.waits else _launch(files, "its inputs are here")',
        'return _launch(files, "its inputs are here")',
    ),
    Mistake(
        "agent: a second life is launched in closed windows",
        "site_agent.core.lives",
        'return None if observed.waits else _launch(files, f"{how}; it goes on where it was")',
        'return _launch(files, f"{how}; it goes on where it was")',
    ),
    Mistake(
        "agent: a spent allocation is no reason to end",
        "site_agent.core.lives",
        "if observed.closing and not files.finishing:",
        "if False:",
    ),
    Mistake(
        "agent: what the machine refuses is tried again",
        "site_agent.deeds",
        "self.refusals[attempt] = str(error)",
        "pass",
    ),
    Mistake(
        "agent: the last of what was used is lost",
        "site_agent.core.reconcile",
        "if observed.told.get(attempt, files.usage) != files.usage:",
        "if False:",
    ),
)


def mistakes() -> tuple[Mistake, ...]:
    core = [
        Mistake(
            one.name,
            "coordinator." + one.file.removesuffix(".py").replace("/", "."),
            one.right,
            one.wrong,
        )
        for one in MUTANTS
        if one.name not in LEFT_OUT
    ]
    unknown = set(LEFT_OUT) - {one.name for one in MUTANTS}
    assert not unknown, f"left out, and not there: {sorted(unknown)}"
    return (*core, *_MORE_OF_THE_CORE, *_OF_THE_SHELLS)
