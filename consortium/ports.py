"""Where may a program listen that starts only later, or is started again? On a port that nobody else takes before.

A port that the kernel gave and that was closed again is free for all: another program's server, or anybody's outgoing
connection; and so is one on which a server listened that is to be started once more. So ours lie below those that the
kernel gives, and each is marked as taken while this process, or whoever asked for it, lives. Linux only.
"""

import random
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path

from consortium.errors import Unavailable

_HOST = "127.0.0.1"
_LOWEST = 22_000  # a Slurm job's ranks meet at 20,000 and its number, and a small cluster counts from 1
_ABOVE = 32_768  # Linux's default for the lowest that the kernel gives
_FEWEST = 1000  # to choose from; a machine whose kernel gives nearly all of them shares them with it
_MARK = "\0sprachbund-port-"
_marks: list[socket.socket] = []  #: names without a file, which the kernel forgets with the process: unix(7)


def free_port(owner: object = None) -> int:
    """A TCP port of 127.0.0.1 that nobody else asking here gets as long as ``owner``, or this process, is there.

    Raises Unavailable if there is none.
    """
    return free_row(1, owner)


def free_row(count: int, owner: object = None) -> int:
    """The first of so many such ports in a row."""
    ours = _ours()
    firsts = ours[: len(ours) - count + 1]
    for first in random.SystemRandom().sample(firsts, min(_FEWEST, len(firsts))):
        marks = _marked(range(first, first + count))
        if not marks:
            continue
        if owner is None:
            _marks.extend(marks)
        else:
            weakref.finalize(owner, _forget, marks)
        return first
    raise Unavailable(f"{_HOST}: no port from {ours[0]} to {ours[-1]} is free; end what listens there")


def _marked(ports: range) -> list[socket.socket]:
    """The marks of all of them; none if one is taken."""
    marks: list[socket.socket] = []
    try:
        for port in ports:
            marks.append(socket.socket(socket.AF_UNIX))
            marks[-1].bind(f"{_MARK}{port}")
            with socket.socket() as probe:
                probe.bind((_HOST, port))
    except OSError:
        _forget(marks)
        return []
    return marks


def _forget(marks: list[socket.socket]) -> None:
    for mark in marks:
        mark.close()


def _ours() -> Sequence[int]:
    """Those that may be chosen."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return range(_LOWEST, given if given >= _LOWEST + _FEWEST else _ABOVE)
