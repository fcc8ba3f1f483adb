"""A consortium's home: founded once, and the coordinator's own certificate outlives its end."""

import time
from pathlib import Path

import pytest

from consortium.errors import Refused
from consortium.files import temporary_beside, write_bytes_atomically
from consortium.identity import COORDINATOR_DAYS, DAY_SECONDS, identity_of
from coordinator.config import CoordinatorConfig
from coordinator.founding import Keys, found
from coordinator.sealed_keys import public_files

NAMES = ("localhost",)


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    return CoordinatorConfig(consortium="balkan", home=str(tmp_path / "home"))


def ends(keys: Keys) -> float:
    return identity_of(keys.server.certificate, "balkan").not_after


def test_a_home_is_founded_once(config: CoordinatorConfig) -> None:
    found(config, time.time())
    with pytest.raises(Refused, match="lives here already"):
        found(config, time.time())


def test_the_certificate_stays_while_it_is_young_and_is_issued_anew_when_it_is_old(
    config: CoordinatorConfig,
) -> None:
    now = time.time()
    home = Path(config.home)
    first = found(config, now)
    young = Keys.load(home, NAMES, now + COORDINATOR_DAYS * DAY_SECONDS / 2)
    assert young.server == first.server
    later = now + COORDINATOR_DAYS * DAY_SECONDS * 0.7
    old = Keys.load(home, NAMES, later)
    assert ends(old) > ends(first)
    assert Keys.load(home, NAMES, later).server == old.server


def test_a_lost_certificate_is_made_anew(config: CoordinatorConfig) -> None:
    found(config, time.time())
    home = Path(config.home)
    (home / "server.pem").unlink()
    assert ends(Keys.load(home, NAMES, time.time())) > time.time()
    assert (home / "server.pem").is_file()


def test_what_is_no_secret_is_named_and_what_is_being_written_is_not(config: CoordinatorConfig) -> None:
    """A backup reads it while the coordinator runs: what it is writing may be gone a moment later."""
    found(config, time.time())
    heard = Path(config.home) / "courier" / "ohrid.json"
    write_bytes_atomically(heard, b"{}")
    temporary_beside(heard).write_bytes(b"{")
    assert set(public_files(Path(config.home))) == {
        "admin/admin.pem",
        "admin/ca.pem",
        "admin/connection.json",
        "authority/ca.pem",
        "courier/ohrid.json",
        "server.pem",
    }
