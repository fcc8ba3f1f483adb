"""Sites that carry each other's parcels: what one sends up goes under another's name, who holds a job of its own."""

from collections.abc import Sequence
from pathlib import Path

from consortium.errors import SprachbundError
from simulation.network import Channel, Network
from simulation.sites import SiteHost
from simulation.streams import stream
from site_agent.identity import SiteIdentity


class Lenders:
    """share: of the uploads that go another's way"""

    def __init__(self, network: Network, sites: Sequence[SiteHost], share: float, seed: int) -> None:
        self._network, self._sites, self._share = network, sites, share
        self._dice = stream(seed, "lent")

    def lend(self, channel: Channel) -> Channel:
        """The channel that an upload really takes."""
        place = channel.wire.place
        if (
            not self._share
            or place not in {site.plan.name for site in self._sites}
            or self._dice.random() >= self._share
        ):
            return channel
        others = [site for site in self._sites if site.plan.name != place]
        other = others[int(self._dice.random() * len(others))]
        try:
            identity = SiteIdentity.load(Path(other.config.home))
        except SprachbundError:
            return channel
        wire = self._network.wires[other.plan.name]
        own = identity.credentials
        return Channel(self._network, wire, channel.process, channel.target, own, channel.program)
