"""What bytes a file of text holds once it is decompressed, and whether it stayed the same meanwhile.

Memory is bounded whatever a file claims: pieces of a few KiB are decompressed at a time, a zstd frame may not
ask for a window over 128 MiB, and a file that grows a thousandfold is no text.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, cast

import zstandard

from consortium.canonical import Fact
from consortium.errors import Corrupt, Unavailable
from consortium.files import disk_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FREE_BYTES = 1 << 30  # may come out of a file however small; then the ratio is looked at
_GROWTH_MAX = 1000  # zstd makes 4 of 1 byte of prose, and 200 of 1 of boiler plate
_PIECE = 4096  # of zstd, which can make 32 KiB of one byte: at most 128 MiB at a time
_BUFFER = 1 << 20


class FileState(Fact):
    """By what a file is recognised without reading it."""

    path: str
    size: int
    mtime_ns: int


def state_of(path: Path) -> FileState:
    """Raises Unavailable if it cannot be looked at."""
    with disk_errors(path):
        found = path.stat()
    return FileState(path=str(path), size=found.st_size, mtime_ns=found.st_mtime_ns)


class Stream:
    """A file read forwards, decompressed by its ending (``.zst`` of many frames, ``.gz`` of many members).

    Raises Corrupt if it is cut off, broken or grows like no text, Unavailable if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = 0  #: bytes that came out so far
        with disk_errors(path):
            self._raw: BinaryIO = open(path, "rb")
        if path.suffix == ".zst":
            self._file: BinaryIO = cast(BinaryIO, io.BufferedReader(_Frames(self._raw, path), _BUFFER))
        elif path.suffix == ".gz":
            self._file = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, _gunzip(self._raw)), _BUFFER))
        else:
            self._file = self._raw

    def readline(self, limit: int) -> bytes:
        """The next line with its end, or so much of it as the limit allows; empty at the end."""
        with self._told():
            line = self._file.readline(limit)
        self._count(len(line))
        return line

    def read(self, size: int) -> bytes:
        """``size`` bytes, or fewer at the end."""
        with self._told():
            data = self._file.read(size)
        self._count(len(data))
        return data

    @property
    def raw_position(self) -> int:
        """Bytes of the file itself that were read so far, a buffer ahead perhaps."""
        return self._raw.tell()

    def check(self, expected: FileState) -> None:
        """Raises Unavailable if the open file is not the one that was looked at before."""
        now = os.fstat(self._raw.fileno())
        if (now.st_size, now.st_mtime_ns) != (expected.size, expected.mtime_ns):
            raise changed(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._raw.close()

    def _count(self, size: int) -> None:
        self.made += size
        if self.made > _FREE_BYTES and self.made > _GROWTH_MAX * self._raw.tell():
            raise Corrupt(
                f"{self.path}: {self.made:,} bytes came out of {self._raw.tell():,}; no text packs so well, "
                "take the file away"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with disk_errors(self.path):
                yield
        except (zstandard.ZstdError, EOFError, zlib.error) as error:
            raise broken(self.path, str(error)) from error
        except Unavailable as error:
            if isinstance(error.__cause__, gzip.BadGzipFile):
                raise broken(self.path, str(error.__cause__)) from error
            raise


def changed(path: Path) -> Unavailable:
    return Unavailable(f"{path}: changed while it was read; let it come to rest, then start again")


def broken(path: Path, why: str) -> Corrupt:
    return Corrupt(f"{path}: cannot be decompressed ({why}); fetch the file again")


def _gunzip(raw: BinaryIO) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=raw, mode="rb")


class _Frames(io.RawIOBase):
    """All zstd frames of a file, one after the other; zstandard's own reader takes a cut frame for the end."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._raw, self._path = raw, path
        self._context = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._ready:
            if not self._input:
                self._input = self._raw.read(_PIECE)
                if not self._input:
                    if self._frame is not None:
                        raise broken(self._path, "it ends within a frame")
                    return 0
            self._frame = self._frame or self._context.decompressobj()
            self._ready = self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        view = memoryview(buffer).cast("B")
        taken = min(len(view), len(self._ready))
        view[:taken] = self._ready[:taken]
        self._ready = self._ready[taken:]
        return taken
