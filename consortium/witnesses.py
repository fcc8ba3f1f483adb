"""Whether a ledger is the one whose signed heads others have kept: what nobody can rewrite alone.

Each site keeps the heads it was shown, one JSON line each (``checkpoints.jsonl``). A ledger that was rewritten or cut
is a good chain again, signed with the coordinator's own key; only who kept an older head can tell.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from consortium.canonical import Fact, decode
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors
from consortium.ids import short
from consortium.signing import Checkpoint, verify_checkpoint

_LINE_BYTES_MAX = 4096  # one has about 300


class Seen(Fact):
    """A head, and whose file has it."""

    witness: str
    checkpoint: Checkpoint


def kept_in(path: Path) -> Iterator[Seen]:
    """The heads in a site's file, in its order; half a line at the end, as a crash leaves it, is passed over.

    Raises BadInput for what is no such file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; a site's is <home>/checkpoints.jsonl")
    with disk_errors(path), open(path, "rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES_MAX + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > _LINE_BYTES_MAX:
                    raise BadInput(
                        f"{path}:{number}: longer than any checkpoint; give a site's checkpoints.jsonl"
                    )
                return
            yield Seen(witness=str(path), checkpoint=decode(line, Checkpoint, f"{path}:{number}"))


class Witnesses:
    """Compares a ledger, entry by entry, with all the heads that ``seen`` has."""

    def __init__(self, seen: Iterable[Seen]) -> None:
        self._seen = sorted(seen, key=lambda one: (one.checkpoint.sequence, one.witness))
        self._wanted = {one.checkpoint.sequence for one in self._seen}
        self._found: dict[int, str] = {}
        self._end = 0

    @property
    def num_heads(self) -> int:
        return len(self._seen)

    def take(self, sequence: int, head: str) -> None:
        """Note the hash of the next entry, whose place in the chain the caller has checked."""
        self._end = sequence
        if sequence in self._wanted:
            self._found[sequence] = head

    def problems(self, ledger_key: bytes) -> Iterator[str]:
        """Where the ledger contradicts a head, in sentences that name the witness.

        ledger_key  Ed25519, raw, of whom to trust: the site's own trust, or the ledger's first entry
        """
        for one in self._seen:
            checkpoint = one.checkpoint
            where = f"{one.witness}: entry {checkpoint.sequence}"
            try:
                verify_checkpoint(checkpoint, ledger_key)
            except Corrupt as error:
                yield f"{where}: no proof, or of another ledger: {error}"
                continue
            if checkpoint.sequence > self._end:
                yield f"{where} was signed, but the ledger ends at {self._end}: entries were cut off"
            elif (now := self._found.get(checkpoint.sequence)) != checkpoint.head:
                was, is_ = short(checkpoint.head), short(now) if now else "missing"
                yield f"{where} was signed with hash {was}, now it is {is_}: this entry or one before it was rewritten"
