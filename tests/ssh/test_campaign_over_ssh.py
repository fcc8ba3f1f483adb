"""A whole campaign with real trainers, every agent outside its site: the same model comes out as without SSH.

The agents' processes are here; job directories, trainers and Slurm's commands (the one of a file, which runs batch
scripts as real processes) are behind a real sshd. Lines break on the way, one after the other.
"""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_slurm import FakeSlurm
from loopback_sshd import LoopbackSite, Sshd, site_of
from msgspec import to_builtins

from console.demo import SITES, consortium_at, slurm_of_sites, start, views
from console.local import LocalConsortium
from consortium.canonical import replace
from consortium.views import ConsortiumView

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from kill_anything import lay_out, outcome_of, run, shorten

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.demo, pytest.mark.timeout(1800)]

SEED = 1
#: From one line that breaks to the next, of four. An intent whose sbatch was cut off is given up after two minutes in
#: which every question was answered: a line that breaks more often than that would hold up its site.
BREAK_SECONDS = 40.0


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[FakeSlurm]:
    slurm = FakeSlurm(tmp_path / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture
def sites(
    shared_sshd: Sshd, tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, LoopbackSite]]:
    """Each with a line of its own. The agents, other processes, find the sockets by XDG_RUNTIME_DIR."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    folder = sockets / "sprachbund"
    folder.mkdir(mode=0o700)
    made = {}
    for site in SITES:
        known = tmp_path / "lines" / site.name
        known.mkdir(parents=True)
        made[site.name] = site_of(shared_sshd, known, folder, tmp_path / "there" / site.name)
    yield made
    for site in made.values():
        site.close()


def put_outside(here: LocalConsortium, sites: dict[str, LoopbackSite], slurm: FakeSlurm) -> None:
    """Into each site's config: how its agent reaches it."""
    for name, site in sites.items():
        settings = replace(site.settings, python=sys.executable, path=(str(slurm.root / "bin"),))
        site.settings = settings
        config = yaml.safe_load(here.site_file(name).read_text())
        here.site_file(name).write_text(yaml.safe_dump({**config, "ssh": to_builtins(settings)}))


def break_lines(sites: dict[str, LoopbackSite], is_over: threading.Event) -> list[str]:
    """Cut one line after the other until it is over; whose."""
    broken: list[str] = []
    while not is_over.wait(BREAK_SECONDS):
        broken.append(sorted(sites)[len(broken) % len(sites)])
        sites[broken[-1]].wire.cut()
    return broken


def last_of(here: LocalConsortium) -> ConsortiumView:
    for view in views(here):
        last = view
    return last


def test_the_same_model_comes_out_of_sites_behind_ssh(
    tmp_path: Path, sites: dict[str, LoopbackSite], slurm: FakeSlurm
) -> None:
    calm = run(tmp_path / "local", SEED, shorten)
    here = consortium_at(tmp_path / "outside", slurm_of_sites(["poll_seconds=1"]))
    campaign = lay_out(here, SEED, shorten)
    put_outside(here, sites, slurm)
    is_over, broken = threading.Event(), []
    breaker = threading.Thread(target=lambda: broken.extend(break_lines(sites, is_over)), daemon=True)
    began = time.monotonic()
    try:
        start(here, campaign)
        breaker.start()
        view = last_of(here)
    finally:
        is_over.set()
        if breaker.ident is not None:
            breaker.join(30)
        here.stop()
    outcome = outcome_of(view, time.monotonic() - began, f"{len(broken)} lines broke")
    print(calm, outcome)  # for -s
    assert outcome.version == calm.version
    dialled = {name: site.wire.dialled for name, site in sites.items()}
    assert broken and all(dialled[name] > 1 for name in broken[:-1]), dialled  # and were dialled anew
    ends = {slurm.until_over(job["id"])["state"] for job in slurm.jobs}  # some results were there earlier
    assert ends == {"COMPLETED"}, slurm.jobs
    assert len({job["name"] for job in slurm.jobs}) == len(slurm.jobs)  # no life was submitted twice
