"""What the doctor finds, and that every failure has its way out and its code."""

import os
import socket
import time
from pathlib import Path

import pytest

from consortium.canonical import replace
from consortium.errors import BadInput, DiskFull, Unavailable
from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig, Text
from site_agent.doctor import disk, doctor
from site_agent.doctor.slurm import slurm_checks
from site_agent.launchers.slurm.commands import Completed
from site_agent.status import AgentStatus, write_status

PROFILE = SiteProfile(
    partition="gpu", account="p1", nodes=2, gpus_per_node=4, gpu_type="cuda", gpu_model="a100"
)
OK = {
    "sbatch -V": Completed(rc=0, out="slurm 24.11.5\n", err=""),
    "squeue": Completed(rc=0, out="", err=""),
    "sinfo -h -o %P|%a|%l|%D": Completed(rc=0, out="gpu*|up|1-00:00:00|63\n", err=""),
    "sinfo -h -o %G": Completed(rc=0, out="gpu:a100:4(S:0-1)\n(null)\n", err=""),
    "sbatch --test-only": Completed(
        rc=0, out="", err="sbatch: Job 5 to start at 1795345200 using 1 processors\n"
    ),
}


class Slurm:
    def __init__(self, **changed: Completed) -> None:
        self.answers = {**OK, **{key.replace("__", " "): value for key, value in changed.items()}}
        self.lines: list[str] = []
        self.stdin = b""

    def run(self, argv, *, stdin=b"", timeout=90.0):
        line = " ".join(argv)
        self.lines.append(line)
        if "--test-only" in argv:
            self.stdin = stdin
        return next(answer for start, answer in self.answers.items() if line.startswith(start))


def found(slurm: Slurm, profile: SiteProfile = PROFILE) -> dict:
    return {check.name: check for check in slurm_checks(profile, slurm, "/srv/home")}


def test_a_slurm_that_takes_our_jobs():
    slurm = Slurm()
    checks = found(slurm)
    assert all(check.is_good for check in checks.values())
    assert "24.11.5" in checks["slurm"].detail
    assert "63 nodes" in checks["partition"].detail
    assert "a job takes 4 on each of 2 nodes" in checks["gpus"].detail
    assert (
        "to start at 2026-11-22 11:00:00 UTC using" in checks["submit"].detail
    )  # asked for as epoch seconds
    test = next(line for line in slurm.lines if "--test-only" in line)
    assert "--account=p1" in test and "--partition=gpu" in test and "--nodes=2" in test
    assert slurm.stdin.startswith(b"#!/bin/bash")
    assert all(
        line.startswith(("sinfo", "squeue", "sbatch -V", "sbatch --test-only")) for line in slurm.lines
    )


@pytest.mark.parametrize(
    ("answer", "name", "words", "code"),
    [
        (
            {"sbatch -V": Completed(rc=0, out="slurm 20.11.9\n", err="")},
            "slurm",
            "older than 22.05",
            BadInput,
        ),
        (
            {"squeue": Completed(rc=1, out="", err="Unable to contact slurm controller")},
            "slurm",
            "Unable",
            Unavailable,
        ),
        (
            {"sinfo -h -o %P|%a|%l|%D": Completed(rc=0, out="", err="")},
            "partition",
            "no partition gpu",
            BadInput,
        ),
        (
            {"sinfo -h -o %P|%a|%l|%D": Completed(rc=0, out="gpu|up|1-0|1\n", err="")},
            "partition",
            "has 1 nodes, a job wants 2",
            BadInput,
        ),
        (
            {"sinfo -h -o %P|%a|%l|%D": Completed(rc=0, out="gpu|drain|1-0|9\n", err="")},
            "partition",
            "is drain",
            Unavailable,
        ),
        ({"sinfo -h -o %G": Completed(rc=0, out="gpu:h100:4\n", err="")}, "gpus", "of model a100", BadInput),
        ({"sinfo -h -o %G": Completed(rc=0, out="(null)\n", err="")}, "gpus", "no node has 4", BadInput),
        (
            {"sbatch --test-only": Completed(rc=1, out="", err="allocation failure: Invalid account")},
            "submit",
            "Invalid account",
            BadInput,
        ),
    ],
)
def test_what_slurm_would_not_take(answer, name, words, code):
    slurm = Slurm()
    slurm.answers.update(answer)
    bad = found(slurm)[name]
    assert not bad.is_good
    assert words in bad.detail
    assert bad.way_out
    assert bad.exit_code == code.exit_code


def test_what_nobody_tried_is_a_warning():
    check = found(Slurm(), replace(PROFILE, unverified=("walltime_minutes",)))["profile"]
    assert check.is_good and check.is_warning
    assert "sprachbund site render" in check.way_out


def test_the_file_system_keeps_its_promises(tmp_path: Path):
    assert "do what they promise" in disk.promises(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_breaks_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest = os.open

    def forgetful(path, flags, *rest, **more):
        return honest(path, flags & ~os.O_EXCL, *rest, **more)

    monkeypatch.setattr(os, "open", forgetful)
    with pytest.raises(Unavailable, match="O_EXCL made a name that was there"):
        disk.promises(tmp_path)


def test_a_file_system_without_hard_links_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm jobs claim a life by one."""

    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(Unavailable, match="no hard link can be made"):
        disk.promises(tmp_path)
    monkeypatch.setattr(os, "link", lambda one, other: Path(other).write_bytes(Path(one).read_bytes()))
    with pytest.raises(Unavailable, match="a second link of one name was made"):
        disk.promises(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_inodes_and_no_space_are_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.statvfs(tmp_path)
    few = os.statvfs_result([*real[:7], 12, *real[8:10]])
    monkeypatch.setattr(os, "statvfs", lambda _: few)
    checks = {check.name: check for check in disk.disk_checks(tmp_path)}
    assert not checks["inodes"].is_good
    assert "12 inodes are free" in checks["inodes"].detail
    assert checks["inodes"].exit_code == DiskFull.exit_code


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw,flock 0 0
store:/home /home/my\\040users nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/scratch/p1", ("lustre", "/scratch")),
        ("/home/my users/x", ("nfs4", "/home/my users")),
        ("/x", ("ext4", "/")),
    ],
)
def test_which_file_system_home_lies_on(path, kind):
    assert disk.filesystem(Path(path), MOUNTS) == kind


def test_a_quota_that_is_exceeded_has_a_star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = tmp_path / "bin" / "quota"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho Filesystem blocks quota\necho '/dev/sda 11G* 10G 12G'\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    [check] = disk.quota(tmp_path)
    assert not check.is_good
    assert "11G* 10G" in check.detail
    assert check.exit_code == DiskFull.exit_code


def test_a_site_that_has_nothing_yet(tmp_path: Path):
    text = Text(language="bg", path=str(tmp_path / "none"), access="private", licence="CC0-1.0")
    config = SiteConfig(
        site="sofia",
        coordinator="127.0.0.1:1",
        enrolment="127.0.0.1:1",
        home=str(tmp_path / "home"),
        text=(text,),
    )
    checks = {check.name: check for check in doctor(replace(config, gpus=8))}
    assert all(check.way_out and check.exit_code for check in checks.values() if not check.is_good)
    assert {name for name, check in checks.items() if not check.is_good} >= {
        "identity",
        "coordinator",
        "text bg",
        "gpus",
    }
    assert checks["home"].is_good and checks["home"].exit_code == 0


def test_socks_is_said_before_anybody_waits_for_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://gate:1080")
    config = SiteConfig(site="sofia", coordinator="c.example:1", enrolment="c.example:2", home=str(tmp_path))
    check = next(check for check in doctor(config) if check.name == "proxy")
    assert not check.is_good
    assert check.exit_code == BadInput.exit_code
    assert "ssh -L" in check.detail


@pytest.mark.parametrize(
    ("changes", "is_warning"),
    [
        ({"pid": os.getppid()}, False),
        ({"pid": 2**22 - 3}, True),
        ({"pid": 2**22 - 3, "stopped": True}, False),
        ({"host": "login7", "seen_seconds_ago": 0.0}, False),
        ({"host": "login7", "seen_seconds_ago": 3600.0}, True),
    ],
)
def test_an_agent_that_died_is_a_warning(tmp_path: Path, changes: dict[str, object], is_warning: bool):
    config = SiteConfig(site="north", coordinator="127.0.0.1:1", enrolment="127.0.0.1:1", home=str(tmp_path))
    if "seen_seconds_ago" in changes:  # of this moment: the tests are collected long before this one runs
        changes = {"host": changes["host"], "seen_at": time.time() - changes["seen_seconds_ago"]}  # type: ignore[operator]
    fields = {"site": "north", "pid": 1, "host": socket.gethostname(), "incarnation": "x"}
    status = AgentStatus(**(fields | {"started_at": 0.0, "synced_at": 1.0} | changes))  # type: ignore[arg-type]
    write_status(tmp_path, status)
    checks = {check.name: check for check in doctor(config)}
    assert checks["agent"].is_good
    assert checks["agent"].is_warning == is_warning
    assert ("start it again" in checks["agent"].way_out) == is_warning
    assert "at the last Sync" in checks["clock"].detail  # the coordinator does not answer
