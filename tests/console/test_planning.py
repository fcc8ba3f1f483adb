"""``sprachbund plan`` without a coordinator: what it assumes, shows and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from console.screens.planning import forecast_page
from consortium.forecasts import AllocationForecast, Forecast, PlannedJob, PlannedRound

TINY = Path(__file__).parents[2] / "examples" / "campaign-tiny.yaml"


def plan(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "console.main", "plan", str(TINY), "--dry-run", "--offline", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def sites(number: int, more: str = "") -> list[str]:
    return [word for n in range(number) for word in ("--site", f"s{n}:gpus=1,tokens_per_second=1e4{more}")]


def test_a_plan_as_a_table_and_for_a_script() -> None:
    told = plan(*sites(4, ",gpu_hours=5"), "--json")
    found = json.loads(told.stdout)
    assert [one["round"] for one in found["rounds"]] == [0, 1, 2, 3]
    assert {job["site"] for job in found["jobs"] if job["purpose"] == "round"} == {"s0", "s1", "s2", "s3"}
    assert found["gpu_hours"] > 0 and len(found["allocations"]) == 4
    saturdays = sites(4, ",gpu_hours=5,window=0 20 * * sat@10h,timezone=Europe/Sofia")
    shown = " ".join(plan(*saturdays).stdout.split())
    assert "nothing was recorded" in shown and "What was assumed" in shown


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("a:speed=3", "'speed' is no key"),
        ("a:gpus=many", "gpus=many cannot be read"),
        ("a:gpus=-1", "--site a"),
        ("A B:gpus=1", "site name"),
        ("a:until=soon", "is no day"),
        ("a:window=0 20 * * 1@2h", "days of the week by name"),
        ("a:languages=xx-unknown", "xx-unknown"),
    ],
)
def test_what_cannot_be_assumed(word: str, says: str) -> None:
    assert says in plan("--site", word, code=2).stderr


def test_offline_it_needs_to_know_who() -> None:
    assert "say which sites take part" in plan(code=2).stderr


def test_the_screen_marks_what_is_overdrawn() -> None:
    from rich.console import Console

    job = PlannedJob(round=1, purpose="round", site="north", steps=10, ends_at=7200.0, gpu_hours=8.0)
    found = Forecast(
        campaign="demo",
        now=0.0,
        ends_at=7200.0,
        gpu_hours=8.0,
        rounds=(
            PlannedRound(round=1, opens_at=0.0, closes_at=7200.0, ends_at=7200.0, bound_by="north: its work"),
        ),
        jobs=(job,),
        allocations=(
            AllocationForecast(
                site="north", allocation="p", granted=9.0, used=2.0, held_back=0.0, needed=8.0, until=None
            ),
        ),
        limits=("north: \x1b[31mred",),
    )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(forecast_page(found))
    text = captured.get()
    assert "demo: 2 h from now" in text and "≈ 2 h" in text and "-1" in text
    assert "\x1b" not in text
