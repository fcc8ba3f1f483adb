"""The boundaries of rows' tops: exactly k elements, whatever the rows, the ties, the chunks and the threads."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consortium.merging import selection
from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, keep_window
from consortium.merging.selection import top_boundaries
from consortium.tensors import F32Array


class Tensor:
    """Rows to read from, and how many elements were read of each."""

    def __init__(self, *rows: F32Array) -> None:
        self.rows, self.num_read = rows, Counter[int]()

    def read(self, row: int, start: int, size: int) -> F32Array:
        assert 0 <= start < start + size <= self.rows[row].size
        self.num_read[row] += size
        return self.rows[row][start : start + size].copy()


@pytest.fixture(scope="module", params=[1, 2, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(request.param) as threads:
        yield threads


@pytest.fixture(scope="module")
def alone() -> Iterator[ThreadPoolExecutor]:
    """One thread, so that reads can be counted."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def by_sorting(tensor: Tensor, wanted: Sequence[Sequence[int]]) -> list[list[Boundary]]:
    return [[sorted_boundary(x_N, k) for k in ks] for x_N, ks in zip(tensor.rows, wanted, strict=True)]


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


KS = (0, 1, 2, 57_000, MANY // 5, MANY // 2, int(0.93 * MANY), MANY - 1, MANY)


@pytest.mark.parametrize("name", TENSORS)
def test_a_plain_sort_agrees(name: str, alone: ThreadPoolExecutor) -> None:
    tensor = Tensor(TENSORS[name]())
    expected = by_sorting(tensor, [KS])
    assert top_boundaries(tensor.read, MANY, [KS], alone) == expected
    assert [top_boundaries(tensor.read, MANY, [[k]], alone)[0][0] for k in KS] == expected[0]


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
def test_exactly_k_remain_of_any_small_tensor(
    alone: ThreadPoolExecutor, x_N: F32Array, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, x_N.size))
    others = data.draw(st.lists(st.integers(0, x_N.size), max_size=3))

    [[top, *rest], backwards] = top_boundaries(
        Tensor(x_N, x_N[::-1]).read, x_N.size, [[k, *others], others], alone
    )

    assert [top, *rest] == [sorted_boundary(x_N, one) for one in (k, *others)]
    assert backwards == [sorted_boundary(x_N[::-1].copy(), one) for one in others]
    marks_N = np.arange(1, x_N.size + 1, dtype=np.float32)
    keys_N = x_N.view(np.uint32) & np.uint32(0x7FFFFFFF)
    kept_N = x_N.copy()
    keep_window(kept_N, 0, top, NOTHING)
    order_N = np.lexsort((marks_N, -keys_N.astype(np.int64)))
    expected_N = np.zeros_like(x_N)
    expected_N[order_N[:k]] = x_N[order_N[:k]]
    assert kept_N.tobytes() == expected_N.tobytes()


def test_rows_of_every_kind_are_settled_together(pool: ThreadPoolExecutor) -> None:
    tensor = Tensor(*(make() for make in TENSORS.values()))
    wanted = [[MANY // 5, k, MANY // 5] for k in range(0, MANY, MANY // (len(TENSORS) - 1))]
    assert top_boundaries(tensor.read, MANY, wanted, pool) == by_sorting(tensor, wanted)


@pytest.mark.parametrize("count", [1, 2, (1 << 17) - 1, 1 << 17, (1 << 17) + 1])
def test_held_or_streamed_is_the_same(count: int, alone: ThreadPoolExecutor) -> None:
    tensor = Tensor(in_bf16(normal(count)), np.ones(count, np.float32))
    wanted = [[count // 3, count - 1, 0, count]] * 2
    assert top_boundaries(tensor.read, count, wanted, alone) == by_sorting(tensor, wanted)


def test_no_rows_or_no_elements(alone: ThreadPoolExecutor) -> None:
    empty = np.empty(0, np.float32)
    assert top_boundaries(Tensor().read, MANY, [], alone) == []
    assert top_boundaries(Tensor(empty).read, 0, [[0]], alone) == [[NOTHING]]


@pytest.mark.parametrize("chunk", [1000, 4096, 65536, 2_000_000])
def test_chunks_and_threads_do_not_matter(chunk: int, pool: ThreadPoolExecutor) -> None:
    tensor, wanted = Tensor(TENSORS["difference of bfloat16"]()), [[123_457, 1234]]
    assert top_boundaries(tensor.read, MANY, wanted, pool, chunk) == by_sorting(tensor, wanted)


@pytest.mark.parametrize(
    ("name", "reads_max"), [("normal", 1.4), ("difference of bfloat16", 1.4), ("growing rows", 2.4)]
)
def test_what_can_be_expected_needs_one_pass(name: str, reads_max: float, alone: ThreadPoolExecutor) -> None:
    tensor = Tensor(*[TENSORS[name]()] * 3)
    top_boundaries(tensor.read, MANY, [[MANY // 5, MANY // 100]] * 3, alone)
    assert max(tensor.num_read.values()) <= reads_max * MANY


def test_a_sample_that_misleads_costs_two_more_passes_and_no_bit(alone: ThreadPoolExecutor) -> None:
    tensor, wanted = Tensor(burst(MANY), normal(MANY)), [[20_000], [20_000]]
    assert top_boundaries(tensor.read, MANY, wanted, alone) == by_sorting(tensor, wanted)
    assert 2 * MANY < tensor.num_read[0] <= 3.4 * MANY
    assert tensor.num_read[1] <= 1.4 * MANY


def test_few_counters_take_rows_in_turn(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    """As with many rows: neither counters nor samples of all fit."""
    tensor = Tensor(*(in_bf16(normal(MANY, row)) for row in range(5)))
    wanted = [[MANY // 5 + row, MANY // 100] for row in range(5)]
    monkeypatch.setattr(selection, "_COUNTERS", 1 << 20)
    monkeypatch.setattr(selection, "_SAMPLES", 1 << 17)
    assert top_boundaries(tensor.read, MANY, wanted, pool) == by_sorting(tensor, wanted)


def test_a_vague_sample_is_no_harm(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    tensor, wanted = Tensor(in_bf16(normal(MANY))), [[300_001, 5]]
    monkeypatch.setattr(selection, "_ERRORS", 1e9)
    assert top_boundaries(tensor.read, MANY, wanted, pool) == by_sorting(tensor, wanted)
