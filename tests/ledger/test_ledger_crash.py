"""A killed coordinator loses nothing that it acknowledged."""

import random
import subprocess
import sys
import time

from ledger_engines import Place
from processes import PATIENCE_SECONDS, reaped

from consortium.errors import Unavailable
from coordinator.chain import AnyLedger
from coordinator.ledger_check import verify_chain

# acknowledges each append on stdout, as the coordinator answers a site: only after it is durable
APPEND_FOR_EVER = """
import sys
from coordinator.ledgers import open_ledger

with open_ledger(sys.argv[1]) as ledger:
    while True:
        recorded = ledger.append([{"kind": "Happened", "filling": "x" * 3000}] * 3, at=1.0)
        print(recorded[-1].seq, recorded[-1].hash, flush=True)
"""


def test_sigkill_during_append_loses_nothing_acknowledged(place: Place) -> None:
    dice = random.Random(7)
    for _ in range(4):
        command = [sys.executable, "-c", APPEND_FOR_EVER, place.where]
        with reaped(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(dice.randint(1, 150))]
            writer.kill()
            lines += writer.stdout.readlines()
        *_, acknowledged = (line for line in lines if line.endswith("\n"))  # the last may be half of one
        seq, hash = acknowledged.split()
        with opened(place) as ledger:
            assert ledger.head.seq >= int(seq)
            assert ledger.head.seq % 3 == 0  # never half an append
            assert next(ledger.read(int(seq))).hash == hash
        assert list(verify_chain(place.where)) == []


def opened(place: Place) -> AnyLedger:
    """Once the database has noticed that the other process is gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return place.open()
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
