"""Whether the ledger has ever told this site two stories: every signed head it was shown, kept.

A coordinator that rewrote or cut its ledger must show somebody a head that an honest one could not. Each site
keeps what it saw, so the rewriting would have to fool all of them.
"""

import os
from pathlib import Path

from consortium.canonical import decode, encode
from consortium.errors import BadInput, Broken
from consortium.files import disk_errors, make_folder, sync_folder
from consortium.signing import Checkpoint, verify_checkpoint

_TAIL_BYTES = 4096  # a line has about 300


class Witness:
    """Keeps the heads in ``path``, one JSON line each, oldest first."""

    def __init__(self, path: Path, ledger_key: bytes) -> None:
        self._path = path
        self._ledger_key = ledger_key
        self._torn_at: int | None = None  # where half of a line begins that a crash or a full disk has left
        self._last = self._read_last()

    def see(self, checkpoint: Checkpoint) -> None:
        """Keep a head that is newer. Raises Corrupt if badly signed, Broken if it contradicts the last."""
        last = self._last
        if checkpoint == last:  # byte for byte, signature included
            return
        verify_checkpoint(checkpoint, self._ledger_key)
        if last and (checkpoint.sequence, checkpoint.head) == (last.sequence, last.head):
            return
        if last and checkpoint.sequence <= last.sequence:
            raise Broken(
                f"the coordinator shows ledger head {checkpoint.sequence} {checkpoint.head[:12]}, but has "
                f"signed {last.sequence} {last.head[:12]} before: its ledger was rewritten or cut; "
                f"do not go on, show both to the auditor (this site's proof is in {self._path})"
            )
        with disk_errors(self._path):
            make_folder(self._path.parent)
            fresh = not self._path.exists()
            with open(self._path, "ab", buffering=0) as file:
                if self._torn_at is None:
                    self._torn_at = file.seek(0, os.SEEK_END)  # so it is, until all of the line is on disk
                file.truncate(self._torn_at)
                line = encode(checkpoint) + b"\n"
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            if fresh:
                sync_folder(self._path.parent)
        self._last, self._torn_at = checkpoint, None

    def _read_last(self) -> Checkpoint | None:
        if not self._path.exists():
            return None
        with disk_errors(self._path), open(self._path, "rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(begin)
            data = file.read()
            whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._torn_at = begin + whole
        lines = data[:whole].splitlines()
        try:
            return decode(lines[-1], Checkpoint, f"{self._path}, last line") if lines else None
        except BadInput as error:
            raise BadInput(f"{error}; it was changed by hand, put it back from a backup") from error
