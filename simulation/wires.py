"""What lies between a site and the coordinator: how long bytes take, which of them arrive, and when nothing passes."""

import asyncio

from simulation.draws import lognormal
from simulation.streams import stream
from simulation.weather import Weather, fault_named

#: How long a caller waits before it knows that nobody is there: gRPC's own keepalive and connection timeouts.
SILENCE_SECONDS = 50.0
_BROKEN_SECONDS = 20.0  # at most, until a caller notices that its message was lost
_OVERTAKEN_SECONDS = 120.0  # median of how late an overtaken message comes


class Wire:
    """One site's way to the coordinator. Bytes are those of the simulated world, where models have their full size."""

    def __init__(
        self, place: str, seed: int, weather: Weather, latency_ms: float, up_mbps: float, down_mbps: float
    ) -> None:
        self.place = place
        self.weather = weather
        self.dice = stream(seed, "wire", place)
        self.is_cut = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self.faults: dict[str, int] = {}  #: that fell, by kind
        self.fallen: list[str] = []  #: the same by name
        self._drawn: dict[str, int] = {}
        self._latency = latency_ms / 1000.0
        self._speed = {"up": up_mbps * 1e6 / 8.0, "down": down_mbps * 1e6 / 8.0}
        self._busy_until = {"up": 0.0, "down": 0.0}

    def trip_seconds(self, size: int) -> float:
        """Of a small message, one way."""
        seconds = self._latency + size / self._speed["up"]
        weather = self.weather
        if weather.delay_seconds:
            seconds += lognormal(self.dice, weather.delay_seconds, weather.delay_sigma)
        if self._chance("reordered", weather.reorder):
            seconds += lognormal(self.dice, _OVERTAKEN_SECONDS, 1.0)
        return seconds

    def occupy(self, size: int, way: str) -> float:
        """Seconds until a piece of a stream has left; streams share the wire, one piece after the other."""
        now = asyncio.get_running_loop().time()
        self._busy_until[way] = max(now, self._busy_until[way]) + size / self._speed[way]
        if way == "up":
            self.sent_bytes += size
        else:
            self.received_bytes += size
        return self._busy_until[way] - now

    @property
    def latency(self) -> float:
        return self._latency

    def loses(self) -> bool:
        return self._chance("lost", self.weather.loss)

    def repeats(self) -> bool:
        return self._chance("repeated", self.weather.repeat)

    def notice_seconds(self) -> float:
        """Until a caller notices that a message of its was lost."""
        return 1.0 + self.dice.random() * _BROKEN_SECONDS

    def _chance(self, fault: str, share: float) -> bool:
        if not share or self.dice.random() >= share:
            return False
        self._drawn[fault] = self._drawn.get(fault, 0) + 1
        name = fault_named(fault, self.place, self._drawn[fault])
        if not self.weather.lets_fall(name, asyncio.get_running_loop().time() / 3600.0):
            return False
        self.faults[fault] = self.faults.get(fault, 0) + 1
        self.fallen.append(name)
        return True
