"""An sshd of our own on loopback, and a site behind it."""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from breakable_line import Wire
from free_ports import free_port

from consortium.canonical import replace
from site_agent.ssh.connection import Connection
from site_agent.ssh.settings import Ssh

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
AuthorizedKeysFile {folder}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding yes
Banner {folder}/banner
{more}
"""


class Sshd:
    """A server; ``start`` and ``stop`` as tests like."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.more = ""
        self.new_host_key()
        key_pair(folder / "user")
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "banner").write_text("All use is watched.\n")
        self._process: subprocess.Popen | None = None

    def new_host_key(self) -> None:
        for path in self.folder.glob("host*"):
            path.unlink()
        key_pair(self.folder / "host")

    @property
    def host_key(self) -> str:
        return " ".join((self.folder / "host.pub").read_text().split()[:2])

    def start(self) -> None:
        config = self.folder / "sshd_config"
        config.write_text(CONFIG.format(port=self.port, folder=self.folder, more=self.more))
        log = open(self.folder / "sshd.log", "ab")
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert self._process.poll() is None, (self.folder / "sshd.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def key_pair(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@dataclass
class LoopbackSite:
    """A site behind SSH."""

    sshd: Sshd
    wire: Wire
    settings: Ssh
    sockets: Path
    root: Path
    known_hosts: Path

    def connect(self, **changes) -> Connection:
        """Another process's view of the same connection."""
        return Connection(self.settings, folder=self.sockets, **changes)

    def close(self) -> None:
        self.connect().close()
        self.wire.close()

    def another_line(self) -> "LoopbackSite":
        """Another way to the same machine, with a connection of its own."""
        wire = Wire(self.sshd.port)
        with open(self.known_hosts, "a") as file:
            file.write(f"[127.0.0.1]:{wire.port} {self.sshd.host_key}\n")
        settings = replace(self.settings, port=wire.port)
        return LoopbackSite(self.sshd, wire, settings, self.sockets, self.root, self.known_hosts)

    def know(self, key: str) -> None:
        self.known_hosts.write_text(f"[127.0.0.1]:{self.wire.port} {key}\n")


def site_of(sshd: Sshd, tmp_path: Path, sockets: Path, root: Path | None = None) -> LoopbackSite:
    wire = Wire(sshd.port)
    known = tmp_path / "known hosts"  # with a blank, as paths have
    root = root or tmp_path / "at the site's"
    settings = Ssh(
        host="127.0.0.1",
        port=wire.port,
        root=str(root),
        identity_file=str(sshd.folder / "user"),
        known_hosts=str(known),
        config_file="/dev/null",
    )
    site = LoopbackSite(sshd, wire, settings, sockets, root, known)
    site.know(sshd.host_key)
    return site
