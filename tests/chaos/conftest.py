"""One undisturbed short campaign of real processes, shared by every test here."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))  # a coordinator's artifact service alone

from kill_anything import Outcome, run, shorten

SEED = 1


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The outcome of the undisturbed run, and its working directory."""
    workdir = tmp_path_factory.mktemp("calm") / "demo"
    return run(workdir, SEED, shorten), workdir
