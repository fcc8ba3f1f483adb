"""A cleaning that dies in the middle."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from consortium.ids import Digest
from consortium.store import BlobStore


@contextlib.contextmanager
def cut_off_at_removal(
    number: int, just_before: Callable[[BlobStore, Digest], object] = lambda store, digest: None
) -> Iterator[None]:
    """The block ends as by Ctrl-C when it is about to remove its ``number``-th blob, counted from 1."""
    remove, count = BlobStore.remove, 0

    def dies(self: BlobStore, digest: Digest, stored_before: float) -> int:
        nonlocal count
        count += 1
        if count == number:
            just_before(self, digest)
            raise KeyboardInterrupt
        return remove(self, digest, stored_before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlobStore, "remove", dies)
        with pytest.raises(KeyboardInterrupt):
            yield
