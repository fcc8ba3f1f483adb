"""What a simulated machine lends to the programs on it: clock, dice, keys, disk.

``inhabited`` puts stand-ins for ``time``, ``random``, ``secrets`` and ``os`` into the modules of the product, and takes
them away again. Each asks which process is running, so every host has a clock and dice of its own; nobody else in
this interpreter notices.
"""

import asyncio
import contextlib
import errno
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from simulation.loop import Process, current
from simulation.streams import stream

_OURS = ("consortium", "coordinator", "site_agent", "policies")
_CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # P-256, FIPS 186-4


class Host:
    """A machine with a clock of its own, dice of its own, and a disk that may be full."""

    def __init__(self, name: str, seed: int, began_at: float, skew_seconds: float = 0.0) -> None:
        self.name = name
        self.skew = skew_seconds
        self.dice = stream(seed, "host", name)
        self.disk_is_full = False
        self.dates_files = False  #: whether what is written is as old as this clock says
        self.refused_at = float("-inf")  #: when its full disk last took no more, by the loop's clock
        self.writes = 0  #: that its disk was asked for so far
        self._began_at = began_at

    @property
    def true_time(self) -> float:
        return self._began_at + asyncio.get_running_loop().time()

    def clock(self) -> float:
        return self.true_time + self.skew


class Machine:
    """Answers for the host whose process is running; ``ground`` where none is."""

    def __init__(self, ground: Host, seed: int) -> None:
        self.ground = ground
        self._keys = stream(seed, "keys")

    @property
    def host(self) -> Host:
        process = current()
        return process.host if process is not None else self.ground

    @property
    def dice(self) -> Random:
        return self.host.dice

    def new_key(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self._keys.randrange(1, _CURVE_ORDER), ec.SECP256R1())

    def new_ledger_key(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self._keys.randbytes(32))

    def random_serial_number(self) -> int:
        return self._keys.getrandbits(159)

    def write(self, torn: Callable[[], None] = lambda: None) -> None:
        """Before the disk does something: it may be full, and this may be the last that the process does."""
        process = current()
        if process is None:
            return
        host: Host = process.host
        host.writes += 1
        if host.disk_is_full:
            host.refused_at = asyncio.get_running_loop().time()
            raise OSError(errno.ENOSPC, "No space left on device (simulated)")
        self.moment(torn)

    def moment(self, torn: Callable[[], None] = lambda: None) -> None:
        """Between two things that the process does: perhaps it never does the second."""
        process = current()
        if process is None:
            return
        if not process.alive:  # it died in a try block, and this is its finally
            process.die()
        if process.writes_left is not None:
            process.writes_left -= 1
            if process.writes_left <= 0:
                if process.tears:
                    torn()
                process.die()


class _StandIn:
    """A module, but for what is said of it here."""

    def __init__(self, real: Any, **instead: Any) -> None:
        self.__dict__.update(vars(real))  # looked up a thousand times a second
        self.__dict__.update(instead)


def _clock(machine: Machine) -> _StandIn:
    def monotonic() -> float:
        return asyncio.get_running_loop().time()

    def sleep(seconds: float) -> None:
        raise AssertionError("a shell sleeps in the only thread there is")

    now = {"monotonic": monotonic, "perf_counter": monotonic}
    return _StandIn(time, time=lambda: machine.host.clock(), sleep=sleep, **now)


def _random(machine: Machine) -> _StandIn:
    return _StandIn(random, uniform=lambda low, high: machine.dice.uniform(low, high))


def _secrets(machine: Machine) -> _StandIn:
    def token_hex(size: int = 32) -> str:
        return machine.dice.randbytes(size).hex()

    return _StandIn(secrets, token_hex=token_hex, token_urlsafe=token_hex)


def _os(machine: Machine) -> _StandIn:
    """Every fsync and rename of the product passes here: the moments at which a crash can be told from another."""

    def fsync(file: int) -> None:
        def tear() -> None:
            with contextlib.suppress(OSError):
                os.ftruncate(file, os.fstat(file).st_size * 2 // 3)

        machine.write(tear)
        if machine.host.dates_files:
            utime(file)

    def utime(path: Any, times: tuple[float, float] | None = None) -> None:
        now = machine.host.clock()
        os.utime(path, (now, now) if times is None and machine.host.dates_files else times)

    def replace(source: Any, target: Any) -> None:
        machine.write()
        os.replace(source, target)

    def pwrite(file: int, data: Any, offset: int) -> int:
        machine.write()
        return os.pwrite(file, data, offset)

    return _StandIn(os, fsync=fsync, replace=replace, pwrite=pwrite, utime=utime)


@contextlib.contextmanager
def inhabited(machine: Machine, *more: tuple[str, str, Any]) -> Iterator[None]:
    """The product's modules on this machine until the block ends.

    more  (module, name, what it is here), for what only the world can stand in for
    """
    modules = {os: _os(machine), time: _clock(machine), random: _random(machine), secrets: _secrets(machine)}
    stand_ins: dict[int, Any] = {id(real): instead for real, instead in modules.items()}
    keys = {"new_key": machine.new_key, "new_ledger_key": machine.new_ledger_key}
    undone: list[tuple[Any, str, Any]] = []

    def put(module: Any, name: str, value: Any) -> None:
        undone.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    try:
        for module_name, module in sorted(sys.modules.items()):
            if module is None or module_name.partition(".")[0] not in _OURS:
                continue
            names = vars(module)
            lent = {name: stand_ins[id(value)] for name, value in names.items() if id(value) in stand_ins}
            lent |= {name: key for name, key in keys.items() if name in names}
            for name, value in lent.items():
                put(module, name, value)
        identity = sys.modules["consortium.identity"]
        put(identity, "x509", _StandIn(x509, random_serial_number=machine.random_serial_number))
        for module_name, name, value in more:
            put(sys.modules[module_name], name, value)
        yield
    finally:
        for module, name, value in reversed(undone):
            setattr(module, name, value)


def kill_soon(process: Process, dice: Random, at_a_write: bool, tears: bool = False) -> None:
    """Within the process's next steps, or its next writes: where exactly, the dice say."""
    if at_a_write:
        process.writes_left, process.tears = 1 + int(dice.random() * 12), tears
    else:
        process.steps_left = 1 + int(dice.random() * 40)
