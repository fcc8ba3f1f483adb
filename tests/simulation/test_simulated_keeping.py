"""A rule of keeping lets go of all it may, many times a day, while a campaign goes on and the coordinator crashes."""

from consortium.canonical import replace
from policies.campaign import Rivals
from simulation.drawn import drawn_plan
from simulation.run import simulate
from simulation.weather import Weather

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
