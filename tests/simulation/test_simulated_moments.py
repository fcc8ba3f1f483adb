"""Moments that sites keep, in a whole consortium: what crashes and a bad network change of them is nothing."""

from pathlib import Path

from msgspec import UNSET, UnsetType

from consortium.canonical import replace
from consortium.ids import Digest, SiteName
from consortium.jobs import Purpose, Train
from coordinator.driver import replay
from coordinator.ledger import Ledger
from policies.campaign import Quorum, Rivals
from simulation.drawn import drawn_plan
from simulation.plan import Plan
from simulation.run import simulate
from simulation.weather import PRESETS

ROUNDS = 3


def keeping() -> Plan:
    """Everybody is waited for, so that the weather decides nothing; residuals are kept beside moments."""
    plan = drawn_plan(4)
    spec = plan.campaign
    optimizer = replace(spec.train.optimizer, moments="keep")
    return replace(
        plan,
        campaign=replace(
            spec,
            rounds=ROUNDS,
            rivals=Rivals(),
            quorum=Quorum(deadline_hours=500.0),
            train=replace(spec.train, optimizer=optimizer, delta_dtype="int8"),
        ),
    )


def test_a_chain_over_rounds_whatever_the_weather(tmp_path: Path) -> None:
    plan = keeping()
    found = {
        weather: simulate(plan, 4, PRESETS[weather], folder=tmp_path / weather)
        for weather in ("calm", "rough")
    }
    assert not any(one.violations for one in found.values())
    assert found["calm"].ended[0].promoted == ROUNDS
    assert len({tuple(version.digest for version in one.versions) for one in found.values()}) == 1
    (ledger,) = (tmp_path / "rough").rglob("ledger.sqlite")
    with Ledger(ledger, read_only=True) as opened:
        state = replay(opened)
    newest: dict[SiteName, Digest | UnsetType] = dict.fromkeys(sorted(state.sites), UNSET)
    left: set[Digest | UnsetType] = set()
    jobs = [job for job in state.jobs.values() if job.purpose is Purpose.ROUND]
    assert len(jobs) == ROUNDS * len(state.sites)
    for job in sorted(jobs, key=lambda job: job.round):
        done = job.contribution
        assert isinstance(job.work, Train) and done is not None and job.site is not None
        assert (job.work.moments, done.moments_before) == (newest[job.site], newest[job.site])
        newest[job.site] = done.moments
        left.add(done.moments)
    assert len(left) == len(jobs) and UNSET not in left
    kept = {path.stem for path in (tmp_path / "rough").rglob("*.moments")}
    assert kept <= left and kept >= set(newest.values())
    blobs = {path.parent.name + path.name for path in (tmp_path / "rough").rglob("blobs/*/*")}
    assert len(blobs) > len(jobs) and not blobs & left  # nobody ever uploaded one
