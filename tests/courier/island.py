"""A site that no network reaches: a real agent and its home, whose jobs are made up as a scripted site's are."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_coordinator import CONSORTIUM, Consortium
from scripted_sites import ScriptedSite
from sprachbund.v1 import site_pb2

from console.carrying import Exchanged, exchange
from console.client import ask
from consortium.bundles import open_bundle, sign_head, write_bundle
from consortium.canonical import decode, encode, replace
from consortium.courier import SAID, Answered, Said, claimed
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Language, SiteName
from consortium.invitation import Invitation
from consortium.jobs import Assignment, Train
from consortium.signing import load_key
from consortium.store import BlobStore, ref_of
from consortium.tensors import Checkpoint
from site_agent.config import SiteConfig, Text
from site_agent.core.facts import Seen, Sighting
from site_agent.courier.exporting import Written, ask_to_enrol, export
from site_agent.courier.importing import TakenIn, take_in
from site_agent.identity import SiteIdentity, Trust
from site_agent.launchers.base import LIFE_FILE, Life
from site_agent.running import run_agent


class ScriptedLauncher:
    """Does the job at once, in the agent's own process; a life is gone as soon as it has begun."""

    poll_seconds = 0.05

    def __init__(self, script: ScriptedSite) -> None:
        self.script = script
        self.launched: list[str] = []

    def submit(self, directory: Path, life: int) -> None:
        write_bytes_atomically(directory / LIFE_FILE, encode(Life(number=life, name="script", host="here")))
        assignment = decode((directory / "job.json").read_bytes(), Assignment)
        self.launched.append(assignment.attempt)
        with fresh_folder(directory / "result") as result:
            if isinstance(assignment.work, Train):
                name, path = "delta", result / "delta.safetensors"
                with Checkpoint(directory / "base") as model:
                    self.script.write(model, assignment.work, path)
            else:
                name, path = "scores", self.script.evaluate(assignment.work, result)
            manifest = self.script.manifest(assignment, {name: ref_of(path)})
            write_bytes_atomically(result / "contribution.json", encode(manifest))

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        return {directory: Sighting(seen=Seen.GONE) for directory in directories}

    def cancel(self, directory: Path) -> None:
        pass


class Island:
    """Its commands are those of ``sprachbund site courier``; ``exchange`` is the admin's."""

    def __init__(self, consortium: Consortium, home: Path, name: str = "ohrid", language: str = "mk") -> None:
        self.consortium = consortium
        self.home = home
        self.folder = home.parent
        text = home.parent / f"{home.name}-text.txt"
        if not text.exists():
            text.write_text(
                "\n\n".join(f"Документ {number} на {name}." for number in range(60)), encoding="utf-8"
            )
        self.script = ScriptedSite(consortium, name)
        self.config = SiteConfig(
            site=SiteName(name),
            coordinator="courier",
            enrolment="courier",
            home=str(home),
            slots=4,
            heldout_share=0.3,
            text=(Text(language=Language(language), path=str(text), access="private", licence="CC0-1.0"),),
        )
        self.launcher = ScriptedLauncher(self.script)
        self._names = iter(range(1000))

    def take_over_identity(self) -> None:
        """Of the scripted site of the same name, which has enrolled."""
        site = self.script.folder
        trust = Trust(
            consortium=CONSORTIUM,
            site=self.config.site,
            authority=self.consortium.keys.authority.pem.decode(),
            ledger_key=(site / "ledger.key").read_bytes().hex(),
        )
        SiteIdentity(trust, load_key(site / "site.key"), (site / "site.pem").read_bytes()).save(self.home)

    @property
    def identity(self) -> SiteIdentity:
        return SiteIdentity.load(self.home)

    async def work(self) -> int:
        return await asyncio.to_thread(run_agent, self.config, True, self.launcher)

    def fresh(self, what: str) -> Path:
        return self.folder / f"{self.home.name}-{what}-{next(self._names)}.bundle"

    async def export(self) -> Path:
        await self.work()
        return self.write_down()

    def write_down(self) -> Path:
        """Export without another look."""
        path = self.fresh("said")
        written = export(self.config, path)
        assert isinstance(written, Written) and written.bytes == path.stat().st_size
        return path

    def ask_to_enrol(self, invitation: Invitation) -> Path:
        path = self.fresh("asked")
        ask_to_enrol(self.config, invitation, path)
        return path

    async def exchange(self, said: Path) -> Path:
        path = self.fresh("answer")
        await self.carry(said, path)
        return path

    async def carry(self, said: Path, answer: Path) -> Exchanged:
        return await asyncio.to_thread(carry, self.consortium, said, answer)

    def take_in(self, answer: Path) -> TakenIn:
        return take_in(self.config, answer)

    async def round_trip(self) -> TakenIn:
        taken = self.take_in(await self.exchange(await self.export()))
        await self.work()
        return taken

    def files(self) -> dict[str, bytes]:
        """All that lies in its home, but for what says that somebody looked."""
        passing = ("agent.json", "text/", "partials/")
        found = {
            str(path.relative_to(self.home)): path for path in sorted(self.home.rglob("*")) if path.is_file()
        }
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(passing)}


def carry(consortium: Consortium, said: Path, answer: Path, bar: Any = None) -> Exchanged:
    """What an admin does with a bundle."""
    silent = bar or (lambda name, size: lambda moved: None)
    return ask(consortium.home / "admin", lambda coordinator: exchange(coordinator, said, answer, silent))


def signed_anew(path: Path, out: Path, identity: SiteIdentity, **changes: Any) -> Path:
    """The bundle at ``path`` with another statement, signed properly by ``identity``; its blobs come along."""
    said = said_in(path)
    with open_bundle(path) as bundle:
        places = bundle.places(said)
        store = BlobStore(out.parent / f"{out.name}.store")
        bundle.take_in(said, store)
    changed = replace(said, **changes)
    head = sign_head(changed, SAID, identity.key, identity.certificate)
    write_bundle(out, head, [(ref, store.path(ref.digest)) for ref in changed.blobs if ref.digest in places])
    return out


def said_in(path: Path) -> Said:
    with open_bundle(path) as bundle:
        said = claimed(bundle.head)
    assert isinstance(said, Said)
    return said


def answer_in(path: Path) -> Answered:
    with open_bundle(path) as bundle:
        answer = claimed(bundle.head)
    assert isinstance(answer, Answered)
    return answer


def request_of(said: Said) -> site_pb2.SyncRequest:
    return site_pb2.SyncRequest.FromString(said.request)
