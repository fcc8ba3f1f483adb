"""What a rule of keeping lets go of: an event, then bytes; what is left is still proved, backed up and restored."""

import os
import shutil
import time
from pathlib import Path

import pytest
from cut_off import cut_off_at_removal
from real_coordinator import Consortium

from consortium.canonical import replace
from consortium.errors import Unavailable
from consortium.ids import Digest
from consortium.store import BlobStore
from coordinator import backup as backups
from coordinator.backup import back_up, restore
from coordinator.cleaning import Cleaned, clean
from coordinator.core.events import ArtifactsLetGo
from coordinator.core.referenced import let_go
from coordinator.core.state import State
from coordinator.driver import decode_event, replay
from coordinator.ledger import Ledger
from coordinator.room import notices
from coordinator.stores import Places, places_in
from coordinator.verification import verify
from policies.keeping import Keep

NEWEST = Keep(contributions_versions=1)
HOUR = 3600.0


def places(consortium: Consortium, keep: Keep = NEWEST) -> Places:
    return replace(places_in(consortium.config), keep=keep)


def gc(consortium: Consortium, keep: Keep = NEWEST, dry_run: bool = False) -> Cleaned:
    """As it will be long after."""
    return clean(places(consortium, keep), time.time() + 1000 * HOUR, dry_run=dry_run)


def state_of(consortium: Consortium) -> State:
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        return replay(ledger, from_snapshot=False)


def store(consortium: Consortium) -> set[Digest]:
    return set(BlobStore(consortium.home / "store").digests())


def events(consortium: Consortium) -> list[ArtifactsLetGo]:
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        found = [decode_event(recorded) for recorded in ledger.read()]
    return [event for event in found if isinstance(event, ArtifactsLetGo)]


def test_what_is_let_go_is_told_and_the_rest_is_proved(rested: Consortium) -> None:
    whole, before = verify(rested.home), store(rested)
    assert whole.ok and {"demo/v1", "demo/v2"} <= whole.versions.keys() and not whole.let_go
    assert not gc(rested, Keep()).removed, "without a rule all of it stays"
    planned = gc(rested, dry_run=True)
    assert not events(rested) and store(rested) == before
    done = gc(rested)
    (event,) = events(rested)
    assert done.removed == planned.removed and set(done.removed) == before - store(rested)
    assert done.decided == planned.decided and done.rule == "keep: contributions_versions 1"
    assert done.let_go == len(done.removed) > 0 and done.let_go_bytes == done.removed_bytes > 0
    state = state_of(rested)
    assert set(done.removed) == let_go(state).keys()
    report = verify(rested.home)
    assert report.ok, report.problems
    gone = {name: digest for name, digest in whole.versions.items() if name not in report.versions}
    assert set(gone.values()) == set(event.unprovable) and "demo/v2" in report.versions
    assert {*gone, *event.contributions} == report.let_go.keys()
    for said in report.let_go.values():
        assert f"let go on {time.strftime('%Y-', time.gmtime(time.time() + 1000 * HOUR))}" in said
        assert "by keep: contributions_versions 1" in said
    assert not gc(rested).removed and len(events(rested)) == 1


def test_a_blob_that_lacks_and_was_never_let_go_is_still_a_problem(rested: Consortium) -> None:
    gc(rested)
    state = state_of(rested)
    kept = next(
        job for job in map(state.jobs.glance, state.jobs) if job.contribution and "delta" in job.contribution.artifacts
        and job.id not in state.campaigns["demo"].let_go  # type: ignore[index]
    )  # fmt: skip
    assert kept.contribution is not None
    BlobStore(rested.home / "store").remove(kept.contribution.artifacts["delta"].digest)
    report = verify(rested.home)
    assert not report.ok and any(kept.id in problem for problem in report.problems)


def test_a_forged_envelope_of_what_was_let_go_is_found(rested: Consortium) -> None:
    gc(rested)
    state = state_of(rested)
    job = state.jobs.glance(events(rested)[0].contributions[0])
    assert job.envelope is not None
    place = BlobStore(rested.home / "store").path(job.envelope)
    place.chmod(0o644)
    place.write_bytes(place.read_bytes().replace(b"e", b"f", 1))
    problems = verify(rested.home, rebuild=False).problems
    assert any(problem.startswith(f"contribution {job.id}") for problem in problems)


def test_a_ledger_that_lets_go_of_what_its_rule_keeps_is_a_problem(rested: Consortium) -> None:
    state = state_of(rested)
    campaign = next(iter(state.campaigns.values()))
    newest = max(campaign.rounds)
    with Ledger(rested.home / "ledger.sqlite") as ledger:
        event = ArtifactsLetGo(
            campaign=campaign.spec.campaign,
            rule=NEWEST,
            contributions=campaign.rounds[newest].collected,
            reason="to hide something",
        )
        ledger.append([event], time.time())
    problems = verify(rested.home, rebuild=False).problems
    assert any("which its rule keeps" in problem for problem in problems)


def test_killed_between_the_event_and_the_bytes_the_next_cleaning_ends_it(rested: Consortium) -> None:
    before = store(rested)
    with cut_off_at_removal(2):
        gc(rested)
    assert len(before - store(rested)) == 1 and verify(rested.home, rebuild=False).ok
    gc(rested, Keep())  # whatever the rule is by now: it was let go
    assert before - store(rested) == let_go(state_of(rested)).keys()
    assert verify(rested.home, rebuild=False).ok and len(events(rested)) == 1


def test_while_a_coordinator_runs_it_alone_lets_go(rested: Consortium) -> None:
    with Ledger(rested.home / "ledger.sqlite"):
        done = gc(rested)
    assert not done.removed and "by its own rule, every hour" in done.waits_for
    assert not events(rested)


async def test_a_coordinator_lets_go_by_its_rule_and_says_so(rested: Consortium) -> None:
    rested.config = replace(rested.config, keep=NEWEST)
    async with rested.running(), rested.admin() as admin:
        await admin.until(
            lambda view: any(version.let_go for version in view.campaigns[0].versions), "a version says so"
        )
        gone = gc(rested)
        assert gone.removed and not gone.decided
    assert verify(rested.home, rebuild=False).ok


def test_a_backup_that_what_it_copies_is_let_go_beside_is_whole(
    rested: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy of the ledger and that of the blobs."""
    copy, done = backups._copy_blobs, list[Cleaned]()

    def cleaned_before(*arguments: object) -> int:
        if not done:
            done.append(gc(rested))
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backups, "_copy_blobs", cleaned_before)
    made = back_up(places(rested), tmp_path / "out", time.time())
    assert done[0].removed
    assert restore(tmp_path / "out", tmp_path / "home") == made
    assert verify(tmp_path / "home", rebuild=False).ok


def test_an_older_backup_keeps_what_was_let_go_since(rested: Consortium, tmp_path: Path) -> None:
    back_up(places(rested), tmp_path / "out", time.time())
    gone = set(gc(rested).removed)
    back_up(places(rested), tmp_path / "out", time.time())
    assert gone <= set(BlobStore(tmp_path / "out" / "store").digests())
    restore(tmp_path / "out", tmp_path / "home")
    report = verify(tmp_path / "home")
    assert report.ok and not report.let_go, "it can be proved again as long as the bytes are there"


def test_a_blob_that_lacks_for_another_reason_ends_the_backup(rested: Consortium, tmp_path: Path) -> None:
    gc(rested)
    head = next(iter(state_of(rested).campaigns.values())).head
    assert head is not None
    BlobStore(rested.home / "store").remove(head)
    with pytest.raises(Unavailable, match="that the ledger names are missing"):
        back_up(places(rested), tmp_path / "out", time.time())


def test_a_disk_that_runs_low_names_the_rule_to_set(rested: Consortium) -> None:
    assert notices(places(rested), free_share_min=0.0) == ()
    (notice,) = notices(places(rested, Keep()), free_share_min=1.1)
    assert "set `keep: {contributions_versions: 3}`" in notice
    (notice,) = notices(places(rested), free_share_min=1.1)
    assert "or keep less than now (keep: contributions_versions 1)" in notice
    shutil.rmtree(rested.home)
    os.makedirs(rested.home)
    assert (
        notices(replace(places(rested), store="s3://blobs/x", ledger="service=x"), free_share_min=0.0) == ()
    )
