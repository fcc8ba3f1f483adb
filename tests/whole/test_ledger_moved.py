"""The ledger's file is replaced under a running coordinator: it answers nobody, and ends."""

import asyncio
import os
import shutil

import pytest
from real_coordinator import PATIENCE_SECONDS, Consortium
from scripted_sites import introduce

from consortium.errors import Broken, SprachbundError
from coordinator.ledger import Ledger


async def use_while_it_is_replaced(consortium: Consortium, known: list[int]) -> None:
    place = consortium.home / "ledger.sqlite"
    shutil.copyfile(place, place.with_name("older.sqlite"))
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        known.append((await admin.view()).sequence)
        os.replace(place.with_name("older.sqlite"), place)
        with pytest.raises(SprachbundError):  # whichever comes first: the answer, or the end
            await admin.view()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait({consortium.server})


async def test_a_coordinator_whose_ledger_was_replaced_answers_nobody_and_ends(
    consortium: Consortium,
) -> None:
    known: list[int] = []
    with pytest.raises(Broken, match=r"was moved, deleted or replaced while the coordinator ran"):
        await use_while_it_is_replaced(consortium, known)
    with Ledger(consortium.home / "ledger.sqlite.kept", read_only=True) as kept:
        assert kept.head.seq >= known[0]
    with pytest.raises(Broken, match="which kept what it had in"):
        await use_while_it_is_replaced(consortium, known)
    assert len(known) == 1
