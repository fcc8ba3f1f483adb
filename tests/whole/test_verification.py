"""Verification finds nothing wrong with what happened, and whoever changes anything afterwards is found out."""

import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real_coordinator import Consortium

from consortium.canonical import decode, encode
from consortium.identity import Authority, identity_of, signing_request
from consortium.ids import Digest, SiteName, short
from consortium.signing import load_key, sign_checkpoint
from consortium.store import BlobStore
from consortium.versions import OUTER_STATE, lay_out
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import State, Version
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.verification import Report, verify

Event = dict[str, Any]


def state_of(consortium: Consortium) -> State:
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        return replay(ledger)


def content(home: Path) -> dict[Path, bytes]:
    """Of every file, but SQLite's own that come and go with a reader."""
    return {
        path: path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.suffix not in (".sqlite-shm", ".sqlite-wal")
    }


def version(state: State, name: str) -> Version:
    return next(found for found in state.campaigns["demo"].versions.values() if found.name == name)


def test_all_holds_and_every_version_is_made_again(rested: Consortium, tmp_path: Path) -> None:
    versions = state_of(rested).campaigns["demo"].versions
    head = version(state_of(rested), "demo/v2")
    lay_out(head.manifest, BlobStore(rested.home / "store").path, tmp_path / "model")
    told: list[str] = []
    before = content(rested.home)
    report = verify(rested.home, model=tmp_path / "model", progress=told.append)
    assert report.problems == () and report.ok
    assert report.versions == {v.name: v.digest for v in versions.values() if v.role != "initial"}
    assert {kind: number for kind, number in report.checked.items() if kind not in ("blob", "event")} == {
        "certificate": 3,
        "contribution": 12,
        "gate": 2,
        "model": 1,
        "rebuild": 3,
        "version": 3,
    }
    assert report.checked["blob"] == len(BlobStore(rested.home / "store").digests()) > 30
    assert len(told) == sum(report.checked.values()) - report.checked["event"] + 1
    assert content(rested.home) == before


# ---- one byte in the store


def blobs(state: State) -> dict[str, Digest]:
    """One of each kind."""
    v1, v2 = version(state, "demo/v1"), version(state, "demo/v2")
    train, gate = state.jobs["demo_r1-train-ohrid"], state.jobs["demo_r2-gate-sofia"]
    assert train.contribution and gate.contribution and train.envelope and gate.envelope
    return {
        "a delta": train.contribution.artifacts["delta"].digest,
        "its envelope": train.envelope,
        "scores": gate.contribution.artifacts["scores"].digest,
        "their envelope": gate.envelope,
        "a shard": v2.manifest.files["model.safetensors"].digest,
        "a config": v2.manifest.files["config.json"].digest,
        "the tokenizer": v2.manifest.files["tokenizer.json"].digest,
        "a manifest": v1.digest,
        "the momentum": v2.manifest.outer_state[OUTER_STATE].digest,
    }


KINDS = [
    "a delta",
    "its envelope",
    "scores",
    "their envelope",
    "a shard",
    "a config",
    "the tokenizer",
    "a manifest",
]


def flip(path: Path, where: float = 0.5) -> None:
    """Change one bit, as far in as ``where`` says."""
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    path.write_bytes(data)


def blob_path(consortium: Consortium, digest: str) -> Path:
    return consortium.home / "store" / "blobs" / digest[:2] / digest[2:]


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kind", [*KINDS, "the momentum"])
def test_a_changed_blob_is_named(rested: Consortium, kind: str, where: float) -> None:
    digest = blobs(state_of(rested))[kind]
    flip(blob_path(rested, digest), where)
    report = verify(rested.home, rebuild=False)
    assert not report.ok
    found = [problem for problem in report.problems if problem.startswith(f"blob {short(digest)}: ")]
    assert len(found) == 1
    assert f"{blob_path(rested, digest)}: expected sha256 {digest}, got " in found[0]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("a delta", "contribution demo_r1-train-ohrid"),
        ("its envelope", "contribution demo_r1-train-ohrid"),
        ("scores", "contribution demo_r2-gate-sofia"),
        ("a shard", "version demo/v2"),
        ("a manifest", "version demo/v1"),
        ("the momentum", "version demo/v2"),
    ],
)
def test_a_missing_blob_is_named_by_its_use(rested: Consortium, kind: str, place: str) -> None:
    digest = blobs(state_of(rested))[kind]
    blob_path(rested, digest).unlink()
    report = verify(rested.home, rebuild=False)
    assert not report.ok
    words = f"{place}: blob {digest} is not in the store"
    assert any(problem.startswith(words) for problem in report.problems), report.problems


def test_a_changed_delta_stops_the_rebuild_of_its_version_only(rested: Consortium) -> None:
    digest = blobs(state_of(rested))["a delta"]
    flip(blob_path(rested, digest))
    report = verify(rested.home)
    assert any(p.startswith("rebuild demo/v1: ") and short(digest) in p for p in report.problems), (
        report.problems
    )
    assert "demo/v2" in report.versions and "demo/v1" not in report.versions


# ---- one byte in the ledger


def change(home: Path, statement: str, *values: Any) -> None:
    """Change the ledger's file as someone who knows how to get past the triggers, and puts them back."""
    db = sqlite3.connect(home / "ledger.sqlite")
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    assert db.execute(statement, values).rowcount == 1
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("sequence", [1, 8, 25, 50, -1])
def test_a_changed_entry_is_named(rested: Consortium, sequence: int, where: float) -> None:
    with Ledger(rested.home / "ledger.sqlite", read_only=True) as ledger:
        recorded = list(ledger.read())[sequence - (sequence > 0)]
    data = bytearray(recorded.entry)
    data[int(where * len(data))] ^= 1
    change(rested.home, "UPDATE events SET entry = ? WHERE seq = ?", bytes(data), recorded.seq)
    report = verify(rested.home, rebuild=False)
    assert not report.ok
    assert any(p.startswith(f"ledger ledger.sqlite, entry {recorded.seq}: ") for p in report.problems)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE events SET hash = replace(hash, substr(hash, 9, 1), 'x') WHERE seq = 20", "entry 20: its hash "),
        ("UPDATE checkpoints SET signature = zeroblob(64) WHERE seq = (SELECT min(seq) FROM checkpoints)", "entry "),
        ("UPDATE snapshots SET state = CAST(replace(CAST(state AS TEXT), 'sofia', 'sofja') AS BLOB)", "is damaged"),
        ("UPDATE snapshots SET digest = 'x' || substr(digest, 2)", "snapshot is damaged"),
    ],
)  # fmt: skip
def test_a_changed_hash_signature_or_snapshot_is_named(
    rested: Consortium, statement: str, words: str
) -> None:
    change(rested.home, statement)
    report = verify(rested.home, rebuild=False)
    assert not report.ok
    assert any(problem.startswith("ledger ") and words in problem for problem in report.problems), (
        report.problems
    )


def of_another_site(snapshot: bytes) -> bytes:
    return snapshot.replace(b'"sofia"', b'"sofja"')


def of_a_job_that_rests(snapshot: bytes) -> bytes:
    state = restore(snapshot)
    state.jobs[min(one.id for one in state.jobs.briefs() if one.is_final)].reason = "another"
    return keep(state)


def with_a_brief_that_lies(snapshot: bytes) -> bytes:
    """The job itself is as it was."""
    layout = msgspec.msgpack.decode(snapshot)
    brief = next(one for pack in layout["packs"] for one in pack[0] if one is not None and one[6] is not None)
    brief[7] += 1.0  # when it was admitted
    return msgspec.msgpack.encode(layout)


def of_packs_that_cannot_be_opened(snapshot: bytes) -> bytes:
    layout = msgspec.msgpack.decode(snapshot)
    layout["packs"][0][1] = b"nothing deflated"
    return msgspec.msgpack.encode(layout)


@pytest.mark.parametrize(
    "changed",
    [of_another_site, of_a_job_that_rests, with_a_brief_that_lies, of_packs_that_cannot_be_opened],
)
def test_a_snapshot_that_tells_another_story_is_noticed(
    changed: Callable[[bytes], bytes], rested: Consortium
) -> None:
    """Whole by its own digest, and on the chain: only the replay knows better."""
    with Ledger(rested.home / "ledger.sqlite") as ledger:
        snapshot = ledger.snapshot()
        assert snapshot is not None
        ledger.save_snapshot(changed(snapshot.state), ledger.head)
        assert ledger.head.seq == snapshot.seq
    report = verify(rested.home, rebuild=False)
    assert report.problems == (f"ledger snapshot at {snapshot.seq}: differs from the replay of its events",)


# ---- a coordinator that lies: its ledger is written anew, chained and signed with its own key


def forge(consortium: Consortium, lie: Callable[[Event], None]) -> Report:
    path = consortium.home / "ledger.sqlite"
    with Ledger(path) as ledger:
        honest = list(ledger.read())
    for file in path.parent.glob("ledger.sqlite*"):
        file.unlink()
    with Ledger(path) as ledger:
        for recorded in honest:
            event = decode(encode(recorded.event), dict)
            lie(event)
            ledger.append([event], recorded.at)
        ledger.save_checkpoint(sign_checkpoint(consortium.keys.ledger, ledger.head.seq, ledger.head.hash))
    return verify(consortium.home)


def more_tokens(event: Event) -> None:
    if event["kind"] == "ContributionAdmitted" and event["job"] == "demo_r1-train-ohrid":
        event["contribution"]["tokens"]["mk"] -= 1


def another_sum(event: Event) -> None:
    if event["kind"] == "ContributionAdmitted" and event["job"] == "demo_r1-gate-ohrid":
        for languages in event["scores"].values():
            languages["mk"]["nats"] *= 0.5


def another_verdict(event: Event) -> None:
    if event["kind"] == "GateJudged" and event["round"] == 2:
        event["verdict"]["languages"][0]["change"] = -0.5


def another_signer(event: Event) -> None:
    if event["kind"] == "ContributionReceived" and event["job"] == "demo_r1-train-sofia":
        event["site"] = "plovdiv"  # the envelope stays sofia's
    if event["kind"] == "JobPlanned" and event["job"] == "demo_r1-train-sofia":
        event["sites"] = ["plovdiv"]
    if event["kind"] == "JobLeased" and event["job"] == "demo_r1-train-sofia":
        event["site"] = "plovdiv"


def against_the_verdict(event: Event) -> None:
    if event["kind"] == "GateJudged" and event["round"] == 2:
        event["verdict"]["promote"] = False


def an_unknown_event(event: Event) -> None:
    if event["kind"] == "VersionPromoted":
        event["kind"] = "VersionBlessed"


LIES = {
    more_tokens: "contribution demo_r1-train-ohrid: the signed manifest is not the one that the ledger admitted",
    another_sum: "contribution demo_r1-gate-ohrid: the ledger's sums of mk for ",
    another_verdict: "gate demo/r2: the stored scores give another verdict: ",
    another_signer: "contribution demo_r1-train-sofia: should not have been admitted: envelope ",
    against_the_verdict: "gate demo/v2: promoted against the verdict, and not by hand",
    an_unknown_event: "ledger: replay stops after entry ",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_found_in_a_ledger_that_is_whole(rested: Consortium, lie: Callable[[Event], None]) -> None:
    report = forge(rested, lie)
    assert not report.ok
    assert any(problem.startswith(LIES[lie]) for problem in report.problems), report.problems
    assert not any("entry" in p and "hash" in p for p in report.problems), report.problems


def test_the_truth_written_anew_still_holds(rested: Consortium) -> None:
    assert forge(rested, lambda event: None).problems == ()


def test_a_certificate_of_another_authority_is_noticed(rested: Consortium) -> None:
    """The site's own key, so its signatures hold; but nobody here vouched for it."""
    name, key = SiteName("sofia"), load_key(rested.folder / "sites" / "sofia" / "site.key")
    foreign = Authority.create("balkan", time.time()).site(signing_request(name, key), name, time.time())

    def lie(event: Event) -> None:
        if event["kind"] == "SiteEnrolled" and event["site"] == "sofia":
            event["certificate"] = foreign.decode()
            event["fingerprint"] = identity_of(foreign, "balkan").fingerprint

    (problem,) = forge(rested, lie).problems
    assert problem.startswith("certificate ") and "was not issued by the consortium's authority" in problem


def test_a_certificate_of_another_site_is_noticed(rested: Consortium) -> None:
    ohrid = (rested.folder / "sites" / "ohrid" / "site.pem").read_text()

    def lie(event: Event) -> None:
        if event["kind"] == "SiteEnrolled" and event["site"] == "sofia":
            event["certificate"] = ohrid

    problems = forge(rested, lie).problems
    assert any(p.startswith("certificate ") and "is of site ohrid with fingerprint" in p for p in problems)


def test_a_model_that_no_merge_gives_is_not_rebuilt(rested: Consortium) -> None:
    """A coordinator may put its own weights into the store and name them in the ledger: nothing makes them again."""
    shard = blobs(state_of(rested))["a shard"]
    changed = bytearray(blob_path(rested, shard).read_bytes())
    changed[-1] ^= 1
    ref = BlobStore(rested.home / "store").put_bytes(bytes(changed))

    def lie(event: Event) -> None:
        if event["kind"] == "VersionMade" and event["name"] == "demo/v2":
            event["manifest"]["files"]["model.safetensors"] = {"digest": ref.digest, "size": ref.size}

    report = forge(rested, lie)
    words = (
        f"rebuild demo/v2: model.safetensors comes out as {short(shard)}, the ledger has {short(ref.digest)}"
    )
    assert words in report.problems
    assert "version demo/v2: the stored manifest is not the one in the ledger" in report.problems


# ---- an exported model


@pytest.fixture
def exported(rested: Consortium, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    head = version(state_of(rested), "demo/v2")
    lay_out(head.manifest, BlobStore(rested.home / "store").path, tmp_path / "links")
    shutil.copytree(tmp_path / "links", folder)
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_changed_model_is_named_with_the_file(rested: Consortium, exported: Path, name: str) -> None:
    flip(exported / name)
    report = verify(rested.home, rebuild=False, model=exported)
    (problem,) = report.problems
    assert problem.startswith(f"model {exported}: not demo/v2: {exported / name}: has ")


def test_a_model_with_less_or_more_is_not_the_version(rested: Consortium, exported: Path) -> None:
    (exported / "extra.bin").write_bytes(b"more")
    (problem,) = verify(rested.home, rebuild=False, model=exported).problems
    assert problem.startswith(
        f"model {exported}: not demo/v2: {exported / 'extra.bin'}: is not part of version"
    )
    (exported / "extra.bin").unlink()
    (exported / "config.json").unlink()
    (problem,) = verify(rested.home, rebuild=False, model=exported).problems
    assert problem.startswith(f"model {exported}: not demo/v2: {exported / 'config.json'}: is missing")
