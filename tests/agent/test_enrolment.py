"""How a site enrols, what it then trusts, and what it keeps of the ledger."""

import asyncio
import json
from pathlib import Path

import pytest
from fake_coordinator import NORTH

from consortium.canonical import replace
from consortium.errors import BadInput, Broken, Corrupt, Refused, Unavailable
from consortium.identity import Authority, identity_of
from consortium.ids import SiteName
from consortium.invitation import write_invitation
from consortium.signing import new_ledger_key, sign_checkpoint
from site_agent.doctor import doctor
from site_agent.enrol import enrol, read_invitation
from site_agent.identity import SiteIdentity, next_key
from site_agent.running import run_agent
from site_agent.witness import Witness


@pytest.fixture
def home(config):
    return Path(config.home)


async def enrolled(config, coordinator):
    return await asyncio.to_thread(enrol, config, coordinator.invitation())


async def test_an_invitation_becomes_an_identity(config, coordinator, home, tmp_path):
    path = tmp_path / "invitation.json"
    write_invitation(coordinator.invitation(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    made = await asyncio.to_thread(enrol, config, read_invitation(path))
    assert identity_of(made.certificate, "test").name == NORTH
    assert SiteIdentity.load(home).credentials == made.credentials
    assert SiteIdentity.load(home).ledger_key == coordinator.ledger_key.public_key().public_bytes_raw()
    assert (home / "identity" / "site.pem").stat().st_mode & 0o777 == 0o600
    assert (home / "identity").stat().st_mode & 0o777 == 0o700
    assert not (home / "identity" / "next.key").exists()


async def test_enrolling_again_keeps_what_is_there(config, coordinator):
    made = await enrolled(config, coordinator)
    await coordinator.down()  # nobody is asked
    assert (await enrolled(config, coordinator)).certificate == made.certificate


async def test_a_used_token_is_told(config, coordinator):
    coordinator.tokens.clear()
    with pytest.raises(Refused, match="used or expired"):
        await enrolled(config, coordinator)


async def test_nobody_answers(config, coordinator, home):
    await coordinator.down()
    with pytest.raises(Unavailable):
        await enrolled(config, coordinator)
    key = next_key(home)
    await coordinator.up()
    assert (await enrolled(config, coordinator)).key.public_key() == key.public_key()  # the one it asked with


async def test_another_sites_invitation_is_not_used(config, coordinator):
    with pytest.raises(BadInput, match="is for site south, this is north"):
        await asyncio.to_thread(enrol, config, replace(coordinator.invitation(), site=SiteName("south")))


async def test_a_coordinator_that_is_not_the_invitations_gets_no_token(config, coordinator):
    stranger = Authority.create("test", 0.0).pem.decode()
    with pytest.raises(Unavailable, match="trusts"):
        await asyncio.to_thread(enrol, config, replace(coordinator.invitation(), authority=stranger))
    assert coordinator.tokens


async def test_another_consortiums_invitation_does_not_replace_an_identity(config, coordinator):
    await enrolled(config, coordinator)
    stranger = Authority.create("other", 0.0).pem.decode()
    with pytest.raises(Refused, match="choose another home"):
        await asyncio.to_thread(enrol, config, replace(coordinator.invitation(), authority=stranger))


def test_an_agent_that_has_not_enrolled_says_how(tmp_path):
    with pytest.raises(Unavailable, match="sprachbund site enrol"):
        SiteIdentity.load(tmp_path)


async def test_an_agent_with_another_sites_home_does_not_start(config, coordinator):
    await enrolled(config, coordinator)
    with pytest.raises(Refused, match="enrolled as site north, the config says south"):
        run_agent(replace(config, site=SiteName("south")))


async def test_the_doctor_tells_what_is_missing(config, coordinator):
    checks = {check.name: check for check in await asyncio.to_thread(doctor, config)}
    assert not checks["identity"].is_good
    assert "enrol" in checks["identity"].way_out
    assert not checks["coordinator"].is_good
    assert checks["coordinator"].way_out == checks["ledger"].way_out == "enrol first"
    assert checks["launcher"].is_good
    assert checks["home"].is_good


# ---- the witness


def test_heads_are_kept_as_they_advance(tmp_path):
    key = new_ledger_key()
    public = key.public_key().public_bytes_raw()
    path = tmp_path / "checkpoints.jsonl"
    for sequence, head in ((1, "aa"), (1, "aa"), (3, "bb")):
        Witness(path, public).see(sign_checkpoint(key, sequence, head))  # a new agent each time
    assert [json.loads(line)["head"] for line in path.read_text().splitlines()] == ["aa", "bb"]


@pytest.mark.parametrize(("sequence", "head"), [(3, "cc"), (2, "bb")])
def test_a_rewritten_or_shortened_ledger_is_noticed(tmp_path, sequence, head):
    key = new_ledger_key()
    witness = Witness(tmp_path / "checkpoints.jsonl", key.public_key().public_bytes_raw())
    witness.see(sign_checkpoint(key, 3, "bb"))
    with pytest.raises(Broken, match="rewritten or cut"):
        witness.see(sign_checkpoint(key, sequence, head))


def test_somebody_elses_head_is_no_head(tmp_path):
    public = new_ledger_key().public_key().public_bytes_raw()
    with pytest.raises(Corrupt):
        Witness(tmp_path / "checkpoints.jsonl", public).see(sign_checkpoint(new_ledger_key(), 1, "aa"))
    assert not (tmp_path / "checkpoints.jsonl").exists()


def test_half_of_a_line_is_cut_off(tmp_path):
    key = new_ledger_key()
    public = key.public_key().public_bytes_raw()
    path = tmp_path / "checkpoints.jsonl"
    Witness(path, public).see(sign_checkpoint(key, 1, "aa"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    witness = Witness(path, public)
    witness.see(sign_checkpoint(key, 2, "bb"))
    witness.see(sign_checkpoint(key, 3, "cc"))
    assert [json.loads(line)["sequence"] for line in path.read_text().splitlines()] == [1, 2, 3]
    path.write_bytes(whole + b"{}\n")
    with pytest.raises(BadInput, match="changed by hand"):
        Witness(path, public)
