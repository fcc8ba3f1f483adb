"""The heads that a site keeps are its only proof: neither a full disk nor a crash spoils those that it has."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consortium.errors import DiskFull, Unavailable
from consortium.ids import digest_of
from consortium.signing import Checkpoint, new_ledger_key, sign_checkpoint
from consortium.witnesses import kept_in
from site_agent.witness import Witness

KEY = new_ledger_key()
PUBLIC = KEY.public_key().public_bytes_raw()


def head(number: int) -> Checkpoint:
    return sign_checkpoint(KEY, number, digest_of(b"%d" % number))


def kept(path: Path) -> list[int]:
    return [seen.checkpoint.sequence for seen in kept_in(path)]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond are cut short, and then fail: the kernel's doing, as on a full disk."""
    import signal

    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("room", [0, 1, 50, 150])
def test_a_full_disk_costs_the_head_that_was_being_kept_and_no_other(tmp_path: Path, room: int) -> None:
    path = tmp_path / "checkpoints.jsonl"
    witness = Witness(path, PUBLIC)
    witness.see(head(1))
    size = path.stat().st_size
    for number in (2, 3):
        with files_of_at_most(size + room), pytest.raises(Unavailable):
            witness.see(head(number))
    witness.see(head(4))  # the same process, and room again
    assert kept(path) == [1, 4]
    with files_of_at_most(path.stat().st_size + room), pytest.raises(Unavailable):
        witness.see(head(5))
    again = Witness(path, PUBLIC)  # another process
    again.see(head(6))
    assert kept(path) == [1, 4, 6]


def test_what_could_not_be_made_durable_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness(tmp_path / "checkpoints.jsonl", PUBLIC)
    witness.see(head(1))

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(DiskFull):
            witness.see(head(2))
    witness.see(head(2))
    assert kept(tmp_path / "checkpoints.jsonl") == [1, 2]
