"""Two agents of one site: whatever the older one asks is refused, and it leaves; another release is still served."""

import asyncio
import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from real_coordinator import PATIENCE_SECONDS, QUICK, Consortium, campaign, in_our_words, job_state
from scripted_sites import ScriptedSite, introduce
from sprachbund.v1 import artifact_pb2, artifact_pb2_grpc, site_pb2, site_pb2_grpc

from consortium.channels import open_channel, user_agent
from consortium.errors import Refused, Superseded
from consortium.identity import signing_request
from consortium.ids import SiteName
from consortium.signing import load_key, new_key
from consortium.store import ref_of
from consortium.transfer import upload
from site_agent.agent import Agent
from site_agent.config import SiteConfig
from site_agent.identity import SiteIdentity, Trust
from site_agent.launchers.local import LocalLauncher


def as_agent(consortium: Consortium, site: ScriptedSite, incarnation: str) -> grpc.aio.Channel:
    """A channel such as an agent opens."""
    target = f"127.0.0.1:{consortium.config.port}"
    program = user_agent(version("sprachbund"), incarnation)
    return open_channel(target, consortium.keys.authority.pem, site.credentials, program=program)


async def test_every_call_of_a_superseded_agent_is_refused(
    consortium: Consortium, base: Path, tmp_path: Path
) -> None:
    site = ScriptedSite(consortium, "sofia")
    blob = tmp_path / "blob"
    blob.write_bytes(b"a result")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        async with as_agent(consortium, site, "old") as old, as_agent(consortium, site, "new") as new:
            sites, artifacts = site_pb2_grpc.SiteServiceStub(old), artifact_pb2_grpc.ArtifactServiceStub(old)
            site.incarnation = "old"
            await sites.Sync(site.request())
            await upload(artifacts, blob, ref_of(blob), QUICK)  # still its own
            site.incarnation = "new"
            await site_pb2_grpc.SiteServiceStub(new).Sync(site.request())
            site.incarnation = "old"
            digest = ref_of(blob).digest
            renewal = site_pb2.RenewCertificateRequest(
                signing_request=signing_request(SiteName("sofia"), new_key())
            )

            async def download() -> None:
                async for _ in artifacts.Download(artifact_pb2.DownloadRequest(digest=digest)):
                    pass

            for call in (
                lambda: sites.Sync(site.request()),
                lambda: sites.RenewCertificate(renewal),
                lambda: artifacts.Stat(artifact_pb2.StatRequest(digest=digest)),
                download,
                lambda: upload(artifacts, blob, ref_of(blob), QUICK),
            ):
                with pytest.raises(Superseded, match="another, newer agent of site sofia"), in_our_words():
                    await call()
            site.incarnation = "new"
            await site_pb2_grpc.SiteServiceStub(new).Sync(site.request())


def real_agent(consortium: Consortium, home: Path) -> Agent:
    """The agent itself, with the identity of a site that is enrolled."""
    folder = consortium.folder / "sites" / "sofia"
    trust = Trust(
        consortium=consortium.config.consortium,
        site=SiteName("sofia"),
        authority=consortium.keys.authority.pem.decode(),
        ledger_key=(folder / "ledger.key").read_bytes().hex(),
    )
    identity = SiteIdentity(trust, load_key(folder / "site.key"), (folder / "site.pem").read_bytes())
    identity.save(home)
    port = consortium.config.port
    config = SiteConfig(
        site=SiteName("sofia"),
        coordinator=f"127.0.0.1:{port}",
        enrolment=f"127.0.0.1:{port}",
        home=str(home),
        sync_seconds=0.2,
    )
    return Agent(config, identity, LocalLauncher(("/bin/false",)))


@pytest.mark.parametrize("homes", [("one", "one"), ("one", "two")])
async def test_of_two_real_agents_the_newer_stays(
    consortium: Consortium, tmp_path: Path, homes: tuple[str, str]
) -> None:
    async with consortium.running(), consortium.admin() as admin:
        first = real_agent(consortium, tmp_path / homes[0])
        old = asyncio.create_task(first.run())
        await admin.until(
            lambda view: any(s.site == "sofia" and s.seen_seconds_ago is not None for s in view.sites),
            "the first one",
        )
        new = asyncio.create_task(real_agent(consortium, tmp_path / homes[1]).run())
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await old == Superseded.exit_code
        assert not new.done()
        new.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await new


async def test_a_certificate_that_another_agent_of_the_home_renewed_is_taken_up(
    consortium: Consortium, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with consortium.running(), consortium.admin() as admin:
        agent = real_agent(consortium, home)
        task = asyncio.create_task(agent.run())
        await admin.until(lambda view: any(s.seen_seconds_ago is not None for s in view.sites), "the agent")
        before = SiteIdentity.load(home)
        key = new_key()
        request = site_pb2.RenewCertificateRequest(signing_request=signing_request(SiteName("sofia"), key))
        async with consortium.channel(before.credentials) as channel:
            answer = await site_pb2_grpc.SiteServiceStub(channel).RenewCertificate(request)
        before.renewed(key, answer.certificate).save(home)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while agent._link.identity.certificate != answer.certificate or agent._talk.trouble:
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# ---- another release

#: The fields that release 0.1.0 knew, of the messages that have grown since; read from its descriptor.
OLD_FIELDS = {
    "SiteDescription": {"agent_version", "slots", "holdings", "draining", "merges"},
    "AttemptReport": {"attempt", "phase", "outcome", "reason", "native_id", "progress", "contribution"},
    "SyncRequest": {"site", "attempts", "wait", "seen", "incarnation"},
    "SyncResponse": {"revision", "wanted", "settled", "checkpoint", "next", "now", "upload_bytes_max"},
    "SignedAssignment": {"attempt", "lease", "job", "signature"},
}


def old_messages() -> dict[str, Any]:
    """The classes of release 0.1.0: today's descriptor, less every field that it did not have."""
    file = descriptor_pb2.FileDescriptorProto()
    site_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "old/site.proto", "old.v1"
    for message in file.message_type:
        known = OLD_FIELDS.get(message.name)
        kept = [field for field in message.field if known is None or field.name in known]
        assert known is None or {field.name for field in kept} == known, message.name
        del message.field[:]
        message.field.extend(kept)
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".sprachbund.v1.", ".old.v1.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".sprachbund.v1.", ".old.v1.")
            method.output_type = method.output_type.replace(".sprachbund.v1.", ".old.v1.")
    pool = descriptor_pool.DescriptorPool()
    for name in ("google/protobuf/duration.proto", "google/protobuf/timestamp.proto"):
        dependency = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(name).CopyToProto(dependency)
        pool.Add(dependency)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"old.v1.{name}"))
        for name in OLD_FIELDS
    }


async def test_an_agent_one_release_older_is_served(consortium: Consortium, base: Path) -> None:
    """It speaks in the old messages, and understands the answer by them."""
    old = old_messages()
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        async with consortium.channel(site.credentials) as channel:
            sync = channel.unary_unary(
                "/sprachbund.v1.SiteService/Sync",
                request_serializer=old["SyncRequest"].SerializeToString,
                response_deserializer=old["SyncResponse"].FromString,
            )
            request = old["SyncRequest"].FromString(site.request().SerializeToString())
            answer = await sync(request)
            [wanted] = answer.wanted
            assert wanted.attempt == "demo_r1-train-sofia.a1"
            report = old["AttemptReport"](attempt=wanted.attempt, phase=3)
            request.attempts.append(report)
            assert [one.attempt for one in (await sync(request)).wanted] == [wanted.attempt]
            view = await admin.view()
    assert job_state(view, "demo_r1-train-sofia") == "leased"


async def test_an_agent_one_release_newer_is_served(consortium: Consortium, base: Path) -> None:
    """Its messages have fields that this coordinator has never heard of."""
    unknown = b"\xfa\x3f\x03new"  # field 1023, three bytes
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        async with consortium.channel(site.credentials) as channel:
            sync = channel.unary_unary(
                "/sprachbund.v1.SiteService/Sync",
                request_serializer=lambda request: request.SerializeToString() + unknown,
                response_deserializer=site_pb2.SyncResponse.FromString,
            )
            request = site.request()
            major, minor = version("sprachbund").split(".")[:2]
            request.site.agent_version = f"{major}.{int(minor) + 1}.0"
            assert [one.attempt for one in (await sync(request)).wanted] == ["demo_r1-train-sofia.a1"]
            request.site.agent_version = f"{major}.{int(minor) + 2}.0"
            with (
                pytest.raises(Refused, match="one minor version apart; upgrade the coordinator"),
                in_our_words(),
            ):
                await sync(request)
