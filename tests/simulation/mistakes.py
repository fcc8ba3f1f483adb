"""Which mistakes the simulation has to see: those of the core's table that break a promise, and some of the shells."""

import sys
from pathlib import Path

from broken import Mistake

sys.path.append(str(Path(__file__).parents[1] / "core"))
from mutants import MUTANTS

#: By name, of the table of tests/core. Left out are rules of taste (who gets a job first, what is said), what needs a
#: person (an admin who stops, drains, rolls back), and what only another release or another key could bring about.
_OF_THE_CORE = (
    *("fence: a stale attempt counts", "fence: another site's attempt counts", "resume: any ended attempt"),
    *("a site may say expired", "inspection of a stale attempt", "merge reported twice"),
    *("same version made again", "verdict while judges work", "rejected is promoted"),
    *("restart shortens leases", "syncs do not renew", "leases never lapse", "one failure more"),
    *("all refused and still waiting", "a failed seed is shrugged off", "next round before this one closed"),
    *("closed round leaves jobs open", "partial deltas are merged", "partial deltas make a quorum"),
    *("no minimum", "quorum rounds down", "quorum below the minimum", "no deadline of a round"),
    *("judged before everybody scored", "ended before it was compared"),
    *("slots are no limit", "leases within one sync are not counted", "who refused is asked again"),
    *("attempts are numbered anew", "table: refused is done", "leases before consequences"),
    *("merge: the coordinator does a site's", "merge: owed twice", "merge: nobody has to offer"),
    *("merge: no deadline", "merge: any waits for ever"),
    *("account: leases outside windows", "account: leases beyond what is left"),
    *("account: an ended allocation pays", "account: nothing is held back"),
    *("account: usage is charged again and again", "account: another site's attempt is charged"),
    *("late: a stale delta weighs as much", "late: for ever", "late: past the last round"),
    *("late: its site is asked again", "index: final jobs stay open", "an unwritten decision is believed"),
    *("envelopes need no upload", "another order is answered", "another base is trained from"),
    *("half the subjects are enough", "sites read everything", "idle sites write"),
)

_OF_THE_SHELLS = (
    Mistake(
        "driver: events are told and not written",
        "coordinator.driver",
        "self._ledger.append(decision.events, now) if decision.events else []",
        "self._ledger.append(decision.events[:-1], now) if decision.events[1:] else []",
    ),
    Mistake(
        "driver: a replay skips an event",
        "coordinator.driver",
        "for recorded in ledger.read(seq + 1):",
        "for recorded in ledger.read(seq + 2):",
    ),
    Mistake(
        "driver: a restart is long ago",
        "coordinator.driver",
        "self.started_at = clock()",
        "self.started_at = 0.0",
    ),
    Mistake(
        "driver: what is heard stays for ever",
        "coordinator.driver",
        "for attempt in self.renewed.keys() - live:",
        "for attempt in self.renewed.keys() & live:",
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
        "agent: a spent allocation is no reason to end",
        "site_agent.core.lives",
        "if observed.closing and not files.finishing:",
        "if False:",
    ),
)


def mistakes() -> tuple[Mistake, ...]:
    table = {one.name: one for one in MUTANTS}
    core = []
    for name in _OF_THE_CORE:
        module = "coordinator." + table[name].file.removesuffix(".py").replace("/", ".")
        core.append(Mistake(name, module, table[name].right, table[name].wrong))
    return (*core, *_OF_THE_SHELLS)
