"""A failure's story gets short: what has nothing to do with the broken promise goes, what has to do with it stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from consortium.canonical import decode, replace
from consortium.errors import BadInput
from simulation.reading import load_plan
from simulation.shrink import Case, Ran, promise, shrink
from simulation.weather import weather_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRICT = HERE / "plans/strict.yaml"

BROKEN = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "protos")!r}, {str(HERE)!r}]
from broken import make
from mistakes import mistakes
make(next(one for one in mistakes() if one.name == sys.argv[1]))
from simulation.shrink import main
sys.exit(main(sys.argv[2:]))
"""


def broken(mistake: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", BROKEN, mistake, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_coordinator_that_forgets_needs_one_site_and_no_fault(tmp_path: Path) -> None:
    mistake, out = "driver: a replay skips an event", tmp_path / "story.json"
    done = broken(
        mistake, str(STRICT), "--seed", "1", "--weather", "rough:3", "--runs", "40", "--out", str(out)
    )
    assert done.returncode == 7, done.stderr
    case = decode(out.read_bytes(), Case)
    assert len(case.plan.sites) == 1 and case.plan.campaign.rounds == 1
    assert case.weather.only == ()
    assert "1 site(s), 1 round(s), seed 1; faults: none" in done.stdout
    assert "then: step" in done.stdout and "invariant" in done.stdout
    assert f"--replay {out}" in done.stderr

    again = broken(mistake, "--replay", str(out))
    assert again.returncode == 7 and again.stdout == done.stdout
    mended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "simulation.shrink", "--replay", str(out)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert mended.returncode == 0 and "then: nothing is wrong" in mended.stdout, mended.stderr


def test_of_all_faults_those_remain_without_which_it_does_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    guilty = {"crash coordinator 3", "lost oulu 7"}
    drawn = tuple(
        f"{kind} {n}" for kind in ("crash coordinator", "lost oulu", "lost athens") for n in range(1, 40)
    )
    runs: list[Case] = []

    def run(case: Case) -> Ran:
        runs.append(case)
        only = case.weather.only
        fallen = tuple(name for name in drawn if only is None or name in only)
        with_crashes, at_oulu = (
            case.weather.crashes_per_day > 0,
            "oulu" in {one.name for one in case.plan.sites},
        )
        broken = guilty <= set(fallen) and with_crashes and at_oulu and case.weather.loss > 0
        return Ran(violation="step 9: invariant 2: lost" if broken else "", hours=5.0, fallen=fallen)

    monkeypatch.setattr("simulation.shrink.run", run)
    plan = load_plan(STRICT).plan
    case, ran = shrink(Case(plan=plan, seed=1, weather=weather_of("storm")))
    assert set(ran.fallen) == guilty
    assert [site.name for site in case.plan.sites] == ["oulu"]
    assert case.plan.campaign.languages == ("fi", "ga") and case.plan.campaign.quorum.minimum == 1
    assert case.weather.partitions_per_day == 0 and case.weather.crashes_per_day > 0 and case.weather.loss > 0
    assert case.plan.sites[0].windows == () and len(runs) <= 151


def test_what_breaks_no_promise_is_not_made_smaller() -> None:
    plan = replace(load_plan(STRICT).plan, hours_max=1.0)
    with pytest.raises(BadInput, match="seed 3 in calm weather breaks no promise"):
        shrink(Case(plan=plan, seed=3, weather=weather_of("calm")))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "step 12: invariant 2: after a crash the ledger ends at 13, it had 12",
            "step 9: invariant 2: after a crash the ledger ends at 7, it had 5",
            True,
        ),
        (
            "step 7: invariants 1, 3, 6: entry 14, JobLeased: AssertionError('two live leases of one job')",
            "step 8: invariants 1, 3, 6: entry 99, JobLeased: AssertionError('more leases than slots')",
            False,
        ),
        (
            "step 3: invariant 3: oulu was sent x_r1-train-oulu.a2, which is not leased to it",
            "step 4: invariant 3: oulu was sent x_r2-train-oulu.a1, which is not leased to it",
            True,
        ),
    ],
)
def test_the_same_promise_by_other_names(one: str, other: str, same: bool) -> None:
    assert (promise(one) == promise(other)) is same
