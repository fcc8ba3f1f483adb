"""Bundles that come late, twice, to the wrong place, from the wrong hand, or changed on the way."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from island import Island, answer_in, carry, request_of, said_in, signed_anew
from real_coordinator import Consortium, in_our_words, job_state
from scripted_sites import enrolled_at
from sprachbund.v1 import artifact_pb2, site_pb2

from consortium import ids
from consortium.bundles import open_bundle, sign_head, write_bundle
from consortium.canonical import encode, replace
from consortium.courier import ANSWERED, SAID
from consortium.errors import BadInput, Broken, Corrupt, Refused, SprachbundError, Unavailable
from consortium.manifests import FileRef
from consortium.store import BlobStore
from consortium.transfer import download, upload_section
from coordinator.founding import Keys
from site_agent.identity import next_key

TRAIN = "demo_r1-train-ohrid.a1"


async def sequence(admin) -> int:
    return (await admin.view()).sequence


async def inspected(admin) -> int:
    """Where the ledger ends once nothing that was delivered is still looked at, as it is beside all calls."""
    view = await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "done", "admitted")
    return view.sequence


async def refused(consortium: Consortium, said: Path, kind: Any, match: str) -> None:
    """And nothing is written, neither here nor there."""
    answer = said.with_name("refused.bundle")
    async with consortium.admin() as admin:
        before = await sequence(admin)
        with pytest.raises(kind, match=match):
            await asyncio.to_thread(carry, consortium, said, answer)
        assert await sequence(admin) == before
    assert not answer.exists()


# ---- at the coordinator


async def test_a_bundle_heard_twice_changes_nothing(done: Path, ohrid: Island, admin) -> None:
    first = await ohrid.exchange(done)
    before = await inspected(admin)
    again = await ohrid.exchange(done)
    assert answer_in(again).answered == answer_in(first).answered == (TRAIN,)
    assert await sequence(admin) == before
    ohrid.take_in(first)
    ohrid.take_in(again)
    with pytest.raises(Refused, match="a newer answer"):
        ohrid.take_in(_older(ohrid, again))


def _older(ohrid: Island, answer: Path) -> Path:
    """The same answer, as if it had been given before."""
    found = answer_in(answer)
    response = site_pb2.SyncResponse.FromString(found.response)
    response.checkpoint.sequence -= 1
    return _answered(ohrid, answer, replace(found, response=response.SerializeToString()))


def _answered(ohrid: Island, like: Path, answer, consortium: Consortium | None = None) -> Path:
    """Signed by the coordinator."""
    keys: Keys = (consortium or ohrid.consortium).keys
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(keys.server.key, password=None)
    out = ohrid.fresh("forged")
    with open_bundle(like) as bundle:
        store = BlobStore(out.with_suffix(".store"))
        bundle.take_in(answer_in(like), store)
    head = sign_head(answer, ANSWERED, key, keys.server.certificate)
    write_bundle(out, head, [(ref, store.path(ref.digest)) for ref in answer.blobs])
    return out


async def test_an_older_bundle_is_refused_and_a_lost_one_is_made_up_for(
    leased: Path, ohrid: Island, admin, consortium: Consortium
) -> None:
    ohrid.take_in(leased)
    lost = await ohrid.export()
    newer = await ohrid.export()
    answer = await ohrid.exchange(newer)
    assert ohrid.take_in(answer).settled == (TRAIN,)
    await inspected(admin)
    await refused(consortium, lost, Refused, "number 4 was heard already and says more")


async def test_two_bundles_of_one_number_mean_two_homes(
    leased: Path, ohrid: Island, consortium: Consortium
) -> None:
    said = ohrid.write_down()
    await ohrid.exchange(said)
    twin = signed_anew(said, ohrid.fresh("twin"), ohrid.identity, has=(ids.digest("0" * 64),))
    await refused(consortium, twin, Refused, "two copies of one home")


async def test_a_home_set_up_anew_takes_over_and_the_old_one_is_done(
    leased: Path, ohrid: Island, consortium: Consortium
) -> None:
    old = ohrid.write_down()
    (ohrid.home / "courier" / "series.json").unlink()
    ohrid.take_in(await ohrid.exchange(await ohrid.export()))
    await refused(consortium, old, Refused, "an earlier home")
    with pytest.raises(Refused, match="of another home of this site"):
        ohrid.take_in(leased)


async def test_a_suspended_site_is_not_heard(
    done: Path, ohrid: Island, admin, consortium: Consortium
) -> None:
    await admin.set_site("ohrid", "SUSPEND")
    await refused(consortium, done, Refused, "site ohrid is suspended")


async def test_a_replaced_certificate_is_refused(done: Path, ohrid: Island, consortium: Consortium) -> None:
    await ohrid.script.renew()  # somebody with the site's key did, over the wire
    await refused(consortium, done, Refused, "was replaced by a newer one")


async def test_an_expired_certificate_is_refused(done: Path, ohrid: Island, monkeypatch, consortium) -> None:
    import time

    late = time.time() + 40 * 86_400
    monkeypatch.setattr("coordinator.courier.time.time", lambda: late)
    with pytest.raises(Refused, match="it expired on"):
        await ohrid.exchange(done)


async def test_a_bundle_of_another_consortium_or_another_site_is_refused(
    done: Path, ohrid: Island, consortium: Consortium, base: Path, tmp_path: Path
) -> None:
    other = await enrolled_at(tmp_path / "other", base)  # of the same name, with keys of its own
    stranger = Island(other, tmp_path / "stranger")
    stranger.take_over_identity()
    await stranger.work()
    await refused(consortium, stranger.write_down(), Refused, "did not issue it")
    plovdiv = Island(consortium, tmp_path / "plovdiv", "plovdiv", "bg")
    plovdiv.take_over_identity()
    posing = signed_anew(done, tmp_path / "posing.bundle", plovdiv.identity)
    await refused(consortium, posing, Refused, "speaks for site ohrid, but plovdiv signed it")
    renamed = signed_anew(done, tmp_path / "renamed.bundle", ohrid.identity, consortium="elsewhere")
    await refused(consortium, renamed, Refused, "is of consortium 'elsewhere'")


async def test_an_answer_cannot_be_played_back_to_the_coordinator(
    leased: Path, ohrid: Island, consortium: Consortium
) -> None:
    await refused(consortium, leased, BadInput, "it goes to the site")
    head = open_head_of(leased)
    async with consortium.admin() as admin:
        from sprachbund.v1 import admin_pb2

        with pytest.raises(BadInput, match="the other direction's bundle"), in_our_words():
            await admin.calls.Carry(admin_pb2.CarryRequest(said=encode(head)))


def open_head_of(path: Path):
    with open_bundle(path) as bundle:
        return bundle.head


async def test_changed_bytes_are_refused_wherever_they_are(done: Path, consortium: Consortium) -> None:
    whole, dice = done.read_bytes(), random.Random(2)
    for place in [
        *(dice.randrange(24, 3000) for _ in range(6)),
        *(dice.randrange(len(whole)) for _ in range(6)),
    ]:
        data = bytearray(whole)
        data[place] ^= 1 << dice.randrange(8)
        done.write_bytes(data)
        await refused(consortium, done, (BadInput, Refused), ".")
    done.write_bytes(whole)
    await asyncio.to_thread(carry, consortium, done, done.with_name("answer-at-last.bundle"))


async def test_a_cut_bundle_is_refused_before_anybody_is_asked(done: Path, consortium: Consortium) -> None:
    done.write_bytes(done.read_bytes()[:-5])
    await refused(consortium, done, Corrupt, "it was cut short")


async def test_who_is_no_admin_carries_nothing(done: Path, ohrid: Island, consortium: Consortium) -> None:
    from console.carrying import exchange
    from console.client import ask

    with pytest.raises(Refused, match="auditor petra may not call"):
        await asyncio.to_thread(
            ask,
            consortium.home / "auditor" / "petra",
            lambda c: exchange(c, done, ohrid.fresh("x"), lambda name, size: lambda moved: None),
        )


async def test_blobs_move_for_a_site_only_as_its_bundle_and_its_jobs_have_it(
    done: Path, ohrid: Island, admin, consortium: Consortium, tmp_path: Path
) -> None:
    said = said_in(done)
    ref = said.blobs[0]
    with open_bundle(done) as bundle:
        _, begin = bundle.places(said)[ref.digest]
    with pytest.raises(Refused, match="no bundle of ohrid that was shown here waits for it"):
        await upload_section(admin.artifacts, done, begin, ref, "ohrid")
    store = BlobStore(tmp_path / "fetched")
    of_sofia = consortium_blob(consortium)
    with pytest.raises(Refused, match="no job that ohrid holds needs it"):
        await download(admin.artifacts, of_sofia, store, site="ohrid")
    await download(admin.artifacts, of_sofia, store)  # an admin for themself reads everything
    for site, match in (("nobody", "not enrolled"), ("sofia", "no job that sofia holds")):
        with pytest.raises(SprachbundError, match=match), in_our_words():
            async for _ in admin.artifacts.Download(
                artifact_pb2.DownloadRequest(digest=of_sofia.digest, site=site)
            ):
                pass
    async with ohrid.script.connected():  # and a site cannot carry for another, nor for itself
        with pytest.raises(Refused, match="may not carry blobs"), in_our_words():
            await ohrid.script.artifacts.Stat(artifact_pb2.StatRequest(digest=ref.digest, site="plovdiv"))


def consortium_blob(consortium: Consortium) -> FileRef:
    """Something in the store that no job needs."""
    return BlobStore(
        consortium.home / "store" if (consortium.home / "store").is_dir() else consortium.home
    ).put_bytes(b"nobody's")


async def test_results_that_nobody_waits_for_are_not_sent(
    done: Path, ohrid: Island, admin, consortium: Consortium
) -> None:
    from sprachbund.v1 import admin_pb2

    await admin.calls.StopCampaign(admin_pb2.StopCampaignRequest(campaign="demo", reason="enough"))
    answer = ohrid.fresh("answer")
    carried = await ohrid.carry(done, answer)
    assert carried.sent_bytes == 0
    assert ohrid.take_in(answer).settled == (TRAIN,)


async def test_a_claim_of_other_peoples_bytes_is_refused_by_inspection(
    leased: Path, done: Path, ohrid: Island, admin, consortium: Consortium
) -> None:
    """The bundle names no blob of its own for the result, only its envelope."""
    said = said_in(done)
    envelope = next(line.contribution for line in request_of(said).attempts if line.contribution)
    only = tuple(ref for ref in said.results[TRAIN] if ref.digest == envelope)
    claim = signed_anew(done, ohrid.fresh("claim"), ohrid.identity, results={TRAIN: only})
    await ohrid.exchange(claim)
    await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "planned", "refused")
    assert any("was never uploaded by ohrid" in line for line in await admin.why("demo_r1-train-ohrid"))


# ---- at the site


async def test_a_site_refuses_what_is_not_for_it_and_nothing_changes(
    leased: Path, ohrid: Island, consortium: Consortium, tmp_path: Path
) -> None:
    plovdiv = Island(consortium, tmp_path / "plovdiv", "plovdiv", "bg")
    plovdiv.take_over_identity()
    before = plovdiv.files()
    with pytest.raises(Refused, match="is for site ohrid, this is plovdiv"):
        plovdiv.take_in(leased)
    assert plovdiv.files() == before

    before, answer = ohrid.files(), answer_in(leased)
    said = ohrid.write_down()
    cases = [
        (said, BadInput, "the other direction's bundle"),
        (_answered(ohrid, leased, replace(answer, number=99)), Refused, "this home has written 3"),
        (_answered(ohrid, leased, replace(answer, series="other")), Refused, "another home of this site"),
        (_answered(ohrid, leased, replace(answer, response=b"\xff")), BadInput, "no SyncResponse"),
        (_answered(ohrid, leased, replace(answer, response=b"")), BadInput, "shows no head of the ledger"),
        (_answered(ohrid, leased, replace(answer, consortium="other")), Refused, "of consortium 'other'"),
    ]
    identity = ohrid.identity
    posing = ohrid.fresh("posing")
    write_bundle(
        posing, sign_head(replace(answer, blobs=()), ANSWERED, identity.key, identity.certificate), ()
    )
    cases.append((posing, Refused, "signed by site ohrid; expected a coordinator"))
    before = ohrid.files()
    for path, kind, match in cases:
        with pytest.raises(kind, match=match):
            ohrid.take_in(path)
        assert ohrid.files() == before, path
    assert ohrid.take_in(leased).wanted == (TRAIN,)


async def test_a_damaged_answer_leaves_the_agent_as_it_was(leased: Path, ohrid: Island) -> None:
    data, before = leased.read_bytes(), ohrid.files()
    leased.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corrupt, match="is not what its digest says"):
        ohrid.take_in(leased)
    cache = ("blobs/", "deliveries/")  # what came whole need not come again; nothing refers to it yet
    after = {name: data for name, data in ohrid.files().items() if not name.startswith(cache)}
    assert after == {name: data for name, data in before.items() if not name.startswith(cache)}
    for name in {ref.digest for ref in answer_in(leased).blobs} & set(BlobStore(ohrid.home).digests()):
        BlobStore(ohrid.home).verify(name)
    await ohrid.work()
    assert ohrid.launcher.launched == []
    leased.write_bytes(data)
    ohrid.take_in(leased)
    await ohrid.work()
    assert ohrid.launcher.launched == [TRAIN]


async def test_an_older_answer_is_refused_and_the_same_one_is_harmless(leased: Path, ohrid: Island) -> None:
    said = ohrid.write_down()
    ohrid.take_in(await ohrid.exchange(said))
    before = ohrid.files()
    with pytest.raises(Refused, match="a newer answer"):
        ohrid.take_in(leased)
    assert ohrid.files() == before


async def test_a_rewritten_ledger_is_noticed_by_bundles_too(leased: Path, ohrid: Island) -> None:
    from consortium.signing import sign_checkpoint

    ohrid.take_in(leased)
    answer = answer_in(leased)
    response = site_pb2.SyncResponse.FromString(answer.response)
    forged = sign_checkpoint(ohrid.consortium.keys.ledger, response.checkpoint.sequence, "0" * 64)
    response.checkpoint.head, response.checkpoint.signature = forged.head, forged.signature
    before = ohrid.files()
    path = _answered(ohrid, leased, replace(answer, response=response.SerializeToString()))
    with pytest.raises(Broken, match="its ledger was rewritten or cut"):
        ohrid.take_in(path)
    assert ohrid.files() == before


async def test_an_order_that_the_coordinator_did_not_sign_is_refused_by_the_agent(
    leased: Path, ohrid: Island
) -> None:
    answer = answer_in(leased)
    response = site_pb2.SyncResponse.FromString(answer.response)
    response.wanted[0].signature = bytes(64)
    ohrid.take_in(_answered(ohrid, leased, replace(answer, response=response.SerializeToString())))
    await ohrid.work()
    assert ohrid.launcher.launched == []
    line = request_of(said_in(ohrid.write_down())).attempts[0]
    assert "the assignment cannot be accepted" in line.reason


async def test_a_site_without_a_network_needs_the_config_to_say_so(ohrid: Island, admin) -> None:
    assert ohrid.config.by_courier
    with pytest.raises(Unavailable, match="has said nothing yet"):
        ohrid.write_down()
    assert next_key(ohrid.home) and SAID


async def test_an_agent_of_an_unfit_release_is_not_heard(
    done: Path, ohrid: Island, consortium: Consortium
) -> None:
    request = request_of(said_in(done))
    request.site.agent_version = "99.0.0"
    unfit = signed_anew(
        done, ohrid.fresh("unfit"), ohrid.identity, request=request.SerializeToString(deterministic=True)
    )
    await refused(consortium, unfit, Refused, "upgrade the coordinator")
