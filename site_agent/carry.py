"""How bytes come to a job and leave it: inputs from the coordinator, results to it.

Both ways may be begun again at any time: what has arrived is not fetched or sent a second time.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from consortium.canonical import decode, encode
from consortium.channels import CHUNK_BYTES
from consortium.errors import BadInput, Corrupt
from consortium.files import write_bytes_atomically
from consortium.flower.letters import ARRAYS, LETTER
from consortium.ids import AttemptId, Digest
from consortium.jobs import Assignment, Evaluate, FlowerMessage, Merge, Outcome, Train
from consortium.manifests import Contribution, VersionManifest
from consortium.signing import CONTRIBUTION, seal
from consortium.store import BlobStore
from consortium.transfer import fetch, upload
from consortium.versions import VERSION, lay_out, model_file
from site_agent.cleaning import note_newest
from site_agent.core.facts import Ended
from site_agent.identity import SiteIdentity
from site_agent.residuals import Residuals
from site_agent.spool import Spool
from site_agent.transfers import Died

#: Artifact -> its file below ``result/``; those of a merge besides, ``model/<file>``, and those of a Flower app's
#: reply, ``arrays/<digest>``, lie there by that very name.
ARTIFACTS = {
    "delta": "delta.safetensors",
    "token_counts": "token_counts.safetensors",
    "scores": "scores.json",
    "tokenizer": "tokenizer.json",
    VERSION: "version.json",
    LETTER: "letter.json",
}

_MANIFEST_BYTES_MAX = 16 << 20


class Meter:
    """Bytes of blobs that this agent moved; what a resumed transfer had before does not count."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    def sends(self) -> Callable[[int], None]:
        def count(more: int) -> None:
            self.sent += more

        return _growth(count)

    def receives(self) -> Callable[[int], None]:
        def count(more: int) -> None:
            self.received += more

        return _growth(count)


def _growth(count: Callable[[int], None]) -> Callable[[int], None]:
    """For who is told how much of one blob has been moved: a hook that hands on how much that is more."""
    last = 0

    def moved(now: int) -> None:
        nonlocal last
        if now > last:
            count(min(now - last, CHUNK_BYTES))
        last = now

    return moved


async def stage(
    attempt: AttemptId,
    spool: Spool,
    store: BlobStore,
    residuals: Residuals,
    artifacts: Any,
    site: bytes,
    meter: Meter | None = None,
) -> None:
    """Fetch and lay out what the attempt's job needs; ``site.json`` comes last and says: all here.

    artifacts  an ``ArtifactServiceStub`` on an aio channel
    site       the bytes of ``site.json``
    Raises BadInput or Corrupt if the assignment cannot be carried out, else what the coordinator says.
    """
    assignment = spool.assignment(attempt)
    await _fetch(assignment.inputs, store, artifacts, meter or Meter())
    await asyncio.to_thread(_lay_out_inputs, assignment, spool.directory(attempt), store)
    await asyncio.to_thread(residuals.lay_out, assignment, spool.directory(attempt))
    await asyncio.to_thread(note_newest, spool.root.parent, assignment)
    await asyncio.to_thread(write_bytes_atomically, spool.directory(attempt) / "site.json", site)


async def deliver(
    attempt: AttemptId,
    spool: Spool,
    store: BlobStore,
    residuals: Residuals,
    artifacts: Any,
    identity: SiteIdentity,
    upload_bytes_max: int,
    meter: Meter | None = None,
) -> Ended:
    """Send what the attempt made, then the signed contribution; returns what is to be written down.

    What is for the next job, residual and moments, stays here and is kept.

    upload_bytes_max  for all artifacts together; 0: no limit
    Raises BadInput or Corrupt if the result is not whole, else what the coordinator says.
    """
    meter = meter or Meter()
    result = spool.directory(attempt) / "result"
    contribution, envelope = await asyncio.to_thread(sealed, result, attempt, identity.key)
    size = sum(ref.size for ref in contribution.artifacts.values())
    if upload_bytes_max and size > upload_bytes_max:
        raise BadInput(
            f"the result has {size} bytes, the coordinator takes {upload_bytes_max}; ask its admin"
        )
    for kind, ref in sorted(contribution.artifacts.items()):
        await upload(artifacts, result / ARTIFACTS.get(kind, kind), ref, moved=meter.sends())
    await asyncio.to_thread(residuals.keep, contribution, result)
    ref = await asyncio.to_thread(store.put_bytes, envelope)
    await upload(artifacts, store.path(ref.digest), ref, moved=meter.sends())
    return Ended(outcome=Outcome.SUCCEEDED, contribution=ref.digest)


async def salvage(directory: Path) -> None:
    """Make the partial result of the job in ``directory`` from its newest training checkpoint, in a process of its own.

    Raises BadInput with the trainer's words if there is none, Died if trying again may help.
    """
    child = await asyncio.create_subprocess_exec(
        *("nice", "-n", "10"),  # everybody else on a login node comes first
        *(sys.executable, "-P", "-m", "site_agent.trainer", "--finish", str(directory)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
    )
    try:
        _, said = await child.communicate()
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        why = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        kind = BadInput if child.returncode in (BadInput.exit_code, Corrupt.exit_code) else Died
        raise kind(f"no partial result can be made of {directory / 'checkpoint'}: {why[0]}")


async def _fetch(digests: Iterable[Digest], store: BlobStore, artifacts: Any, meter: Meter) -> None:
    for (
        digest
    ) in digests:  # one after the other: one stream fills most links, and attempts are fetched at once
        if not await asyncio.to_thread(store.renew, digest):  # young again, so that no cleaning takes it away
            await fetch(artifacts, digest, store, moved=meter.receives())


def _lay_out_inputs(assignment: Assignment, directory: Path, store: BlobStore) -> None:
    work = assignment.work
    if assignment.tokenizer is not None:
        _link(assignment.tokenizer, directory / "tokenizer.json", assignment, store)
    if isinstance(work, Train | Merge):
        _lay_out_version(work.base, directory / "base", assignment, store)
    if isinstance(work, Merge):
        for ref in work.files:
            _link(ref.digest, directory / "inputs" / ref.digest, assignment, store)
    if isinstance(work, FlowerMessage):
        for digest in assignment.inputs:
            _link(digest, directory / "inputs" / digest, assignment, store)
    if isinstance(work, Evaluate):
        for subject in work.subjects:
            _lay_out_version(subject.version, directory / "versions" / subject.version, assignment, store)
            if subject.delta is not None:
                _link(subject.delta, directory / "inputs" / subject.delta, assignment, store)


def _lay_out_version(version: Digest, place: Path, assignment: Assignment, store: BlobStore) -> None:
    if place.is_dir():
        return
    _check_listed([version], assignment)
    manifest = decode(store.read_bytes(version, _MANIFEST_BYTES_MAX), VersionManifest, f"version {version}")
    _check_listed([ref.digest for ref in manifest.files.values()], assignment)
    lay_out(manifest, store.path, place)


def _link(digest: Digest, place: Path, assignment: Assignment, store: BlobStore) -> None:
    _check_listed([digest], assignment)
    store.copy_to(digest, place, link=True)


def _check_listed(digests: Iterable[Digest], assignment: Assignment) -> None:
    missing = sorted(set(digests) - set(assignment.inputs))
    if missing:
        raise BadInput(
            f"assignment {assignment.attempt}: needs blob {missing[0]}, which is not among its inputs; "
            f"the coordinator has to plan the job anew"
        )


def sealed(result: Path, attempt: AttemptId, key: ec.EllipticCurvePrivateKey) -> tuple[Contribution, bytes]:
    """What a result's manifest says, and the envelope that it travels in. Raises Corrupt if the result is not whole."""
    path = result / "contribution.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{path}: is missing, so the result cannot be delivered") from None
    contribution = decode(data, Contribution, str(path))
    if contribution.attempt != attempt:
        raise Corrupt(f"{path}: is of attempt {contribution.attempt}, not of {attempt}")
    named = {model_file(path.name) for path in (result / "model").glob("*")}
    named |= {f"{ARRAYS}{path.name}" for path in (result / ARRAYS).glob("*")}
    unknown = sorted(set(contribution.artifacts) - set(ARTIFACTS) - named)
    if unknown:
        raise Corrupt(f"{path}: unknown artifact {unknown[0]!r}; known are {', '.join(sorted(ARTIFACTS))}")
    return contribution, seal(encode(contribution), CONTRIBUTION, key)
