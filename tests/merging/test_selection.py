"""The boundary of a tensor's top: exactly k elements, whatever the tensor, the ties and the chunks."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consortium.merging import selection
from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, keep_window
from consortium.merging.selection import top_boundary
from consortium.tensors import F32Array


class Tensor:
    """A tensor to read from, and how much was read."""

    def __init__(self, x_N: F32Array) -> None:
        self.x_N, self.num_read = x_N, 0

    def read(self, start: int, out_N: F32Array) -> None:
        assert 0 <= start <= start + out_N.size <= self.x_N.size
        out_N[:] = self.x_N[start : start + out_N.size]
        self.num_read += out_N.size


def sorted_boundary(x_N: F32Array, k: int) -> Boundary:
    """By a plain sort: key descending, index ascending."""
    if k in (0, x_N.size):
        return EVERYTHING if k else NOTHING
    keys_N = x_N.view(np.int32).astype(np.int64) & 0x7FFFFFFF
    order_N = np.argsort(-keys_N, kind="stable")
    last, beyond = order_N[k - 1], order_N[k]
    index = last if keys_N[last] == keys_N[beyond] else EVERYTHING.index
    return Boundary(int(keys_N[last]), int(index))


def in_bf16(x_N: F32Array) -> F32Array:
    return (x_N.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def normal(count: int, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def of_growing_rows(count: int) -> F32Array:
    """Like an embedding whose later tokens were never seen: scales from 1 down to 1e-6."""
    return (normal(count) * np.logspace(0, -6, count)).astype(np.float32)


def burst(count: int) -> F32Array:
    """All that is large lies between the slices of the sample."""
    x_N = np.zeros(count, np.float32)
    x_N[3000:60000] = normal(57000) + 3
    return x_N


MANY = 1_200_000
TENSORS: dict[str, Callable[[], F32Array]] = {
    "normal": lambda: normal(MANY),
    "bfloat16": lambda: in_bf16(normal(MANY)),
    "difference of bfloat16": lambda: (
        in_bf16(normal(MANY) + normal(MANY, 1) / 10) - in_bf16(normal(MANY))
    ).astype(np.float32),
    "constant": lambda: np.full(MANY, -0.5, np.float32),
    "zero": lambda: np.zeros(MANY, np.float32),
    "zeros of both signs": lambda: np.where(normal(MANY) > 0, 0.0, -0.0).astype(np.float32),
    "nearly all zero": lambda: np.where(normal(MANY) > 2, normal(MANY, 1), 0.0).astype(np.float32),
    "growing rows": lambda: of_growing_rows(MANY),
    "burst": lambda: burst(MANY),
    "huge and tiny": lambda: np.where(normal(MANY) > 0, 3e38, 1e-45).astype(np.float32),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_plain_sort_agrees(name: str) -> None:
    x_N = TENSORS[name]()
    for k in (0, 1, 2, 57_000, MANY // 5, MANY // 2, int(0.93 * MANY), MANY - 1, MANY):
        assert top_boundary(Tensor(x_N).read, MANY, k) == sorted_boundary(x_N, k), k


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.one_of(
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.sampled_from([0.0, -0.0, 1.0, -1.0]),
        ),
    ),
    st.data(),
)
def test_exactly_k_remain_of_any_small_tensor(x_N: F32Array, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, x_N.size))
    chunk = data.draw(st.integers(1, 64))

    top = top_boundary(Tensor(x_N).read, x_N.size, k, chunk)

    assert top == sorted_boundary(x_N, k)
    marks_N = np.arange(1, x_N.size + 1, dtype=np.float32)
    keys_N = x_N.view(np.uint32) & np.uint32(0x7FFFFFFF)
    kept_N = x_N.copy()
    keep_window(kept_N, 0, top, NOTHING)
    order_N = np.lexsort((marks_N, -keys_N.astype(np.int64)))
    expected_N = np.zeros_like(x_N)
    expected_N[order_N[:k]] = x_N[order_N[:k]]
    assert kept_N.tobytes() == expected_N.tobytes()


@pytest.mark.parametrize("chunk", [1000, 4096, 65536, 2_000_000])
def test_chunks_do_not_matter(chunk: int) -> None:
    x_N = TENSORS["difference of bfloat16"]()
    assert top_boundary(Tensor(x_N).read, MANY, 123_457, chunk) == sorted_boundary(x_N, 123_457)


@pytest.mark.parametrize(
    ("name", "reads_max"), [("normal", 1.4), ("difference of bfloat16", 1.4), ("growing rows", 2.4)]
)
def test_what_can_be_expected_needs_one_pass(name: str, reads_max: float) -> None:
    tensor = Tensor(TENSORS[name]())
    top_boundary(tensor.read, MANY, MANY // 5)
    assert tensor.num_read <= reads_max * MANY


def test_a_sample_that_misleads_costs_two_more_passes_and_no_bit() -> None:
    tensor = Tensor(burst(MANY))
    assert top_boundary(tensor.read, MANY, 20_000) == sorted_boundary(tensor.x_N, 20_000)
    assert 2 * MANY < tensor.num_read <= 3.4 * MANY


def test_a_vague_sample_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    x_N = in_bf16(normal(MANY))
    monkeypatch.setattr(selection, "_ERRORS", 1e9)
    assert top_boundary(Tensor(x_N).read, MANY, 300_001) == sorted_boundary(x_N, 300_001)
