"""A certificate that was issued by a clock that is ahead locks nobody out once the clock is right again.

A storm taught this: the coordinator's certificate had expired, its clock was an hour ahead when it started and issued
another; after that nobody, its admin included, could speak with it for an hour.
"""

from pathlib import Path

import pytest
from cryptography import x509

from consortium.identity import CLOCK_SKEW_SECONDS, DAY_SECONDS
from coordinator.config import CoordinatorConfig
from coordinator.founding import Keys, found

NOW = 1_800_000_000.0
HOUR = 3600.0


def starts(keys: Keys) -> float:
    return x509.load_pem_x509_certificate(keys.server.certificate).not_valid_before_utc.timestamp()


def test_a_certificate_issued_an_hour_ahead_is_valid_now(tmp_path: Path) -> None:
    found(CoordinatorConfig(consortium="balkan", home=str(tmp_path)), NOW)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
    ahead = Keys.load(tmp_path, ("localhost",), NOW + HOUR)
    assert starts(ahead) < NOW
    assert Keys.load(tmp_path, ("localhost",), NOW).server == ahead.server  # no reason for another


@pytest.mark.parametrize("days", [2.0, 400.0])
def test_one_issued_days_ahead_is_issued_anew_at_the_next_start(days: float, tmp_path: Path) -> None:
    found(CoordinatorConfig(consortium="balkan", home=str(tmp_path)), NOW)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
    ahead = Keys.load(tmp_path, ("localhost",), NOW + days * DAY_SECONDS)
    assert starts(ahead) > NOW
    again = Keys.load(tmp_path, ("localhost",), NOW)
    assert starts(again) == NOW - CLOCK_SKEW_SECONDS
