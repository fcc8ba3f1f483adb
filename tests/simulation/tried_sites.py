"""Which sites the fixed cases have: three each, of one language each, with the habits that a case is about."""

from typing import Any

from consortium.canonical import replace
from consortium.ids import Language, SiteName
from simulation.plan import Held, Outage, SitePlan
from site_agent.limits import Granted, OpenHours

LANGUAGES = (Language("fi"), Language("ga"), Language("hu"))
_PUBLIC = {each: Held(documents=500) for each in LANGUAGES}


def _site(name: str, language: Language, **habits: Any) -> SitePlan:
    usual = {"gpus": 2, "tokens_per_second": 200.0, "queue_median_minutes": 5.0, "up_mbps": 500.0}
    return SitePlan(
        name=SiteName(name),
        organisation=name,
        languages={language: Held(documents=1000, heldout=20)},
        public=_PUBLIC,
        **{**usual, **habits},
    )


#: Nobody has trouble of its own.
EVEN = (
    _site("north", LANGUAGES[0], merges=True, slots=2),
    _site("south", LANGUAGES[1], merges=True),
    _site("west", LANGUAGES[2]),
)
#: Windows, an allocation that ends before its site's last job, walltimes shorter than a job, a slow one, preemption.
UNEVEN = (
    _site("north", LANGUAGES[0], merges=True, slots=2, walltime_minutes=25.0, agent_kill_per_day=2.0),
    _site("south", LANGUAGES[1], windows=(OpenHours(cron="0 2 * * *", hours=20.0),), merges=True),
    _site(
        "west",
        LANGUAGES[2],
        allocation=Granted(gpu_hours=3.5, name="grant"),
        tokens_per_second=80.0,
        preempt_per_day=6.0,
    ),
)
#: Two hold text of one language: each may judge the other's.
SHARED = (
    EVEN[0],
    replace(EVEN[1], languages={each: EVEN[0].languages[LANGUAGES[0]] for each in LANGUAGES[:2]}),
)
#: One allocation ends on the first evening, another is spent in the midst of the first round.
ENDING = (
    EVEN[0],
    replace(EVEN[1], allocation=Granted(gpu_hours=100.0, until="2026-01-05")),
    replace(EVEN[2], allocation=Granted(gpu_hours=0.6)),
)
#: Late by a round, and late for ever.
SLOW = (
    EVEN[0],
    replace(EVEN[1], slots=2, tokens_per_second=90.0),
    replace(EVEN[2], slots=2, tokens_per_second=24.0),
)
#: Two are down for hours, from within the first round on.
DOWN = (
    EVEN[0],
    *(replace(site, outages=(Outage(from_hours=1.3, hours=5.0),)) for site in EVEN[1:]),
)
#: One waits in its queue for nearly as long as its job then takes.
QUEUES = (EVEN[0], replace(EVEN[1], queue_median_minutes=30.0, queue_sigma=0.1))
#: One that merges, and whose own training is late: its only slot is taken when a round is collected.
BUSY = (
    replace(EVEN[0], merges=False),
    replace(EVEN[1], tokens_per_second=60.0),
    EVEN[2],
)
#: All pay, and have plenty.
PAID = tuple(replace(site, allocation=Granted(gpu_hours=100.0)) for site in EVEN)
#: One has three slots, and pays for two jobs at a time but not for three; one is fast, and soon has little left.
SCARCE = (
    replace(EVEN[0], slots=3, allocation=Granted(gpu_hours=4.0)),
    replace(EVEN[1], tokens_per_second=80.0, public={}),
    replace(EVEN[2], tokens_per_second=400.0, allocation=Granted(gpu_hours=1.95), public={}),
)
#: Two are late by minutes: they deliver while the round that they missed is merged and judged.
TIGHT = (
    EVEN[0],
    replace(EVEN[1], slots=2, tokens_per_second=165.0),
    replace(EVEN[2], slots=2, tokens_per_second=150.0),
)
#: One that merges has delivered before anybody else.
QUICK = (replace(EVEN[0], tokens_per_second=400.0), *EVEN[1:])
#: One takes nothing new from early in the first round on.
CLOSING = (
    PAID[0],
    replace(PAID[1], windows=(OpenHours(cron="0 0 * * *", hours=1.5),)),
    PAID[2],
)
#: Two merge, and the queue of one is so long that the other's turn comes first.
TWO = (QUICK[0], replace(EVEN[1], queue_median_minutes=60.0, queue_sigma=0.1), EVEN[2])
#: Allocations of two end on the first evening, soon after the first round.
NIGHTFALL = (
    EVEN[0],
    *(replace(site, allocation=Granted(gpu_hours=100.0, until="2026-01-05")) for site in EVEN[1:]),
)
#: So fast that a merge is the longest of all jobs.
FAST = tuple(replace(site, tokens_per_second=4000.0, up_mbps=5000.0, queue_sigma=0.1) for site in EVEN)
#: Agents are killed all the time, and a job needs two lives.
KILLED = tuple(replace(site, agent_kill_per_day=60.0, walltime_minutes=25.0) for site in EVEN)
#: One is not done with a job when others are with three.
LEFT_BEHIND = (*EVEN[:2], replace(EVEN[2], tokens_per_second=24.0))
#: The window of one closes while it fetches what its first job needs, and before its first life ends.
SHUT = (
    EVEN[0],
    replace(
        EVEN[1],
        down_mbps=10.0,
        windows=(OpenHours(cron="0 */2 * * *", hours=0.6),),
        walltime_minutes=25.0,
    ),
    EVEN[2],
)
#: Nobody works for nine hours.
AWAY = tuple(replace(site, outages=(Outage(from_hours=0.1, hours=9.0),)) for site in EVEN)
