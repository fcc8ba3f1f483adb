"""Releases at most one minor version apart work together."""

import pytest

from consortium.releases import misfit


@pytest.mark.parametrize("agent", ["0.2.0", "0.2.9", "0.1.0", "0.3.1", "0.3.0rc1", "script", "", "0.2"])
def test_neighbours_fit_and_builds_of_ones_own_are_not_judged(agent):
    assert misfit(agent, "0.2.5") == ""


@pytest.mark.parametrize(
    ("agent", "who"), [("0.0.9", "agent"), ("0.4.0", "coordinator"), ("1.2.0", "coordinator")]
)
def test_the_older_one_is_to_be_upgraded(agent, who):
    assert misfit(agent, "0.2.5").endswith(f"apart; upgrade the {who}")
