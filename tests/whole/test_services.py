"""The coordinator's services over the wire: who may call what, what nonsense is answered with, what a restart keeps."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from scripted_sites import (
    PATIENCE_SECONDS,
    SITES,
    Consortium,
    ScriptedSite,
    at_work,
    campaign,
    campaign_in,
    done,
    duration,
    fetch,
    in_our_words,
    job_state,
)
from sprachbund.v1 import (
    admin_pb2,
    artifact_pb2,
    audit_pb2,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    site_pb2,
)

from consortium.canonical import replace
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.identity import Authority, Credentials, signing_request
from consortium.ids import AttemptId, SiteName, digest_of
from consortium.jobs import Outcome, Phase
from consortium.manifests import FileRef
from consortium.signing import Checkpoint, new_key, private_pem, verify_checkpoint
from consortium.transfer import upload
from coordinator.ledger import chain
from site_agent.core.facts import Ended, Report

MAY = {
    "site": "SiteService/Sync SiteService/RenewCertificate ArtifactService/Stat ArtifactService/Upload "
    "ArtifactService/Download AuditService/GetCheckpoint",
    "admin": "AdminService/SubmitCampaign AdminService/StopCampaign AdminService/IssueToken AdminService/SetSite "
    "AdminService/Promote AdminService/RollBack AdminService/GetView AdminService/Watch AdminService/Why "
    "ArtifactService/Stat ArtifactService/Upload ArtifactService/Download AuditService/ReadLedger "
    "AuditService/GetCheckpoint",
    "auditor": "AdminService/GetView AdminService/Watch AdminService/Why ArtifactService/Stat "
    "ArtifactService/Download AuditService/ReadLedger AuditService/GetCheckpoint",
}
METHODS = sorted(
    f"{service.name}/{method.name}"
    for file in (admin_pb2, artifact_pb2, audit_pb2, site_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)


async def first_answer(channel: grpc.aio.Channel, method: str) -> None:
    """Call any method with an empty message; raises what it is refused with."""
    call = channel.stream_stream(f"/{method}")(iter([b""]))
    with in_our_words():
        await call.read()
    call.cancel()


@pytest.mark.parametrize("role", MAY)
async def test_each_role_may_call_its_methods_and_no_others(consortium: Consortium, role: str) -> None:
    async with consortium.running():
        own = {
            "site": ScriptedSite(consortium, "sofia").credentials,
            "admin": consortium.person("admin", "admin"),
            "auditor": consortium.person("auditor", "petra"),
        }[role]
        allowed = []
        async with consortium.channel(own) as channel:
            for method in METHODS:
                try:
                    await first_answer(channel, f"sprachbund.v1.{method}")
                except Refused as error:
                    if f"may not call /sprachbund.v1.{method}" in str(error):
                        continue
                except BadInput:
                    pass
                allowed.append(method)
            await first_answer(channel, "grpc.health.v1.Health/Check")
    assert allowed == sorted(MAY[role].split())


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


async def introduce(consortium: Consortium) -> None:
    """Each site says what it holds, so that a campaign can count on it."""
    for name in SITES:
        await lease(consortium, name)


async def lease(consortium: Consortium, name: str, *reports: Report) -> site_pb2.SyncResponse:
    """One Sync of a site that then does nothing."""
    site = ScriptedSite(consortium, name)
    async with site.connected() as calls:
        with in_our_words():
            return await calls.Sync(site.request(*reports))


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
            Refused, match="upload of .*, 4 bytes: sofia holds no job whose result this could be"
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
        with pytest.raises(Refused, match="exceed the coordinator's upload_bytes_max of"), in_our_words():
            await site.artifacts.Upload(iter([header]))


# ---- Sync


async def test_the_newest_agent_of_a_site_holds_it(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), site.connected() as calls:
        for incarnation in ("first", "second", "second"):
            site.incarnation = incarnation
            await calls.Sync(site.request())
        site.incarnation = "first"
        with pytest.raises(Refused, match="another, newer agent of site sofia has taken over; stop this one"):
            with in_our_words():
                await calls.Sync(site.request())
        site.incarnation = "second"
        await calls.Sync(site.request())


async def test_a_waiting_sync_wakes_when_a_job_is_planned(consortium: Consortium, base: Path) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin, site.connected() as calls:
        await introduce(consortium)
        nothing = await calls.Sync(site.request())
        waiting = calls.Sync(site.request(seen=nothing.revision, wait=duration(60.0)))
        await admin.submit(campaign(base))
        async with asyncio.timeout(PATIENCE_SECONDS / 2):  # half of what the coordinator may wait
            answer = await waiting
    assert [message.attempt for message in answer.wanted] == ["demo_r1-train-sofia.a1"]
    assert answer.upload_bytes_max == consortium.config.upload_bytes_max


async def test_late_and_foreign_reports_establish_nothing(consortium: Consortium, base: Path) -> None:
    first, second = AttemptId("demo_r1-train-sofia.a1"), AttemptId("demo_r1-train-sofia.a2")
    failed = Report(attempt=first, phase=Phase.ENDED, ended=Ended(outcome=Outcome.FAILED, reason="GPU lost"))
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        await lease(consortium, "sofia")
        await lease(consortium, "ohrid", replace(failed, attempt=first))  # not ohrid's to say
        answer = await lease(consortium, "sofia", failed)
        assert [message.attempt for message in answer.wanted] == [second]
        before = (await admin.view()).sequence
        stale = done(first, digest_of(b"an envelope"))
        for report in (failed, stale):
            answer = await lease(consortium, "sofia", report)
            assert (list(answer.settled), [m.attempt for m in answer.wanted]) == ([first], [second])
        answer = await lease(consortium, "ohrid", done(second, digest_of(b"an envelope")))
        assert list(answer.settled) == [second]
        view = await admin.view()
    assert view.sequence == before
    assert job_state(view, "demo_r1-train-sofia") == "leased"


async def test_nobody_keeps_anothers_lease_alive(consortium: Consortium, base: Path) -> None:
    held = Report(attempt=AttemptId("demo_r1-train-sofia.a1"), phase=Phase.RUNNING)

    async def meddle() -> None:
        async with (meddler := ScriptedSite(consortium, "ohrid")).connected() as calls:
            while True:
                await calls.Sync(meddler.request(held))

    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base, lease_seconds=0.5))
        await lease(consortium, "sofia")
        async with asyncio.TaskGroup() as group:
            meddling = group.create_task(meddle())
            await admin.until(
                lambda view: job_state(view, "demo_r1-train-sofia") == "planned", "the lease lapsed"
            )
            meddling.cancel()
        assert "demo_r1-train-sofia.a1 expired: no word from sofia for 0 s" in await admin.why(
            "demo_r1-train-sofia"
        )


# ---- nonsense


def line(**fields: Any) -> site_pb2.SyncRequest:
    report = dict(attempt="demo_r1-train-sofia.a1", phase="ATTEMPT_PHASE_RUNNING") | fields
    return site_pb2.SyncRequest(attempts=[site_pb2.AttemptReport(**report)])


def holding(**fields: Any) -> site_pb2.SyncRequest:
    holding = site_pb2.Holding(**(dict(language="bg", digest="a" * 64) | fields))
    return site_pb2.SyncRequest(site=site_pb2.SiteDescription(holdings=[holding]))


NONSENSE = [
    ("sofia", "Sync", line(attempt="../../etc"), "attempt id '../../etc': expected <job>.a<number>"),
    ("sofia", "Sync", line(attempt="x" * 1_000_000), "attempt id 'xxxxxxx"),
    ("sofia", "Sync", line(phase=99), "phase 99 is not in the contract; upgrade the agent"),
    ("sofia", "Sync", line(phase=0), "phase 0 is not in the contract"),
    ("sofia", "Sync", line(phase="ATTEMPT_PHASE_ENDED"), "ended, but outcome 0 is not in the contract"),
    ("sofia", "Sync", line(phase="ATTEMPT_PHASE_ENDED", outcome=99), "ended, but outcome 99 is not in the"),
    ("sofia", "Sync", line(contribution="A" * 64), "digest 'AAAA.*expected 64 lower-case hex digits"),
    ("sofia", "Sync", holding(digest="b" * 63), "digest 'bbb.*expected 64 lower-case hex digits"),
    ("sofia", "Sync", holding(language="Bulgarian text " * 100_000), "language 'Bulgarian text .*BCP-47"),
    ("sofia", "Sync", site_pb2.SyncRequest(incarnation="i" * 1_000_000), "incarnation 'iiii.*at most 100"),
    ("sofia", "Sync", site_pb2.SyncRequest(wait=Duration(seconds=-1)), "a duration cannot be negative"),
    ("sofia", "Sync", site_pb2.SyncRequest(incarnation="i" * (17 << 20)), "larger than max"),
    ("sofia", "RenewCertificate", site_pb2.RenewCertificateRequest(signing_request=b"?"), "signing request: .*PEM"),
    ("sofia", "Stat", artifact_pb2.StatRequest(digest="../ca.key"), "digest '../ca.key': expected 64"),
    ("sofia", "Download", artifact_pb2.DownloadRequest(digest=""), "digest '': expected 64"),
    ("admin", "SubmitCampaign", admin_pb2.SubmitCampaignRequest(campaign=b"\xff\xfe"), "campaign: "),
    ("admin", "SubmitCampaign", admin_pb2.SubmitCampaignRequest(campaign=b'{"campaign":1}'), r"\$\.campaign"),
    ("admin", "SubmitCampaign", admin_pb2.SubmitCampaignRequest(campaign=b"[" * 1_000_000), "campaign: "),
    ("admin", "StopCampaign", admin_pb2.StopCampaignRequest(campaign="a b"), "campaign name 'a b'"),
    ("admin", "StopCampaign", admin_pb2.StopCampaignRequest(campaign="none"), "a reason is needed"),
    ("admin", "StopCampaign", admin_pb2.StopCampaignRequest(campaign="none", reason="x"), "there is no campaign"),
    ("admin", "IssueToken", admin_pb2.IssueTokenRequest(site="a/b", country="BG"), "site name 'a/b'"),
    ("admin", "IssueToken", admin_pb2.IssueTokenRequest(site="a", country="Bulgaria"), "write the two letters"),
    ("admin", "IssueToken", admin_pb2.IssueTokenRequest(site="a", country="BG", organisation="o" * 999), "at most"),
    ("admin", "SetSite", admin_pb2.SetSiteRequest(site="sofia", reason="x"), "use drain, resume or suspend"),
    ("admin", "SetSite", admin_pb2.SetSiteRequest(site="sofia", command=77, reason="x"), "command 77; use drain"),
    ("admin", "SetSite", admin_pb2.SetSiteRequest(site="rila", command=1, reason="x"), "site 'rila' is not enrolled"),
    ("admin", "Promote", admin_pb2.PromoteRequest(campaign="none", version="v1", reason="x"), "there is no campaign"),
    ("admin", "RollBack", admin_pb2.PromoteRequest(campaign="none", version="v1"), "a reason is needed"),
    ("admin", "Watch", admin_pb2.WatchRequest(interval=Duration(nanos=-5)), "a duration cannot be negative"),
    ("admin", "Why", admin_pb2.WhyRequest(subject="y" * 1_000_000), "nothing in the ledger speaks of 'yyy"),
]  # fmt: skip
SERVICE_OF = {method.partition("/")[2]: method.partition("/")[0] for method in METHODS}


async def test_nonsense_is_answered_clearly_and_changes_nothing(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        before = await admin.view()
        own = {
            "sofia": ScriptedSite(consortium, "sofia").credentials,
            "admin": consortium.person("admin", "admin"),
        }
        for who, method, request, sentence in NONSENSE:
            async with consortium.channel(own[who]) as channel:
                call = channel.stream_stream(f"/sprachbund.v1.{SERVICE_OF[method]}/{method}")
                with pytest.raises((BadInput, Refused), match=sentence), in_our_words():
                    await call(iter([request.SerializeToString()])).read()
        async with consortium.channel(own["sofia"]) as channel:
            with pytest.raises(SprachbundError), in_our_words():  # bytes that are no message at all
                await channel.unary_unary("/sprachbund.v1.SiteService/Sync")(b"\xff\xff\xff")
        after = await admin.view()
        assert (after.sequence, after.head) == (before.sequence, before.head)
        await lease(consortium, "sofia")


async def test_a_patient_caller_is_not_taken_literally(consortium: Consortium) -> None:
    """Durations beyond what a clock can hold are shortened, long texts cut."""
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin, site.connected() as calls:
        request = site.request(wait=Duration(seconds=1 << 62))  # answered at once: nothing was seen before
        request.site.agent_version = "v" * 1_000_000
        await calls.Sync(request)
        version = next(site.agent_version for site in (await admin.view()).sites if site.site == "sofia")
        assert version == "v" * 100
        call = admin.calls.Watch(admin_pb2.WatchRequest(interval=Duration(seconds=1 << 62)))
        assert (await call.read()).view
        call.cancel()


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


# ---- restarts


async def test_leases_and_jobs_outlive_the_coordinator(consortium: Consortium, base: Path) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        before = {name: await lease(consortium, name) for name in SITES}
        view = await admin.view()
    async with consortium.running(), consortium.admin() as admin:
        again = await admin.view()
        assert (again.sequence, again.head, again.jobs) == (view.sequence, view.head, view.jobs)
        assert {job.state for job in again.jobs} == {"leased"}
        for name in SITES:
            answer = await lease(consortium, name)
            assert answer.wanted == before[name].wanted
            assert answer.revision == before[name].revision
        async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
            assert (await admin.until_ended("demo")).status == "completed"
        assert {job.attempts for job in (await admin.view()).jobs} == {1}


async def test_a_campaign_under_restarts_makes_the_same_versions(
    consortium: Consortium, rested: Consortium, base: Path
) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))

    def reached(sequence: int) -> Any:
        return lambda view: view.sequence >= sequence or campaign_in(view, "demo").status != "open"

    async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
        for more in (5, 9, 4, 11):
            async with consortium.running(), consortium.admin() as admin:
                await admin.until(reached((await admin.view()).sequence + more), "the ledger grew")
        async with consortium.running(), consortium.admin() as admin:
            ended = await admin.until_ended("demo")
    async with rested.running(), rested.admin() as admin:
        assert ended.versions == campaign_in(await admin.view(), "demo").versions


async def test_only_one_coordinator_serves_a_home(consortium: Consortium) -> None:
    second = Consortium(consortium.folder)
    async with consortium.running():
        with pytest.raises(Unavailable, match="this process has the ledger open already; close it first"):
            async with second.running():
                pass
