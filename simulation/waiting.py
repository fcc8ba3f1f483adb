"""What each round of a simulated run waited for: its last training job, where that job's time went, and the gate."""

import math
import re
from collections import defaultdict

from consortium.canonical import Fact
from simulation.outcome import Happening, Outcome

_JOB = re.compile(r"(?P<campaign>.+)_r(?P<round>[0-9]+)-(?P<what>seed|train|gate)(?:-.+)?\.a[0-9]+")
_SENDING = ("staging", "uploading")
_WAYS = ("queued", "running", *_SENDING)


_Jobs = dict[str, dict[str, list[Happening]]]  # by round and site


class RoundWait(Fact):
    """A round's hours: those of its last training job, and what came after it. They add up to ``hours``."""

    round: str  #: ``tiny-1/3``
    hours: float
    site: str  #: of the training job that ended last; "": no site trained in this round
    queued_hours: float = 0.0  #: of that job, all its tries together
    running_hours: float = 0.0
    sending_hours: float = 0.0  #: the base to the site and the delta back
    idle_hours: float = 0.0  #: none of these: not given yet, between two tries, cut off, down
    closed_hours: float = 0.0  #: of ``idle_hours``: until the site's window opened
    after_hours: float = 0.0  #: inspected, merged, scored, judged
    judge: str = ""  #: the site whose job for the gate ended last
    #: of ``after_hours``: until that job had ended, its wait in the queue included
    scoring_hours: float = 0.0

    @property
    def waited_for(self) -> str:
        """The largest part, for people."""
        parts = (
            (self.queued_hours, f"{self.site}'s queue"),
            (self.running_hours, f"{self.site}'s training"),
            (self.sending_hours, f"{self.site}'s network"),
            (self.closed_hours, f"{self.site}'s window"),
            (self.idle_hours - self.closed_hours, f"{self.site}: no job yet, or lost"),
            (self.scoring_hours, f"{self.judge}'s scores for the gate"),
            (self.after_hours - self.scoring_hours, "inspection and merge"),
        )
        return max(parts, key=lambda part: part[0])[1]


def round_waits(found: Outcome) -> tuple[RoundWait, ...]:
    """One for every round that happened, in order of time."""
    trained: _Jobs = defaultdict(lambda: defaultdict(list))
    scored: _Jobs = defaultdict(lambda: defaultdict(list))
    for one in found.happenings:
        match = _JOB.fullmatch(one.subject)
        if match and one.until is not None and one.kind in _WAYS:
            jobs = scored if match["what"] == "gate" else trained
            jobs[f"{match['campaign']}/{match['round']}"][one.place].append(one)
    closed = [one for one in found.happenings if one.kind == "window closed"]
    rounds = [one for one in found.happenings if one.kind == "round" and one.until is not None]
    return tuple(
        _wait(one, trained.get(one.subject, {}), scored.get(one.subject, {}), closed)
        for one in sorted(rounds, key=lambda one: (one.at, one.subject))
    )


def _wait(
    one: Happening,
    sites: dict[str, list[Happening]],
    judges: dict[str, list[Happening]],
    closed: list[Happening],
) -> RoundWait:
    assert one.until is not None
    begin, end = one.at, one.until
    hours = (end - begin) / 3600.0
    judge, scored_at = _last(judges, end)
    scoring_since = min((part.at for parts in judges.values() for part in parts), default=end)
    scoring = max(0.0, scored_at - scoring_since) / 3600.0 if judge else 0.0
    if not sites:
        return RoundWait(
            round=one.subject, hours=hours, site="", after_hours=hours, judge=judge, scoring_hours=scoring
        )
    site, trained_at = _last(sites, end)
    spent: dict[str, float] = defaultdict(float)
    for part in sites[site]:
        stretch = min(end, part.until or end) - max(begin, part.at)
        spent["sending" if part.kind in _SENDING else part.kind] += max(0.0, stretch) / 3600.0
    after = (end - trained_at) / 3600.0
    given_at = min(part.at for part in sites[site])
    shut = math.fsum(
        max(0.0, min(given_at, span.until or end) - max(begin, span.at))
        for span in closed
        if span.place == site
    )
    known = spent["queued"] + spent["running"] + spent["sending"]
    return RoundWait(
        round=one.subject,
        hours=hours,
        site=site,
        queued_hours=spent["queued"],
        running_hours=spent["running"],
        sending_hours=spent["sending"],
        idle_hours=max(0.0, hours - after - known),
        closed_hours=min(max(0.0, hours - after - known), shut / 3600.0),
        after_hours=after,
        judge=judge,
        scoring_hours=min(after, scoring),
    )


def _last(sites: dict[str, list[Happening]], end: float) -> tuple[str, float]:
    """The site whose part ended last, and when; "" if there is none."""
    ends = {site: max(min(end, part.until or end) for part in parts) for site, parts in sites.items()}
    site = max(sorted(ends), key=lambda name: ends[name], default="")
    return site, ends.get(site, 0.0)
