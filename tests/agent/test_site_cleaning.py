"""What a site's home loses by being cleaned, and what it never loses."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from cut_off import cut_off_at_removal
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.canonical import encode, replace
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName, digest_of
from consortium.jobs import Assignment, Purpose, Tokenizer
from consortium.store import BlobStore
from site_agent.cleaning import Cleaned, clean, last_cleaning, note_newest
from site_agent.config import SiteConfig
from site_agent.core.cleaning import DAY, HOUR, YOUNG_SECONDS, Cleaning, Found, Home, plan, why_it_stays
from site_agent.spool import Spool

# --- the plan ------------------------------------------------------------------------------------------

NOW = 1e9
digests = st.integers(0, 9).map(lambda n: digest_of(bytes([n])))
campaigns = st.sampled_from(["demo", "nordic", "flower"]).map(CampaignId)
attempts = st.sampled_from(["a1", "a2", "a3"])
founds = st.builds(
    Found,
    kind=st.sampled_from(["blob", "partial", "log", "broken", "residuals"]),
    name=st.uuids().map(str),
    bytes=st.integers(0, 1000),
    inodes=st.integers(0, 3),
    used_at=st.floats(NOW - 400 * DAY, NOW + DAY),
    digest=st.none() | digests,
    campaign=st.none() | campaigns,
    attempt=st.just("") | attempts,
    is_unsent=st.booleans(),
)
homes = st.builds(
    Home,
    found=st.lists(founds, max_size=12).map(tuple),
    needed=st.frozensets(digests),
    newest=st.frozensets(digests),
    campaigns=st.frozensets(campaigns),
    attempts=st.frozensets(attempts),
    bytes=st.integers(0, 20_000),
    inodes=st.integers(0, 60),
)
rules_ = st.builds(
    Cleaning,
    keep_hours=st.floats(0.01, 1000.0),
    log_days=st.floats(0.01, 500.0),
    broken_days=st.floats(0.01, 500.0),
    residual_days=st.floats(0.01, 500.0),
    bytes_max=st.none() | st.integers(1, 10_000),
    inodes_max=st.none() | st.integers(1, 60),
)


@settings(max_examples=40)
@given(homes, rules_)
def test_what_must_stay_is_in_no_plan(home: Home, rules: Cleaning) -> None:
    going = {one.name for one in plan(home, rules, NOW).going}
    for one in home.found:
        if one.name not in going:
            continue
        assert one.digest is None or one.digest not in home.needed
        assert one.kind != "blob" or one.digest not in home.newest
        assert not one.is_unsent
        assert one.campaign is None or one.campaign not in home.campaigns
        assert not one.attempt or one.attempt not in home.attempts
        assert one.used_at <= NOW - YOUNG_SECONDS


@settings(max_examples=40)
@given(homes, rules_)
def test_a_plan_is_held_to_its_limits_or_says_why_not(home: Home, rules: Cleaning) -> None:
    made = plan(home, rules, NOW)
    left = home.bytes - sum(one.bytes for one in made.going)
    inodes = home.inodes - sum(one.inodes for one in made.going)
    is_within = (rules.bytes_max is None or left <= rules.bytes_max) and (
        rules.inodes_max is None or inodes <= rules.inodes_max
    )
    assert is_within == (made.over == "")
    if not is_within:
        names = {one.name for one in made.going}
        able = [one for one in home.found if why_it_stays(one, home, NOW) is None and one.name not in names]
        assert not any(one.bytes and rules.bytes_max is not None and left > rules.bytes_max for one in able)
        assert not any(
            one.inodes and rules.inodes_max is not None and inodes > rules.inodes_max for one in able
        )


@settings(max_examples=40)
@given(homes, rules_)
def test_what_a_plan_leaves_stays_in_the_next(home: Home, rules: Cleaning) -> None:
    made = plan(home, rules, NOW)
    gone = {one.name for one in made.going}
    after = replace(
        home,
        found=tuple(one for one in home.found if one.name not in gone),
        bytes=home.bytes - sum(one.bytes for one in made.going),
        inodes=home.inodes - sum(one.inodes for one in made.going),
    )
    assert plan(after, rules, NOW) == replace(made, going=())


def test_without_a_limit_nothing_goes_before_its_time() -> None:
    old = Found(kind="blob", name="old", bytes=5, used_at=NOW - 169 * HOUR, digest=digest_of(b"1"))
    fresh = Found(kind="blob", name="fresh", bytes=5, used_at=NOW - 167 * HOUR, digest=digest_of(b"2"))
    home = Home(found=(old, fresh), bytes=10, inodes=2)
    (going,) = plan(home, Cleaning(), NOW).going
    assert going.name == "old" and going.reason == "no job here has needed it for longer than keep_hours 168"
    both = plan(home, Cleaning(bytes_max=1), NOW)
    assert [one.name for one in both.going] == ["old", "fresh"]
    assert both.going[1].reason == "no job here needs it, and the home is beyond bytes_max 1"
    needed = replace(home, needed=frozenset([digest_of(b"1"), digest_of(b"2")]))
    assert plan(needed, Cleaning(bytes_max=1), NOW).over == (
        "the home has 10 bytes, bytes_max is 1, and all that stays is needed; raise the limit"
    )


# --- a home ----------------------------------------------------------------------------------------------

JOB = JobId("demo_r3-train-north")


def assigned(number: int, *inputs: Digest, campaign: str = "demo") -> Assignment:
    work = Tokenizer(languages=(Language("fi"),), vocabulary_size=300, bytes_per_language=1000)
    return Assignment(
        job=JOB,
        attempt=AttemptId(f"{JOB}.a{number}"),
        campaign=CampaignId(campaign),
        round=3,
        site=SiteName("north"),
        purpose=Purpose.TOKENIZER,
        work=work,
        inputs=inputs,
        tokenizer=None,
    )


class Site:
    def __init__(self, home: Path, **rules: object) -> None:
        self.home = home
        self.store = BlobStore(home)
        self.config = SiteConfig(
            site=SiteName("north"),
            coordinator="coordinator:7443",
            enrolment="coordinator:7444",
            home=str(home),
            cleaning=Cleaning(**rules),  # type: ignore[arg-type]
        )

    def blob(self, words: str, hours: float = 1000.0) -> Digest:
        digest = self.store.put_bytes(words.encode()).digest
        self.age(self.store.path(digest), hours)
        return digest

    def age(self, path: Path, hours: float = 1e5) -> Path:
        at = time.time() - hours * HOUR
        os.utime(path, (at, at))
        return path

    def hold(self, *inputs: Digest) -> None:
        Spool(self.home / "spool").create(assigned(1).attempt, encode(assigned(1, *inputs)), b"signature")

    def file(self, name: str, hours: float = 1e5) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
        self.age(path, hours)
        return self.age(path.parent, hours) / path.name

    def clean(self, dry_run: bool = False) -> Cleaned:
        return clean(self.config, time.time(), dry_run)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")


def test_a_home_loses_what_no_job_needs_and_nothing_else(site: Site) -> None:
    held, newest, old, young = site.blob("held"), site.blob("newest"), site.blob("old"), site.blob("young", 2)
    site.hold(held)
    note_newest(site.home, assigned(7, newest))
    site.store.append(digest_of(b"half"), "fetch", 0, b"ha")
    partial = site.age(next((site.home / "partials").glob("*/*")))
    log, log_of_held = site.file("logs/demo_r1-train-north.a1.txt"), site.file(f"logs/{JOB}.a1.txt")
    broken = site.file("spool/broken/x.0123/job.json").parent
    unsent = site.file("spool/broken/y.0123/result/delta.safetensors").parent.parent
    over = site.file("residuals/nordic/aa.safetensors").parent
    under_way = site.file("residuals/demo/bb.safetensors")
    text, key = site.file("text/prepared.bin"), site.file("identity/site.key")
    goes = {site.store.path(old), partial, log, broken, over}
    stays = {*map(site.store.path, (held, newest, young)), log_of_held, unsent, under_way, text, key}

    planned = site.clean(dry_run=True)
    assert all(path.exists() for path in goes | stays) and last_cleaning(site.home) is None
    done = site.clean()
    assert {site.home / one.name for one in done.gone} == goes
    assert done.gone == planned.gone
    assert not any(path.exists() for path in goes) and all(path.exists() for path in stays)
    assert last_cleaning(site.home) == done and not done.trouble
    assert site.clean().gone == ()


def test_an_attempts_base_is_that_of_its_campaign_until_the_next_one_comes(site: Site) -> None:
    first, second = site.blob("first"), site.blob("second")
    note_newest(site.home, assigned(1, first))
    note_newest(site.home, assigned(2, second, campaign="nordic"))
    assert not site.clean().gone
    note_newest(site.home, assigned(3, digest_of(b"on its way")))
    assert [one.digest for one in site.clean().gone] == [first]


def test_a_home_beyond_its_limit_loses_what_was_used_longest_ago(tmp_path: Path) -> None:
    site = Site(tmp_path / "home", inodes_max=1)
    held, later, sooner = site.blob("held", 90), site.blob("later", 50), site.blob("sooner", 80)
    site.hold(held)
    done = site.clean()
    assert [one.digest for one in done.gone] == [sooner, later]
    assert site.store.has(held) and done.inodes == 2
    assert "inodes_max is 1, and all that stays is needed" in done.over


def test_a_blob_that_is_used_after_the_look_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assignment comes between the look at the store and the deleting: staging makes its inputs young."""
    used, old = site.blob("used"), site.blob("old")
    remove = BlobStore.remove

    def stages_first(self: BlobStore, digest: Digest, stored_before: float) -> int:
        BlobStore(site.home).renew(used)
        return remove(self, digest, stored_before)

    monkeypatch.setattr(BlobStore, "remove", stages_first)
    assert [one.digest for one in site.clean().gone] == [old]
    assert site.store.has(used)


def test_a_cleaning_that_was_killed_is_finished_by_the_next(site: Site) -> None:
    blobs = {site.blob(f"old {number}") for number in range(5)}
    held = site.blob("held")
    site.hold(held)
    with cut_off_at_removal(3):
        site.clean()
    assert len(blobs & set(site.store.digests())) == 3
    assert len(site.clean().gone) == 3
    assert site.store.digests() == [held]


def test_two_cleanings_at_once_do_no_harm(site: Site) -> None:
    blobs = {site.blob(f"old {number}") for number in range(40)}
    held = site.blob("held")
    site.hold(held)
    start, found = threading.Barrier(2), list[Cleaned]()

    def cleans() -> None:
        start.wait()
        found.append(site.clean())

    other = threading.Thread(target=cleans)
    other.start()
    cleans()
    other.join()
    assert site.store.digests() == [held]
    assert blobs == {one.digest for done in found for one in done.gone}
    assert not any(done.trouble for done in found)


def test_what_another_cleaning_takes_away_meanwhile_is_no_trouble(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes while this one measures it, folder by folder."""
    going = site.file("spool/broken/x.0123/base/model.safetensors").parent
    log, scandir, moments = site.file("logs/demo_r1-train-north.a1.txt"), os.scandir, iter([1])

    def goes(path: str | Path | int) -> object:
        if str(path) == str(going):
            for _ in moments:
                shutil.rmtree(going.parent)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", goes)
    done = site.clean()
    assert not done.trouble and not log.exists() and not going.parent.exists()


def test_a_home_that_cannot_be_read_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    old = site.blob("old")

    def gone(self: Spool) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Spool, "look", gone)
    with pytest.raises(Exception, match="Input/output error"):
        site.clean()
    assert site.store.has(old)


def test_where_nothing_can_be_locked_bases_stay_and_it_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, log = site.blob("old"), site.file("logs/demo_r1-train-north.a1.txt")

    def refuses(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("consortium.store.fcntl.flock", refuses)
    done = site.clean()
    assert "No locks available" in done.trouble and site.store.has(old)
    assert not log.exists() and len(done.gone) == 1
