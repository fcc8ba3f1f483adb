"""Every RPC of every service, asked by everybody: who is let in is what coordinator/core/access.py says."""

import asyncio
import contextlib
import importlib
import pkgutil
import time
from pathlib import Path

import grpc
import pytest
import sprachbund.v1
from real_coordinator import Consortium, campaign, duration, fetch, in_our_words
from scripted_sites import ScriptedSite, introduce, lease
from sprachbund.v1 import admin_pb2, artifact_pb2, artifact_pb2_grpc, audit_pb2, audit_pb2_grpc, site_pb2
from test_services import first_answer, stranger

from consortium.canonical import decode
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.identity import Authority, Credentials, signing_request
from consortium.ids import SiteName, digest_of
from consortium.manifests import VersionManifest
from consortium.roles import Role
from consortium.signing import new_key, private_pem
from consortium.views import Releases
from coordinator.core.access import METHODS, WITHOUT_CERTIFICATE
from coordinator.founding import issue_person
from coordinator.guard import Pace
from site_agent.identity import SiteIdentity, Trust
from site_agent.link import Link

EVERY = sorted(
    f"{service.full_name}/{method.name}"
    for found in pkgutil.iter_modules(sprachbund.v1.__path__)
    if found.name.endswith("_pb2")
    for service in importlib.import_module(f"sprachbund.v1.{found.name}").DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
OTHERS = ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"]
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def test_every_rpc_has_a_rule() -> None:
    """One that was added without a rule is refused to everybody; this says so before anybody wonders."""
    assert {f"/{method}" for method in [*EVERY, *OTHERS, REFLECTION]} == {*METHODS, *WITHOUT_CERTIFICATE}


#: Said once more, so that a slip in the table of ``access.py`` is no rule: s(ite), a(dmin), (a)u(ditor), r(eader).
AGREED = """
SiteService/Sync s                      SiteService/RenewCertificate s
ArtifactService/Stat saur               ArtifactService/Upload sa           ArtifactService/Download saur
AdminService/SubmitCampaign a           AdminService/StopCampaign a         AdminService/IssueToken a
AdminService/SetSite a                  AdminService/Promote a              AdminService/RollBack a
AdminService/Revoke a                   AdminService/Carry a                AdminService/Forecast au
AdminService/GetView au                 AdminService/Watch au               AdminService/Why au
FlowerService/OpenRun a                 FlowerService/Push a                FlowerService/Replies a
FlowerService/CompleteRun a             AuditService/ReadLedger sau         AuditService/GetCheckpoint saur
ReleaseService/ListReleases saur        Health/Check saur                   Health/Watch saur
ServerReflection/ServerReflectionInfo au
""".split()
LETTERS = {Role.SITE: "s", Role.ADMIN: "a", Role.AUDITOR: "u", Role.READER: "r"}


def test_the_table_says_what_was_agreed() -> None:
    found = {
        method.rpartition(".")[2]: "".join(letter for role, letter in LETTERS.items() if role in who)
        for method, who in METHODS.items()
    }
    assert found == dict(zip(AGREED[::2], AGREED[1::2], strict=True))


async def answer_to(channel: grpc.aio.Channel, method: str) -> SprachbundError | None:
    try:
        await first_answer(channel, method)
    except SprachbundError as error:
        return error
    return None


async def test_each_role_may_call_what_the_table_says(consortium: Consortium) -> None:
    now, authority = time.time(), consortium.keys.authority
    issue_person(consortium.home, authority, Role.READER, "public", now)
    async with consortium.running():
        own = {
            Role.SITE: ScriptedSite(consortium, "sofia").credentials,
            Role.ADMIN: consortium.person("admin", "admin"),
            Role.AUDITOR: consortium.person("auditor", "petra"),
            Role.READER: consortium.person("reader", "public"),
        }
        for role, credentials in own.items():
            allowed = set()
            async with consortium.channel(credentials) as channel:
                for method in [*EVERY, *OTHERS, *([REFLECTION] if role is not Role.SITE else [])]:
                    error = await answer_to(channel, method)
                    assert error is None or isinstance(error, BadInput | Refused), (role, method, error)
                    if not (isinstance(error, Refused) and f"may not call /{method}" in str(error)):
                        allowed.add(f"/{method}")
            unimplemented = WITHOUT_CERTIFICATE  # on the other port
            assert allowed - unimplemented == {method for method, who in METHODS.items() if role in who}
        async with consortium.channel(None) as channel:
            for method in [*EVERY, *OTHERS, REFLECTION]:
                error = await answer_to(channel, method)
                if f"/{method}" in WITHOUT_CERTIFICATE:
                    assert "token is unknown" in str(error)
                else:
                    assert isinstance(error, BadInput) and "unimplemented" in str(error), method


async def test_nobody_else_is_answered_anything(consortium: Consortium) -> None:
    now, authority = time.time(), consortium.keys.authority
    another = Authority.create("balkan", now)
    issue_person(consortium.home, authority, Role.ADMIN, "eve", now)
    site = ScriptedSite(consortium, "sofia")
    before = site.credentials
    key = new_key()
    beyond = authority.site(signing_request(SiteName("sofia"), key), SiteName("sofia"), now - 9e6, days=90)
    callers: dict[str, tuple[Credentials, type[SprachbundError], str]] = {
        "another authority's site": (stranger(consortium, another), Unavailable, "."),
        "another authority's admin": (another.person(Role.ADMIN, "admin", now), Unavailable, "."),
        "the coordinator itself": (consortium.keys.server, SprachbundError, "."),
        "an expired site": (Credentials(beyond, private_pem(key)), Unavailable, "."),
        "an expired admin": (authority.person(Role.ADMIN, "ada", now - 9e6), Unavailable, "."),
        "a certificate that the ledger does not know": (
            stranger(consortium, authority),
            Refused,
            "may not call|replaced",
        ),
        "a site with its certificate before": (before, Refused, "may not call|replaced by a newer one"),
        "a suspended site": (
            ScriptedSite(consortium, "ohrid").credentials,
            Refused,
            "may not call|is suspended",
        ),
        "a revoked admin": (
            consortium.person("admin", "eve"),
            Refused,
            "may not call|eve was revoked: stolen",
        ),
    }
    async with consortium.running(), consortium.admin() as admin:
        await site.renew()
        await admin.set_site("ohrid", "SUSPEND")
        await admin.calls.Revoke(admin_pb2.RevokeRequest(role="admin", name="eve", reason="stolen"))
        ledger = (await admin.view()).sequence
        for who, (credentials, kind, sentence) in callers.items():
            async with consortium.channel(credentials) as channel:
                for method in [*EVERY, *OTHERS, REFLECTION]:
                    if f"/{method}" in WITHOUT_CERTIFICATE:
                        continue
                    error = await answer_to(channel, method)
                    if method.endswith("/RenewCertificate") and who == "a site with its certificate before":
                        assert isinstance(
                            error, BadInput
                        )  # heard, for an answer may have been lost; see below
                        continue
                    assert isinstance(error, kind), (who, method, error)
                    with pytest.raises(kind, match=sentence):
                        raise error
        assert (await admin.view()).sequence == ledger


async def to_its_end(call: grpc.aio.UnaryStreamCall) -> None:
    with in_our_words():
        while True:
            await call.read()


async def test_a_revoked_person_hears_nothing_more(consortium: Consortium) -> None:
    """Streams under way end; nobody can lock out themselves; another name is let in."""
    async with consortium.running(), consortium.admin() as admin:
        async with consortium.channel(consortium.person("auditor", "petra")) as channel:
            request = admin_pb2.WatchRequest(interval=duration(0.1)).SerializeToString()
            call = channel.unary_stream("/sprachbund.v1.AdminService/Watch")(request)
            assert await call.read()
            await admin.calls.Revoke(admin_pb2.RevokeRequest(role="auditor", name="petra", reason="left us"))
            with pytest.raises(Refused, match="auditor petra was revoked: left us"):
                await to_its_end(call)
        issue_person(consortium.home, consortium.keys.authority, Role.AUDITOR, "petra-2", time.time())
        async with consortium.channel(consortium.person("auditor", "petra-2")) as channel:
            await first_answer(channel, "sprachbund.v1.AdminService/GetView")
        with pytest.raises(Refused, match="cannot revoke their own"), in_our_words():
            await admin.calls.Revoke(admin_pb2.RevokeRequest(role="admin", name="admin", reason="a mistake"))


async def test_a_suspension_ends_what_is_under_way(consortium: Consortium, base: Path) -> None:
    """A Sync that waits for news, and an upload whose bytes are still coming."""
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        answer = await lease(consortium, "sofia")
        assert answer.wanted
        async with site.connected() as calls:
            waiting = asyncio.ensure_future(
                calls.Sync(site.request(seen=answer.revision, wait=duration(50.0)))
            )
            digest, going = digest_of(b"ab"), asyncio.Event()

            async def bytes_of_it():
                yield artifact_pb2.UploadRequest(header=artifact_pb2.UploadHeader(digest=digest, size=2))
                yield artifact_pb2.UploadRequest(data=b"a")
                await going.wait()
                yield artifact_pb2.UploadRequest(data=b"b")

            uploading = asyncio.ensure_future(site.artifacts.Upload(bytes_of_it()))
            held = artifact_pb2.StatRequest(digest=digest)
            while (await site.artifacts.Stat(held)).received < 1:
                await asyncio.sleep(0.02)
            await admin.set_site("sofia", "SUSPEND")
            going.set()
            for call in (waiting, uploading):
                with pytest.raises(Refused, match="sofia is suspended"), in_our_words():
                    await call
    assert not (consortium.home / "store" / "blobs" / digest[:2] / digest).exists()


async def test_an_invitation_given_before_a_suspension_does_not_end_it(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin:
        older = await admin.invite("sofia")
        await admin.set_site("sofia", "SUSPEND")
        with pytest.raises(Refused, match="was suspended after this invitation was given"):
            await site.enrol(older)
        await site.enrol(await admin.invite("sofia"))
        await lease(consortium, "sofia")
        with pytest.raises(Refused, match="unknown or already used"):
            await site.enrol(older)


async def test_an_invitation_is_short_lived(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        with pytest.raises(BadInput, match="an invitation for 721 h; at most 720 h"):
            await admin.invite("varna", 721 * 3600.0)


async def test_a_lost_answer_to_a_renewal_is_asked_for_again(consortium: Consortium) -> None:
    """The certificate before is good for that and nothing else, and only with the very key that was asked for."""
    site, key = ScriptedSite(consortium, "sofia"), new_key()
    request = site_pb2.RenewCertificateRequest(signing_request=signing_request(site.name, key))
    other = site_pb2.RenewCertificateRequest(signing_request=signing_request(site.name, new_key()))
    async with consortium.running(), site.connected() as calls, consortium.admin() as admin:
        lost = (await calls.RenewCertificate(request)).certificate
        sequence = (await admin.view()).sequence
        with pytest.raises(Refused, match="replaced by a newer one"), in_our_words():
            await calls.Sync(site.request())
        with pytest.raises(Refused, match="replaced by a newer one"), in_our_words():
            await calls.RenewCertificate(other)
        assert (await calls.RenewCertificate(request)).certificate == lost
        assert (await admin.view()).sequence == sequence  # said again, not issued again
        async with site.connected(Credentials(lost, private_pem(key))) as renewed:
            await renewed.Sync(site.request())


class LosesTheAnswer:
    def __init__(self, call) -> None:
        self.call = call

    async def __call__(self, request, timeout=None):
        await self.call(request, timeout=timeout)
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut"
        )


async def test_an_agent_gets_over_it_by_itself(consortium: Consortium) -> None:
    """Its link renews once more with the key that it kept, and transfers go on over the new certificate."""
    site = ScriptedSite(consortium, "sofia")
    home = consortium.folder / "agent"
    trust = Trust(
        consortium="balkan",
        site=site.name,
        authority=consortium.keys.authority.pem.decode(),
        ledger_key=(site.folder / "ledger.key").read_bytes().hex(),
    )
    SiteIdentity(trust, site.key, site.credentials.certificate).save(home)
    description = site.request().site
    async with consortium.running():
        link = Link(site.name, f"127.0.0.1:{consortium.config.port}", home, SiteIdentity.load(home), "one")
        carrying = link.artifacts
        await link.sync(description, (), 0.0)
        link._sites.RenewCertificate = LosesTheAnswer(link._sites.RenewCertificate)
        with pytest.raises(Unavailable, match="cut"):
            await link.renew()
        with pytest.raises(Refused, match="replaced by a newer one"):
            await link.sync(description, (), 0.0)
        link._sites.RenewCertificate = link._sites.RenewCertificate.call
        await link.renew()
        await link.sync(description, (), 0.0)
        assert not (await carrying.Stat(artifact_pb2.StatRequest(digest=digest_of(b"x")))).complete
        await link.close()


async def test_readers_read_what_is_released_and_nothing_else(rested: Consortium) -> None:
    issue_person(rested.home, rested.keys.authority, Role.READER, "public", time.time())
    async with rested.running(), rested.admin() as admin:
        view = await admin.view()
        async with rested.channel(rested.person("reader", "public")) as channel:
            answer = await audit_pb2_grpc.ReleaseServiceStub(channel).ListReleases(
                audit_pb2.ListReleasesRequest()
            )
            releases = decode(answer.releases, Releases)
            assert [r.name for r in releases.releases] == ["demo/v0", "demo/v1", "demo/v2"]
            assert [r.is_head for r in releases.releases] == [False, False, True]
            assert {x.language for x in releases.releases[-1].results} == {"bg", "mk"}
            for site in view.sites:
                assert site.site.encode() not in answer.releases
            artifacts = artifact_pb2_grpc.ArtifactServiceStub(channel)
            manifest = decode(await fetch(artifacts, releases.releases[-1].digest), VersionManifest)
            for ref in manifest.files.values():
                assert len(await fetch(artifacts, ref.digest)) == ref.size
            hidden = [*(ref.digest for ref in manifest.outer_state.values())]
            hidden += [ingredient.delta.digest for ingredient in manifest.ingredients]
            assert len(hidden) >= 3
            for digest in hidden:
                with pytest.raises(Refused, match="no released version"), in_our_words():
                    await fetch(artifacts, digest)
                assert not (await artifacts.Stat(artifact_pb2.StatRequest(digest=digest))).complete


def test_who_calls_too_often_is_told_so_and_others_are_not() -> None:
    now = [0.0]
    pace = Pace(2.0, lambda: now[0])

    def heard(who: str) -> bool:
        try:
            with pace.call(who):
                return True
        except Unavailable:
            return False

    assert sum(heard("sofia") for _ in range(50)) == 20  # ten seconds' worth may come at once
    assert heard("ohrid")
    now[0] = 1.0
    assert sum(heard("sofia") for _ in range(50)) == 2


def test_nobody_holds_more_calls_than_a_program_needs() -> None:
    pace = Pace(1000.0, lambda: 0.0)
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(pace.call("sofia"))
        with pytest.raises(Unavailable, match="64 calls under way"):
            stack.enter_context(pace.call("sofia"))
        stack.enter_context(pace.call("ohrid"))
    with pace.call("sofia"):
        pass


def test_long_messages_and_long_answers_count_for_more() -> None:
    pace = Pace(50.0, lambda: 0.0)  # 500 calls in a burst
    for _ in range(2):
        with pace.call("sofia", "/sprachbund.v1.SiteService/Sync", 16 << 20):
            pass
    with pytest.raises(Unavailable, match="more than 50 times a second"), pace.call("sofia"):
        pass
    ledger = "/sprachbund.v1.AuditService/ReadLedger"
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(pace.call("ohrid", ledger))
        with pytest.raises(Unavailable, match="16 calls under way"):
            stack.enter_context(pace.call("ohrid", ledger))
        stack.enter_context(pace.call("ohrid"))
