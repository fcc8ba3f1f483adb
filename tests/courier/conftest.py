"""A consortium of which one site has no network: what tests/whole makes, and that site's home beside it."""

import importlib.util
import sys
from pathlib import Path

import pytest

WHOLE = Path(__file__).parents[1] / "whole"
sys.path.insert(0, str(WHOLE))

_spec = importlib.util.spec_from_file_location("whole_fixtures", WHOLE / "conftest.py")
assert _spec and _spec.loader
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
base, enrolled, completed, consortium = (
    _fixtures.base,
    _fixtures.enrolled,
    _fixtures.completed,
    _fixtures.consortium,
)


@pytest.fixture
def ohrid(consortium, tmp_path):
    """The site without a network; its key is the one it has enrolled with."""
    from island import Island

    island = Island(consortium, tmp_path / "ohrid")
    island.take_over_identity()
    return island


@pytest.fixture
async def admin(consortium):
    """Of the consortium, whose coordinator runs."""
    async with consortium.running(), consortium.admin() as person:
        yield person


@pytest.fixture
async def leased(admin, ohrid, consortium, base):
    """The answer that brings the first training job to the site without a network."""
    from real_coordinator import campaign
    from scripted_sites import lease

    for name in ("plovdiv", "sofia"):
        await lease(consortium, name)
    ohrid.take_in(await ohrid.exchange(await ohrid.export()))
    await admin.submit_and_wait(campaign(base))
    return await ohrid.exchange(await ohrid.export())


@pytest.fixture
async def done(leased, ohrid):
    """The bundle that brings the result of that job."""
    ohrid.take_in(leased)
    await ohrid.work()
    return await ohrid.export()
