"""Ranks share a model in shards if the site, its profile or the order asks for it."""

import pytest

from consortium.canonical import replace
from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig
from site_agent.trainer.sharing import sharding_of


@pytest.mark.parametrize(
    ("site", "is_asked", "world", "found"),
    [
        ("none", False, 4, "none"),
        ("none", True, 4, "fsdp"),
        ("hsdp", True, 4, "hsdp"),
        ("fsdp", False, 2, "fsdp"),
        ("fsdp", True, 1, "none"),
    ],
)
def test_the_site_comes_first_then_the_order(site, is_asked, world, found):
    assert sharding_of(site, is_asked, world) == found


def test_a_site_that_is_silent_does_as_its_profile_says():
    address = "coordinator.example.eu:7443"
    config = SiteConfig(
        site="sofia",
        coordinator=address,
        enrolment=address,
        home="home",
        launcher="slurm",
        slurm=SiteProfile(sharding="hsdp"),
    )
    assert config.sharding_of_job == "hsdp"
    assert replace(config, sharding="none").sharding_of_job == "none"
    assert replace(config, launcher="local").sharding_of_job == "none"
