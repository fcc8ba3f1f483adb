"""An admin whose wishes come at the worst of moments: between a round's merge and its verdict.

They drain every site as a round is collected, so that nobody could score its candidate, and think better of it while
the gate already judges; they move the head, so that a verdict speaks of a base that is no longer it.
"""

import asyncio
import contextlib
from typing import Any, Literal

from consortium.errors import SprachbundError
from consortium.ids import CampaignId
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.driver import Driver
from simulation.loop import Process
from simulation.streams import stream

_AT_ONCE_SECONDS = 1.0
_BETTER_SECONDS = 6.0  # after the candidate is there: a verdict takes longer


class Whims:
    """share: of the rounds in which they have one"""

    def __init__(self, seed: int, share: float) -> None:
        self._share, self._dice = share, stream(seed, "whims")

    def join(self, driver: Driver, process: Process) -> None:
        """Hear what this coordinator decides."""
        if not self._share:
            return
        execute = driver.execute

        def wish(seconds: float, *commands: cm.Command) -> None:
            process.spawn(_wished(execute, seconds, commands))

        def executed(command: Any) -> Any:
            decision = execute(command)
            for event in decision.events:
                if isinstance(event, ev.RoundCollected) and self._dice.random() < self._share:
                    wish(_AT_ONCE_SECONDS, *_set(driver, "draining"))
                elif isinstance(event, ev.VersionMade) and event.role == "candidate":
                    wish(_BETTER_SECONDS, *_set(driver, "enrolled"))
                    if self._dice.random() < self._share:
                        wish(_BETTER_SECONDS, *self._moved(driver, event.campaign))
            return decision

        driver.execute = executed  # type: ignore[method-assign]

    def _moved(self, driver: Driver, campaign: CampaignId) -> list[cm.Command]:
        """Another head: an older one, the newest candidate, or one that was never promoted."""
        versions = sorted(driver.state.campaigns[campaign].versions.values(), key=lambda one: one.number)
        never = [version for version in versions if version.status != "promoted"]
        choice = never if never and self._dice.random() < 0.5 else versions
        version = choice[int(self._dice.random() * len(choice))]
        verb: Literal["promote", "roll_back"] = "promote" if self._dice.random() < 0.3 else "roll_back"
        return [cm.MoveHead(campaign=campaign, version=version.name, verb=verb, reason="a whim")]


def _set(driver: Driver, status: Literal["enrolled", "draining"]) -> list[cm.Command]:
    other = {"enrolled": "draining", "draining": "enrolled"}[status]
    sites = sorted(name for name, site in driver.state.sites.items() if site.status == other)
    return [cm.SetSite(site=name, status=status, reason="a whim") for name in sites]


async def _wished(execute: Any, seconds: float, commands: tuple[cm.Command, ...]) -> None:
    await asyncio.sleep(seconds)
    for command in commands:
        with contextlib.suppress(SprachbundError):  # no longer possible
            execute(command)
