"""The fixed cases that ``make mutation`` runs against every mistake: small consortia to which everything happens.

A case is a campaign of an hour or two a round, three sites, and a weather; the quickest come first. While nothing is
broken all of them keep every promise, which ``mutation.py`` makes sure of before it judges anything. What differs
between them is which rules the campaign has, and what falls upon it: nothing at all (so that a mistake which hides
behind faults shows), the network and the disks, liars and false results, people who drain, suspend and promote.
"""

from typing import Any

from tried_sites import (
    AWAY,
    BUSY,
    CLOSING,
    DOWN,
    ENDING,
    EVEN,
    FAST,
    KILLED,
    LANGUAGES,
    LEFT_BEHIND,
    NIGHTFALL,
    PAID,
    QUEUES,
    QUICK,
    SCARCE,
    SHARED,
    SHUT,
    SLOW,
    TIGHT,
    TWO,
    UNEVEN,
)
from tried_weather import (
    ALL,
    BEHIND,
    CALM,
    CRASHING,
    CUT,
    DOUBLED,
    DOUBTED,
    DOUBTFUL,
    DRAINED,
    ENDLESS,
    FAILING,
    FALSE,
    FAULTS,
    FULL,
    GONE,
    HARMFUL,
    HUMMING,
    LAZY,
    LENT,
    LIES,
    MEDDLED,
    MUTE,
    NIGHT,
    PEOPLE,
    REFUSING,
    SILENCE,
    WHIMS,
)

from consortium.canonical import replace
from consortium.ids import CampaignId, SiteName
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
from simulation.drawn import drawn_plan
from simulation.plan import START, Plan, SitePlan
from simulation.shrink import Case

_OPTIMIZER = Optimizer(learning_rate=0.01)
_HOURS_MAX = 100.0
_EVENING = "2026-01-05T21:30:00Z"
_DRAWN = (43, 46)  #: as ``python -m simulation.seeds`` draws them, such as come far


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
        languages=LANGUAGES,
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

ANY: dict[str, Any] = {**AT_SITES, "merge_at": "any", "merge_sites": (SiteName("north"),)}


def cases() -> dict[str, Case]:
    """By name, in the order in which they are tried."""
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
        "away": (_plan(*AWAY, **LENIENT), 1, CALM),
        "quick, any, gone": (_plan(*QUICK, **ANY), 1, GONE),
        "quick, any, gone, crashing": (_plan(*QUICK, **ANY), 8, CRASHING),
        "quick, at sites, gone": (
            _plan(
                *QUICK,
                **{
                    **AT_SITES,
                    "merge_sites": (SiteName("north"),),
                    "quorum": Quorum(minimum=2, deadline_hours=1.0),
                },
            ),
            1,
            GONE,
        ),
        "even, at sites, drained": (_plan(*EVEN, **AT_SITES), 1, DRAINED),
        "busy, any, calm": (
            _plan(
                *BUSY,
                **{
                    **ANY,
                    "merge_sites": (SiteName("south"),),
                    "quorum": Quorum(share=0.6, minimum=2, deadline_hours=6.0, late="next_round"),
                },
            ),
            1,
            CALM,
        ),
        "even, patient, doubted": (_plan(*EVEN, **{**PATIENT, "attempts_max": 20}), 2, DOUBTED),
        "two, at sites, gone": (_plan(*TWO, **AT_SITES), 1, GONE),
        "even, strict, doubled": (_plan(*EVEN, **STRICT), 1, DOUBLED),
        "even, strict, refusing": (_plan(*EVEN, **STRICT), 2, REFUSING),
        "paid, hurried, cut off": (
            _plan(
                *PAID,
                **{**STRICT, "seed_round": None, "quorum": Quorum(share=0.6, minimum=1, deadline_hours=1.0)},
            ),
            1,
            CUT,
        ),
        "closing, strict, mute": (_plan(*CLOSING, **STRICT), 1, MUTE),
        "scarce, lenient, calm": (
            _plan(
                *SCARCE,
                **{
                    **LENIENT,
                    "rounds": 2,
                    "rivals": Rivals(specialists=True),
                    "quorum": Quorum(share=0.6, minimum=1, deadline_hours=6.0),
                },
            ),
            1,
            CALM,
        ),
        "nightfall, patient, cut off": (_plan(*NIGHTFALL, **PATIENT, start=_EVENING), 1, NIGHT),
        "tight, impatient, doubtful": (_plan(*TIGHT, **{**PATIENT, "attempts_max": 1}), 1, DOUBTFUL),
        "even, patient, lent": (_plan(*EVEN, **{**PATIENT, "rounds": 2, "attempts_max": 20}), 1, LENT),
        "even, strict, lazy": (_plan(*EVEN, **STRICT, rounds=4), 1, LAZY),
        "even, strict, harmful": (_plan(*EVEN, **STRICT, rounds=4), 1, HARMFUL),
        "even, lenient, humming": (_plan(*EVEN, **LENIENT), 1, HUMMING),
        "killed, strict, calm": (_plan(*KILLED, **STRICT), 1, CALM),
        "even, strict, failing": (_plan(*EVEN, **STRICT), 1, FAILING),
        "left behind": (
            _plan(
                *LEFT_BEHIND,
                model_bytes=20_000_000,
                attempts_max=6,
                rounds=3,
                seed_round=None,
                lease_seconds=300.0,
                quorum=Quorum(minimum=2, deadline_hours=1.0),
            ),
            1,
            BEHIND,
        ),
        "shut, hurried, calm": (
            _plan(*SHUT, **{**PATIENT, "rounds": 1, "quorum": Quorum(minimum=2, deadline_hours=6.0)}),
            1,
            CALM,
        ),
        "ending, hurried, calm": (
            _plan(*ENDING, **{**PATIENT, "rounds": 2, "lease_seconds": 300.0}, start=_EVENING),
            1,
            CALM,
        ),
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
