"""Everybody on a login node can reach the agent's metrics; nobody can make it spend itself on them."""

import contextlib
import socket
import threading
import urllib.error
import urllib.request

import pytest

from site_agent.health import Health
from site_agent.told import Told


@pytest.fixture
def health():
    made = Health(0, lambda: Told(site="sofia", release="1.0.0", mode="work", slots=1))
    yield made
    made.close()


def get(health: Health, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}", timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_connections_without_end_take_so_many_threads_and_no_more(health: Health) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as open_ones:
        for _ in range(40):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", health.port), timeout=60))
        last = open_ones.enter_context(socket.create_connection(("127.0.0.1", health.port), timeout=60))
        assert last.recv(1) == b""  # hung up on, so all before it were looked at
        assert threading.active_count() - before <= 16


def test_only_what_is_offered_is_answered(health: Health) -> None:
    assert [get(health, path) for path in ("/metrics", "/healthz?x=1", "/readyz")] == [200, 200, 503]
    for path in ("/", "/../../etc/passwd", "/metrics/../x", "/%2e%2e/"):
        assert get(health, path) == 404
    for method in ("POST", "PUT", "DELETE", "CONNECT"):
        request = urllib.request.Request(f"http://127.0.0.1:{health.port}/metrics", method=method)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=60)
        assert refusal.value.code == 501
        refusal.value.close()
