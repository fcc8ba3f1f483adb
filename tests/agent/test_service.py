"""The unit and the Slurm chain that keep an agent running."""

import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from processes import reaped

from consortium.errors import BadInput, Refused, Unavailable
from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig
from site_agent.launchers.slurm.commands import Completed
from site_agent.service import chain
from site_agent.service.unit import unit, unit_name

COMMAND = ("/opt/my venv/bin/python", "-P", "-m", "console.main", "site", "run", "/srv/100% of it/site.yaml")


def written(has_jobs: bool = True) -> str:
    folder, environment = "/srv/100% of it", {"PYTHONPATH": "/a b:/c"}
    return unit("sofia", f"{folder}/site.yaml", folder, COMMAND, environment, has_jobs=has_jobs)


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line))


def test_the_unit_says_what_the_agent_needs():
    found = settings(written())
    assert found["Type"] == "notify"
    assert found["WatchdogSec"] == "10min"
    assert found["RestartPreventExitStatus"] == "2 3 4 7 8"  # consortium/errors.py: superseded is among them
    assert found["KillMode"] == "process"  # jobs of the local launcher outlive it
    assert found["ExecStart"].startswith('"/opt/my venv/bin/python" -P -m console.main')
    assert found["ExecStart"].endswith('"/srv/100%% of it/site.yaml"')
    assert found["Environment"] == '"PYTHONPATH=/a b:/c"'


def test_an_agent_without_jobs_of_its_own_is_nice_to_the_login_node():
    assert settings(written(has_jobs=False))["Nice"] == "10"
    assert "Nice" not in settings(written())


def test_a_path_that_no_unit_can_spell_is_refused():
    with pytest.raises(BadInput, match="line break"):
        unit("sofia", "/a\nb/site.yaml", "/a\nb", ("/bin/true",), {}, has_jobs=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("has_jobs", [True, False])
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, has_jobs: bool):
    text = unit(
        "sofia", f"{tmp_path}/site.yaml", str(tmp_path), ("/bin/true", "a b"), {"A": "b c"}, has_jobs=has_jobs
    )
    place = tmp_path / unit_name("sofia")
    place.write_text(text)
    with tempfile.TemporaryDirectory(prefix="r") as runtime:  # other units have sockets there: a short path
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", str(place)],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": runtime},
        )
    assert (done.returncode, done.stderr) == (0, "")


# ---- the chain


class Slurm:
    """Answers squeue and sbatch; ``lines`` are the commands it was given."""

    def __init__(self, queue: str = "", sbatch: Completed | None = None, rc: int = 0) -> None:
        self.lines: list[tuple[str, ...]] = []
        self.queue, self.rc = queue, rc
        self.sbatch = sbatch or Completed(rc=0, out="77\n", err="")

    def run(self, argv, *, stdin=b"", timeout=90.0):
        self.lines.append(tuple(argv))
        if argv[0] == "squeue":
            return Completed(rc=self.rc, out=self.queue, err="" if self.rc == 0 else "Unable to contact")
        assert argv[0] == "sbatch", argv
        return self.sbatch


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    profile = SiteProfile(partition="gpu", account="p1", qos="q1", gpus_per_node=4, gpu_type="cuda")
    return SiteConfig(
        site="sofia",
        coordinator="c:1",
        enrolment="c:2",
        home=str(tmp_path / "home"),
        launcher="slurm",
        slurm=profile,
    )


@pytest.fixture
def link(config: SiteConfig) -> chain.Link:
    return chain.Link(
        name=chain.chain_name("sofia"), folder=config.home, config="/srv/site.yaml", python="/usr/bin/python3"
    )


def queue_of(*rows: tuple[str, str, str]) -> str:
    """In the format that the launcher asks for."""
    from site_agent.launchers.slurm import answer

    fields = {"%A": 0, "%i": 0, "%j": 1, "%T": 2}
    lines = []
    for one in rows:
        line = re.sub(
            r"%[A-Za-z]", lambda m, one=one: one[fields[m[0]]] if m[0] in fields else "", answer.QUEUE_FORMAT
        )
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def test_the_first_link_starts_now_and_its_successor_later(config, link):
    slurm = Slurm()
    assert chain.submit(link, config, "", slurm) == chain.Chained(id="77", is_new=True)
    line = slurm.lines[-1]
    assert {"--dependency=singleton", "--export=NONE", "--account=p1", "--partition=gpu", "--qos=q1"} <= set(
        line
    )
    assert not any(word.startswith(("--gres", "--gpus", "--begin")) for word in line)
    path = Path(line[-1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    slurm = Slurm(queue_of(("5", link.name, "RUNNING")))
    assert chain.submit(link, config, "5", slurm).is_new
    assert "--begin=now+10minutes" in slurm.lines[-1]


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_never_a_second_chain(config, link, state):
    slurm = Slurm(
        queue_of(("4", "something-else", "RUNNING"), ("6", link.name, state), ("5", link.name, "RUNNING"))
    )
    assert chain.submit(link, config, "5", slurm) == chain.Chained(id="6", is_new=False)
    assert [line[0] for line in slurm.lines] == ["squeue"]


def test_what_has_ended_is_no_chain(config, link):
    assert chain.submit(link, config, "", Slurm(queue_of(("6", link.name, "COMPLETED")))).is_new


def test_a_queue_that_cannot_be_read_is_not_empty(config, link):
    slurm = Slurm(rc=1)
    with pytest.raises(Unavailable, match="nothing was submitted"):
        chain.submit(link, config, "", slurm)
    assert [line[0] for line in slurm.lines] == ["squeue"]


def test_slurms_own_words_come_through(config, link):
    said = Completed(
        rc=1,
        out="",
        err="sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
    )
    with pytest.raises((BadInput, Unavailable), match="Invalid account"):
        chain.submit(link, config, "", Slurm(sbatch=said))


def test_what_makes_no_chain_is_refused(config, link):
    with pytest.raises(BadInput, match="30 at least"):
        chain.check(10, ())
    with pytest.raises(Refused, match="keep two chains apart"):
        chain.check(60, ("--dependency=afterany:1",))
    local = SiteConfig(site="sofia", coordinator="c:1", enrolment="c:2", home=config.home)
    with pytest.raises(Refused, match="launcher: slurm"):
        chain.submit(link, local, "", Slurm())


def run_script(tmp_path: Path, exit_code: int, number: int = 0) -> tuple[int, list[str]]:
    """The script itself, with a stand-in for the interpreter and for scancel; what they were called with."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (tmp_path / "home").mkdir()
    calls = tmp_path / "calls"
    wait = 'trap "exit 0" TERM; touch up; while :; do sleep 0.05; done' if number else f"exit {exit_code}"
    python = bin_ / "python"
    python.write_text(f'#!/bin/bash\necho "python $*" >>{calls}\n[ "$5" = service ] && exit 0\n{wait}\n')
    scancel = bin_ / "scancel"
    scancel.write_text(f'#!/bin/bash\necho "scancel $*" >>{calls}\n')
    for one in (python, scancel):
        one.chmod(0o755)
    link = chain.Link(name="n", folder=str(tmp_path / "home"), config="/srv/site.yaml", python=str(python))
    path = tmp_path / "agent.sh"
    path.write_text(chain.script(link))
    environment = {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_NAME": "n"}
    with reaped(subprocess.Popen(["bash", str(path)], env=environment)) as process:
        if number:
            while not (tmp_path / "home" / "up").exists():
                assert process.poll() is None
            process.send_signal(number)
        code = process.wait(200)
    return code, calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "goes_on"), [(0, True), (5, True), (137, True), (8, True), (2, False), (4, False), (7, False)]
)
def test_the_script_goes_on_unless_that_is_no_use(tmp_path, code, goes_on):
    ended, calls = run_script(tmp_path, code)
    assert ended == code
    assert [call.split()[0] for call in calls] == ["python", "python", "python" if goes_on else "scancel"]
    assert "--slurm --submit --minutes=240" in calls[0]
    assert calls[1].endswith("console.main site run /srv/site.yaml")
    if not goes_on:
        assert "--name=n --state=PENDING" in calls[2]


def test_before_the_limit_the_agent_leaves_in_order_and_the_chain_goes_on(tmp_path):
    code, calls = run_script(tmp_path, 0, signal.SIGUSR1)
    assert code == 0
    assert [call.split()[0] for call in calls] == ["python"] * 3
    assert "--submit" in calls[2]


def test_scancel_ends_the_chain(tmp_path):
    """Tried on a real Slurm: what waits goes with it, and what runs must not submit another."""
    code, calls = run_script(tmp_path, 0, signal.SIGTERM)
    assert code == 0
    assert len(calls) == 2
