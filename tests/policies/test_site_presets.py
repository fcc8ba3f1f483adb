"""Are the shipped site presets whole, and honest about what nobody has verified?"""

import pytest

from policies.presets import read_preset
from policies.site_profile import FOLDER, load_profile, profile_names

SITES = ("jupiter", "karolina", "leonardo", "lumi", "marenostrum5", "snellius")
ABOUT = {"description", "unverified", "sources", "notes"}  #: of the preset itself, not of the site's Slurm


def test_all_six_sites_and_any_other_have_a_preset() -> None:
    assert set(profile_names()) == {*SITES, "generic"}


@pytest.mark.parametrize("name", profile_names())
def test_a_preset_loads_and_fits_the_site(name: str) -> None:
    profile = load_profile(name)
    assert profile.description
    assert profile.walltime_minutes <= (profile.walltime_minutes_max or profile.walltime_minutes)
    assert profile.signal_seconds < profile.walltime_minutes * 60 / 2
    assert profile.account == "" and profile.python == "" and profile.container is None  # each user's own


@pytest.mark.parametrize("name", SITES)
def test_what_is_unverified_is_said_to_be(name: str) -> None:
    given = set(read_preset(FOLDER, "slurm", name).value)
    profile = load_profile(name)
    assert set(profile.unverified) <= given - ABOUT, "only a value that is there can be doubtful"
    assert len(set(profile.unverified)) == len(profile.unverified)
    assert profile.sources and "Nobody has tried this" in profile.notes
    # Advice of ours about jobs is never a site's own word.
    ours = {"signal_seconds", "requeue", "poll_seconds", "environment"}
    assert given & ours <= set(profile.unverified)
