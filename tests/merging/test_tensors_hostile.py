"""Files from strangers: every one is refused by name, none crashes the reader."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.errors import Corrupt
from consortium.tensors import Checkpoint, TensorFile, read_header


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def file_bytes(header: str | bytes | dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


A = json.dumps(entry(0, 4))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes cannot hold"),
    "seven bytes": (b"\0" * 7, "7 bytes cannot hold"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", "cannot hold a header of 1000"),
    "header of 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "cannot hold a header"),
    "not JSON": (file_bytes("{oops}", b""), "not a JSON header"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}', b""), "not a JSON header"),
    "not an object": (file_bytes("[]", b""), "must be an object"),
    "infinitely nested": (file_bytes("[" * 100_000, b""), "not a JSON header"),
    "NaN in the header": (file_bytes('{"a": NaN}', b""), "not a JSON header"),
    "a number of 5000 digits": (file_bytes('{"a": ' + "9" * 5000 + "}", b""), "not a JSON header"),
    "the same name twice": (file_bytes(f'{{"a": {A}, "a": {A}}}', b"\0" * 4), "'a' is written twice"),
    "the same key twice": (
        file_bytes('{"a": {"dtype": "F32", "dtype": "F16"}}', b""),
        "'dtype' is written twice",
    ),
    "no entry": (file_bytes({"a": 3}, b""), "tensor 'a': its entry must have exactly"),
    "an extra key": (file_bytes({"a": entry(0, 4) | {"x": 1}}, b"\0" * 4), "tensor 'a': its entry"),
    "unknown dtype": (file_bytes({"a": entry(0, 4, dtype="I32")}, b"\0" * 4), "tensor 'a': dtype is 'I32'"),
    "dtype no text": (file_bytes({"a": entry(0, 4, dtype=[])}, b"\0" * 4), "tensor 'a': dtype"),
    "negative shape": (file_bytes({"a": entry(0, 4, [-1])}, b"\0" * 4), "tensor 'a': shape must be"),
    "true as a shape": (file_bytes({"a": entry(0, 4, [True])}, b"\0" * 4), "tensor 'a': shape must be"),
    "huge shape": (file_bytes({"a": entry(0, 4, [1 << 60, 4])}, b"\0" * 4), "tensor 'a': shape must be"),
    "shape of overflowing product": (
        file_bytes({"a": entry(0, 0, [1 << 40] * 8)}, b""),
        "tensor 'a': F32 of shape",
    ),
    "a thousand dimensions": (
        file_bytes({"a": entry(0, 4, [1] * 1000)}, b"\0" * 4),
        "tensor 'a': shape must be",
    ),
    "shape against bytes": (
        file_bytes({"a": entry(0, 8, [3])}, b"\0" * 8),
        r"takes 12 bytes, the header gives it 8",
    ),
    "backward offsets": (
        file_bytes({"a": entry(4, 0, [1])}, b"\0" * 4),
        "takes 4 bytes, the header gives it -4",
    ),
    "three offsets": (
        file_bytes({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, b"\0" * 4),
        "must be .begin, end.",
    ),
    "overlap": (file_bytes({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "tensor 'b' overlaps 'a'"),
    "two at one place": (
        file_bytes({"a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 4),
        "tensor 'b' overlaps 'a'",
    ),
    "a gap": (
        file_bytes({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
        "tensor 'b' leaves a gap after 'a'",
    ),
    "a gap in front": (file_bytes({"a": entry(4, 8)}, b"\0" * 8), "tensor 'a' leaves a gap after the header"),
    "cut off": (file_bytes({"a": entry(0, 8)}, b"\0" * 7), "its tensors end at byte"),
    "something behind": (file_bytes({"a": entry(0, 8)}, b"\0" * 9), "its tensors end at byte"),
    "empty name": (file_bytes({"": entry(0, 4)}, b"\0" * 4), "1 to 512 printable characters"),
    "newline in a name": (file_bytes({"a\nb": entry(0, 4)}, b"\0" * 4), "printable"),
    "half a surrogate in a name": (file_bytes(f'{{"\\ud800": {A}}}', b"\0" * 4), "printable"),
    "long name": (file_bytes({"a" * 513: entry(0, 4)}, b"\0" * 4), "printable"),
    "metadata no text": (file_bytes({"__metadata__": {"a": 1}}, b""), "must map text to text"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_is_refused_with_the_file_and_the_fault(case: str, tmp_path: Path) -> None:
    data, expected = HOSTILE[case]
    path = tmp_path / "stranger.safetensors"
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=r"stranger\.safetensors.*" + expected) as caught:
        read_header(path)
    str(caught.value).encode()  # can be logged


def test_a_header_longer_than_allowed_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(file_bytes("{" + " " * 100 + "}", b""))
    assert read_header(path).tensors == {}
    with pytest.raises(Corrupt, match="header of 102 bytes exceeds the 101 allowed"):
        TensorFile(path, header_bytes_max=101)


@given(data=st.binary(max_size=60), length=st.integers(0, 70))
def test_noise_is_corrupt_or_a_file_without_tensors(
    data: bytes, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(struct.pack("<Q", length) + data)
    try:
        assert read_header(path).tensors == {}
    except Corrupt:
        pass


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(base_dir: Path) -> None:
    with Checkpoint(base_dir) as model:
        shard = sorted(base_dir.glob("*.safetensors"))[0]
        with open(shard, "r+b") as file:
            file.truncate(shard.stat().st_size - 8)
        with pytest.raises(Corrupt, match="ended at byte"):
            model.array("embed")


def rewrite_index(directory: Path, **changes: str) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "place", ["../base/x.safetensors", "/x.safetensors", ".x.safetensors", "x.bin", "a\0.safetensors"]
)
def test_an_index_that_points_outside_is_refused(base_dir: Path, place: str) -> None:
    rewrite_index(base_dir, embed=place)
    with pytest.raises(Corrupt, match="'embed' is said to lie in"):
        Checkpoint(base_dir)


def test_a_tensor_that_its_shard_lacks_is_refused(base_dir: Path) -> None:
    rewrite_index(base_dir, extra="model-00001-of-00003.safetensors")
    with pytest.raises(Corrupt, match="'extra' is missing, the index lists it"):
        Checkpoint(base_dir)


def test_a_tensor_in_two_shards_is_refused(base_dir: Path) -> None:
    first, second = sorted(base_dir.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(Corrupt, match=r"model-00002.*'embed' is not in the index"):
        Checkpoint(base_dir)


def test_a_missing_shard_a_missing_model_and_two_models_are_refused(base_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"neither model\.safetensors nor"):
        Checkpoint(tmp_path)
    shard = sorted(base_dir.glob("*.safetensors"))[0]
    (base_dir / "model.safetensors").write_bytes(shard.read_bytes())
    with pytest.raises(Corrupt, match="remove the one that is stale"):
        Checkpoint(base_dir)
