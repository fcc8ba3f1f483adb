"""What a site without a network remembers of its courier: what it said, how often, and the newest answer.

home/courier/
    series.json    this home's name in its bundles, and how many it has written
    said.bin       what the agent last said: a SyncRequest, to be told by the next bundle
    answer.json    the head of the newest answer, as it was signed
    asked.json     whom the site has asked to join, until it has joined
"""

import os
import secrets
from pathlib import Path

from google.protobuf.message import DecodeError
from sprachbund.v1 import site_pb2

from consortium.bundles import Head
from consortium.canonical import Fact, decode, encode, replace
from consortium.courier import Answered, claimed
from consortium.errors import BadInput
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import Digest, digest_of


class Series(Fact):
    series: str
    written: int = 0  #: bundles so far; a number is used once


class Asked(Fact):
    consortium: str
    authority: str  #: PEM, from the invitation: who may answer


class Memory:
    """The files below ``home/courier``. Raises Unavailable or BadInput where one cannot be read."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "courier"
        self._read: tuple[tuple[int, int], Answered] | None = None

    # ---- what was said

    def say(self, request: site_pb2.SyncRequest) -> None:
        """Keep what the agent says now, for the next bundle."""
        data = request.SerializeToString(deterministic=True)
        path = self._folder / "said.bin"
        if not path.exists() or path.read_bytes() != data:
            write_bytes_atomically(path, data)

    def said(self) -> site_pb2.SyncRequest | None:
        """What the agent said last; None: nothing yet."""
        path = self._folder / "said.bin"
        if not path.exists():
            return None
        try:
            return site_pb2.SyncRequest.FromString(path.read_bytes())
        except DecodeError as error:
            raise BadInput(f"{path}: {error}; remove it, the agent writes it anew") from error

    def series(self) -> Series:
        """Of this home; a home that was set up anew begins another."""
        path = self._folder / "series.json"
        if not path.exists():
            write_bytes_atomically(path, encode(Series(series=secrets.token_hex(8))))
        return decode(path.read_bytes(), Series, str(path))

    def next_number(self) -> Series:
        """The series with the number of the next bundle, which nobody gets again."""
        found = self.series()
        series = replace(found, written=found.written + 1)
        write_bytes_atomically(self._folder / "series.json", encode(series))
        return series

    # ---- what was answered

    def keep_answer(self, head: Head) -> None:
        """From here on the agent goes by this answer."""
        write_bytes_atomically(self._folder / "answer.json", encode(head))

    def answer_head(self) -> Head | None:
        path = self._folder / "answer.json"
        return decode(path.read_bytes(), Head, str(path)) if path.exists() else None

    def answer(self) -> Answered | None:
        """The newest one, which was verified when it came; read anew only when it has changed."""
        path = self._folder / "answer.json"
        with disk_errors(path):
            if not path.exists():
                return None
            state = os.stat(path)
        stamp = state.st_ino, state.st_mtime_ns
        if self._read is None or self._read[0] != stamp:
            head = self.answer_head()
            assert head is not None, "answers are replaced, never removed"
            found = claimed(head)
            if not isinstance(found, Answered):
                raise BadInput(f"{path}: is no answer; import the newest bundle again")
            self._read = stamp, found
        return self._read[1]

    # ---- joining

    def ask(self, asked: Asked) -> None:
        write_bytes_atomically(self._folder / "asked.json", encode(asked))

    def asked(self) -> Asked | None:
        path = self._folder / "asked.json"
        return decode(path.read_bytes(), Asked, str(path)) if path.exists() else None


def digest_of_head(head: Head) -> Digest:
    return digest_of(head.envelope)


def response_of(answer: Answered) -> site_pb2.SyncResponse:
    """Raises BadInput if it is none, or if it shows no head of the ledger."""
    try:
        response = site_pb2.SyncResponse.FromString(answer.response)
    except DecodeError as error:
        raise BadInput(f"answer {answer.number}: no SyncResponse ({error})") from error
    if not response.HasField("checkpoint"):
        raise BadInput(f"answer {answer.number}: shows no head of the ledger")
    return response
