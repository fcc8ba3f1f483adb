"""Contributions are scored before they are merged, by the sites, over the wire; and an auditor finds the same."""

from pathlib import Path

from real_coordinator import SITES, Consortium, campaign
from scripted_sites import ScriptedSite, at_work

from consortium.jobs import Assignment, Evaluate
from coordinator.verification import verify
from policies.campaign import Admission, Quorum
from site_agent.core.facts import Report


class Judge(ScriptedSite):
    """Finds every delta better than its base, but the one of plovdiv much worse."""

    async def carry_out(self, assignment: Assignment) -> Report:
        self._quality = {}
        if "-check-" in assignment.job and isinstance(assignment.work, Evaluate):
            base, subject = (one.name for one in assignment.work.subjects)
            self._quality = {base: 1.0, subject: 1.5 if "-plovdiv-by-" in assignment.job else 0.9}
        return await super().carry_out(assignment)


async def test_who_is_found_worse_is_not_merged(consortium: Consortium, base: Path) -> None:
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(*(Judge(consortium, name) for name in SITES)):
            spec = campaign(
                base, rounds=1, admission=Admission(loss_check="decide"), quorum=Quorum(minimum=1)
            )
            await admin.submit(spec)
            ended = await admin.until_ended("demo")
        story = await admin.why("demo/r1")
    assert ended.status == "completed" and ended.versions[-1].contributions == 2
    (collected,) = (line for line in story if "collected 2 contribution(s)" in line)
    assert "demo_r1-train-plovdiv: left out, loss of its own languages with it: +50.00% at sofia" in collected
    assert "demo_r1-train-sofia: loss of its own languages with it: -10.00% at plovdiv" in collected
    assert "demo_r1-train-ohrid: loss of its own languages with it: -10.00% at ohrid" in collected
    report = verify(consortium.home)
    assert report.problems == () and report.checked["contribution"] == 3 + 3 + 3  # deltas, checks, gate
