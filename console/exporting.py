"""How what the coordinator keeps is brought here: a version as a folder, the ledger as lines."""

import asyncio
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from console.client import Coordinator
from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors, make_folder, move_into_place, sync_file, temporary_beside
from consortium.ids import Digest
from consortium.manifests import VersionManifest
from consortium.roles import Role
from consortium.signing import verify_checkpoint
from consortium.store import BlobStore
from consortium.transfer import download
from consortium.versions import lay_out, verify_directory
from consortium.views import CampaignView, ConsortiumView, ReleaseView, VersionView
from coordinator.ledger import GENESIS, Entry, chain

_MANIFEST_BYTES_MAX = 16 << 20
_DIGITS_MIN = 8  # of a digest that stands for the whole

_Named = TypeVar("_Named", VersionView, ReleaseView)

Bar = Callable[[str, int], Callable[[int], None]]  #: see console.output.transfer_bar


class Exported(Fact):
    name: str
    digest: Digest
    path: str
    files: int
    bytes: int


def find_version(view: ConsortiumView, text: str) -> tuple[CampaignView, VersionView]:
    """The version called ``text``: a name, a digest, or the first digits of one. BadInput unless just one fits."""
    every = [(campaign, version) for campaign in view.campaigns for version in campaign.versions]
    digest = _the_one(text, [version for _, version in every]).digest
    return next(pair for pair in every if pair[1].digest == digest)


def _the_one(text: str, every: Sequence[_Named]) -> _Named:
    fits = [
        one for one in every if one.name == text or (len(text) >= _DIGITS_MIN and one.digest.startswith(text))
    ]
    if len({one.digest for one in fits}) != 1:
        known = ", ".join(one.name for one in every) or "none"
        problem = "fits several versions" if fits else "is no version"
        raise BadInput(f"{text!r} {problem}; known: {known}")
    return fits[0]


async def export_version(coordinator: Coordinator, text: str, place: Path, bar: Bar) -> Exported:
    """Make ``place`` the version's folder; its blobs gather in a hidden folder beside it until all are there."""
    version: VersionView | ReleaseView
    if coordinator.person.role is Role.READER:
        version = _the_one(text, (await coordinator.releases()).releases)
    else:
        _, version = find_version(await coordinator.view(), text)
    if place.exists():
        raise BadInput(f"{place}: exists already; choose another folder or remove it")
    blobs = place.parent / f".{place.name}.blobs"
    store = BlobStore(blobs)
    ref = await coordinator.blob(Digest(version.digest))
    await download(coordinator.artifacts, ref, store)
    manifest = decode(
        store.read_bytes(ref.digest, _MANIFEST_BYTES_MAX), VersionManifest, f"version {ref.digest}"
    )
    for name, file in sorted(manifest.files.items()):
        moved = bar(name, file.size)
        await download(coordinator.artifacts, file, store, moved=moved)
        moved(file.size)  # also if it was here already
    await asyncio.to_thread(lay_out, manifest, store.path, place)
    await asyncio.to_thread(verify_directory, manifest, place)
    shutil.rmtree(blobs)
    for path in place.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # now the only name of its bytes, so it may be edited
    return Exported(
        name=version.name,
        digest=manifest.digest,
        path=str(place),
        files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files.values()),
    )


async def export_ledger(coordinator: Coordinator, path: Path | None) -> int:
    """Write every entry and a signed checkpoint, one JSON object a line; returns how many entries there are.

    path  None: stdout
    Raises Corrupt at the first entry that does not fit the chain, or if the checkpoint is not of this ledger.
    """
    if path is None:
        return await _write_ledger(coordinator, sys.stdout.buffer)
    with disk_errors(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            with open(temporary, "wb") as file:
                count = await _write_ledger(coordinator, file)
            sync_file(temporary)
            move_into_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return count


async def _write_ledger(coordinator: Coordinator, out: BinaryIO) -> int:
    checkpoint = await coordinator.checkpoint()
    key, before, signed, count = b"", GENESIS, "nothing", 0
    async for sequence, data, digest in coordinator.ledger():
        count += 1
        if sequence != count or chain(before, data) != digest:
            raise Corrupt(
                f"ledger: entry {sequence} does not fit the chain; run `sprachbund verify` on the home"
            )
        before = digest
        if sequence == 1:
            key = bytes.fromhex(decode(data, Entry, "ledger: entry 1").event["ledger_key"])
        if sequence == checkpoint.sequence:
            signed = digest
        out.write(b'{"entry":%b,"hash":"%b","sequence":%d}\n' % (data, digest.encode(), sequence))
    verify_checkpoint(checkpoint, key)
    if signed != checkpoint.head:
        raise Corrupt(
            f"ledger: entry {checkpoint.sequence} has hash {signed}, the coordinator signed {checkpoint.head}; "
            "show both to the auditor"
        )
    out.write(encode({"checkpoint": checkpoint}) + b"\n")
    out.flush()
    return count
