from pathlib import Path

import pytest
from consortium_in_views import IN_ROUND_TWO

from console.client import find_person
from console.screens.changes import changes, without_clock
from consortium.canonical import replace
from consortium.connection import Connection, write_connection
from consortium.errors import BadInput, Refused, Unavailable
from consortium.identity import Authority
from consortium.roles import Role
from coordinator.founding import issue_person

NOW = 1.9e9
PLACE = Connection(consortium="demo", coordinator="localhost:7443", enrolment="localhost:7444")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("demo", NOW)


@pytest.fixture
def home(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator's home with one admin."""
    monkeypatch.setattr("time.time", lambda: NOW)
    issue_person(tmp_path, authority, Role.ADMIN, "admin", NOW)
    write_connection(PLACE, tmp_path / "admin")
    return tmp_path


def test_a_folder_with_one_certificate_says_who_calls(home: Path) -> None:
    person = find_person(home / "admin")
    assert person.connection == PLACE
    assert person.credentials.certificate == (home / "admin" / "admin.pem").read_bytes()


def test_without_a_word_the_folder_admin_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert find_person(None) == find_person(home / "admin")
    monkeypatch.chdir(home / "admin")
    with pytest.raises(BadInput, match="--as FOLDER, or set SPRACHBUND_ADMIN"):
        find_person(None)


def test_of_two_people_one_must_be_named(home: Path, authority: Authority) -> None:
    issue_person(home, authority, Role.ADMIN, "maria", NOW)
    with pytest.raises(BadInput, match="here are: admin, maria"):
        find_person(home / "admin")
    assert find_person(home / "admin" / "maria") != find_person(home / "admin" / "admin")
    with pytest.raises(BadInput, match="here are: admin, maria"):
        find_person(home / "admin" / "mario")


def test_an_expired_certificate_is_noticed_before_the_call(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 91 * 86_400)
    with pytest.raises(Refused, match="admin admin has expired; `sprachbund coordinator person` makes"):
        find_person(home / "admin")


def test_a_coordinator_that_never_ran_has_no_port(home: Path) -> None:
    write_connection(replace(PLACE, coordinator="localhost:0"), home / "admin")
    with pytest.raises(Unavailable, match="no port yet; start it"):
        find_person(home / "admin")


def test_only_what_changed_is_told() -> None:
    first = changes(None, IN_ROUND_TWO)
    assert "site north enrolled" in first
    later = replace(
        IN_ROUND_TWO,
        now=IN_ROUND_TWO.now + 5,
        sites=(replace(IN_ROUND_TWO.sites[0], status="suspended"), *IN_ROUND_TWO.sites[1:]),
    )
    assert changes(IN_ROUND_TWO, later) == ("site north suspended",)
    assert changes(later, later) == ()


def test_the_clock_alone_changes_nothing() -> None:
    sites = tuple(replace(site, seen_seconds_ago=9.0) for site in IN_ROUND_TWO.sites)
    assert without_clock(replace(IN_ROUND_TWO, now=1.0, sites=sites)) == without_clock(IN_ROUND_TWO)
    assert without_clock(replace(IN_ROUND_TWO, sequence=IN_ROUND_TWO.sequence + 1)) != without_clock(
        IN_ROUND_TWO
    )
