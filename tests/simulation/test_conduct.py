"""What an agent may do by itself, and what it owes: the referee's rules, one occasion each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sprachbund.v1 import site_pb2
from tried_sites import EVEN

from consortium.canonical import replace
from consortium.capacity import Usage
from simulation.conduct import Conduct
from simulation.loop import Process
from simulation.plan import SitePlan
from site_agent.core.facts import Cause
from site_agent.limits import Granted, OpenHours

X, Y = "tried_r1-train-north.a1", "tried_r1-gate-north.a1"
SYNC_SECONDS, LONG = 100.0, 1000.0
SITE = replace(EVEN[0], slots=1)
ENDED, RUNNING = site_pb2.ATTEMPT_PHASE_ENDED, site_pb2.ATTEMPT_PHASE_RUNNING
QUEUED, UPLOADING = site_pb2.ATTEMPT_PHASE_QUEUED, site_pb2.ATTEMPT_PHASE_UPLOADING


@dataclass
class Clock:
    """The site's host, as far as the rules ask."""

    now: float = 0.0
    refused_at: float = float("-inf")
    disk_is_full: bool = False

    def clock(self) -> float:
        return self.now


@dataclass
class Watched:
    """One agent, watched, at a site whose clock is the world's."""

    home: Path
    plan: SitePlan = SITE
    host: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        host: Any = self.host
        self.conduct = Conduct(
            self.plan, self.home, SYNC_SECONDS, host, lambda: self.host.now, self.said.append
        )
        self.agent = self.starts()

    def starts(self) -> Process:
        self.agent = Process("agent", self.host)
        self.conduct.starts(self.agent)
        return self.agent

    def asks(self, name: str, life: int = 1) -> None:
        """And gets it: a life in the queue."""
        self.agent.context.run(self.conduct.asks, name, life)
        self.conduct.lives(name, life)

    def folder(self, name: str) -> Path:
        made = self.home / "spool" / name.partition(".")[0] / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def syncs(self, *lines: site_pb2.AttemptReport, wanted: tuple[str, ...] = (), after: float = 0.0) -> None:
        """It says this, and hears what is wanted; what has ended is settled."""
        self.host.now += after
        request = site_pb2.SyncRequest(attempts=lines)
        settled = [one.attempt for one in lines if one.phase == ENDED and one.attempt not in wanted]
        answer = site_pb2.SyncResponse(
            wanted=[site_pb2.SignedAssignment(attempt=name) for name in wanted], settled=settled
        )
        self.conduct.speaks(self.agent, request)
        self.conduct.hears(self.agent, request, answer)

    def begins(self, name: str = X) -> None:
        """It is asked for ``name``, and begins its first life."""
        self.folder(name)
        self.syncs(wanted=(name,))
        self.asks(name)


def line(name: str, phase: Any = RUNNING, **fields: Any) -> site_pb2.AttemptReport:
    return site_pb2.AttemptReport(attempt=name, phase=phase, **fields)


@pytest.fixture
def site(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_job_from_its_order_to_its_end(site: Watched) -> None:
    site.begins()
    site.syncs(line(X), wanted=(X,), after=LONG)
    site.conduct.is_gone(X, Cause.PREEMPTED, Usage(gpu_seconds=20.0, seconds=10.0))
    site.asks(X, 2)
    site.syncs(line(X), wanted=(X,), after=LONG)
    used = Usage(gpu_seconds=40.0, seconds=20.0)
    site.conduct.is_gone(X, Cause.FINISHED, used)
    told = site_pb2.Usage(gpu_seconds=used.gpu_seconds, seconds=used.seconds)
    site.syncs(line(X, UPLOADING, usage=told), wanted=(X,), after=LONG)
    site.syncs(line(X, ENDED, usage=told, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED), after=1.0)
    site.folder(X).rmdir()
    site.syncs(after=LONG)
    assert site.said == []


@pytest.mark.parametrize("outcome", ["CANCELLED", "REFUSED"])
def test_nothing_ends_without_a_reason(site: Watched, outcome: str) -> None:
    site.begins()
    site.syncs(line(X, ENDED, outcome=f"ATTEMPT_OUTCOME_{outcome}"), wanted=(X,))
    assert len(site.said) == 1 and outcome.lower().removesuffix("ed") in site.said[0]


@pytest.mark.parametrize("wish", ["STOP", "cancel", "FINISH"])
def test_nobody_is_sent_away_without_a_reason(site: Watched, wish: str) -> None:
    site.begins()
    site.conduct.wished(X, wish)
    assert f"is told to {wish}" in site.said[0]


def test_an_answer_that_does_not_want_it_is_a_reason(site: Watched) -> None:
    site.begins()
    site.syncs(line(X))
    site.conduct.wished(X, "STOP")
    site.syncs(line(X, ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_CANCELLED))
    assert site.said == []


def test_an_answer_to_who_did_not_speak_of_it_is_none(site: Watched) -> None:
    """Another agent of the site may have begun it since."""
    site.begins()
    site.syncs()
    site.conduct.wished(X, "STOP")
    assert len(site.said) == 1


def test_what_is_not_wanted_leaves_in_time(site: Watched) -> None:
    site.begins()
    site.syncs(line(X))
    site.syncs(line(X), after=SYNC_SECONDS)
    assert site.said == []
    site.syncs(line(X), after=LONG)
    assert "nobody wants it" in site.said[0]


def test_who_could_not_act_is_not_late(site: Watched) -> None:
    """A batch system that did not answer, a full disk, an agent that was killed."""
    site.begins()
    site.syncs(line(X))
    site.host.now += LONG
    site.conduct.is_silent()
    site.syncs(line(X))
    site.host.now = site.host.refused_at = site.host.now + LONG
    site.syncs(line(X))
    site.host.now += LONG
    site.starts()
    site.syncs(line(X))
    assert site.said == []


def test_a_trainers_failure_is_told_and_its_last_word(site: Watched) -> None:
    site.begins()
    site.conduct.failed(X)
    site.conduct.is_gone(X, Cause.FINISHED, Usage())
    site.asks(X, 2)
    assert "its trainer said that it cannot go on" in site.said.pop()
    site.conduct.is_gone(X, Cause.FINISHED, Usage())
    site.syncs(line(X, QUEUED), wanted=(X,), after=LONG)
    assert "nobody is told" in site.said[0]


def test_no_more_jobs_than_slots(site: Watched) -> None:
    site.begins(X)
    site.begins(Y)
    assert "beside 1 others" in site.said[0]


def test_beside_a_second_agent_nobody_can_count(site: Watched) -> None:
    site.begins(X)
    site.starts()
    site.begins(Y)
    assert site.said == []


def test_lives_are_numbered_onwards(site: Watched) -> None:
    site.begins()
    site.asks(X, 1)  # an agent that does not know whether it did
    assert site.said == []
    site.conduct.is_gone(X, Cause.PREEMPTED, Usage())
    site.asks(X, 1)
    assert "begins life 1, and life 1 of it is over" in site.said[0]


def test_a_lost_life_is_followed_by_another_in_time(site: Watched) -> None:
    site.begins()
    site.conduct.is_gone(X, Cause.TIMED_OUT, Usage())
    site.syncs(line(X, QUEUED), wanted=(X,), after=LONG)
    assert "waits for its next life" in site.said[0]


def test_what_the_machine_refused_is_not_asked_for_again_by_who_was_told(site: Watched) -> None:
    site.folder(X)
    site.syncs(wanted=(X,))
    site.agent.context.run(site.conduct.refused, X)
    site.syncs(line(X, ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_REFUSED), wanted=(X,))
    site.agent.context.run(site.conduct.asks, X, 1)
    assert len(site.said) == 1 and "the machine has refused it" in site.said[0]
    site.starts()
    site.agent.context.run(site.conduct.asks, X, 1)
    assert len(site.said) == 1


def test_nothing_begins_in_closed_windows_or_unasked(tmp_path: Path) -> None:
    site = Watched(tmp_path, replace(SITE, windows=(OpenHours(cron="0 6 * * *", hours=1.0),)))
    site.begins()
    assert "outside of the site's windows" in site.said.pop()
    site.folder(Y)
    site.host.now = 6.5 * 3600.0
    site.conduct.is_gone(X, Cause.FINISHED, Usage())
    site.asks(Y)
    assert len(site.said) == 1 and "nobody asked for it" in site.said[0]


def test_who_has_spent_all_stops_in_time_and_begins_nothing(tmp_path: Path) -> None:
    site = Watched(tmp_path, replace(SITE, slots=2, allocation=Granted(gpu_hours=1.0)))
    site.begins()
    used = site_pb2.Usage(gpu_seconds=3700.0, seconds=1850.0)
    site.syncs(line(X, usage=used), wanted=(X, Y))
    site.syncs(line(X, usage=used), wanted=(X, Y), after=LONG)
    assert "the site's allocation is over" in site.said.pop()
    site.conduct.wished(X, "FINISH")
    site.syncs(line(X, usage=used), wanted=(X, Y), after=LONG)
    assert site.said == []
    site.folder(Y)
    site.asks(Y)
    assert "is begun, and the site's allocation is over" in site.said[0]


def test_what_is_settled_is_forgotten_and_not_begun_again(site: Watched) -> None:
    site.begins()
    site.conduct.is_gone(X, Cause.FINISHED, Usage())
    over = line(X, ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED)
    site.syncs(over)
    site.syncs(over, after=LONG)
    assert "after it was settled" in site.said.pop()
    site.folder(X).rmdir()
    site.syncs()
    site.asks(X)
    assert any("was settled" in sentence for sentence in site.said)


def test_what_was_settled_may_be_resumed(site: Watched) -> None:
    """Its lease lapsed, or a liar said that it was over, and it came back before anybody else was asked."""
    site.begins()
    site.syncs(line(X, ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED))
    site.syncs(line(X), wanted=(X,))
    site.syncs(line(X), wanted=(X,), after=LONG)
    site.conduct.is_gone(X, Cause.PREEMPTED, Usage())
    site.asks(X, 2)
    assert site.said == []


def test_the_last_that_was_used_is_told_before_it_is_forgotten(site: Watched) -> None:
    site.begins()
    told = site_pb2.Usage(gpu_seconds=20.0, seconds=10.0)
    site.syncs(line(X, ENDED, usage=told, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED))
    site.conduct.is_gone(X, Cause.FINISHED, Usage(gpu_seconds=22.0, seconds=11.0))
    site.folder(X).rmdir()
    site.syncs()
    assert "nobody was told that it used 11 s" in site.said[0]


def test_what_lives_is_not_dropped(site: Watched) -> None:
    site.begins()
    site.folder(X).rmdir()
    site.syncs(wanted=(X,))
    assert "dropped while it lives" in site.said[0]


def test_of_what_a_torn_disk_has_made_unreadable_nothing_is_held_against_it(site: Watched) -> None:
    site.begins()
    site.folder(X).rmdir()
    (site.home / "spool" / "broken" / f"{X}.1234").mkdir(parents=True)
    site.syncs(wanted=(X,))
    assert site.said == []
