"""Which small consortium a seed stands for: every rule and every habit of a site comes up in some of them.

For finding what fails, not for looking like anybody: rounds take hours, and the weather is over after a day.
"""

from typing import Any

from consortium.canonical import replace
from consortium.ids import CampaignId, Language, SiteName
from consortium.jobs import Optimizer
from consortium.merging.recipe import OuterStep, Recipe
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
from simulation.plan import Held, Plan, SitePlan
from simulation.streams import stream
from simulation.weather import Weather, scaled, weather_of
from site_agent.limits import Granted, OpenHours

_NAMES = ("north", "south", "west")
_LANGUAGES = (Language("fi"), Language("ga"), Language("hu"))
#: of four seeds one is large: what needs a third site, a second round or rivals is seen there
_LARGE_EVERY = 4
_CLEARS_AFTER_HOURS = 20.0
_HOURS_MAX = 200.0  #: within which everything must have ended, seventeen times as long as it takes
_OPTIMIZER = Optimizer(learning_rate=0.01)
_CLEANED_SHARE = 0.15  #: of seeds, for the coordinator and for the homes of sites
_KEEPING_SHARE = 0.3  #: of those with two rounds: their sites keep moments


def drawn_plan(seed: int) -> Plan:
    """Two sites and one round; of every fourth seed up to three, two rounds, a seed round and rivals."""
    dice = stream(seed, "plan")
    names = _NAMES[: 2 + (_is_large(seed) and dice.random() < 0.5)]
    sites = tuple(_site(seed, name, language) for name, language in zip(names, _LANGUAGES, strict=False))
    return Plan(
        campaign=_campaign(seed, sites),
        sites=tuple(sorted(sites, key=lambda site: site.name)),
        hours_max=_HOURS_MAX,
        model_bytes=2_000_000_000,
    )


def drawn_weather(name: str = "rough", seed: int | None = None) -> Weather:
    """A preset with a day's faults in an hour, for a campaign that lasts hours; over after most of a day.

    seed  which says whether rules of keeping let go of much, and whether homes are cleaned; None: neither
    """
    weather = weather_of(name)
    if weather.name == "calm":
        return replace(weather, clears_after_hours=_CLEARS_AFTER_HOURS)
    often = scaled(weather, 1.0)
    dice = stream(seed, "cleaning") if seed is not None else None
    lets_go, cleans = (dice.random() < _CLEANED_SHARE for _ in range(2)) if dice else (False, False)
    return replace(
        often,
        name=f"{weather.name}, seeds",
        crashes_per_day=weather.crashes_per_day * 6.0,
        partitions_per_day=weather.partitions_per_day * 4.0,
        disk_full_per_day=weather.disk_full_per_day * 5.0,
        torn_writes_per_day=weather.torn_writes_per_day * 10.0,
        clock_jumps_per_day=weather.clock_jumps_per_day * 5.0,
        coordinator_disk_full_per_day=weather.disk_full_per_day * 5.0,
        coordinator_clock_jumps_per_day=weather.clock_jumps_per_day * 5.0,
        second_agents_per_day=weather.site_faults * 0.25,
        meddling_per_day=weather.site_faults * 0.25,
        cleanings_per_day=weather.site_faults * 20.0 if lets_go else 0.0,
        homes_cleaned_per_day=weather.site_faults * 6.0 if cleans else 0.0,
        clears_after_hours=_CLEARS_AFTER_HOURS,
    )


def _is_large(seed: int) -> bool:
    return seed % _LARGE_EVERY == 0


def _campaign(seed: int, among: tuple[SitePlan, ...]) -> Campaign:
    dice, sites, is_large = stream(seed, "campaign"), len(among), _is_large(seed)
    needed = 1 + int(dice.random() * 2)
    if any(site.allocation for site in among):  # else it would wait, rightly, until people grant more
        needed = 1
    steps = 400
    expected = 1 + int(dice.random() * sites)
    late: Any = dice.choice(["refuse", "next_round"])
    encodings: list[Any] = ["bf16", "bf16", "int8", "topk"] if late == "refuse" else ["bf16"]
    merge_at: Any = dice.choice(["coordinator", "coordinator", "site", "any"])
    if merge_at == "site" and not any(site.merges for site in among):  # it would wait for one for ever
        merge_at = "any"
    is_seeded = dice.random() < 0.5 and is_large
    rounds = 2 if dice.random() < 0.5 and is_large else 1
    keeps = rounds > 1 and stream(seed, "campaign", "moments").random() < _KEEPING_SHARE
    scored = stream(seed, "campaign", "loss check")
    check: Any = scored.choice(["off", "off", "off", "off", "advise", "decide"])
    return Campaign(
        campaign=CampaignId("drawn"),
        admission=Admission(loss_check=check),
        languages=tuple(_LANGUAGES[:sites]),
        sites_expected=expected,
        model=ModelSource(config={"model_type": "llama", "vocab_size": 300}),
        tokenizer=TokenizerSource(vocabulary_size=300, bytes_per_language=1000),
        seed_round=SeedRound(steps=steps // 2, optimizer=_OPTIMIZER) if is_seeded else None,
        rounds=rounds,
        train=TrainPlan(
            steps=steps,
            batch_sequences=8,
            sequence_tokens=128,
            optimizer=replace(_OPTIMIZER, moments="keep") if keeps else _OPTIMIZER,
            checkpoint_steps=50,
            delta_dtype=dice.choice(encodings),
            pace=dice.choice(["equal_steps", "finish_together"]),
        ),
        merge=Recipe(method=dice.choice(["linear", "ties"]), outer=OuterStep()),
        merge_at=merge_at,
        quorum=Quorum(
            share=dice.choice([0.5, 1.0]),
            minimum=min(needed, expected),
            deadline_hours=dice.choice([4.0, 12.0]),
            queue_hours_max=dice.choice([None, 8.0]),
            grace_hours=dice.choice([0.0, 0.5]),
            late=late,
        ),
        gate=Gate(resamples=100, documents_min=10, unscored=dice.choice(["reject", "allow"])),
        rivals=Rivals(
            public_only=is_large and dice.random() < 0.5, specialists=is_large and dice.random() < 0.3
        ),
        attempts_max=2 + int(dice.random() * 2),
        lease_seconds=dice.choice([3600.0, 7200.0]),
        seed=seed,
    )


def _site(seed: int, name: str, language: Language) -> SitePlan:
    dice = stream(seed, "site", name)
    windows = (OpenHours(cron="0 6 * * *", hours=16.0),) if dice.random() < 0.2 else ()
    may_end = name != _NAMES[0]  # somebody can always pay
    allocation = (
        Granted(gpu_hours=dice.choice([3.0, 30.0]), name="grant") if dice.random() < 0.4 and may_end else None
    )
    return SitePlan(
        name=SiteName(name),
        organisation=name,
        languages={language: Held(documents=1000, heldout=20)},
        public={each: Held(documents=500) for each in _LANGUAGES},
        slots=1 + int(dice.random() * 2),
        gpus=dice.choice([0, 2, 2]) if allocation is None else 2,
        tokens_per_second=dice.choice([100.0, 200.0]),
        queue_median_minutes=dice.choice([1.0, 20.0]),
        walltime_minutes=dice.choice([45.0, 240.0]),
        preempt_per_day=dice.choice([0.0, 4.0]),
        node_loss_per_day=dice.choice([0.0, 1.0]),
        agent_kill_per_day=2.0,
        up_mbps=dice.choice([100.0, 1000.0]),
        windows=windows,
        allocation=allocation,
        clock_skew_seconds=dice.choice([0.0, -30.0, 200.0]),
        merges=dice.random() < 0.6,
    )
