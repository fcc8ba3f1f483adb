"""A real sshd on loopback with keys of its own, and a line to it that can be broken."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from loopback_sshd import SSHD, Sshd, site_of

for folder in ("agent", "slurm", "trainer"):  # launcher_contract, fake_slurm; cluster; trainer_samples
    sys.path.append(str(Path(__file__).parents[1] / folder))


def _missing() -> str:
    if SSHD is None or not shutil.which("ssh"):
        return "OpenSSH's server and client are not installed (apt install openssh-server openssh-client)"
    return ""


@pytest.fixture(scope="session")
def sshd_folder(tmp_path_factory):
    if reason := _missing():
        pytest.skip(reason)
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where sshd puts its unprivileged half
    return tmp_path_factory.mktemp("sshd")


@pytest.fixture(scope="session")
def shared_sshd(sshd_folder):
    folder = sshd_folder / "shared"
    folder.mkdir()
    sshd = Sshd(folder)
    sshd.more = f"SetEnv PYTHONPATH={Path(__file__).parents[2]}:{Path(__file__).parents[2] / 'protos'}"
    sshd.start()
    yield sshd
    sshd.stop()


@pytest.fixture
def own_sshd(sshd_folder, tmp_path):
    """One that this test may stop, or give another key."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    sshd = Sshd(folder)
    sshd.start()
    yield sshd
    sshd.stop()


@pytest.fixture
def sockets():
    """Sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="ssh") as folder:
        yield Path(folder)


@pytest.fixture
def site(shared_sshd, tmp_path, sockets):
    site = site_of(shared_sshd, tmp_path, sockets)
    yield site
    site.close()


@pytest.fixture
def own_site(own_sshd, tmp_path, sockets):
    site = site_of(own_sshd, tmp_path, sockets)
    yield site
    site.close()
