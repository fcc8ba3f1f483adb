"""What a campaign would do and cost: the forecast agrees with what then happens, and says what limits it."""

import pytest
from consortium_in_facts import DEMO, GIVEN, HOUR, LANGUAGES, OWN, SEED_ROUND, campaign, consortium

from consortium.canonical import replace
from consortium.capacity import Window
from consortium.errors import BadInput
from consortium.forecasts import Assumptions, Forecast, SiteAssumption
from consortium.ids import SiteName
from coordinator.core.forecast import forecast
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import Site, State
from policies.campaign import Campaign, Quorum, Rivals
from policies.windows import opening

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


def foreseen(spec: Campaign, *sites: SiteAssumption, state: State | None = None) -> Forecast:
    def look(site: Site, at: float):  # type: ignore[no-untyped-def]
        return opening(site.windows, at)

    return forecast(state or State(), spec, NOW, look, Assumptions(sites=sites))


def site(name: str, **told: object) -> SiteAssumption:
    return SiteAssumption(site=SiteName(name), languages=LANGUAGES, **told)  # type: ignore[arg-type]


def two(**north: object) -> tuple[SiteAssumption, SiteAssumption]:
    """160 tokens are a job: a second at north, two at south."""
    known: dict[str, object] = {"gpus": 4, "tokens_per_second": 160.0, **north}
    return site("north", **known), site("south", gpus=8, tokens_per_second=80.0)


def rounds_jobs(found: Forecast) -> list[tuple[str, float, float]]:
    return [(j.site, j.starts_at - NOW, j.ends_at - NOW) for j in found.jobs if j.purpose == "round"]


def test_a_round_ends_with_its_slowest_site() -> None:
    found = foreseen(campaign(**GIVEN, sites_expected=2), *two())
    assert rounds_jobs(found) == [("north", 0.0, 1.0), ("south", 0.0, 2.0)]
    [one] = found.rounds
    assert (one.closes_at - NOW, one.bound_by) == (2.0, "south: its work")
    train = sum(j.gpu_hours for j in found.jobs if j.purpose == "round")
    assert train == pytest.approx((4 * 1 + 8 * 2) / 3600)


def test_queues_and_windows_are_waited_for() -> None:
    night = Window(cron="0 20 * * *", seconds=10 * HOUR)
    spec = campaign(**GIVEN, sites_expected=2, quorum=Quorum(deadline_hours=50.0))
    found = foreseen(spec, *two(queue_hours=3.0, windows=(night,)))
    assert rounds_jobs(found)[0] == (
        "north",
        15 * HOUR,
        15 * HOUR + 1,
    )  # eight in the evening, then the queue
    assert found.rounds[0].bound_by == "north: its queue, after a window"


def test_what_an_allocation_cannot_pay_is_said() -> None:
    spec = campaign(**GIVEN, sites_expected=2, rounds=4, train=campaign().train)
    found = foreseen(spec, *two(gpu_hours=2.1))  # an assumed evaluation costs two, a training next to nothing
    assert [job.site for job in found.jobs if job.purpose == "gate" and job.round == 2] == ["", "south"]
    assert any(text.startswith("round 2, gate: north would need 2 GPU-hours") for text in found.limits)
    [account] = found.allocations
    assert account.left == pytest.approx(0.1 - 4 * 4 / 3600)


def test_a_round_leaves_out_who_cannot_pay_as_it_does_in_earnest() -> None:
    train = replace(campaign().train, steps=3600)  # 160 tokens a second: 6 min at north, 0.4 GPU-hours
    spec = campaign(**GIVEN, sites_expected=2, rounds=4, train=train)
    found = foreseen(spec, *two(gpu_hours=2.1))  # one round's job and no evaluation
    assert [j.site for j in found.jobs if j.purpose == "round"] == ["north", "south"] * 4
    found = foreseen(replace(spec, rounds=6), *two(gpu_hours=2.1))
    assert [j.site for j in found.jobs if (j.purpose, j.round) == ("round", 6)] == ["", "south"]
    assert any("round 6, round: north has not the 0.4 GPU-hours left" in text for text in found.limits)
    pair = replace(spec, rounds=9, quorum=Quorum(minimum=2))
    found = foreseen(pair, *two(gpu_hours=2.1))
    assert len(found.rounds) == 5
    assert any(text.startswith("round 6: 1 of the 2 contributions") for text in found.limits)


def test_a_job_longer_than_the_deadline_is_named() -> None:
    spec = campaign(**GIVEN, sites_expected=2, quorum=Quorum(deadline_hours=1.0))
    found = foreseen(spec, *two(tokens_per_second=160.0 / (2 * HOUR)))
    assert found.rounds[0].closes_at == NOW + HOUR
    assert found.limits == (
        "north needs 2 h for its job of a round, the deadline is 1 h; raise it, or ask for fewer steps",
    )


def test_a_quorum_does_not_wait_for_the_last() -> None:
    spec = campaign(**GIVEN, sites_expected=2, quorum=Quorum(share=0.5))
    assert foreseen(spec, *two()).rounds[0].closes_at == NOW + 1.0


def test_everything_of_a_campaign_is_counted() -> None:
    rivals = Rivals(public_only=True, specialists=True)
    found = foreseen(campaign(sites_expected=2, seed_round=SEED_ROUND, rivals=rivals), *two())
    kinds = {job.purpose for job in found.jobs}
    assert kinds == {"tokenizer", "seed", "round", "gate", "rival"}
    assert sum(job.purpose == "rival" for job in found.jobs) == 3
    assert found.gpu_hours == pytest.approx(sum(job.gpu_hours for job in found.jobs))
    assert "tokenizer at north: assumed: no tokenizer job was ever done" in found.assumptions


def test_without_enough_sites_it_says_so() -> None:
    found = foreseen(campaign(**GIVEN), *two())
    assert found.limits[0].startswith("2 of the 3 expected sites hold text of its languages (north, south)")


def test_it_is_the_same_twice_and_leaves_the_coordinator_alone() -> None:
    coordinator = consortium(campaign(**GIVEN))
    coordinator.work()
    coordinator.sync("north")
    before = coordinator.state.snapshot()
    kept = keep(coordinator.state)
    first = foreseen(campaign("next", **GIVEN), state=restore(kept))
    assert first == foreseen(campaign("next", **GIVEN), state=restore(kept))
    assert coordinator.state.snapshot() == before
    starts = {job.site: job.given_at for job in first.jobs if job.purpose == "round"}
    assert starts["north"] > NOW - 1 and set(starts) == set(OWN)
    assert DEMO in coordinator.state.campaigns


def test_a_huge_one_is_refused() -> None:
    with pytest.raises(BadInput, match="too many to forecast"):
        foreseen(campaign(**GIVEN, rounds=10**9), *two())
