"""The fixed cases that ``make mutation`` runs against every mistake: small consortia to which everything happens.

A case is a campaign of an hour or two a round, three sites, and a weather; the quickest come first. While nothing is
broken all of them keep every promise, which ``mutation.py`` makes sure of before it judges anything. What differs
between them is which rules the campaign has, and what falls upon it: nothing at all (so that a mistake which hides
behind faults shows), the network and the disks, liars and false results, people who drain, suspend and promote.
"""

from typing import Any

from consortium.canonical import replace
from consortium.ids import CampaignId, Language, SiteName
from consortium.jobs import Optimizer
from policies.campaign import (
    Admission,
    Campaign,
    Gate,
    ModelSource,
    Quorum,
    Rivals,
    SeedRound,
    TokenizerSource,
    TrainPlan,
)
from simulation.drawn import drawn_plan, drawn_weather
from simulation.plan import START, Held, Outage, Plan, SitePlan
from simulation.shrink import Case
from simulation.weather import PRESETS
from site_agent.limits import Granted, OpenHours

_LANGUAGES = (Language("fi"), Language("ga"), Language("hu"))
_OPTIMIZER = Optimizer(learning_rate=0.01)
_PUBLIC = {each: Held(documents=500) for each in _LANGUAGES}
_CLEARS_AFTER_HOURS = 12.0
_HOURS_MAX = 100.0
_EVENING = "2026-01-05T21:30:00Z"
_DRAWN = (43, 46)  #: as ``python -m simulation.seeds`` draws them, such as come far


def _site(name: str, language: Language, **habits: Any) -> SitePlan:
    usual = {"gpus": 2, "tokens_per_second": 200.0, "queue_median_minutes": 5.0, "up_mbps": 500.0}
    return SitePlan(
        name=SiteName(name),
        organisation=name,
        languages={language: Held(documents=1000, heldout=20)},
        public=_PUBLIC,
        **{**usual, **habits},
    )


def _campaign(**rules: Any) -> Campaign:
    usual: dict[str, Any] = {
        "sites_expected": 3,
        "seed_round": SeedRound(steps=200, optimizer=_OPTIMIZER),
        "rounds": 2,
        "quorum": Quorum(share=1.0, minimum=2, deadline_hours=6.0),
        "gate": Gate(resamples=100, documents_min=10, unscored="allow"),
        "attempts_max": 3,
        "lease_seconds": 1800.0,
    }
    return Campaign(
        campaign=CampaignId("tried"),
        languages=_LANGUAGES,
        model=ModelSource(config={"model_type": "llama", "vocab_size": 300}),
        tokenizer=TokenizerSource(vocabulary_size=300, bytes_per_language=1000),
        train=TrainPlan(
            steps=400,
            batch_sequences=8,
            sequence_tokens=128,
            optimizer=_OPTIMIZER,
            checkpoint_steps=50,
            delta_dtype="bf16",
            pace=rules.pop("pace", "equal_steps"),
        ),
        **{**usual, **rules},
    )


def _plan(
    *sites: SitePlan,
    start: str = START,
    hours_max: float = _HOURS_MAX,
    model_bytes: int = 2_000_000_000,
    **rules: Any,
) -> Plan:
    return Plan(
        campaign=_campaign(**rules),
        sites=tuple(sorted(sites, key=lambda site: site.name)),
        hours_max=hours_max,
        model_bytes=model_bytes,
        start=start,
    )


#: Nobody has trouble of its own.
EVEN = (
    _site("north", _LANGUAGES[0], merges=True, slots=2),
    _site("south", _LANGUAGES[1], merges=True),
    _site("west", _LANGUAGES[2]),
)
#: Windows, an allocation that ends before its site's last job, walltimes shorter than a job, a slow one, preemption.
UNEVEN = (
    _site("north", _LANGUAGES[0], merges=True, slots=2, walltime_minutes=25.0, agent_kill_per_day=2.0),
    _site("south", _LANGUAGES[1], windows=(OpenHours(cron="0 2 * * *", hours=20.0),), merges=True),
    _site(
        "west",
        _LANGUAGES[2],
        allocation=Granted(gpu_hours=3.5, name="grant"),
        tokens_per_second=80.0,
        preempt_per_day=6.0,
    ),
)
#: Two hold text of one language: each may judge the other's.
SHARED = (
    EVEN[0],
    replace(EVEN[1], languages={each: EVEN[0].languages[_LANGUAGES[0]] for each in _LANGUAGES[:2]}),
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
#: So fast that a merge is the longest of all jobs.
FAST = tuple(replace(site, tokens_per_second=4000.0, up_mbps=5000.0, queue_sigma=0.1) for site in EVEN)
STRICT: dict[str, Any] = {"attempts_max": 6}
LENIENT: dict[str, Any] = {
    "merge_at": "any",
    "pace": "finish_together",
    "attempts_max": 6,
    "quorum": Quorum(share=0.6, minimum=2, deadline_hours=6.0, grace_hours=0.2, late="next_round"),
    "rivals": Rivals(public_only=True),
}
SHORT: dict[str, Any] = {
    "attempts_max": 2,
    "sites_expected": 2,
    "sites": (SiteName("north"), SiteName("south")),
    "seed_round": None,
    "quorum": Quorum(share=0.5, minimum=2, deadline_hours=1.0, queue_hours_max=1.0),
    "merge_at": "site",
    "merge_sites": (SiteName("south"),),
    "gate": Gate(resamples=100, documents_min=10),
    "admission": Admission(loss_check="decide"),
}

#: Few are needed, and who is late, or was in a round that failed, is merged in the next one.
PATIENT: dict[str, Any] = {
    "attempts_max": 6,
    "rounds": 4,
    "seed_round": None,
    "quorum": Quorum(share=0.3, minimum=1, deadline_hours=40.0, late="next_round"),
}
AT_SITES: dict[str, Any] = {"attempts_max": 6, "merge_at": "site", "seed_round": None}

CALM = replace(PRESETS["calm"], clears_after_hours=_CLEARS_AFTER_HOURS)
ENDLESS = PRESETS["calm"]  # nobody says that it has to end
FAULTS = replace(drawn_weather("rough"), clears_after_hours=_CLEARS_AFTER_HOURS)
LIES = replace(
    CALM,
    name="lies",
    repeat=0.05,
    lies_per_day=60.0,
    falsehoods=0.15,
    thieves_per_day=60.0,
    echoes=1.0,
    certificate_days=1,
)
PEOPLE = replace(
    CALM,
    name="people",
    begins_after_hours=0.5,
    loss=0.01,
    refusals=0.15,
    echoes=0.5,
    drains_per_day=6.0,
    drain_minutes=40.0,
    meddling_per_day=8.0,
)
MEDDLED = replace(CALM, name="meddled", meddling_per_day=40.0, begins_after_hours=1.5)
SILENCE = replace(CALM, name="silence", partitions_per_day=8.0, partition_minutes=240.0)
FULL = replace(
    CALM, name="full", coordinator_disk_full_per_day=60.0, disk_full_minutes=5.0, begins_after_hours=0.2
)
FALSE = replace(CALM, name="false", falsehoods=0.7)
DRAINED = replace(CALM, name="drained", drains_per_day=40.0, drain_minutes=15.0, lies_per_day=60.0)
WHIMS = replace(CALM, name="whims", whims=0.7)
ALL = replace(
    FAULTS,
    name="all",
    lies_per_day=30.0,
    falsehoods=0.1,
    refusals=0.05,
    echoes=1.0,
    drains_per_day=3.0,
    certificate_days=1,
)


def cases() -> dict[str, Case]:
    """By name, in the order in which they are tried."""
    away = tuple(replace(site, outages=(Outage(from_hours=0.1, hours=9.0),)) for site in EVEN)
    found = {
        "even, strict, calm": (_plan(*EVEN, **STRICT), 1, CALM),
        "uneven, lenient, lies": (_plan(*UNEVEN, **LENIENT), 2, LIES),
        "even, short, people": (_plan(*EVEN, **SHORT), 2, PEOPLE),
        "even, strict, lies": (_plan(*EVEN, **STRICT), 2, LIES),
        "even, short, lies": (_plan(*EVEN, **SHORT), 1, LIES),
        "even, lenient, silence": (_plan(*EVEN, **LENIENT), 1, SILENCE),
        "even, strict, full": (_plan(*EVEN, **STRICT), 1, FULL),
        "even, twice, false": (_plan(*EVEN, attempts_max=2), 4, FALSE),
        "shared, short, calm": (_plan(*SHARED, **SHORT), 1, CALM),
        "even, lenient, meddled": (_plan(*EVEN, **LENIENT), 1, MEDDLED),
        "even, strict, whims": (_plan(*EVEN, **STRICT, rounds=4), 1, WHIMS),
        "even, short, whims": (_plan(*EVEN, **{**SHORT, "rounds": 4}), 1, WHIMS),
        "uneven, strict, faults": (_plan(*UNEVEN, **STRICT), 1, FAULTS),
        "ending, patient, calm": (
            _plan(*ENDING, **{**PATIENT, "admission": Admission(tokens_share_min=0.95)}, start=_EVENING),
            1,
            CALM,
        ),
        "ending, needy, endless": (
            _plan(
                *ENDING,
                **{**PATIENT, "quorum": Quorum(minimum=2)},
                start=_EVENING,
                hours_max=8.0,
            ),
            1,
            ENDLESS,
        ),
        "slow, patient, calm": (_plan(*SLOW, **PATIENT), 1, CALM),
        "down, patient, calm": (
            _plan(
                *DOWN,
                **{
                    **PATIENT,
                    "quorum": Quorum(share=1.0, minimum=2, deadline_hours=1.5, late="next_round"),
                },
            ),
            1,
            CALM,
        ),
        "even, patient, drained": (
            _plan(*EVEN, **{**PATIENT, "quorum": Quorum(minimum=2, deadline_hours=6.0)}),
            1,
            DRAINED,
        ),
        "even, at sites, false": (_plan(*EVEN, **AT_SITES), 1, FALSE),
        "queues, hurried, calm": (
            _plan(
                *QUEUES,
                attempts_max=6,
                sites_expected=2,
                seed_round=None,
                quorum=Quorum(minimum=2, deadline_hours=0.8),
            ),
            1,
            CALM,
        ),
        "fast, at sites, calm": (
            _plan(
                *FAST,
                model_bytes=30_000_000_000,
                **{
                    **AT_SITES,
                    "rounds": 4,
                    "lease_seconds": 300.0,
                    "quorum": Quorum(minimum=2, deadline_hours=0.32),
                },
            ),
            1,
            CALM,
        ),
        "away": (_plan(*away, **LENIENT), 1, CALM),
        "uneven, lenient, people": (_plan(*UNEVEN, **LENIENT), 3, PEOPLE),
        "uneven, lenient, faults": (_plan(*UNEVEN, **LENIENT), 2, FAULTS),
        "even, lenient, all": (_plan(*EVEN, **LENIENT), 3, ALL),
        "uneven, strict, all": (_plan(*UNEVEN, **STRICT), 4, ALL),
    }
    tried = {name: Case(plan=plan, seed=seed, weather=sky) for name, (plan, seed, sky) in found.items()}
    for seed in _DRAWN:
        weather = replace(ALL, name="all, drawn")
        tried[f"drawn {seed}"] = Case(plan=drawn_plan(seed), seed=seed, weather=weather)
    return tried
