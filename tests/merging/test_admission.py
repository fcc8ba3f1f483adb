"""Admission: honest deltas pass, and each kind of bad one is turned away by name."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium import canonical
from consortium.admission import ELEMENT_MAX, Inspection, base_norms, inspect
from consortium.merging.merge import MergeInput
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint, TensorFile

LIMITS = {"norm_max": 0.5, "tensor_norm_max": 2.0, "bytes_max": 10_000}


@pytest.fixture
def judge(base_dir: Path) -> Callable[..., Inspection]:
    def inspected(item: MergeInput, **limits: Any) -> Inspection:
        with Checkpoint(base_dir) as base:
            found = inspect(base, item.path, item.ref, **(LIMITS | limits))
            assert inspect(base, item.path, item.ref, norms=base_norms(base), **(LIMITS | limits)) == found
        canonical.encode(found)  # can be written to the ledger
        return found

    return inspected


def as_sent(path: Path) -> MergeInput:
    """A file whose manifest is honest about its bytes."""
    return MergeInput(path, ref_of(path), 1)


def altered(item: MergeInput, path: Path, **changes: np.ndarray | None) -> MergeInput:
    with TensorFile(item.path) as file:
        tensors = {name: file.array(name) for name in file} | changes
    kept = {name: np.asarray(array) for name, array in tensors.items() if array is not None}
    with TensorWriter(path, {name: array.shape for name, array in kept.items()}, "F32") as writer:
        for name, array in kept.items():
            writer.write(name, 0, array.reshape(-1))
    return as_sent(path)


def test_an_honest_delta_is_admitted_with_its_norms(
    base_values: dict, delta: Callable, judge: Callable
) -> None:
    item = delta(1)
    found = judge(item)
    with TensorFile(item.path) as file:
        everything = np.concatenate([file.array(name).reshape(-1) for name in file])
    base = np.concatenate([array.reshape(-1) for array in base_values.values()])
    assert found.ok, found.reason
    assert found.norm == pytest.approx(np.linalg.norm(everything), rel=1e-6)
    assert found.base_norm == pytest.approx(np.linalg.norm(base), rel=1e-6)
    shares = [worst.norm / worst.base_norm for worst in found.worst]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)


def test_a_delta_too_large_as_a_whole_or_in_one_tensor(
    tmp_path: Path, delta: Callable, judge: Callable
) -> None:
    assert "exceeds 0.5 of the base's" in judge(delta(1, scale=1.0)).reason
    bias = altered(delta(2), tmp_path / "bias", **{"layer.bias": np.full(5, 2.0)})
    found = judge(bias, norm_max=10.0)
    assert not found.ok
    assert "tensor 'layer.bias' has norm 4.472, which exceeds 2 of" in found.reason
    assert found.worst[0].name == "layer.bias"
    assert judge(bias, norm_max=10.0, tensor_norm_max=1000.0).ok


def test_one_wild_element_is_named_where_no_norm_is_limited(
    tmp_path: Path, delta: Callable, judge: Callable
) -> None:
    """In a seed round, whose merge would refuse all contributions because of it."""
    unlimited = {"norm_max": np.inf, "tensor_norm_max": np.inf}
    large = np.zeros(5)
    large[[1, 3]] = 700.0, -ELEMENT_MAX
    assert judge(altered(delta(1), tmp_path / "large", **{"layer.bias": large}), **unlimited).ok
    large[3] = -1025.0
    found = judge(altered(delta(1), tmp_path / "wild", **{"layer.bias": large}), **unlimited)
    assert not found.ok
    assert "element 3 of 'layer.bias' is -1025, larger than 1024" in found.reason


def test_what_is_not_as_the_manifest_or_the_job_says(
    tmp_path: Path, delta: Callable, judge: Callable
) -> None:
    item = delta(1)
    assert "exceed the 99 that the campaign admits" in judge(item, bytes_max=99).reason
    assert "tensor 'embed' is BF16, the job asked for fp32" in judge(item, encoding="fp32").reason
    assert "its manifest says" in judge(replace(item, ref=delta(2).ref)).reason


def test_bad_tensors_are_named(tmp_path: Path, delta: Callable, judge: Callable) -> None:
    def reason(**changes: np.ndarray | None) -> str:
        found = judge(altered(delta(1), tmp_path / "bad", **changes))
        assert not found.ok
        return found.reason

    assert "tensor 'embed' is nan at element 20" in reason(embed=np.array([[0.0] * 3] * 6 + [[0, 0, np.nan]]))
    assert "tensor 'scale' is inf at element 0" in reason(scale=np.array(np.inf))
    assert "tensor 'layer.bias' has shape [6], the base [5]" in reason(**{"layer.bias": np.zeros(6)})
    assert "tensor 'layer.bias' is missing" in reason(**{"layer.bias": None})
    assert "tensor 'extra' is not in the base" in reason(extra=np.zeros(1))


def with_header(item: MergeInput, path: Path, change: Callable[[bytes], bytes]) -> MergeInput:
    data = item.path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = change(data[8 : 8 + length])
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return as_sent(path)


def test_bad_files_are_named(tmp_path: Path, delta: Callable, judge: Callable) -> None:
    def reason(change: Callable[[bytes], bytes]) -> str:
        found = judge(with_header(delta(1), tmp_path / "bad", change), bytes_max=1 << 30)
        assert not found.ok
        return found.reason

    assert "exceeds the 81920 allowed" in reason(lambda header: header + b" " * 100_000)
    assert "'layer.bias' overlaps 'embed'" in reason(lambda h: h.replace(b"[42,52]", b"[40,50]"))
    assert "'embed' is written twice" in reason(lambda h: h.replace(b'"layer.bias"', b'"embed"'))
    assert "not a JSON header" in reason(lambda header: header.replace(b":", b";", 1))
    (tmp_path / "short").write_bytes(delta(1).path.read_bytes()[:-1])
    assert "its tensors end at byte" in judge(as_sent(tmp_path / "short")).reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_never_passes_and_never_crashes(
    data: st.DataObject, tmp_path: Path, delta: Callable, judge: Callable
) -> None:
    item = delta(1)
    honest = bytearray(item.path.read_bytes())
    at = data.draw(st.integers(0, 8 * len(honest) - 1))
    honest[at // 8] ^= 1 << at % 8
    (tmp_path / "flipped").write_bytes(honest)
    found = judge(replace(item, path=tmp_path / "flipped"))
    assert not found.ok
    assert "its manifest says" in found.reason
    judge(as_sent(tmp_path / "flipped"))  # signed as it is: a verdict either way
