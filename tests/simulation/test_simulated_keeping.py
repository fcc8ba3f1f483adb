"""A rule of keeping lets go of all it may, many times a day, while a campaign goes on and the coordinator crashes."""

from typing import Any

import pytest

from consortium.canonical import replace
from policies.campaign import Rivals
from simulation.drawn import drawn_plan, drawn_weather
from simulation.run import simulate
from simulation.weather import PRESETS, Weather
from site_agent import cleaner
from site_agent.cleaning import Cleaned

HARSH = Weather(
    name="letting go", cleanings_per_day=300.0, crashes_per_day=12.0, clears_after_hours=20.0, site_faults=0.0
)


def test_what_is_let_go_and_deleted_is_missed_by_nobody() -> None:
    """The referee looks at each event, and at the end makes every version again of which nothing was let go."""
    plan = drawn_plan(4)
    campaign = replace(plan.campaign, rounds=3, rivals=Rivals())
    found = simulate(replace(plan, campaign=campaign), 4, HARSH)
    assert not found.violations, found.violations
    assert found.ended[0].status == "completed"
    said = [one.detail for one in found.happenings if one.kind == "let go"]
    assert found.faults["cleaning"] > 5 and said, "the rules let something go"


def test_agents_clean_their_homes_and_miss_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as old as the simulated clock says, so that what no job needs is deleted, and nothing else."""
    done: list[Cleaned] = []

    def cleaned(*given: Any, **more: Any) -> Cleaned:
        done.append(clean(*given, **more))
        return done[-1]

    clean = cleaner.clean
    monkeypatch.setattr(cleaner, "clean", cleaned)
    weather = replace(PRESETS["calm"], homes_cleaned_per_day=24.0, clears_after_hours=20.0)
    found = simulate(drawn_plan(4), 4, weather)
    assert not found.violations, found.violations
    assert found.ended[0].status == "completed"
    kinds = {going.kind for one in done for going in one.gone}
    assert len(done) > 5 and "blob" in kinds, kinds


def test_some_seeds_keep_moments_some_let_go_and_some_clean_homes() -> None:
    skies = [drawn_weather("rough", seed) for seed in range(100)]
    assert 5 < sum(one.cleanings_per_day > 0.0 for one in skies) < 30
    assert 5 < sum(one.homes_cleaned_per_day > 0.0 for one in skies) < 30
    kept = [seed for seed in range(100) if drawn_plan(seed).campaign.train.optimizer.moments == "keep"]
    assert 1 < len(kept) < 15
    assert drawn_weather("calm", 5).cleanings_per_day == 0.0
