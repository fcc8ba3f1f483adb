"""How a Flower message lies in the store: a letter, and beside it the arrays that it names by their digest.

    letter   canonical JSON of ``Letter``: the records in order; config and metrics inside, arrays by reference
    parcel   the arrays of one ArrayRecord: 8 bytes (little-endian) length of a header, the header (canonical JSON of
             ``Parcel``), then the data of each array, in order, without gaps

So the same arrays sent to ten sites are one blob, and a parcel may be larger than protobuf's 2 GiB. The data of an
array is opaque here: whatever its ``stype`` says, byte for byte.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput
from consortium.files import disk_errors
from consortium.ids import Digest
from consortium.manifests import FileRef

LETTER = "letter"  #: the artifact of a reply
ARRAYS = "arrays/"  #: begins the name of every other artifact of a reply; its digest follows
LETTER_BYTES_MAX = 16 << 20
_HEADER_BYTES_MAX = 64 << 20
_LENGTH_BYTES = 8


class Record(Fact):
    """One record of a RecordDict: arrays by reference, or anything else as Flower's own protobuf."""

    name: str
    arrays: FileRef | None = None
    other: bytes = b""  #: a RecordDict that holds this record alone


class Letter(Fact):
    schema: int = 1
    records: tuple[Record, ...]  #: in the order of the RecordDict

    @property
    def parcels(self) -> tuple[FileRef, ...]:
        """Every blob that the letter names, by digest, each once."""
        found = {record.arrays.digest: record.arrays for record in self.records if record.arrays}
        return tuple(found[digest] for digest in sorted(found))


class ArrayHead(Fact):
    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    size: int  #: bytes of its data


class Parcel(Fact):
    arrays: tuple[ArrayHead, ...]


def read_letter(data: bytes, what: str = "letter") -> Letter:
    """Raises BadInput for bytes that are none, or that name a record twice."""
    letter = decode(data, Letter, what)
    names = [record.name for record in letter.records]
    if len(set(names)) < len(names):
        raise BadInput(f"{what}: names a record twice; give each a name of its own")
    return letter


def inputs_of(letter: FileRef, content: Letter) -> tuple[Digest, ...]:
    """The letter and every blob that it names, sorted."""
    return tuple(sorted({letter.digest, *(ref.digest for ref in content.parcels)}))


def write_parcel(path: Path, arrays: Iterable[tuple[ArrayHead, bytes]]) -> None:
    """Write one record's arrays to ``path``. Raises DiskFull or Unavailable."""
    held = list(arrays)
    header = encode(Parcel(arrays=tuple(head for head, _ in held)))
    with disk_errors(path), open(path, "wb") as file:
        for part in (len(header).to_bytes(_LENGTH_BYTES, "little"), header, *(data for _, data in held)):
            file.write(part)


def check_parcel(path: Path) -> None:
    """Raise BadInput unless the file is a parcel: its header can be read and tells of all its bytes."""
    with disk_errors(path), open(path, "rb") as file:
        _heads(path, file)


def read_parcel(path: Path) -> Iterator[tuple[ArrayHead, bytes]]:
    """Every array of a parcel, one after the other. Raises BadInput for a file that is none."""
    with disk_errors(path), open(path, "rb") as file:
        for head in _heads(path, file):
            yield head, file.read(head.size)


def _heads(path: Path, file: BinaryIO) -> tuple[ArrayHead, ...]:
    """What the parcel says of its arrays; the file then stands at the first one."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    size = path.stat().st_size
    if not 0 < length <= min(_HEADER_BYTES_MAX, size - _LENGTH_BYTES):
        raise BadInput(f"{path.name}: no parcel of arrays: its header would have {length} bytes")
    heads = decode(file.read(length), Parcel, f"parcel {path.name}").arrays
    told = sum(head.size for head in heads)
    if min((head.size for head in heads), default=0) < 0 or _LENGTH_BYTES + length + told != size:
        raise BadInput(f"{path.name}: its header tells of {told} bytes of arrays, the file has others")
    if len({head.name for head in heads}) < len(heads):
        raise BadInput(f"{path.name}: two arrays of one name; the second would displace the first")
    return heads
