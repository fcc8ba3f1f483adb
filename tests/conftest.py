"""What holds for all tests: none of them asserts on time; those that share something costly run in one process."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("sprachbund", deadline=None)  # Hypothesis's own assertion on time
settings.load_profile("sprachbund")

_ON_SLURM = ("slurm", "ssh")  #: folders whose files share a cluster, which one process starts and takes down


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file stay together where several processes share the work (``pytest -n 2 --dist loadgroup``)."""
    here = Path(__file__).parent
    for item in items:
        folder, *rest = item.path.relative_to(here).parts
        group = "slurm" if folder in _ON_SLURM else "/".join((folder, *rest))
        item.add_marker(pytest.mark.xdist_group(group))
