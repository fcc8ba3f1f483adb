"""The Ray that Flower's simulation needs runs whatever code it is sent: by this process, and by nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.flower import engine

PROGRAM = """
import json, os, subprocess, sys
from pathlib import Path
from simulation.flower.engine import ray_at_work

def listening():
    '''Addresses on which this process and all that Ray started listen, hexadecimal as the kernel says them.'''
    token, inodes = os.environ["RAY_AUTH_TOKEN"].encode(), set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.name != str(os.getpid()) and token not in (place / "environ").read_bytes():
                continue
            inodes.update(os.readlink(one)[len("socket:["):-1] for one in (place / "fd").iterdir())
        except OSError:
            pass
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return sorted(fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes)

ASK = "import ray, sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)"

with ray_at_work(1):
    import ray
    three = ray.get(ray.remote(lambda: 1 + 2).remote())  # a worker listens, too
    place = ray.get_runtime_context().gcs_address
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    wrong = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    told = [
        subprocess.run([sys.executable, "-c", ASK, place], env=env, capture_output=True, text=True)
        for env in (plain, wrong, dict(os.environ))
    ]
    print(json.dumps([three, listening(), [one.returncode for one in told], [one.stderr for one in told]]))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ray_listens_on_the_loopback_address_alone_and_to_nobody_without_its_token() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    three, places, codes, said = json.loads(done.stdout.splitlines()[-1])
    assert three == 3 and len(places) >= 4  # control store, raylet, a worker, this process
    assert set(places) <= LOOPBACK
    assert codes == [1, 1, 0], said
    assert all("InvalidAuthToken" in words for words in said[:2])


def test_rays_environment_says_so_whatever_its_users_says_and_only_for_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    tokens = set()
    for _ in range(2):
        with engine._for_nobody_else():
            assert os.environ["RAY_AUTH_MODE"] == "token"
            assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)


def test_a_ray_that_has_read_its_environment_before_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    with pytest.raises(AssertionError, match="would not read what is set here"):
        with engine.ray_at_work(1):
            pass
