"""`site clean` at a site behind SSH: what lies at the site goes, too. Its shell is this machine's; the line is none.

tests/ssh has a real sshd: ``test_ssh_files.py``.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consortium.errors import Unavailable
from consortium.ids import Language, SiteName, digest_of
from site_agent import cleaning as cleaning_module
from site_agent.cleaning import Cleaned, clean
from site_agent.config import SiteConfig, Text
from site_agent.core.cleaning import Cleaning
from site_agent.ssh.files import SshFiles
from site_agent.ssh.session import Answer
from site_agent.ssh.settings import Ssh

USED, OLD, PART = (digest_of(name) for name in (b"used", b"old", b"part"))


class Shell:
    """In a connection's place. Nobody can make a file's ctime old, so all files are: as young as ``newest`` says."""

    host = "login.north.example"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.is_down = False
        self.newest = "-1000"  # minutes, as find says them: whatever is younger

    def run(
        self, script: str, arguments: Sequence[str] = (), stdin: bytes = b"", timeout: float = 90.0
    ) -> Answer:
        if self.is_down:
            raise Unavailable(f"{self.host}: the line is down")
        self.asked.append(list(arguments))
        root, minutes, verb = arguments
        done = subprocess.run(
            ["sh", "-c", script, "sh", root, minutes.replace("+10080", self.newest), verb],
            input=stdin, capture_output=True,
        )  # fmt: skip
        return Answer(rc=done.returncode, out=done.stdout, err=done.stderr)


class Site:
    def __init__(self, folder: Path) -> None:
        self.root, self.shell = folder / "there", Shell()
        self.cache, job = self.root / "cache", self.root / "jobs" / "demo" / "demo.a1"
        job.mkdir(parents=True)
        self.cache.mkdir()
        for name in (USED, OLD, f"{PART}.part"):
            (self.cache / name).write_bytes(b"x" * 1000)
        (job / "model.safetensors").hardlink_to(self.cache / USED)
        connection: Any = self.shell
        self.settings = Ssh(host=self.shell.host, root=str(self.root))
        self.files = SshFiles(connection, folder / "home" / "spool", str(self.root))
        self.config = SiteConfig(
            site=SiteName("north"),
            coordinator="127.0.0.1:1",
            enrolment="127.0.0.1:2",
            home=str(folder / "home"),
            text=(Text(language=Language("fi"), path="fi.jsonl", access="private", licence="CC0-1.0"),),
            cleaning=Cleaning(keep_hours=168.0),
        )

    def clean(self, dry_run: bool = False) -> Cleaned:
        return clean(self.config, time.time(), dry_run)

    def names(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setattr(cleaning_module, "remote_site", lambda config: made)
    return made


def test_what_no_job_at_the_site_has_used_for_long_goes_there(site: Site) -> None:
    shown = site.clean(dry_run=True)
    assert site.names() == {USED, OLD, f"{PART}.part"}
    done = site.clean()
    assert site.names() == {USED}
    assert [(one.kind, one.bytes) for one in done.gone] == [("cache", 1000)] * 2 and done.bytes == 2000
    assert [one.name for one in shown.gone] == [one.name for one in done.gone]
    assert {one.name for one in done.gone} == {f"{site.cache}/{OLD}", f"{site.cache}/{PART}.part"}
    assert "keep_hours 168" in done.gone[0].reason and not done.trouble
    assert site.shell.asked == [
        [str(site.root), "+10080", "show"],
        [str(site.root), "+10080", "delete"],
    ]  # a week, in minutes
    assert site.clean().gone == ()


def test_what_is_younger_stays(site: Site) -> None:
    site.shell.newest = "+1000"
    assert site.clean().gone == () and len(site.names()) == 3


def test_a_line_that_is_down_is_said_and_the_home_is_cleaned(site: Site) -> None:
    site.shell.is_down = True
    log = Path(site.config.home) / "logs" / "demo_r1-train-north.a1.txt"
    log.parent.mkdir(parents=True)
    log.write_text("over")
    os.utime(log, (1.0, 1.0))
    done = site.clean()
    assert not log.exists() and [one.kind for one in done.gone] == ["log"]
    assert done.trouble == f"{site.root} at the site: login.north.example: the line is down"


def test_a_site_where_nothing_ever_ran_has_nothing(site: Site) -> None:
    for path in (*site.cache.iterdir(), site.cache):
        path.rmdir() if path.is_dir() else path.unlink()
    assert site.clean().gone == ()


@pytest.mark.parametrize("line", ["12 ../../etc/passwd", "x " + OLD, OLD, "7 " + OLD.upper(), "-1 " + OLD])
def test_a_site_cannot_say_that_something_else_went(
    site: Site, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        site.shell, "run", lambda *words: Answer(rc=0, out=f"{line}\n".encode(), err=b""), raising=True
    )
    done = site.clean()
    assert done.gone == () and "is no file of" in done.trouble


def test_a_file_that_cannot_be_deleted_there_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        site.shell,
        "run",
        lambda *words: Answer(rc=1, out=b"", err=b"rm: cannot remove: Read-only file system"),
    )
    assert "Read-only file system" in site.clean().trouble
