"""Jobs that are over rest as bytes: nobody can tell, and what is changed in one stays changed."""

import random

from consortium_in_facts import GIVEN, Coordinator, campaign, consortium

from consortium.canonical import encode
from consortium.ids import JobId
from coordinator.core.resting import Jobs, Pack, brief
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import State

TRAINED = JobId("demo_r1-train-north")


def one_round_done() -> Coordinator:
    coordinator = consortium(campaign(**{**GIVEN, "rounds": 2}))
    coordinator.work()
    coordinator.one_round()
    return coordinator


def resting(jobs: Jobs) -> set[JobId]:
    return {name for name, kept in dict.items(jobs) if isinstance(kept, Pack)}


def over(state: State) -> set[JobId]:
    return {name for name, job in state.jobs.items() if job.is_final}


def test_a_state_is_spelt_the_same_whatever_rests() -> None:
    state = one_round_done().state
    plain = state.snapshot()
    assert plain == encode(
        {**{name: getattr(state, name) for name in state.__struct_fields__}, "jobs": dict(state.jobs.items())}
    )
    finals = over(state)
    assert finals and not resting(state.jobs)
    kept = keep(state)
    assert resting(state.jobs) == finals
    assert state.snapshot() == plain
    state = restore(kept)
    assert resting(state.jobs) == finals
    assert state.snapshot() == plain
    assert resting(state.jobs) == finals, "who spells it wakes nobody"
    assert list(state.jobs.items()) and not resting(state.jobs), "whoever looks at all wakes all"
    assert state.snapshot() == plain == restore(keep(state)).snapshot()


def test_what_is_changed_in_a_job_that_rested_stays_changed() -> None:
    state = one_round_done().state
    keep(state)
    before = state.snapshot()
    assert TRAINED in resting(state.jobs)
    state.jobs[TRAINED].tries[state.jobs[TRAINED].attempt].gpu_seconds = 7.0  # type: ignore[index]
    after = restore(keep(state))
    assert before != after.snapshot() == state.snapshot()
    assert after.jobs[TRAINED].tries == state.jobs[TRAINED].tries


def test_a_glance_wakes_nobody_and_reads_the_same() -> None:
    state = restore(keep(one_round_done().state))
    seen = state.jobs.glance(TRAINED)
    assert TRAINED in resting(state.jobs)
    assert seen == state.jobs[TRAINED]
    assert state.jobs.glance(TRAINED) is state.jobs[TRAINED]


def test_jobs_that_are_woken_again_and_again_lie_in_one_pack_each() -> None:
    """Whatever is woken, changed and put to rest, in whatever order: nothing is lost, nothing lies in two packs."""
    state, dice = one_round_done().state, random.Random(5)
    names = sorted(over(state))
    for turn in range(40):
        for name in dice.sample(names, dice.randrange(len(names))):
            state.jobs[name].reason = f"turn {turn}"
        plain = state.snapshot()
        kept = keep(state)
        packs = {id(one): one for one in dict.values(state.jobs) if isinstance(one, Pack)}.values()
        assert sorted(one.id for pack in packs for one in pack.briefs if one) == names
        assert all(2 * pack.briefs.count(None) <= len(pack.briefs) for pack in packs)
        again = restore(kept)
        assert {one.id: one for one in state.jobs.briefs()} == {
            n: brief(job) for n, job in again.jobs.items()
        }
        if turn % 3 == 0:
            state = again
        assert state.snapshot() == plain == restore(kept).snapshot()


def test_a_state_that_rests_equals_one_that_does_not() -> None:
    coordinator = one_round_done()
    awake = coordinator.replayed()
    asleep = restore(keep(coordinator.state))
    assert asleep == awake and not asleep != awake
    assert asleep.index == awake.index, "the index is made of briefs"
    awake.jobs[TRAINED].reason = "another"
    assert asleep != awake


def test_a_copy_wakes_its_own_jobs() -> None:
    state = restore(keep(one_round_done().state))
    job = next(one.id for one in state.jobs.briefs() if not one.is_final)
    copied = state.jobs | {job: state.jobs[job]}
    assert copied.get(TRAINED) == state.jobs.get(TRAINED)
    assert copied[TRAINED] is not state.jobs[TRAINED]
    assert copied[job] is state.jobs[job]
    assert copied.get(JobId("nobody")) is None


def test_a_copy_reads_what_the_state_has_woken_and_packed_anew() -> None:
    """A worker's thread has one while the loop goes on."""
    state = restore(keep(one_round_done().state))
    copied = state.jobs | {}
    before = {name: copied.glance(name) for name in resting(copied)}
    state.jobs[TRAINED].reason = "another"
    keep(state)
    assert {name: copied.glance(name) for name in before} == before
