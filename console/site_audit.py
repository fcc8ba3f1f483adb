"""Whether the coordinator's ledger is the one whose heads this site was shown.

Every entry is read, from the coordinator or from a file that an auditor exported, its place in the chain checked, and
each head that the site ever kept compared. The key that must have signed is the one the site enrolled with.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path

import grpc
from sprachbund.v1 import audit_pb2, audit_pb2_grpc

from consortium.canonical import Fact, decode, encode
from consortium.channels import open_channel, user_agent
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors
from consortium.signing import Checkpoint
from consortium.wire_errors import from_rpc_error
from consortium.witnesses import Seen, Witnesses, kept_in
from coordinator.ledger import GENESIS, Entry, chain
from site_agent.config import SiteConfig
from site_agent.identity import SiteIdentity

_CALL_SECONDS = 30.0
_LINE_BYTES_MAX = 64 << 20  # an entry holds at most a campaign, or a gate's verdict
_COORDINATOR = "the coordinator now"

Link = tuple[int, bytes, str]  #: number, the bytes that were hashed, their hash


class SiteAudit(Fact):
    site: str
    entries: int
    heads: int  #: compared, the present one included
    problems: tuple[str, ...]


def audit(
    config: SiteConfig, ledger: Path | None, moved: Callable[[int], None] = lambda count: None
) -> SiteAudit:
    """Compare the heads below the site's home with the coordinator's ledger, or with an exported one.

    moved  is told the number of each entry that was read
    Raises BadInput if a file is none of ours, Unavailable or Refused as the coordinator answers.
    """
    identity = SiteIdentity.load(Path(config.home))
    kept = list(kept_in(Path(config.home) / "checkpoints.jsonl"))
    if ledger is None:
        return asyncio.run(_from_coordinator(config, identity, kept, moved))
    return asyncio.run(_compare(config.site, identity, kept, _lines(ledger, kept), moved))


async def _from_coordinator(
    config: SiteConfig, identity: SiteIdentity, kept: list[Seen], moved: Callable[[int], None]
) -> SiteAudit:
    async with open_channel(
        config.coordinator,
        identity.authority,
        identity.credentials,
        proxy=config.proxy_setting,
        program=user_agent(version("sprachbund"), ""),
    ) as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        try:
            head = await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=_CALL_SECONDS)
            checkpoint = Checkpoint(
                sequence=head.sequence, head=head.head, signature=head.signature, public_key=head.public_key
            )
            seen = [*kept, Seen(witness=_COORDINATOR, checkpoint=checkpoint)]

            async def entries() -> AsyncIterator[Link]:
                async for event in stub.ReadLedger(audit_pb2.ReadLedgerRequest(from_sequence=1)):
                    yield event.sequence, event.entry, event.hash

            return await _compare(config.site, identity, seen, entries(), moved)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


async def _lines(path: Path, kept: list[Seen]) -> AsyncIterator[Link]:
    """The entries of an exported ledger; its own signed head, the last line, joins ``kept``."""
    with disk_errors(path), open(path, "rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES_MAX + 1):
            number += 1
            try:
                said = json.loads(line)
                if "checkpoint" in said:
                    kept.append(
                        Seen(
                            witness=f"{path}:{number}",
                            checkpoint=decode(encode(said["checkpoint"]), Checkpoint, f"{path}:{number}"),
                        )
                    )
                    return
                yield int(said["sequence"]), encode(said["entry"]), str(said["hash"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(
                    f"{path}:{number}: not a line of `sprachbund ledger export` ({type(error).__name__})"
                ) from error


async def _compare(
    site: str,
    identity: SiteIdentity,
    seen: list[Seen],
    entries: AsyncIterator[Link],
    moved: Callable[[int], None],
) -> SiteAudit:
    hashes: list[str] = []
    problems: list[str] = []
    before = GENESIS
    async for sequence, data, digest in entries:
        moved(sequence)
        if sequence != len(hashes) + 1 or chain(before, data) != digest:
            problems.append(
                f"entry {len(hashes) + 1} does not fit the chain; what follows it was not looked at"
            )
            break
        if sequence == 1 and (fault := _founded_by_another(data, identity)):
            problems.append(fault)
        hashes.append(digest)
        before = digest
    witnesses = Witnesses(seen)
    for sequence, digest in enumerate(hashes, 1):
        witnesses.take(sequence, digest)
    problems.extend(witnesses.problems(identity.ledger_key))
    return SiteAudit(site=site, entries=len(hashes), heads=witnesses.num_heads, problems=tuple(problems))


def _founded_by_another(data: bytes, identity: SiteIdentity) -> str:
    """What is wrong with the first entry: it names the key that this site enrolled with, or it is another's ledger."""
    try:
        key = decode(data, Entry, "entry 1").event.get("ledger_key")
    except (BadInput, Corrupt) as error:
        return str(error)
    if key != identity.trust.ledger_key:
        return f"entry 1 names ledger key {str(key)[:12]}, this site enrolled with {identity.trust.ledger_key[:12]}"
    return ""
