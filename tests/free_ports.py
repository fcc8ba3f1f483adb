"""Where may a program that a test starts listen? On a port that nobody else takes before it does.

A port that the kernel gave and that was closed again is free for all: another test's server, or anybody's outgoing
connection. So ours lie below those that the kernel gives, and each is marked as taken while this process lives.
"""

import random
import socket
from pathlib import Path

_LOWEST = 20_000
_marks: list[socket.socket] = []  #: names without a file, which the kernel forgets with the process: unix(7)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no other process asking here gets."""
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
        _marks.append(mark)
        return port
    raise AssertionError("no port is free")
