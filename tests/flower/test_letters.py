"""Records become letters and parcels and come back as they were; a stranger's parcel is told what is wrong with it."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput
from consortium.flower.carrying import pack, unpack
from consortium.flower.compat import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from consortium.flower.letters import (
    ArrayHead,
    Letter,
    Record,
    check_parcel,
    inputs_of,
    read_letter,
    read_parcel,
    write_parcel,
)
from consortium.store import BlobStore


def there_and_back(records: RecordDict, folder: Path) -> tuple[Letter, RecordDict]:
    store = BlobStore(folder)
    letter = decode(encode(pack(records, folder / "parcel", store.put_file)), Letter)
    assert not (folder / "parcel").exists()
    return letter, unpack(letter, lambda ref: store.path(ref.digest))


def sample() -> RecordDict:
    raw = Array(dtype="bfloat16", shape=(3,), stype="safetensors.ref", data=b"\x80\x3f\0\1\2\3")
    return RecordDict(
        {
            "last": ConfigRecord(
                {"a": 1, "list": [1.5, math.inf], "bytes": b"\0\xff", "yes": True, "text": "ў"}
            ),
            "arrays": ArrayRecord([np.arange(5.0), np.ones((2, 0), np.float32), np.array(7, np.int64)]),
            "first": MetricRecord({"loss": math.nan, "counts": [1, 2]}),
            "raw": ArrayRecord({"z": raw, "a": raw}),
            "none": ArrayRecord(),
        }
    )


def test_everything_comes_back_in_its_order(tmp_path: Path) -> None:
    records = sample()
    letter, back = there_and_back(records, tmp_path)
    assert list(back) == list(records) and list(back["raw"]) == ["z", "a"]
    assert repr(back) == repr(records)  # NaN is not equal to itself
    assert len(letter.parcels) == 3


def test_the_same_arrays_are_one_blob_whatever_comes_with_them(tmp_path: Path) -> None:
    letters = [
        pack(
            RecordDict({"arrays": ArrayRecord([np.ones(1000)]), "config": ConfigRecord({"site": site})}),
            tmp_path / "parcel",
            BlobStore(tmp_path).put_file,
        )
        for site in range(10)
    ]
    assert len({encode(letter) for letter in letters}) == 10
    assert len({letter.parcels for letter in letters}) == 1
    assert len(BlobStore(tmp_path).digests()) == 1
    ref = BlobStore(tmp_path).put_bytes(encode(letters[0]))
    assert inputs_of(ref, letters[0]) == tuple(sorted([ref.digest, letters[0].parcels[0].digest]))


def test_a_record_that_is_not_the_one_it_is_called_is_refused(tmp_path: Path) -> None:
    letter, _ = there_and_back(RecordDict({"a": ConfigRecord({"x": 1})}), tmp_path)
    forged = decode(encode(letter).replace(b'"name":"a"', b'"name":"b"'), Letter)
    with pytest.raises(BadInput, match="record 'b': holds"):
        unpack(forged, lambda ref: tmp_path)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    """The second would displace the first without a word."""
    record = Record(name="a", other=b"")
    with pytest.raises(BadInput, match="letter: names a record twice"):
        read_letter(encode(Letter(records=(record, record))))
    head = ArrayHead(name="w", dtype="float32", shape=(1,), stype="numpy.ndarray", size=4)
    write_parcel(tmp_path / "parcel", [(head, bytes(4)), (head, bytes(4))])
    with pytest.raises(BadInput, match="two arrays of one name"):
        check_parcel(tmp_path / "parcel")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_damage_to_a_parcel_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    head = ArrayHead(name="w", dtype="float32", shape=(8,), stype="numpy.ndarray", size=32)
    write_parcel(path, [(head, bytes(32)), (replace(head, name="b"), bytes(32))])
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        arrays = list(read_parcel(path))
    except BadInput:
        with pytest.raises(BadInput):
            check_parcel(path)
        return
    check_parcel(path)
    assert sum(len(data) for _, data in arrays) <= 64
