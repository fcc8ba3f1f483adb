"""A coordinator that starts on a full disk leaves with a sentence, and the next one gets the ledger."""

import errno
import os
from pathlib import Path

import pytest

from consortium.errors import DiskFull
from coordinator.ledger import Ledger


def test_who_cannot_write_its_number_down_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull, match="ledger"):
            Ledger(tmp_path / "ledger.sqlite")
    Ledger(tmp_path / "ledger.sqlite").close()
