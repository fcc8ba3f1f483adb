"""``sprachbund simulate``: what it says, keeps and refuses. The engine has tests of its own; here it is invented."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from invented_outcome import BEGAN, invented
from rich.console import Console
from typer.testing import CliRunner, Result

import simulation.run
from console.app import app
from console.main import COMMANDS
from console.screens.parts import length
from console.screens.simulation import simulation_page
from consortium.canonical import decode, encode, replace
from simulation.outcome import Cost, Happening, Outcome
from simulation.plan import Plan
from simulation.reading import load_plan
from simulation.report import Report, report
from simulation.waiting import round_waits
from simulation.weather import Weather

SMALL = Path(__file__).parents[2] / "examples/simulation/small.yaml"
assert COMMANDS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, int, Weather]]:
    """What the engine was asked for; it answers with an invented run."""
    calls: list[tuple[Plan, int, Weather]] = []

    def simulate(
        plan: Plan,
        seed: int,
        weather: Weather,
        *,
        folder: Path | None = None,
        progress: Callable[[float, float], None] | None = None,
    ) -> Outcome:
        calls.append((plan, seed, weather))
        if progress is not None:
            progress(50.0, 500.0)
        found = invented(4, 100.0)
        costs = dict(zip((site.name for site in plan.sites), found.costs.values(), strict=False))
        broken = ("two live leases of one job",) if seed == 13 else ()
        return replace(found, seed=seed, weather=weather.name, costs=costs, violations=broken)

    monkeypatch.setattr(simulation.run, "simulate", simulate, raising=False)
    return calls


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *words])


def test_what_is_asked_of_the_engine(asked: list[tuple[Plan, int, Weather]]) -> None:
    words = ("--sites", "9", "--seed", "7", "--weather", "rough:2", "--speed", "10", "--hours-max", "300")
    assert run(str(SMALL), *words).exit_code == 0
    (plan, seed, weather), *_ = asked
    assert (len(plan.sites), plan.hours_max, seed, weather.name) == (9, 300.0, 7, "rough:2")
    assert next(site for site in plan.sites if site.name == "brno").tokens_per_second == 2600.0


def test_for_a_script_the_same_bytes_each_time(
    asked: list[tuple[Plan, int, Weather]], tmp_path: Path
) -> None:
    told = run(str(SMALL), "--json", "--out", str(tmp_path / "one"))
    assert told.exit_code == 0
    assert run(str(SMALL), "--json", "--out", str(tmp_path / "two")).stdout == told.stdout
    found = decode(told.stdout.encode(), Report)
    assert found.outcome.weather == "fair" and found.sites[0].price == pytest.approx(1.5 * 480.0)
    for name in ("report.json", "timeline.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one/report.json").read_text()) == json.loads(told.stdout)


def test_a_broken_invariant_is_told_and_is_an_error(asked: list[tuple[Plan, int, Weather]]) -> None:
    told = run(str(SMALL), "--seed", "13")
    assert told.exit_code == 7
    assert "two live leases of one job" in told.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weather", "rouhg"), "did you mean 'rough'"),
        (("--speed", "0"), "write a number above 0"),
        (("--hours-max", "-1"), "write hours above 0"),
        (("--sites", "2"), "4 are named here"),
        (("--out", "."), "exists already"),
    ],
)
def test_what_is_refused(asked: list[tuple[Plan, int, Weather]], words: tuple[str, ...], said: str) -> None:
    told = run(str(SMALL), *words)
    assert told.exit_code == 2
    assert said in " ".join(told.stderr.split())
    assert not asked


def page(found: Report, width: int = 100) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(simulation_page(found, width))
    return capture.get()


def test_the_screen_has_campaigns_rounds_sites_languages_and_faults() -> None:
    plan = load_plan(SMALL).plan
    said = page(report(plan, invented(6, 1000.0, 30, 3), ("a note",)))
    assert "41.7 d simulated, rough weather, seed 7: 6 sites" in said
    assert "✓ completed" in said and "20 rounds more" in said
    assert "every number about a site in this file is invented" in said and "a note" in said
    assert "agent killed 18" in said and "ga" in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_the_sites_bill_adds_up() -> None:
    plan = load_plan(SMALL).plan
    found = report(
        plan, replace(invented(2, 10.0), costs={"brno": Cost(gpu_hours=3.0, joules=3.6e6), "sofia": Cost()})
    )
    assert [(bill.site, bill.price, bill.kilowatt_hours) for bill in found.sites] == [
        ("brno", 4.5, 1.0),
        ("sofia", 0.0, 0.0),
    ]
    assert " 4" in page(found) and "EUR" in page(found)
    assert decode(encode(found), Report) == found


def test_a_round_waited_for_its_last_job() -> None:
    waits = round_waits(invented(6, 100.0, 4))
    assert [one.round for one in waits] == [f"tiny-1/{n}" for n in range(5)]
    for one in waits:
        parts = one.queued_hours + one.running_hours + one.sending_hours + one.idle_hours + one.after_hours
        assert parts == pytest.approx(one.hours) == pytest.approx(20.0)
        assert one.waited_for == f"{one.site}'s training"
    assert len({one.site for one in waits}) > 1


def test_a_round_that_waited_for_a_window_says_so() -> None:
    def span(place: str, kind: str, begin: float, end: float, subject: str = "") -> Happening:
        at, until = BEGAN + 3600 * begin, BEGAN + 3600 * end
        return Happening(at=at, place=place, kind=kind, subject=subject, until=until)

    told = (
        span("coordinator", "round", 0, 20, "tiny-1/1"),
        span("lumi", "running", 1, 4, "tiny-1_r1-train-lumi.a1"),
        span("vega", "window closed", -5, 11),
        span("vega", "queued", 12, 13, "tiny-1_r1-train-vega.a1"),
        span("vega", "running", 13, 16, "tiny-1_r1-train-vega.a2"),
        span("lumi", "running", 17, 19, "tiny-1_r1-gate-lumi.a1"),
    )
    (one,) = round_waits(replace(invented(2), happenings=told))
    assert (one.site, one.queued_hours, one.running_hours, one.idle_hours, one.closed_hours) == (
        "vega",
        1,
        3,
        12,
        11,
    )
    assert (one.after_hours, one.judge, one.scoring_hours, one.waited_for) == (4, "lumi", 2, "vega's window")


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0, "0"), (0.01, "0.6 min"), (0.5, "30 min"), (7.46, "7.46 h"), (95.9, "95.9 h"), (288, "12 d")],
)
def test_a_length_for_a_glance(hours: float, said: str) -> None:
    assert length(hours) == said
