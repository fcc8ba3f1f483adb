"""Where may a program that a test starts listen? On a port that nobody else takes before it does.

A port that the kernel gave and that was closed again is free for all: another test's server, or anybody's outgoing
connection; and so is one on which a server listened that is to be started once more. So ours lie below those that
the kernel gives, and each is marked as taken while this process, or whoever asked for it, lives.
"""

import random
import socket
import weakref
from pathlib import Path

_LOWEST = 22_000  # a Slurm job's ranks meet at 20,000 and its number, and our cluster counts from 1
_marks: list[socket.socket] = []  #: names without a file, which the kernel forgets with the process: unix(7)


def free_port(owner: object = None) -> int:
    """A TCP port of 127.0.0.1 that nobody else asking here gets, as long as ``owner`` is there."""
    above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert above > _LOWEST + 1000
    for port in random.SystemRandom().sample(range(_LOWEST, above), 1000):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0sprachbund-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        if owner is None:
            _marks.append(mark)
        else:
            weakref.finalize(owner, mark.close)
        return port
    raise AssertionError("no port is free")
