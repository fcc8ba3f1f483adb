"""A consortium with a real ledger and store, at four moments."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from delivering_site import House


@pytest.fixture
def enrolled(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    for site in ("north", "south"):
        house.enrol(site)
    yield house
    house.ledger.close()


@pytest.fixture
def training(enrolled: House) -> House:
    """Round 1 is open and north holds its job."""
    enrolled.submit()
    return enrolled


@pytest.fixture
def expiring(enrolled: House) -> House:
    """The same, but north's certificate is good for an hour only."""
    enrolled.enrol("north", days=1 / 24)
    enrolled.submit()
    return enrolled


@pytest.fixture
def judging(training: House) -> House:
    """North holds the evaluation of a candidate and its base."""
    training.to_the_gate()
    return training


@pytest.fixture
def tokenizing(enrolled: House) -> House:
    enrolled.submit(trains_tokenizer=True)
    enrolled.work()
    return enrolled
