"""The ports of a consortium on one machine are its own from when they are chosen, whoever listens there yet."""

import socket
from pathlib import Path

import pytest

from consortium import ports
from consortium.errors import Unavailable
from consortium.ports import free_port, free_row


class Owner:
    """Somebody who will listen."""


def test_nobody_else_gets_a_port_until_its_owner_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    us = Owner()
    three = sorted(free_port(us) for _ in range(3))  # so that no other test's program comes between
    monkeypatch.setattr(ports, "_MARK", "\0sprachbund-port-of-this-test-")
    monkeypatch.setattr(ports, "_ours", lambda: three)
    owners = [Owner(), Owner()]
    first, second = free_port(owners[0]), free_port(owners[1])
    [third] = {*three} - {first, second}
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", third))
        with pytest.raises(Unavailable, match=f"no port from {three[0]} to {three[2]} is free; end what"):
            free_port()
        owners.pop()
        assert free_port(owners[0]) == second


def test_a_row_is_taken_as_a_whole_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_row(5, us := Owner())
    monkeypatch.setattr(ports, "_MARK", "\0sprachbund-port-of-another-test-")
    monkeypatch.setattr(ports, "_ours", lambda: range(first, first + 5))
    middle = Owner()
    monkeypatch.setattr(ports, "_FEWEST", 5)
    one = free_port(middle)
    with pytest.raises(Unavailable):
        free_row(5, us)
    del middle
    assert free_row(5, us) == first <= one
    with pytest.raises(Unavailable):
        free_port()


def test_the_kernel_gives_them_to_nobody() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest < ports._LOWEST + ports._FEWEST:
        pytest.skip("this machine's kernel gives nearly all ports")
    assert free_port(Owner()) < lowest
