"""Jobs that are over rest as bytes: nobody can tell, and what is changed in one stays changed."""

import msgspec
from consortium_in_facts import GIVEN, Coordinator, campaign, consortium

from consortium.canonical import encode
from consortium.ids import JobId
from coordinator.core.resting import Jobs
from coordinator.core.snapshot import restore

TRAINED = JobId("demo_r1-train-north")


def one_round_done() -> Coordinator:
    coordinator = consortium(campaign(**{**GIVEN, "rounds": 2}))
    coordinator.work()
    coordinator.one_round()
    return coordinator


def resting(jobs: Jobs) -> set[JobId]:
    return {name for name, kept in dict.items(jobs) if isinstance(kept, msgspec.Raw)}


def test_a_snapshot_is_the_states_canonical_json_whatever_rests() -> None:
    state = one_round_done().state
    plain = encode(
        {**{name: getattr(state, name) for name in state.__struct_fields__}, "jobs": dict(state.jobs.items())}
    )
    assert not resting(state.jobs)
    assert state.snapshot() == plain
    assert resting(state.jobs) == {name for name, job in state.jobs.items() if job.is_final} != set()
    state = restore(plain)
    assert resting(state.jobs) == state.jobs.keys()
    assert state.snapshot() == plain
    assert list(state.jobs.items()) and not resting(state.jobs), "whoever looks at all wakes all"
    assert state.snapshot() == plain


def test_what_is_changed_in_a_job_that_rested_stays_changed() -> None:
    state = one_round_done().state
    before = state.snapshot()
    state.jobs[TRAINED].tries[state.jobs[TRAINED].attempt].gpu_seconds = 7.0  # type: ignore[index]
    after = state.snapshot()
    assert before != after
    assert restore(after).jobs[TRAINED].tries == state.jobs[TRAINED].tries


def test_a_state_that_rests_equals_one_that_does_not() -> None:
    coordinator = one_round_done()
    awake = coordinator.replayed()
    asleep = restore(coordinator.state.snapshot())
    assert asleep == awake and not asleep != awake
    assert asleep.index == awake.index, "the index is made of briefs"
    awake.jobs[TRAINED].reason = "another"
    assert asleep != awake


def test_a_copy_wakes_its_own_jobs() -> None:
    state = restore(one_round_done().state.snapshot())
    job = next(name for name, job in state.jobs.items() if not job.is_final)
    state.snapshot()
    copied = state.jobs | {job: state.jobs[job]}
    assert copied.get(TRAINED) == state.jobs.get(TRAINED)
    assert copied[TRAINED] is not state.jobs[TRAINED]
    assert copied[job] is state.jobs[job]
    assert copied.get(JobId("nobody")) is None
