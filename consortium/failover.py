"""Which of several coordinators a party speaks with: the one that leads.

``Failover`` is a channel to a list of addresses, used like any other. As a context it asks all of them first who leads;
without, the first in the order written is tried. A call goes to one of them. If nobody answers
there, or a coordinator that stands by, the next call goes to the next address; whoever calls tries again anyway. Who
answered last is remembered for all channels of the process.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STANDS_BY = "sprachbund-stands-by"  #: in trailing metadata: another coordinator leads, nothing has been done
_DETAILS = "grpc-status-details-bin"  # in trailing metadata: a coordinator said it, not the connection
#: who leads may be busy for seconds, and a command waits as long only if nobody says that it leads
_ASK_SECONDS = 10.0
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def addresses(target: str) -> tuple[str, ...]:
    """The addresses of ``host:port,host:port``, in order."""
    return tuple(part.strip() for part in target.split(",") if part.strip())


class Failover(grpc.aio.Channel):  # type: ignore[misc]  # grpc carries no types
    """A channel to whichever of several coordinators leads."""

    _led_last: ClassVar[dict[tuple[str, ...], int]] = {}

    def __init__(self, targets: Sequence[str], open_one: Callable[[str], grpc.aio.Channel]) -> None:
        self._targets = tuple(targets)
        self._open_one = open_one
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._hearing: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        """The address that the next call goes to."""
        return self._targets[self._place]

    async def choose(self) -> None:
        """Ask all whether they lead, at once; if none says so, calls go where they would have gone."""
        asked = [asyncio.ensure_future(self._leads(place)) for place in range(len(self._targets))]
        try:
            for answer in asyncio.as_completed(asked):
                if (place := await answer) is not None:
                    self._led_last[self._targets] = place
                    return
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _leads(self, place: int) -> int | None:
        check = health_pb2_grpc.HealthStub(self._channel(place)).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=_ASK_SECONDS)
        except grpc.RpcError:
            return None
        return place if answer.status == health_pb2.HealthCheckResponse.SERVING else None

    # ---- as grpc.aio.Channel has it

    def unary_unary(self, *arguments: Any, **words: Any) -> Any:
        return self._multicallable("unary_unary", arguments, words)

    def unary_stream(self, *arguments: Any, **words: Any) -> Any:
        return self._multicallable("unary_stream", arguments, words)

    def stream_unary(self, *arguments: Any, **words: Any) -> Any:
        return self._multicallable("stream_unary", arguments, words)

    def stream_stream(self, *arguments: Any, **words: Any) -> Any:
        return self._multicallable("stream_stream", arguments, words)

    async def close(self, grace: float | None = None) -> None:
        for channel in self._channels.values():
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> Any:
        return self._channel(self._place).get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: Any) -> None:
        await self._channel(self._place).wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel(self._place).channel_ready()

    async def __aenter__(self) -> "Failover":
        await self.choose()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ---- inside

    @property
    def _place(self) -> int:
        return self._led_last.get(self._targets, 0)

    def _channel(self, place: int) -> grpc.aio.Channel:
        if place not in self._channels:
            self._channels[place] = self._open_one(self._targets[place])
        return self._channels[place]

    def _multicallable(self, kind: str, arguments: Any, words: Any) -> Callable[..., Any]:
        made: dict[int, Any] = {}

        def call(*given: Any, **how: Any) -> Any:
            place = self._place
            if place not in made:
                made[place] = getattr(self._channel(place), kind)(*arguments, **words)
            begun = made[place](*given, **how)
            begun.add_done_callback(lambda ended: self._hear(place, ended))
            return begun

        return call

    def _hear(self, place: int, ended: Any) -> None:
        if not ended.cancelled():
            task = asyncio.ensure_future(self._judge(place, ended))
            self._hearing.add(task)
            task.add_done_callback(self._hearing.discard)

    async def _judge(self, place: int, ended: Any) -> None:
        """Leave an address where nobody leads; what a leader itself refuses stays there."""
        if await ended.code() not in _ELSEWHERE or place != self._place:
            return
        marks = dict(await ended.trailing_metadata() or ())
        if STANDS_BY in marks or _DETAILS not in marks:
            self._led_last[self._targets] = (place + 1) % len(self._targets)
