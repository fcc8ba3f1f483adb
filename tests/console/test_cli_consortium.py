"""A real coordinator, started by the command line, and the commands of everybody who deals with it."""

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import code_of, reaped
from tokenizers import Tokenizer
from tokenizers.models import BPE

from consortium.canonical import decode
from consortium.invitation import Invitation
from consortium.store import ref_of

SPRACHBUND = (sys.executable, "-m", "console.main")
TINY = Path(__file__).parents[2] / "examples" / "campaign-tiny.yaml"


class Desk:
    """A folder from which commands are given, as the admin of a coordinator that runs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "COLUMNS"},
            "SPRACHBUND_ADMIN": str(place / "home" / "admin"),
            "PYTHONFAULTHANDLER": "1",
        }
        self.process: subprocess.Popen[str] | None = None
        self.begun = contextlib.ExitStack()  #: what ``begin`` began, and did not end before

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*SPRACHBUND, *map(str, arguments)],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def begin(self, *arguments: str, out: int = subprocess.PIPE) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*SPRACHBUND, *arguments],
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.begun.enter_context(reaped(process))

    def start(self) -> dict[str, Any]:
        """Start the coordinator; returns the line in which it says that it is ready."""
        self.process = self.begin("coordinator", "run", "coordinator.yaml", out=subprocess.DEVNULL)
        assert self.process.stderr is not None
        for text in self.process.stderr:
            line: dict[str, Any] = json.loads(text)
            if "is ready" in line["message"]:
                return line
        raise AssertionError("the coordinator ended before it was ready")

    def stop(self) -> int:
        assert self.process is not None and self.process.stderr is not None
        self.process.terminate()
        for text in self.process.stderr:
            json.loads(text)  # every line of the log, to the last
        self.process.stderr.close()
        return self.process.wait()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    place = tmp_path_factory.mktemp("desk")
    config = {
        "consortium": "demo",
        "home": "home",
        "listen": "127.0.0.1",
        "port": 0,
        "enrolment_port": 0,
        "names": ["127.0.0.1"],
    }
    (place / "coordinator.yaml").write_text(yaml.safe_dump(config))
    desk = Desk(place)
    with desk.begun:
        founded = desk.json("init", "coordinator.yaml")
        assert founded["consortium"] == "demo" and Path(founded["ledger"]).is_file()
        assert "no port yet" in desk.run("status", code=5).stderr
        ready = desk.start()
        assert ready["ports"]["port"] > 0
        yield desk
        assert desk.stop() == 0


@pytest.fixture(scope="module")
def sofia(desk: Desk) -> str:
    """A site that has enrolled."""
    told = desk.json(*("invite", "sofia", "--organisation", "Sofia University", "--country", "BG"))
    file = desk.place / told["file"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    invitation = decode(file.read_bytes(), Invitation)
    assert invitation.token not in json.dumps(told)
    config = {
        "site": "sofia",
        "coordinator": invitation.coordinator,
        "enrolment": invitation.enrolment,
        "home": "sofia",
    }
    (desk.place / "site.yaml").write_text(yaml.safe_dump(config))
    enrolled = desk.json("site", "enrol", "site.yaml", "--invitation", file)
    assert (enrolled["site"], enrolled["consortium"]) == ("sofia", "demo")
    return "sofia"


@pytest.fixture(scope="module")
def given(desk: Desk) -> str:
    """A campaign that starts from a model directory; its first version is that."""
    model = desk.place / "model"
    model.mkdir()
    campaign = yaml.safe_load(TINY.read_text())
    (model / "config.json").write_text(json.dumps(campaign["model"]["config"]))
    Tokenizer(BPE(vocab={"a": 0}, merges=[])).save(str(model / "tokenizer.json"))
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
    del campaign["tokenizer"], campaign["seed_round"]
    campaign |= {"campaign": "given", "model": {"directory": "model"}}
    (desk.place / "given.yaml").write_text(yaml.safe_dump(campaign))

    assert desk.json("submit", "given.yaml")["campaign"] == "given"
    watch = desk.begin("watch", "--json", "--every", "0.1")
    assert watch.stdout is not None and watch.stderr is not None
    for line in watch.stdout:
        if any(one["head"] for one in json.loads(line)["campaigns"]):
            break
    watch.send_signal(signal.SIGINT)
    assert code_of(watch) == 0
    assert watch.stderr.read() == ""
    watch.stdout.close()
    watch.stderr.close()
    return "given"


def test_a_second_founding_is_refused(desk: Desk) -> None:
    assert "a consortium lives here already" in desk.run("init", "coordinator.yaml", code=4).stderr


def test_a_site_is_seen_from_both_sides(desk: Desk, sofia: str) -> None:
    (site,) = desk.json("status")["sites"]
    assert (site["site"], site["status"]) == (sofia, "enrolled")
    at_work = {"mode": "work", "reason": "", "since": 0.0}
    unstarted = {"agent": None, "attempts": [], "broken": [], "mode": at_work}
    assert desk.json("site", "status", "site.yaml") == unstarted
    assert "no agent has synced yet" in desk.run("site", "status", "site.yaml").stdout
    story = desk.json("why", sofia)
    assert "Sofia University (BG) was invited as site sofia" in story["lines"][0]["text"]
    assert "site sofia enrolled" in desk.run("why", sofia).stdout


def test_the_doctor_says_what_is_wrong_and_exits_with_its_kind(desk: Desk, sofia: str) -> None:
    checks = {check["name"]: check for check in desk.json("site", "doctor", "site.yaml")}
    assert all(check["is_good"] for check in checks.values())
    assert "s ahead (just now)" in checks["clock"]["detail"]  # no agent has ever synced
    desk.environment["COLUMNS"] = "200"  # paths of tests are long
    config = yaml.safe_load((desk.place / "site.yaml").read_text())
    (desk.place / "elsewhere.yaml").write_text(yaml.safe_dump({**config, "home": "elsewhere"}))
    told = desk.run("site", "doctor", "elsewhere.yaml", code=5).stdout
    assert "has not enrolled" in told and "run `sprachbund site enrol`" in told


def test_an_invitation_is_shown_only_when_asked_for(desk: Desk) -> None:
    words = ("invite", "porto", "--organisation", "Universidade do Porto", "--country", "PT")
    shown = desk.json(*words, "--show")
    assert shown["site"] == "porto" and shown["token"].startswith("sprachbund-")
    assert not (desk.place / "porto.invitation").exists()
    assert "sprachbund-" not in desk.run(*words).stdout
    assert "exists already" in desk.run(*words, code=2).stderr


def test_who_may_not_join_is_told_why(desk: Desk) -> None:
    refused = desk.run("invite", "x", "--organisation", "X", "--country", "US", code=4)
    assert "US may not join" in refused.stderr and refused.stdout == ""
    assert not (desk.place / "x.invitation").exists()


def test_a_wrong_campaign_file_is_told_by_line(desk: Desk) -> None:
    text = TINY.read_text().replace("rounds: 3", "rounds: none")
    line = text[: text.index("rounds: none")].count("\n") + 1
    (desk.place / "wrong.yaml").write_text(text)
    done = desk.run("submit", "wrong.yaml", "--json", code=2)
    assert done.stderr.startswith(f"sprachbund: wrong.yaml:{line}: rounds: 'none'")
    assert done.stdout == ""


def test_a_site_is_drained_and_comes_back(desk: Desk, sofia: str) -> None:
    drained = desk.json("sites", "drain", sofia, "--reason", "maintenance")
    assert drained["reason"] == "maintenance"
    assert desk.json("status")["sites"][0]["status"] == "draining"
    assert "site sofia is now draining: maintenance" in desk.run("why", sofia).stdout
    desk.run("sites", "resume", sofia, "--reason", "done")
    assert desk.json("status")["sites"][0]["status"] == "enrolled"
    assert (
        "'kaunas' is not enrolled" in desk.run("sites", "suspend", "kaunas", "--reason", "x", code=4).stderr
    )


def test_a_model_goes_in_and_comes_out_the_same(desk: Desk, given: str) -> None:
    versions = desk.json("versions", given)[given]
    assert [one["name"] for one in versions["versions"]] == ["given/v0"]
    assert "given/v0" in desk.run("versions").stdout

    made = desk.json("export", versions["head"][:8], "out")
    assert made["digest"] == versions["head"]
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in (desk.place / "out").iterdir()) == names
    for name in names:
        assert ref_of(desk.place / "out" / name) == ref_of(desk.place / "model" / name)
    assert not list(desk.place.glob(".out*"))
    assert "exists already" in desk.run("export", "given/v0", "out", code=2).stderr
    assert "known: given/v0" in desk.run("export", "given/v7", "new", code=2).stderr
    assert "given/v0 is promoted already" in desk.run("promote", "given/v0", "--reason", "x", code=4).stderr


def test_a_plan_is_asked_of_the_coordinator_and_records_nothing(desk: Desk, given: str) -> None:
    before = desk.json("status")["sequence"]
    sites = [word for n in range(4) for word in ("--site", f"s{n}:gpus=2,tokens_per_second=1e4,gpu_hours=9")]
    found = desk.json("plan", "given.yaml", "--dry-run", *sites)
    assert len(found["rounds"]) == 3 and len(found["allocations"]) == 4
    assert {job["site"] for job in found["jobs"] if job["purpose"] == "round"} >= {"s0", "s1", "s2", "s3"}
    assert "s0 is taken to be enrolled" in found["assumptions"][0]
    assert desk.json("status")["sequence"] == before


def test_the_ledger_comes_out_whole_and_verifies(desk: Desk, given: str) -> None:
    done = desk.run("ledger", "export", "--out", "ledger.jsonl")
    *entries, last = map(json.loads, (desk.place / "ledger.jsonl").read_text().splitlines())
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    assert last["checkpoint"]["head"] == entries[last["checkpoint"]["sequence"] - 1]["hash"]
    assert f"{len(entries)} entries; the chain holds" in done.stderr
    assert desk.run("ledger", "export").stdout == (desk.place / "ledger.jsonl").read_text()
    report = desk.json("verify", "home", "--model", "model", "--no-rebuild")
    assert report["ok"] and report["checked"]["event"] == len(entries)


def test_an_auditor_reads_and_changes_nothing(desk: Desk, given: str) -> None:
    files = desk.json("coordinator", "person", "coordinator.yaml", "ada", "--role", "auditor")
    auditor = ("--as", Path(files["key"]).parent)
    assert desk.json("status", *auditor)["consortium"] == "demo"
    refused = desk.run("stop", given, "--reason", "I may not", *auditor, code=4)
    assert "auditor ada may not call" in refused.stderr


def test_the_live_view_leaves_the_terminal_as_it_was(desk: Desk, given: str) -> None:
    ours, theirs = pty.openpty()
    desk.environment["TERM"] = "xterm"
    watch = desk.begin("watch", "--every", "0.1", out=theirs)
    os.close(theirs)
    seen = b""
    while b"Campaign" not in seen:
        seen += os.read(ours, 65536)
    watch.send_signal(signal.SIGTERM)
    rest = b""
    try:
        while data := os.read(ours, 65536):
            rest += data
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(ours)
    assert code_of(watch) == 0
    assert watch.stderr is not None
    watch.stderr.close()
    assert b"\x1b[?1049h" in seen
    _, left, after = rest.rpartition(b"\x1b[?1049l")
    assert left and b"Campaign" in after  # the last picture stays


def test_watching_outlives_the_coordinator(desk: Desk, given: str, sofia: str) -> None:
    watch = desk.begin("watch", "--every", "0.1")
    assert watch.stdout is not None and watch.stderr is not None
    assert next(line for line in watch.stdout if line.startswith("version ")).startswith("version given/v0")
    assert desk.stop() == 0

    assert "looking again" in watch.stderr.readline()
    stopped = desk.run("status", code=5)
    assert "is it running, and is this its address?" in stopped.stderr
    assert stopped.stderr.count("\n") == 1 and stopped.stdout == ""

    desk.start()
    watch.stderr.close()
    watch.terminate()
    watch.stdout.close()
    watch.wait()
    assert desk.json("status")["campaigns"][0]["campaign"] == given
