"""How Flower's records become a letter and parcels, and come back as they were."""

from collections.abc import Callable
from pathlib import Path

from consortium.errors import BadInput
from consortium.flower.compat import Array, ArrayRecord, RecordDict, records_from_bytes, records_to_bytes
from consortium.flower.letters import ArrayHead, Letter, Record, read_parcel, write_parcel
from consortium.manifests import FileRef

Keep = Callable[[Path], FileRef]  #: takes a parcel's file in, by its digest
_NUMPY = "numpy.ndarray"  # serialised by numpy.save: what flwr writes, whoever made the array
Find = Callable[[FileRef], Path]  #: where the file of a parcel is


def pack(records: RecordDict, scratch: Path, keep: Keep) -> Letter:
    """The letter that stands for ``records``; the arrays of each ArrayRecord go to ``keep``.

    scratch  a file to write parcels to, one after the other; gone when this returns
    """
    packed = []
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays = (
                (
                    ArrayHead(
                        name=key,
                        dtype=array.dtype,
                        shape=tuple(array.shape),
                        stype=array.stype,
                        size=len(array.data),
                    ),
                    array.data,
                )
                for key, array in record.items()
            )
            write_parcel(scratch, arrays)
            packed.append(Record(name=name, arrays=keep(scratch)))
            scratch.unlink(missing_ok=True)
        else:
            packed.append(Record(name=name, other=records_to_bytes(RecordDict({name: record}))))
    return Letter(records=tuple(packed))


def unpack(letter: Letter, find: Find) -> RecordDict:
    """The records that a letter stands for. Raises BadInput for a letter or a parcel that is none."""
    records = RecordDict()
    for record in letter.records:
        if record.arrays is not None:
            arrays = {
                head.name: Array(dtype=head.dtype, shape=head.shape, stype=head.stype, data=data)
                for head, data in read_parcel(find(record.arrays))
            }
            records[record.name] = ArrayRecord(arrays)
            continue
        inner = records_from_bytes(record.other, f"record {record.name!r}")
        if list(inner) != [record.name]:
            raise BadInput(f"record {record.name!r}: holds {list(inner)}; expected itself alone")
        records[record.name] = inner[record.name]
    return records


def check_arrays(records: RecordDict) -> None:
    """Raise BadInput for an array that says it is one of NumPy's and cannot be read as one.

    Every Strategy of Flower's reads them so, and whatever that raises ends the ServerApp. Other serialisations are the
    app's own.
    """
    for name, record in records.items():
        for key, array in record.items() if isinstance(record, ArrayRecord) else ():
            if array.stype != _NUMPY:
                continue
            try:
                array.numpy()
            except Exception as error:  # NumPy has many, for what a stranger wrote
                raise BadInput(f"record {name!r}: array {key!r} cannot be read: {error!r}") from error
