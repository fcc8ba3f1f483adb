"""Stories of sites: invited, enrolled once, renewed, drained, suspended, and what a Sync says of them."""

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    Coordinator,
    campaign,
    consortium,
    d,
    ended,
    enrolment,
    holdings,
    invitation,
    running,
    sync,
)

from consortium.canonical import replace
from consortium.errors import Refused
from consortium.ids import SiteName
from consortium.jobs import Outcome
from coordinator.core import commands as cm
from coordinator.core import events as ev

NORTH = SiteName("north")


def set_site(status: str, site: str = "north") -> cm.SetSite:
    plain = cm.SetSite(site=SiteName(site), status="enrolled", reason="because")
    return replace(plain, status=status)


def test_a_token_is_used_once() -> None:
    coordinator = Coordinator()
    assert coordinator.invite("north") == ["TokenIssued north"]
    assert coordinator.events_of(enrolment("north")) == (
        ev.SiteEnrolled(
            site=NORTH,
            token_hash=d("token of north"),
            certificate="certificate of north",
            fingerprint=d("certificate of north"),
            not_after=1e9,
        ),
    )
    with pytest.raises(Refused, match="unknown or already used"):
        coordinator.do(enrolment("north"))
    assert coordinator.state.tokens == {}


def test_a_token_ends_with_its_time_and_not_before() -> None:
    coordinator = Coordinator()
    coordinator.invite("north", seconds=HOUR)
    coordinator.now += HOUR + 1
    with pytest.raises(Refused, match="expired"):
        coordinator.do(enrolment("north"))
    coordinator.now -= 1
    assert coordinator.do(enrolment("north")) == ["SiteEnrolled north"]


def test_a_token_is_for_one_site() -> None:
    coordinator = Coordinator()
    coordinator.invite("north")
    with pytest.raises(Refused, match="is for site north, the request names south"):
        coordinator.do(enrolment("south", token_of="north"))
    assert coordinator.do(enrolment("north")) == ["SiteEnrolled north"]


def test_a_newer_invitation_replaces_the_older() -> None:
    coordinator = Coordinator()
    coordinator.invite("north")
    coordinator.do(replace(invitation("north", 1e6), token_hash=d("another")))
    with pytest.raises(Refused, match="unknown"):
        coordinator.do(enrolment("north"))


def test_who_may_not_be_a_member_is_not_invited() -> None:
    no = replace(
        invitation("north", 1e6), membership=None, refusal="Atlantis is no member state; ask the board"
    )
    with pytest.raises(Refused, match=r"north university \(FI\): Atlantis is no member state; ask the board"):
        Coordinator().do(no)


def test_an_offer_is_recorded_when_it_changes() -> None:
    coordinator = Coordinator()
    coordinator.enrol("north")
    assert coordinator.sync("north") == []
    assert coordinator.sync("north", draining=True) == ["SiteDescribed north"]
    assert coordinator.sync("north", draining=True) == []
    assert coordinator.sync("north", slots=2) == ["SiteDescribed north"]
    assert coordinator.sync("north", slots=2, holdings=holdings("north", ["fi"])) == ["SiteDescribed north"]
    with pytest.raises(Refused, match="not enrolled; known: north"):
        coordinator.sync("south")


def test_a_certificate_is_renewed_and_the_old_one_remembered() -> None:
    coordinator = Coordinator()
    coordinator.enrol("north")
    renewal = cm.RenewCertificate(site=NORTH, certificate="newer", fingerprint=d("newer"), not_after=2e9)
    assert coordinator.do(renewal) == ["CertificateRenewed north"]
    site = coordinator.state.sites[NORTH]
    assert (site.certificate, site.fingerprint, site.not_after) == ("newer", d("newer"), 2e9)
    assert site.certificates == {d("newer"): "newer", d("certificate of north"): "certificate of north"}


def test_a_suspended_site_loses_its_leases_and_its_voice() -> None:
    coordinator = consortium(campaign(**GIVEN))
    coordinator.work()
    coordinator.sync("north")
    assert coordinator.do(set_site("suspended")) == [
        "SiteStatusChanged north suspended",
        "AttemptEnded demo_r1-train-north.a1 expired",
    ]
    with pytest.raises(Refused, match="north is suspended"):
        coordinator.sync("north", running("demo_r1-train-north.a1"))
    assert coordinator.do(set_site("suspended")) == []  # so it is already
    assert coordinator.do(set_site("enrolled")) == ["SiteStatusChanged north enrolled"]
    assert coordinator.sync("north", running("demo_r1-train-north.a1")) == [
        "LeaseResumed demo_r1-train-north.a1"
    ]


def test_a_suspended_site_may_be_invited_anew() -> None:
    coordinator = consortium()
    coordinator.do(set_site("suspended"))
    coordinator.now += 1  # an invitation of the same moment may have been given before
    coordinator.invite("north")
    coordinator.do(enrolment("north"))
    assert coordinator.sync("north") == []
    assert coordinator.state.sites[NORTH].status == "enrolled"


@pytest.mark.parametrize("by", ["its own wish", "the admin"])
def test_a_draining_site_finishes_and_takes_nothing_new(by: str) -> None:
    coordinator = consortium(campaign(**GIVEN, sites_expected=1), slots=1)
    coordinator.work()
    coordinator.sync("north")
    if by == "the admin":
        coordinator.do(set_site("draining"))
    offer = {"draining": by == "its own wish"}
    attempt = "demo_r1-train-north.a1"
    assert "AttemptEnded" not in str(coordinator.sync("north", running(attempt), **offer))
    assert coordinator.sync("north", ended(attempt, Outcome.PREEMPTED), **offer) == [
        "AttemptEnded demo_r1-train-north.a1 preempted"
    ]
    assert coordinator.sync("north", **offer) == []  # no lease
    if by == "the admin":
        coordinator.do(set_site("enrolled"))
    assert coordinator.sync("north")[-1] == "JobLeased demo_r1-train-north.a2 north"


def test_a_draining_site_is_no_participant_of_a_new_round() -> None:
    coordinator = consortium(campaign(**GIVEN, sites_expected=2))
    coordinator.sync("north", draining=True)
    assert coordinator.work()[1:] == [
        "RoundOpened demo/r1",
        "JobPlanned demo_r1-train-south",
        "JobPlanned demo_r1-train-west",
    ]


def test_only_invited_sites_that_hold_a_language_take_part() -> None:
    coordinator = consortium(campaign(**GIVEN, sites_expected=1, sites=(SiteName("south"), SiteName("west"))))
    coordinator.sync("west", holdings=holdings("west")[1:])  # nothing of its own any more
    assert coordinator.work()[1:] == ["RoundOpened demo/r1", "JobPlanned demo_r1-train-south"]
    assert coordinator.state.campaigns[DEMO].rounds[1].base == coordinator.state.campaigns[DEMO].head


def test_a_sync_of_nobody_is_refused_before_anything_happens() -> None:
    coordinator = consortium(campaign(**GIVEN))
    before = coordinator.state.snapshot()
    with pytest.raises(Refused):
        coordinator.do(
            sync("north", running("demo_r1-train-north.a1")).__class__(
                site=SiteName("nobody"), agent_version="", slots=1, draining=False, holdings=(), reports=()
            )
        )
    assert coordinator.state.snapshot() == before
