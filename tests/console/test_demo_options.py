"""What the demo's --slurm options say to each site's config."""

from pathlib import Path

import pytest

from console.demo import SITES, consortium_at, slurm_of_sites
from consortium.errors import BadInput
from site_agent.config import load_site_config

LICENCES = {"private": "Apache-2.0", "public": "Apache-2.0"}


def test_an_option_reaches_all_sites_or_one() -> None:
    said = slurm_of_sites(["partition=debug", "south:account=aegean", "south:nodes=2"])
    assert {name: said[name]["partition"] for name in said} == {site.name: "debug" for site in SITES}
    assert said["south"]["account"] == "aegean" and said["south"]["nodes"] == 2
    assert "account" not in said["north"]


@pytest.mark.parametrize("option", ["partition", "=debug", "nowhere:partition=debug", "south:=debug", ""])
def test_other_spellings_are_refused_with_the_way_out(option: str) -> None:
    with pytest.raises(BadInput, match=r"KEY=VALUE.*north, west, centre, south"):
        slurm_of_sites([option])


def test_site_configs_carry_the_profile_and_can_be_loaded(tmp_path: Path) -> None:
    said = slurm_of_sites(["walltime_minutes=7"])
    here = consortium_at(tmp_path, {"north": said["north"]})
    here.write_files(LICENCES)
    north = load_site_config(here.site_file("north"))
    assert north.launcher == "slurm" and north.slurm is not None
    assert (north.slurm.walltime_minutes, north.slurm.memory) == (7, "2G")
    assert load_site_config(here.site_file("west")).launcher == "local"
