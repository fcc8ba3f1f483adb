"""A coordinator that rewrites its ledger and signs it anew is caught by the heads that sites kept."""

import asyncio
import json
from pathlib import Path

import pytest
from real_coordinator import Consortium
from scripted_sites import ScriptedSite, introduce, lease
from test_verification import Event, forge
from typer.testing import CliRunner

import console.main
from console.app import app
from console.client import ask
from console.exporting import export_ledger
from consortium.canonical import encode
from consortium.errors import BadInput, Broken
from consortium.signing import new_ledger_key, sign_checkpoint
from consortium.witnesses import Witnesses, kept_in
from coordinator.ledger import Ledger
from coordinator.verification import verify
from site_agent.identity import SiteIdentity, Trust
from site_agent.wire import checkpoint
from site_agent.witness import Witness

assert console.main.COMMANDS


def at_home(site: ScriptedSite) -> Path:
    """A home for the site's agent, with what enrolment leaves there, and its config beside it."""
    home = site.folder / "home"
    trust = Trust(
        consortium="balkan",
        site=site.name,
        authority=site.consortium.keys.authority.pem.decode(),
        ledger_key=(site.folder / "ledger.key").read_bytes().hex(),
    )
    SiteIdentity(trust, site.key, site.credentials.certificate).save(home)
    config = site.folder / "site.yaml"
    config.write_text(
        f"site: {site.name}\nhome: home\ncoordinator: 127.0.0.1:{site.consortium.config.port}\n"
        "enrolment: 127.0.0.1:1\n"
        "text:\n  - {language: bg, path: text, access: private, licence: CC0-1.0}\n"
    )
    return config


async def shown(site: ScriptedSite) -> Path:
    """Sync once, and keep the head as an agent does."""
    path = site.folder / "home" / "checkpoints.jsonl"
    answer = await lease(site.consortium, site.name)
    Witness(path, (site.folder / "ledger.key").read_bytes()).see(checkpoint(answer.checkpoint))
    return path


def sprachbund(*words: object) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.stdout, done.output
    return done.exit_code, json.loads(done.stdout)


def another_organisation(event: Event) -> None:
    """Nothing follows from it, so nobody who looks at the ledger alone can tell."""
    if event["kind"] == "TokenIssued" and event["site"] == "sofia":
        event["organisation"] = "Another"


async def test_who_rewrites_history_is_caught(rested: Consortium, tmp_path: Path) -> None:
    sites = [ScriptedSite(rested, name) for name in ("sofia", "ohrid")]
    async with rested.running():
        kept = [await shown(site) for site in sites]
        configs = [at_home(site) for site in sites]
        code, found = await asyncio.to_thread(sprachbund, "site", "audit", configs[0])
        assert (
            (code, found["problems"]) == (0, []) and found["heads"] == 2 and int(str(found["entries"])) > 50
        )
    seen = [one for path in kept for one in kept_in(path)]
    assert verify(rested.home, rebuild=False, seen=seen).problems == ()

    assert forge(rested, another_organisation).ok  # by itself the ledger is as good as before
    report = verify(rested.home, rebuild=False, seen=seen)
    assert len(report.problems) == 2 and report.checked["witnessed head"] == 2
    assert all("this entry or one before it was rewritten" in problem for problem in report.problems)
    flags = [word for path in kept for word in ("--checkpoints", path)]
    code, told = sprachbund("verify", rested.home, "--no-rebuild", *flags)
    assert code == 3 and "rewritten" in str(told["problems"])

    async with rested.running():
        exported = tmp_path / "ledger.jsonl"
        await asyncio.to_thread(ask, rested.home / "auditor", lambda c: export_ledger(c, exported))
        for words in ((configs[0],), (configs[1], "--ledger", exported)):
            code, told = await asyncio.to_thread(sprachbund, "site", "audit", *words)
            assert code == 3 and "rewritten" in str(told["problems"]), told
        with pytest.raises(Broken, match="its ledger was rewritten or cut"):  # and the agent stops by itself
            await shown(sites[0])


async def test_who_cuts_the_ledger_is_caught(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running():
        await introduce(consortium)
        kept = await shown(site)
    with Ledger(consortium.home / "ledger.sqlite") as ledger:
        every = list(ledger.read())
    for file in consortium.home.glob("ledger.sqlite*"):
        file.unlink()
    with Ledger(consortium.home / "ledger.sqlite") as ledger:
        for recorded in every[:-1]:
            ledger.append([recorded.event], recorded.at)
    report = verify(consortium.home, rebuild=False, seen=list(kept_in(kept)))
    assert f"the ledger ends at {len(every) - 1}: entries were cut off" in report.problems[0]


def test_a_made_up_head_proves_nothing(tmp_path: Path) -> None:
    """A site that would slander its coordinator lacks the key; what it brings is named as what it is."""
    key, another = new_ledger_key(), new_ledger_key()
    path = tmp_path / "checkpoints.jsonl"
    path.write_bytes(
        encode(sign_checkpoint(another, 1, "0" * 64)) + b"\n" + encode(sign_checkpoint(key, 1, "a" * 64))
    )
    seen = list(kept_in(path))
    assert len(seen) == 1  # half a line is what a crash leaves
    witnesses = Witnesses(seen)
    witnesses.take(1, "a" * 64)
    (problem,) = witnesses.problems(key.public_key().public_bytes_raw())
    assert "no proof, or of another ledger" in problem


@pytest.mark.parametrize("junk", [b"x" * 100_000, b"{}\n", b"\xff\n", b'{"sequence":1}\n'])
def test_what_is_no_file_of_heads_is_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "checkpoints.jsonl"
    path.write_bytes(junk)
    with pytest.raises(BadInput, match=r"checkpoints\.jsonl:1: "):
        list(kept_in(path))
