"""The ledger's file is replaced under a running coordinator: it answers nobody, and ends."""

import asyncio
import os
import shutil

import pytest
from real_coordinator import PATIENCE_SECONDS, Consortium
from scripted_sites import introduce

from consortium.errors import Broken, SprachbundError
from coordinator.ledger import Ledger


async def test_a_coordinator_whose_ledger_was_replaced_answers_nobody_and_ends(consortium: Consortium) -> None:
    place = consortium.home / "ledger.sqlite"
    shutil.copyfile(place, place.with_name("older.sqlite"))
    with pytest.raises(Broken, match=r"was moved, deleted or replaced while the coordinator ran"):
        async with consortium.running(), consortium.admin() as admin:
            await introduce(consortium)
            known = (await admin.view()).sequence
            os.replace(place.with_name("older.sqlite"), place)
            with pytest.raises(SprachbundError):  # whichever comes first: the answer, or the end
                await admin.view()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.wait({consortium.server})
    with Ledger(place.with_name("ledger.sqlite.kept"), read_only=True) as kept:
        assert kept.head.seq >= known
    with pytest.raises(Broken, match="which kept what it had in"):
        async with consortium.running():
            pass
