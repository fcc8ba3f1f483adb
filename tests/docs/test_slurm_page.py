"""docs/slurm.md against the code: every key of a profile, every cause of an end, every file in the job directory."""

import msgspec
import pytest
from test_documents import check_table, rows, text_of

from policies.site_profile import SiteProfile
from site_agent.core.facts import Cause
from site_agent.launchers.slurm.notes import DOUBT_FILE, over_name, submitted_name
from site_agent.launchers.slurm.request import log_name, script_name
from site_agent.launchers.slurm.verdict import Patience


def test_every_key_of_a_profile_is_explained() -> None:
    wanted = {field.name: field.default for field in msgspec.structs.fields(SiteProfile)}
    check_table(rows("slurm.md", "Settings", 3), wanted)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.NEVER])
def test_every_cause_of_an_end_stands_in_the_table(cause: Cause) -> None:
    assert cause.value in text_of("slurm.md").split("## How its end is told")[1].split("## ")[0]


def test_the_files_are_named_as_they_are() -> None:
    for name in (script_name(0), log_name(0), submitted_name(0), over_name(0), DOUBT_FILE):
        assert name.replace(".0.", ".<life>.") in text_of("slurm.md")


def test_the_waits_are_those_of_the_code() -> None:
    patience = Patience()
    text = text_of("slurm.md")
    assert patience.held_seconds == 6 * 3600 and "never, after six hours" in text
    assert patience.objection_seconds == 24 * 3600 and "tried again for a day" in text
    assert patience.begin_seconds == 15 * 60 and "after 15 minutes nothing has begun" in text
    assert patience.lost_seconds == 10 * 60 and "after ten minutes node_failed" in text
    assert patience.requeue_seconds == 150 and "after two and a half minutes more" in text
    assert patience.account_seconds == 120 and "Two minutes after the end was first believed" in text
    assert patience.answers == 2 and "at the second look" in text
