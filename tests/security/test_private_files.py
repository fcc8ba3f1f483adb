"""Who else has an account on the machine reads nothing: homes, ledgers, keys, stores, backups, spools."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import console.home
import console.site
from consortium.files import make_private_folder
from consortium.store import BlobStore
from coordinator.backup import back_up, restore
from coordinator.config import CoordinatorConfig
from coordinator.founding import found
from coordinator.stores import places_in


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """Whatever is not asked for is readable for everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def reachable(top: Path) -> list[str]:
    """What below ``top`` somebody else can read: no folder above may keep them out."""
    found = []
    for path in sorted(top.rglob("*")):
        above = [path, *path.parents]
        ways_in = [one for one in above[1 : above.index(top) + 1]]
        if mode(path) & 0o004 and all(mode(one) & 0o001 for one in ways_in):
            found.append(str(path.relative_to(top)))
    return found


def test_nothing_of_a_consortium_is_for_others_to_read(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir(mode=0o755)
    config = CoordinatorConfig(consortium="balkan", home=str(top / "home"))
    found(config, time.time())
    places = places_in(config)
    back_up(places, top / "copy", time.time(), passphrase="a long and secret sentence")
    restore(top / "copy", top / "again")
    assert [mode(top / name) for name in ("home", "copy", "again")] == [0o700] * 3
    assert reachable(top) == []
    secret = [path for path in (top / "home").rglob("*.key")]
    assert len(secret) >= 4
    assert {mode(path) for path in secret} == {0o600}


def test_places_outside_of_the_home_are_private_too(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir(mode=0o755)
    config = CoordinatorConfig(
        consortium="balkan",
        home=str(top / "home"),
        ledger=str(top / "ledger" / "it.sqlite"),
        store=str(top / "store"),
    )
    found(config, time.time())
    BlobStore(Path(places_in(config).store)).put_bytes(b"weights")
    assert reachable(top) == ["ledger"]  # an empty name, and files in it of mode 0600


def test_a_home_of_an_earlier_release_is_closed_to_others_and_not_to_its_group(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o2775)
    make_private_folder(home)
    assert home.stat().st_mode & 0o7777 == 0o2770
    make_private_folder(tmp_path / "a" / "new" / "one")
    assert mode(tmp_path / "a" / "new" / "one") == 0o700


def test_both_programs_write_for_themselves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[int] = []

    def began(*nothing: object, **more: object) -> int:
        masks.append(os.umask(0))
        return 0

    monkeypatch.setattr("coordinator.daemon.serve", lambda config: None)
    monkeypatch.setattr("asyncio.run", began)
    monkeypatch.setattr("site_agent.running.run_agent", began)
    for place in ("consortium.logs.log_json", "consortium.allocator.keep_freed_memory"):
        monkeypatch.setattr(place, lambda *nothing: None)
    (tmp_path / "coordinator.yaml").write_text("consortium: balkan\nhome: home\n")
    site = f"site: sofia\nhome: {tmp_path}/site\ncoordinator: a:1\nenrolment: a:2\nlauncher: local\n"
    (tmp_path / "site.yaml").write_text(site)
    console.home.run(tmp_path / "coordinator.yaml")
    with pytest.raises(typer.Exit):
        console.site.run(tmp_path / "site.yaml")
    assert masks == [0o077, 0o077]
    assert mode(tmp_path / "site") == 0o700
