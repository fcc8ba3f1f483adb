"""Nonsense over the wire: a clear answer for the caller, nothing in the ledger, and the service goes on."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from real_coordinator import Consortium, campaign, in_our_words
from scripted_sites import ScriptedSite, introduce, lease
from sprachbund.v1 import (
    admin_pb2,
    artifact_pb2,
    site_pb2,
)
from test_services import first_answer

from consortium.errors import BadInput, Refused, SprachbundError


def line(**fields: Any) -> site_pb2.SyncRequest:
    report = dict(attempt="demo_r1-train-sofia.a1", phase="ATTEMPT_PHASE_RUNNING") | fields
    return site_pb2.SyncRequest(attempts=[site_pb2.AttemptReport(**report)])


def holding(times: int = 1, **fields: Any) -> site_pb2.SyncRequest:
    holding = site_pb2.Holding(**(dict(language="bg", digest="a" * 64) | fields))
    return site_pb2.SyncRequest(site=site_pb2.SiteDescription(holdings=[holding] * times))


def allocation(**fields: Any) -> site_pb2.SyncRequest:
    return site_pb2.SyncRequest(
        site=site_pb2.SiteDescription(allocations=[site_pb2.Allocation(name="h1", gpu_hours=1.0, **fields)])
    )


NONSENSE = [
    ("sofia", "Sync", line(attempt="../../etc"), "attempt id '../../etc': expected <job>.a<number>"),
    ("sofia", "Sync", line(attempt="x" * 1_000_000), "attempt id 'xxxxxxx"),
    ("sofia", "Sync", line(phase=99), "phase 99 is not in the contract; upgrade the agent"),
    ("sofia", "Sync", line(phase=0), "phase 0 is not in the contract"),
    ("sofia", "Sync", line(phase="ATTEMPT_PHASE_ENDED"), "ended, but outcome 0 is not in the contract"),
    ("sofia", "Sync", line(phase="ATTEMPT_PHASE_ENDED", outcome=99), "ended, but outcome 99 is not in the"),
    ("sofia", "Sync", line(contribution="A" * 64), "digest 'AAAA.*expected 64 lower-case hex digits"),
    ("sofia", "Sync", holding(digest="b" * 63), "digest 'bbb.*expected 64 lower-case hex digits"),
    ("sofia", "Sync", holding(language="Bulgarian text " * 5_000), "language 'Bulgarian text .*BCP-47"),
    ("sofia", "Sync", holding(language="Bulgarian text " * 100_000), "bytes of itself, at most 131072"),
    ("sofia", "Sync", holding(2), "two holdings of private bg text; add them up"),
    ("sofia", "Sync", holding(licence="\x01" * 200), "licence of private bg text has characters that cannot"),
    ("sofia", "Sync", allocation(until=Timestamp(seconds=1 << 62)), "no calendar has that day"),
    ("sofia", "Sync", allocation(until=Timestamp(seconds=-1)), "no calendar has that day"),
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
SERVICE_OF = {
    method.name: service.full_name
    for file in (admin_pb2, artifact_pb2, site_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


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
                with pytest.raises((BadInput, Refused), match=sentence):
                    await first_answer(channel, f"{SERVICE_OF[method]}/{method}", request.SerializeToString())
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
        request.site.agent_version = "v" * 100_000
        await calls.Sync(request)
        version = next(site.agent_version for site in (await admin.view()).sites if site.site == "sofia")
        assert version == "v" * 100
        call = admin.calls.Watch(admin_pb2.WatchRequest(interval=Duration(seconds=1 << 62)))
        assert (await call.read()).view
        call.cancel()


async def test_a_loss_that_is_no_number_hides_nothing_from_anybody(
    consortium: Consortium, base: Path
) -> None:
    """A training that diverges says so at every Sync; the view is of all sites, and JSON has no word for it."""
    site, odd = ScriptedSite(consortium, "sofia"), float("nan")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        async with site.connected() as calls:
            attempt = (await calls.Sync(site.request())).wanted[0].attempt
            request = site.request()
            progress = site_pb2.Progress(step=(1 << 64) - 1, loss=odd, tokens_per_second=odd)
            request.attempts.add(attempt=attempt, phase="ATTEMPT_PHASE_RUNNING", progress=progress)
            await calls.Sync(request)
        shown = next(one for one in (await admin.view()).attempts if one.attempt == attempt)
    assert (shown.step, shown.loss, shown.tokens_per_second) == (1 << 53, None, 0.0)


async def test_a_lease_beyond_all_calendars_is_given(consortium: Consortium, base: Path) -> None:
    """An admin may write so; every Sync of every site that held a job of the campaign failed."""
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base, lease_seconds=1e300))
        async with site.connected() as calls:
            (wanted,) = (await calls.Sync(site.request())).wanted
    assert wanted.lease.seconds == 315_576_000_000
