"""Who may call what: roles, certificates, suspension, enrolment, blobs, and what an auditor may read."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from real_coordinator import PATIENCE_SECONDS, SITES, Consortium, campaign, duration, fetch, in_our_words
from scripted_sites import ScriptedSite, introduce, lease
from sprachbund.v1 import (
    admin_pb2,
    artifact_pb2,
    audit_pb2,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
)

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput, Refused, Unavailable
from consortium.forecasts import Forecast
from consortium.identity import Authority, Credentials, signing_request
from consortium.ids import SiteName, digest_of
from consortium.manifests import FileRef
from consortium.signing import Checkpoint, new_key, private_pem, verify_checkpoint
from consortium.transfer import upload
from coordinator.ledger import chain


async def first_answer(channel: grpc.aio.Channel, method: str, message: bytes = b"") -> None:
    """Call any method with one message; raises what it is refused with.

    One message goes out with the call itself. A stream's is written after it, and a refusal that was faster hides
    behind an INTERNAL of gRPC's own (grpc/grpc issue 36066).
    """
    call = channel.unary_stream(f"/{method}")(message)
    with in_our_words():
        await call.read()
    call.cancel()


def stranger(consortium: Consortium, authority: Authority) -> Credentials:
    key, name = new_key(), SiteName("sofia")
    return Credentials(authority.site(signing_request(name, key), name, time.time()), private_pem(key))


async def test_nobody_is_heard_without_a_certificate_of_this_consortium(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    foreign = stranger(consortium, Authority.create("balkan", time.time()))
    async with consortium.running():
        async with site.connected(foreign) as calls:
            with pytest.raises(Unavailable), in_our_words():
                await calls.Sync(site.request())
        consortium.config, main = (
            replace(consortium.config, enrolment_port=consortium.config.port),
            consortium.config,
        )
        async with consortium.channel(None) as channel:  # no certificate, on the port that demands one
            with pytest.raises(Unavailable), in_our_words():
                await first_answer(channel, "sprachbund.v1.SiteService/Sync")
        consortium.config = main
        async with consortium.channel(None) as channel:  # the door for those who enrol leads nowhere else
            with pytest.raises(BadInput, match="unimplemented"):
                await first_answer(channel, "sprachbund.v1.SiteService/Sync")


async def test_a_certificate_that_the_ledger_does_not_know_is_refused(consortium: Consortium) -> None:
    """Whoever steals the authority's key still has to be in the ledger."""
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), site.connected(stranger(consortium, consortium.keys.authority)) as calls:
        with pytest.raises(Refused, match="site sofia: this certificate was replaced by a newer one"):
            with in_our_words():
                await calls.Sync(site.request())


async def test_renewal_retires_the_old_certificate(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    old = site.credentials
    async with consortium.running():
        async with site.connected(old) as before:
            await before.Sync(site.request())
            await site.renew()
            with pytest.raises(Refused, match="this certificate was replaced by a newer one"), in_our_words():
                await before.Sync(site.request())
        async with site.connected() as calls:
            await calls.Sync(site.request())


async def test_suspension_takes_effect_at_the_next_call_and_in_the_waiting_one(
    consortium: Consortium,
) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin, site.connected() as calls:
        answer = await calls.Sync(site.request())
        waiting = calls.Sync(site.request(seen=answer.revision, wait=duration(60.0)))
        await admin.until(lambda view: view.sites[2].seen_seconds_ago is not None, "sofia was seen")
        await admin.set_site("sofia", "SUSPEND")
        for call in (waiting, calls.Sync(site.request()), fetch(site.artifacts, digest_of(b""))):
            with (
                pytest.raises(Refused, match="site sofia is suspended; its operator should talk"),
                in_our_words(),
            ):
                await call
        await admin.set_site("sofia", "RESUME")
        await calls.Sync(site.request())
        assert (await admin.why("sofia"))[-2:] == [
            "site sofia is now suspended: for the test",
            "site sofia is now enrolled: for the test",
        ]


async def test_what_a_suspended_site_held_goes_back(consortium: Consortium, base: Path) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        await lease(consortium, "sofia")
        await admin.set_site("sofia", "SUSPEND")
        assert "demo_r1-train-sofia.a1 expired: sofia was suspended" in await admin.why("demo_r1-train-sofia")


# ---- enrolment


async def test_an_enrolment_token_is_good_once_for_its_site_and_for_a_while(consortium: Consortium) -> None:
    newcomer, other = ScriptedSite(consortium, "varna"), ScriptedSite(consortium, "burgas")
    async with consortium.running(), consortium.admin() as admin:
        token = await admin.invite("varna")
        with pytest.raises(Refused, match=r"names \['burgas'\], but this is for site 'varna'"):
            await other.enrol(token)
        with pytest.raises(Refused, match="this enrolment token is unknown or already used; ask the"):
            await newcomer.enrol(token + "x")
        await newcomer.enrol(token)
        with pytest.raises(Refused, match="this enrolment token is unknown or already used; ask the"):
            await newcomer.enrol(token)
        expired = await admin.invite("burgas", seconds=1e-9)
        with pytest.raises(Refused, match="site burgas: the enrolment token has expired; ask the admin"):
            await other.enrol(expired)
        replaced, newest = await admin.invite("burgas"), await admin.invite("burgas")
        with pytest.raises(Refused, match="unknown or already used"):
            await other.enrol(replaced)
        await other.enrol(newest)
        assert [site.site for site in (await admin.view()).sites] == sorted([*SITES, "burgas", "varna"])


async def test_a_lost_answer_to_an_enrolment_can_be_asked_for_again(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        token, key = await admin.invite("varna"), new_key()
        request = enrolment_pb2.EnrolRequest(
            token=token, signing_request=signing_request(SiteName("varna"), key)
        )
        async with consortium.channel(None) as channel:
            stub: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
            first, second = await stub.Enrol(request), await stub.Enrol(request)
            assert first == second
            request.signing_request = signing_request(SiteName("varna"), new_key())
            with pytest.raises(Refused, match="unknown or already used"), in_our_words():
                await stub.Enrol(request)
        assert len([line for line in await admin.why("varna") if "enrolled" in line]) == 1


async def test_countries_outside_the_rule_are_not_invited(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        request = admin_pb2.IssueTokenRequest(site="volga", organisation="Institute", country="RU")
        with pytest.raises(Refused, match=r"site volga of Institute \(RU\): RU may not join"), in_our_words():
            await admin.calls.IssueToken(request)


# ---- blobs


async def test_a_site_reads_its_inputs_and_writes_under_a_lease_only(
    consortium: Consortium, base: Path
) -> None:
    site = ScriptedSite(consortium, "sofia")
    weights = campaign(base).model.files["model.safetensors"]
    mine = consortium.folder / "mine"
    mine.write_bytes(b"mine")
    ref = FileRef(digest=digest_of(b"mine"), size=4)
    async with consortium.running(), consortium.admin() as admin, site.connected():
        await introduce(consortium)
        with pytest.raises(Refused, match=f"blob {weights.digest}: no job that sofia holds needs it"):
            await fetch(site.artifacts, weights.digest)
        assert not (await site.artifacts.Stat(artifact_pb2.StatRequest(digest=weights.digest))).complete
        with pytest.raises(
            Refused, match=r"upload of .*, 4 bytes: sofia holds no job whose result this could be"
        ):
            await upload(site.artifacts, mine, ref)

        await admin.submit_and_wait(campaign(base))
        await lease(consortium, "ohrid")
        (assignment,) = (await lease(consortium, "sofia")).wanted
        job = site.accept(assignment)
        assert {weights.digest, job.work.base, job.tokenizer} <= set(job.inputs)
        assert len(await fetch(site.artifacts, weights.digest)) == weights.size
        await upload(site.artifacts, mine, ref)
        assert (await site.artifacts.Stat(artifact_pb2.StatRequest(digest=ref.digest))).complete

        ohrid = ScriptedSite(consortium, "ohrid")
        async with ohrid.connected():
            with pytest.raises(Refused, match=f"blob {ref.digest}: no job that ohrid holds needs it"):
                await fetch(ohrid.artifacts, ref.digest)
            assert not (await ohrid.artifacts.Stat(artifact_pb2.StatRequest(digest=ref.digest))).complete
        assert await fetch(admin.artifacts, ref.digest) == b"mine"

        large = FileRef(digest=digest_of(b"large"), size=consortium.config.upload_bytes_max + 1)
        header = artifact_pb2.UploadRequest(
            header=artifact_pb2.UploadHeader(digest=large.digest, size=large.size)
        )
        async with consortium.channel(site.credentials) as channel:
            with pytest.raises(Refused, match="exceed the coordinator's upload_bytes_max of"):
                await first_answer(
                    channel, "sprachbund.v1.ArtifactService/Upload", header.SerializeToString()
                )


# ---- the auditor


async def test_an_auditor_reads_the_chain_and_its_signed_head(rested: Consortium) -> None:
    async with rested.running(), rested.channel(rested.person("auditor", "petra")) as channel:
        audit: Any = audit_pb2_grpc.AuditServiceStub(channel)
        before, entries = "00" * 32, []
        async for entry in audit.ReadLedger(audit_pb2.ReadLedgerRequest()):
            before = chain(before, entry.entry)
            assert entry.hash == before
            entries.append(entry)
        head = await audit.GetCheckpoint(audit_pb2.GetCheckpointRequest())
        assert (head.sequence, head.head) == (len(entries), before)
        verify_checkpoint(
            Checkpoint(
                sequence=head.sequence, head=head.head, signature=head.signature, public_key=head.public_key
            ),
            rested.keys.ledger.public_key().public_bytes_raw(),
        )
        for start, expected in ((5, len(entries) - 4), (len(entries) + 1, 0), ((1 << 64) - 1, 0)):
            tail = audit.ReadLedger(audit_pb2.ReadLedgerRequest(from_sequence=start))
            assert len([entry async for entry in tail]) == expected


async def test_one_forecast_is_made_at_a_time(
    consortium: Consortium, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when whoever asked for it has gone: its thread goes on."""
    begun, done = threading.Event(), threading.Event()

    def slow(*arguments: object) -> Forecast:
        begun.set()
        assert done.wait(PATIENCE_SECONDS)
        return Forecast(campaign="demo", now=0.0, ends_at=0.0, gpu_hours=0.0)

    monkeypatch.setattr("coordinator.services.admin.forecast", slow)
    request = admin_pb2.ForecastRequest(campaign=encode(campaign(base)))
    async with consortium.running(), consortium.admin() as admin:
        impatient = admin.calls.Forecast(request)
        assert await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        impatient.cancel()
        try:
            with pytest.raises(Unavailable, match="another forecast is under way"), in_our_words():
                await admin.calls.Forecast(request)
            assert (await admin.view()).sites  # everything else goes on
        finally:
            done.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(Unavailable), in_our_words():
                    answer = await admin.calls.Forecast(request)
                    break
    assert decode(answer.forecast, Forecast).campaign == "demo"
