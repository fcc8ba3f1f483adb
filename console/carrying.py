"""How a site's bundle is brought to the coordinator and its answer back, for a site that no network reaches."""

import asyncio
import shutil
import time
from pathlib import Path

from sprachbund.v1 import site_pb2

from console.client import Coordinator
from console.exporting import Bar
from consortium.bundles import Bundle, Head, open_bundle, write_bundle
from consortium.canonical import Fact, decode, encode
from consortium.courier import Answered, EnrolmentAsked, Said, claimed, describe_kind, kind_of, statement_of
from consortium.errors import BadInput, Unavailable
from consortium.ids import AttemptId, SiteName, short
from consortium.roles import Role
from consortium.store import BlobStore
from consortium.transfer import download, upload_section


class Exchanged(Fact):
    """What was carried, both ways."""

    file: str  #: the answer's
    site: SiteName
    number: int  #: of the bundle that was heard; 0: an enrolment
    sent_bytes: int = 0  #: of blobs, to the coordinator
    brought_bytes: int = 0  #: of blobs, in the answer
    wanted: tuple[AttemptId, ...] = ()


class Look(Fact):
    """What a bundle claims; only its being whole is checked."""

    file: str
    kind: str
    consortium: str
    site: SiteName
    number: int  #: 0: an enrolment
    blobs: int
    bytes: int


def look(path: Path) -> Look:
    """What the bundle at ``path`` is, with every blob compared with its digest. Raises Corrupt."""
    with open_bundle(path) as bundle:
        said = claimed(bundle.head)
        bundle.verify(said)
        return Look(
            file=str(path),
            kind=describe_kind(kind_of(bundle.head)),
            consortium=said.consortium,
            site=said.site,
            number=said.number if isinstance(said, Said | Answered) else 0,
            blobs=len(said.blobs),
            bytes=path.stat().st_size,
        )


async def exchange(coordinator: Coordinator, path: Path, out: Path, bar: Bar) -> Exchanged:
    """Have the bundle at ``path`` heard, and write what the coordinator answers to ``out``.

    Broken off, it may be begun again: neither the blobs that went up nor those that came down move twice.
    Raises what is wrong with the bundle, or what the coordinator refuses.
    """
    if out.exists():
        raise BadInput(f"{out}: exists already; choose another name or remove it")
    with open_bundle(path) as bundle:
        said = claimed(bundle.head)
        if not isinstance(said, Said | EnrolmentAsked):
            what = describe_kind(kind_of(bundle.head))
            raise BadInput(f"{path}: is {what}; it goes to the site, a site's bundle comes here")
        bundle.places(said)  # cut or damaged at its end: known before anybody is asked
        head, sent = await _heard(coordinator, bundle, said, bar)
    person = coordinator.person
    consortium = person.connection.consortium
    _, answer = statement_of(head, Role.COORDINATOR, person.authority, consortium, time.time())
    if not isinstance(answer, Answered):
        await asyncio.to_thread(write_bundle, out, head, ())
        return Exchanged(file=str(out), site=said.site, number=0)
    parts = out.with_name(f".{out.name}.parts")  # what has come down, if it is broken off
    store = BlobStore(parts)
    for ref in answer.blobs:
        moved = bar(f"input {short(ref.digest)}", ref.size)
        await download(coordinator.artifacts, ref, store, moved=moved, site=answer.site)
        moved(ref.size)
    blobs = [(ref, store.path(ref.digest)) for ref in answer.blobs]
    response = site_pb2.SyncResponse.FromString(answer.response)  # signed by the coordinator
    brought = sum(ref.size for ref in answer.blobs)
    await asyncio.to_thread(write_bundle, out, head, blobs, bar(out.name, brought))
    shutil.rmtree(parts, ignore_errors=True)
    return Exchanged(
        file=str(out),
        site=answer.site,
        number=answer.number,
        sent_bytes=sent,
        brought_bytes=brought,
        wanted=tuple(AttemptId(message.attempt) for message in response.wanted),
    )


async def _heard(
    coordinator: Coordinator, bundle: Bundle, said: Said | EnrolmentAsked, bar: Bar
) -> tuple[Head, int]:
    """The answer's head, and how many bytes of blobs went up before it was given."""
    written, places, sent = encode(bundle.head), bundle.places(said), 0
    for _ in range(2):
        missing, answer = await coordinator.carry(written)
        if not missing:
            return decode(answer, Head, "the answer's head"), sent
        for digest in missing:
            if digest not in places:
                raise BadInput(f"{bundle.path}: the coordinator waits for blob {digest}, which is not in it")
            ref, begin = places[digest]
            moved = bar(f"result {short(digest)}", ref.size)
            await upload_section(coordinator.artifacts, bundle.path, begin, ref, said.site, moved=moved)
            moved(ref.size)
            sent += ref.size
    raise Unavailable(
        f"{bundle.path}: the coordinator still waits for {len(missing)} blob(s), {missing[0]} first; try again"
    )
