from pathlib import Path

import pytest
from ledger_samples import KEY, happened

from consortium.signing import sign_checkpoint
from coordinator.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def written(path: Path) -> Path:
    """A closed ledger of five entries with a checkpoint at the fourth and a snapshot at the fifth."""
    with Ledger(path) as ledger:
        for number in range(4):
            ledger.append([happened(number)], at=100.0 + number)
        ledger.save_checkpoint(sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash))
        ledger.append([happened(4)], at=104.0)
        ledger.save_snapshot(b'{"state":5}', ledger.head)
    return path
